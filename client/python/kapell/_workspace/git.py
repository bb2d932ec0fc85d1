"""git as a program: argv and never a shell, the same whatever environment and configuration say.

No prompt, no editor, no hook, no signature, no variable GIT_* of the caller: a worktree of Kapell is not the place
where somebody's shell stands. (`kapell._guard.staged` is the contrary: it runs inside of a hook, and asks as git was
asked.)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from kapell.runtimes._setup import inherited

_T = TypeVar("_T")

SECONDS = 300.0
"""What one command may take: a checkout of a large repository takes minutes."""

_OPTIONS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.quotePath": "false",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "merge.autoStash": "false",
    "rebase.autoStash": "false",
    "rebase.autoSquash": "false",
    "rebase.updateRefs": "false",
    "rerere.enabled": "false",
    "log.showSignature": "false",
    "core.safecrlf": "false",
    "submodule.recurse": "false",
    "advice.detachedHead": "false",
}
_HINTS = (
    ("No space left on device", "the disk is full - make room, then try again", True),
    ("not a git repository", "it is no git repository - correct the path, or make one with git init", False),
    ("dubious ownership", "it belongs to another user - run as that user, or set safe.directory", False),
    (".lock': File exists", "another git is at work in it, or has crashed - wait, or remove the file", True),
)


class GitFailed(Exception):
    """git did not do it; the text says what, why and what to do."""

    def __init__(self, text: str, *, is_passing: bool = False) -> None:
        super().__init__(text)
        self.is_passing = is_passing
        """Whether the same may succeed later."""


class Git:
    """git in one directory. Blocks."""

    def __init__(self, directory: str | Path, identity: Mapping[str, str] | None = None) -> None:
        """`identity` are variables GIT_AUTHOR_… and GIT_COMMITTER_… for what makes commits."""
        self.directory = Path(directory)
        self._identity = dict(identity or {})

    def __call__(self, *args: str, timeout: float = SECONDS) -> str:
        """What git prints. Raises GitFailed."""
        done = self._run(args, timeout)
        if done.returncode:
            raise _failed(self.directory, args, os.fsdecode(done.stderr))
        return os.fsdecode(done.stdout)

    def line(self, *args: str) -> str:
        """The one line that git prints. Raises GitFailed."""
        return self(*args).removesuffix("\n")

    def names(self, *args: str) -> list[str]:
        """What git prints with NUL between. Raises GitFailed."""
        return [name for name in self(*args).split("\0") if name]

    def holds(self, *args: str) -> bool:
        """What git answers by its exit code: 0 yes, 1 no. Raises GitFailed for all others."""
        done = self._run(args, SECONDS)
        if done.returncode not in (0, 1):
            raise _failed(self.directory, args, os.fsdecode(done.stderr))
        return done.returncode == 0

    def commit(self, name: str) -> str | None:
        """The id of the commit that a name means; None where it means none. Raises GitFailed."""
        done = self._run(("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"), SECONDS)
        if done.returncode == 0:
            return os.fsdecode(done.stdout).strip()
        if done.returncode == 1 or b"Needed a single revision" in done.stderr or not done.stderr:
            return None
        raise _failed(self.directory, ("rev-parse",), os.fsdecode(done.stderr))

    def write(self, file: Path, most: int, *args: str) -> bool:
        """Writes what git prints into a file; False, and no file, where it has more than `most` bytes.

        Raises GitFailed.
        """
        with tempfile.TemporaryFile() as errors, file.open("wb") as target, self._start(args, errors) as process:
            assert process.stdout is not None
            watchdog = threading.Timer(SECONDS, process.kill)
            watchdog.start()
            left = most
            while left >= 0 and (chunk := process.stdout.read(1 << 16)):
                left -= len(chunk)
                target.write(chunk)
            if left < 0:
                process.kill()
            code = process.wait()
            watchdog.cancel()
            errors.seek(0)
            said = os.fsdecode(errors.read(1 << 16))
        if left >= 0 and code == 0:
            return True
        file.unlink()
        if left >= 0:
            raise _failed(self.directory, args, said)
        return False

    def _run(self, args: Sequence[str], timeout: float) -> subprocess.CompletedProcess[bytes]:
        with self._start(args, subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                text = f"git {args[0]} in {self.directory} took longer than {timeout:g} s - try again later"
                raise GitFailed(text, is_passing=True) from None
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def _start(self, args: Sequence[str], errors: int | IO[bytes]) -> subprocess.Popen[bytes]:
        if not self.directory.is_dir():
            raise GitFailed(f"{self.directory} is no directory - correct the path")
        options = [part for name, value in _OPTIONS.items() for part in ("-c", f"{name}={value}")]
        try:
            return subprocess.Popen(
                ["git", *options, *args],
                cwd=self.directory,
                env=environment() | self._identity,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except FileNotFoundError:
            raise GitFailed("git is not installed - install it, and start the agent anew") from None
        except (OSError, ValueError) as error:
            raise GitFailed(f"git {args[0]} in {self.directory} could not be started: {error}") from error


def environment() -> dict[str, str]:
    """What git is run with: what programs inherit, and no question to anybody."""
    return {
        **inherited(os.environ),
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_EDITOR": "true",
        "GIT_OPTIONAL_LOCKS": "0",
    }


def identity(name: str, at: str) -> dict[str, str]:
    """The variables that make `name` author and committer. `at` is the part of the address before the @."""
    email = f"{at}@kapell.invalid"
    return {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email))
    }


async def in_thread(work: Callable[..., _T], *args: Any) -> _T:
    """As asyncio.to_thread, but cancelled it still waits: git must not go on once the lock is given back."""
    working = asyncio.create_task(asyncio.to_thread(work, *args), name="git")
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((working,))
        if not working.cancelled():
            working.exception()
        raise


def _failed(directory: Path, args: Sequence[str], said: str) -> GitFailed:
    said = said.strip()
    for sign, hint, is_passing in _HINTS:
        if sign in said:
            named = f" ({said.partition(chr(10))[0][:300]})" if is_passing else ""
            return GitFailed(f"git {args[0]} in {directory} failed: {hint}{named}", is_passing=is_passing)
    told = said.removeprefix("fatal: ").removeprefix("error: ")[:1000] or "it said nothing"
    return GitFailed(f"git {args[0]} in {directory} failed: {told}")
