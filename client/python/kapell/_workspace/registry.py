"""What is known of worktrees: one file for each, replaced at once, so that a crash leaves the one or the other.

A directory of the registry is an owner, that is a task; a file in it a repository. Who works with the
worktrees of an owner holds its lock, which ends with its process however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

State = Literal["creating", "idle", "working"]

_SUFFIX = ".json"
_LOCK = "lock"


class Damaged(Exception):
    """A file of the registry cannot be read; the text says which, and what to do."""


@dataclass(kw_only=True)
class Record:
    """One worktree. `mark` is written into its git directory too, and proves that the two belong together."""

    mark: str
    task_id: str
    name: str
    state: State
    repository: str
    """As the profile names it."""
    common: str
    """The repository's git directory, without links."""
    common_id: str
    """Its device and inode: another repository in its place is not the same."""
    directory: str
    branch: str
    base_ref: str
    """The branch it is to come into, as refs/heads/…; empty where it was made from a commit that no branch names."""
    base: str
    """The commit it was made from."""
    head: str
    """The commit its branch was at when it was last looked at."""
    attempt: int = 0
    agent_id: str = ""
    dirty: bool = False
    """Whether there is something in the worktree that its branch has not."""
    setup: str = ""
    """What the set-up was last run for; see `commands.key`."""
    check: list[str] = field(default_factory=list)
    check_seconds: float = 0.0
    """0 where nothing was said."""
    rebase: bool = False
    merging: str = ""
    """The commit that the base was to be moved to by a merge that has not said how it ended."""
    merging_head: str = ""
    merged: str = ""
    """The commit of the base that has it; empty where none has."""
    merged_head: str = ""
    """What its branch was then."""
    update_time: float = 0.0

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"


class Registry:
    """The records below one directory. Blocks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = root / "registry"

    def place(self, task_id: str, name: str) -> Path:
        """Where a worktree is put unless its profile says otherwise."""
        return self.root / "trees" / task_id / name

    def scratch(self, task_id: str, name: str) -> Path:
        """Where a merge is made."""
        return self.root / "scratch" / task_id / name

    def owners(self) -> list[str]:
        """Tasks that have worktrees, sorted."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in self._records.iterdir() if entry.is_dir())
        return []

    def of(self, task_id: str) -> list[Record]:
        """The worktrees of a task, by name. Raises Damaged."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            files = sorted((self._records / task_id).iterdir())
            return [_read(file) for file in files if file.suffix == _SUFFIX]
        return []

    def find(self, task_id: str, name: str) -> Record | None:
        """One worktree. Raises Damaged."""
        file = self._file(task_id, name)
        return _read(file) if file.exists() else None

    def put(self, record: Record) -> None:
        """Writes a record, so that it outlives a crash of the machine. Raises OSError."""
        record.update_time = time.time()
        file = self._file(record.task_id, record.name)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = file.with_suffix(f".{os.getpid()}.new")
        with fresh.open("w", encoding="utf-8") as target:
            json.dump(asdict(record), target, indent=1, ensure_ascii=True)
            target.flush()
            os.fsync(target.fileno())
        fresh.replace(file)
        _sync(file.parent)

    def drop(self, record: Record) -> None:
        """Forgets a worktree, which must be gone."""
        file = self._file(record.task_id, record.name)
        file.unlink(missing_ok=True)
        _sync(file.parent)

    @contextlib.contextmanager
    def held(self, task_id: str) -> Iterator[bool]:
        """The lock of an owner, for the length of the block; False where somebody else has it."""
        directory = self._records / task_id
        descriptor = _locked(directory / _LOCK)
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            if [entry.name for entry in directory.iterdir()] == [_LOCK]:
                (directory / _LOCK).unlink()
                directory.rmdir()
            os.close(descriptor)

    def _file(self, task_id: str, name: str) -> Path:
        return self._records / task_id / f"{name}{_SUFFIX}"


def _locked(file: Path) -> int | None:
    """The lock file, open and locked; None where somebody else has it."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it before we got it: then it protects nothing.
            if _is_same(descriptor, file):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)


def _is_same(descriptor: int, file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def _read(file: Path) -> Record:
    known = {one.name for one in fields(Record)}
    try:
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Record(**{name: value for name, value in told.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{file} cannot be read: {error} - look at the worktree it is about, then remove it") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
