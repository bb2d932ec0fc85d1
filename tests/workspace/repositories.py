"""Real repositories to work in, without anything of the machine's configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_NAME": "Ann" for who in ("AUTHOR", "COMMITTER")},
    **{f"GIT_{who}_EMAIL": "ann@example.com" for who in ("AUTHOR", "COMMITTER")},
}


def git(directory: Path, *args: str) -> str:
    """What git prints, without the last line break; fails with what it says."""
    done = subprocess.run(["git", *args], cwd=directory, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, (args, done.stderr.decode())
    return os.fsdecode(done.stdout).removesuffix("\n")


def write(directory: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def commit(directory: Path, files: Mapping[str, str | bytes], message: str = "Change") -> str:
    """Commits files in a checkout; the commit."""
    write(directory, files)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "-m", message)
    return git(directory, "rev-parse", "HEAD")


def repository(directory: Path, files: Mapping[str, str | bytes] | None = None) -> Path:
    """A repository with one commit on main."""
    directory.mkdir(parents=True)
    git(directory, "init", "--quiet", "--initial-branch=main")
    commit(directory, files or {"README.md": "# Shop\n", "src/a.py": "a = 1\n", "src/b.py": "b = 1\n"}, "First")
    return directory


def show(directory: Path, name: str) -> str:
    """What a revision:path holds."""
    return git(directory, "show", name)
