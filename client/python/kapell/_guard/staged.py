"""What a commit would change, and the pre-commit hook that asks for leave.

A rename is the end of one path and the beginning of another, so both count. Names come from git
with NUL between them and are never unquoted.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HOOK = "pre-commit"
KEPT = "pre-commit.before-kapell"
_MARK = "# Written by `kapell lock guard --install`."
_STAGED = ("diff", "--cached", "--name-only", "-z", "--no-renames", "--no-ext-diff", "--ignore-submodules=none")


class GitFailed(Exception):
    """git could not be asked; the text says why."""


def git(directory: str, *args: str) -> str:
    """What a git command prints. Raises GitFailed."""
    try:
        done = subprocess.run(["git", "-C", directory, *args], capture_output=True, check=False)
    except OSError as error:
        raise GitFailed(f"git cannot be run: {error}") from error
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise GitFailed(text or f"git {args[0]} exited with code {done.returncode}")
    return os.fsdecode(done.stdout)


def top(directory: str) -> str:
    """The top directory of the checkout. Raises GitFailed."""
    return os.path.realpath(git(directory, "rev-parse", "--show-toplevel").removesuffix("\n"))


def staged(directory: str) -> list[str]:
    """The paths that a commit would change, from the top directory on. Raises GitFailed."""
    return [path for path in git(directory, *_STAGED).split("\0") if path]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hook:
    """Where the hook of a repository is to be, and what is there now."""

    file: Path
    keeps: bool
    """Another hook is there; it is kept as `KEPT` beside it and runs after ours."""
    is_shared: bool
    """The directory is outside of the repository: other repositories use the hook, too."""


def plan(directory: str) -> Hook:
    """What installing would do, by core.hooksPath where it is set. Raises GitFailed."""
    at = top(directory)
    hooks = Path(os.path.realpath(Path(at) / git(at, "rev-parse", "--git-path", "hooks").removesuffix("\n")))
    file = hooks / HOOK
    # A link that leads nowhere is something of somebody's, too.
    is_there = file.exists() or file.is_symlink()
    keeps = is_there and not _is_ours(file)
    if keeps and (hooks / KEPT).exists():
        raise GitFailed(f"both {file} and {hooks / KEPT} are there - remove the one that is not needed")
    inside = (os.path.realpath(Path(at) / git(at, "rev-parse", "--git-common-dir").removesuffix("\n")), at)
    return Hook(file=file, keeps=keeps, is_shared=not any(hooks.is_relative_to(place) for place in inside))


def install(hook: Hook, options: list[str]) -> None:
    """Writes the hook. Raises OSError."""
    hook.file.parent.mkdir(parents=True, exist_ok=True)
    if hook.keeps:
        hook.file.rename(hook.file.with_name(KEPT))
    fresh = hook.file.with_name(f"{HOOK}.{os.getpid()}")
    fresh.write_text(script(options), encoding="utf-8")
    fresh.chmod(0o755)
    fresh.replace(hook.file)


def script(options: list[str]) -> str:
    """The text of the hook. Where kapell is not found the commit is refused."""
    here = shutil.which("kapell") or str(Path(sys.executable).with_name("kapell"))
    return "\n".join(
        [
            "#!/bin/sh",
            _MARK,
            "# Refuses commits of paths whose locks are not held; see `kapell lock guard --help`.",
            f"kapell=$(command -v kapell) || kapell={shlex.quote(here)}",
            f'"$kapell" lock guard {shlex.join(["--git", *options])} || exit $?',
            f'before="$(dirname "$0")/{KEPT}"',
            'if [ -x "$before" ]; then exec "$before" "$@"; fi',
            "",
        ]
    )


def _is_ours(file: Path) -> bool:
    try:
        return _MARK in file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
