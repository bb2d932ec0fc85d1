"""From files to lock paths: `web/src/a.py` for src/a.py of the repository web.

The name of a repository is that of its main checkout's directory, also in a worktree, so that all
worktrees of a repository share its locks. A submodule is a directory of the repository that it is in, whether one
works in it or beside it. Files are taken as where they lie and, through symbolic
links, as what they are: both need a lock where they differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kapell._locks import paths


class Outside(Exception):
    """A file that lies in no part of the workspace; the text names it."""


class NoWorkspace(Exception):
    """Nobody can say which lock paths files have; the text says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """A directory and the lock path that stands for it."""

    directory: str
    """Without symbolic links."""
    prefix: str

    def lock_paths(self, file: str, cwd: str) -> set[str]:
        """The lock paths that a change of the file needs. Raises Outside."""
        absolute = os.path.join(cwd or self.directory, file)  # noqa: PTH118 - ".." must stay for realpath
        places = {os.path.realpath(absolute)}
        head, name = os.path.split(absolute)
        if name not in ("", ".", ".."):
            places.add(os.path.join(os.path.realpath(head), name))  # noqa: PTH118
        return {self._lock_path(place) for place in places}

    def lock_path_of(self, relative: str) -> str:
        """The lock path of a file that is named from the workspace's directory on, as git does."""
        return paths.nearest(self.prefix, relative.split("/"))

    def _lock_path(self, place: str) -> str:
        if place == self.directory:
            return self.prefix
        below = place.removeprefix(self.directory.rstrip("/") + "/")
        if below == place:
            raise Outside(f"{place} is outside of {self.directory}")
        return self.lock_path_of(below)


def find(*, root: str | None, prefix: str | None, cwd: str) -> Workspace:
    """The workspace: `root`, or the repository that `cwd` is in; its lock path: `prefix`, or its name.

    Raises NoWorkspace.
    """
    start = Path(os.path.realpath(root or cwd or "."))
    if not start.is_dir():
        raise NoWorkspace(f"{start} is no directory")
    directory = start if root else repository(start)
    if directory is None:
        raise NoWorkspace(f"{start} is in no git repository - say which directory is meant by --root, and its --prefix")
    try:
        return Workspace(directory=str(directory), prefix=paths.canonical(prefix or prefix_of(directory)))
    except ValueError as error:
        raise NoWorkspace(f"{error} - say by --prefix which lock path stands for {directory}") from None


def repository(start: Path) -> Path | None:
    """The top of the git repository or worktree that a directory is in."""
    for directory in (start, *start.parents):
        if (directory / ".git").exists():
            return directory
    return None


def prefix_of(top: Path) -> str:
    """The lock path that stands for a repository: its name, below that of the repository of which it is a submodule."""
    above = repository(top.parent) if _is_submodule(top / ".git") else None
    if above is None:
        return name_of(top)
    return paths.nearest(prefix_of(above), list(top.relative_to(above).parts))


def name_of(top: Path) -> str:
    """The name of a repository, which its worktrees share."""
    common = _common_directory(top / ".git")
    return top.name if common is None else name_of_common(common)


def name_of_common(common: Path) -> str:
    """The name of a repository by its git directory, without links."""
    return common.parent.name if common.name == ".git" else common.name.removesuffix(".git")


def _is_submodule(git: Path) -> bool:
    """Whether the git directory is kept in that of another repository."""
    try:
        if not git.is_file():
            return False
        told = git.read_text(encoding="utf-8", errors="surrogateescape").removeprefix("gitdir:").strip()
        own = (git.parent / told).resolve()
        return not (own / "commondir").exists() and "modules" in own.parts
    except OSError:
        return False


def _common_directory(git: Path) -> Path | None:
    """Where the git directory of a worktree says the repository itself is; None for a plain checkout."""
    try:
        if not git.is_file():
            return None
        told = git.read_text(encoding="utf-8", errors="surrogateescape").removeprefix("gitdir:").strip()
        own = (git.parent / told).resolve()
        return (own / (own / "commondir").read_text(encoding="utf-8", errors="surrogateescape").strip()).resolve()
    except OSError:
        return None
