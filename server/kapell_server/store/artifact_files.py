"""The bytes of artifacts: one file each, below a directory of its task, named by ids alone.

While it is uploaded a file has a second one beside it, `.parts`: the end and the CRC of each
chunk. Chunk and part are on the disk (fdatasync) before the chunk is answered. A crash can leave
a chunk or a part half written; it was never answered, and is cut off when the upload is found
again: back to the last part whose chunk is whole.

Everything here blocks and runs in threads; one thing at a time is done to one upload.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kapell.v1.artifact_pb2 import ARTIFACT_STATE_READY
from kapell.v1.error_pb2 import ERROR_REASON_STORAGE_FULL

from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.artifact import artifact_not_found, offset_gap, state_conflict

_PART = struct.Struct(">QII")
"""End of the chunk, its length, its CRC."""
_BLOCK = 1024 * 1024
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ArtifactFiles:
    """The files below `root`, of which at least `free_bytes` of the disk stay free."""

    def __init__(self, root: Path, *, free_bytes: int) -> None:
        self._root = root
        self._free_bytes = free_bytes
        self._making = threading.Lock()

    def path(self, task_id: str, artifact_id: str) -> Path:
        """Where the bytes of an artifact are, or will be."""
        assert _ID.fullmatch(artifact_id), f"{artifact_id!r} is no artifact id"
        return self._directory(task_id) / artifact_id

    def read(self, task_id: str, artifact_id: str, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes from `offset`. Raises ARTIFACT_NOT_FOUND where the file is gone."""
        try:
            with self.path(task_id, artifact_id).open("rb") as file:
                return os.pread(file.fileno(), limit, offset)
        except FileNotFoundError:
            raise artifact_not_found(artifact_id) from None

    def remove(self, task_id: str, artifact_id: str) -> None:
        """Removes an artifact's files; nothing happens where there are none."""
        path = self.path(task_id, artifact_id)
        for file in (path, _parts_of(path)):
            file.unlink(missing_ok=True)
        with self._making, suppress(OSError):  # Mostly others of the task are still there.
            path.parent.rmdir()

    def make(self, path: Path) -> None:
        """Makes an empty file and the directories above it; they are on the disk."""
        with self._making:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        for directory in [*path.parents][:4]:
            _sync_directory(directory)

    def size(self, task_id: str, artifact_id: str) -> int:
        """How many bytes the file has now, more than are safe among them; 0 where there is none."""
        try:
            return self.path(task_id, artifact_id).stat().st_size
        except FileNotFoundError:
            return 0

    def any_of(self, task_id: str) -> bool:
        """Whether there may be files of the task."""
        return self._directory(task_id).exists()

    def remove_task(self, task_id: str) -> None:
        """Removes the files of all artifacts of a task."""
        shutil.rmtree(self._directory(task_id), ignore_errors=True)

    def all_ids(self) -> Iterator[tuple[str, str]]:
        """Task and artifact of every file there is."""
        for spread in _entries(self._root):
            for directory in _entries(spread):
                for name in sorted({entry.name.removesuffix(".parts") for entry in _entries(directory)}):
                    if _ID.fullmatch(name) and _ID.fullmatch(directory.name):
                        yield directory.name, name

    def check_free(self, more: int) -> None:
        """Whether the disk takes so many bytes more. Raises STORAGE_FULL."""
        place = self._root if self._root.is_dir() else self._root.parent
        state = os.statvfs(place)
        free = state.f_bavail * state.f_frsize
        if free < more + self._free_bytes:
            raise KapellError(
                ERROR_REASON_STORAGE_FULL,
                f"Nothing was written: the disk of the data directory has {free:,} bytes left, and"
                f" {self._free_bytes:,} are kept for the database. Free some space and go on.",
            )

    def _directory(self, task_id: str) -> Path:
        assert _ID.fullmatch(task_id), f"{task_id!r} is no task id"
        # Spread, because a directory with a million entries is slow to work with.
        return self._root / hashlib.blake2b(task_id.encode(), digest_size=1).hexdigest() / task_id


class Upload:
    """The file of an artifact that is being uploaded. `end` is how many bytes are safe; any thread may read it."""

    def __init__(self, files: ArtifactFiles, task_id: str, artifact_id: str, announced: int | None) -> None:
        self.artifact_id = artifact_id
        self.task_id = task_id
        self.announced = announced
        """The size its writer has announced, if any."""
        self.end = 0
        self._parts = 0
        self._files = files
        self._path = files.path(task_id, artifact_id)
        self._lock = threading.Lock()
        self._sealed = ""
        self._dropped = False

    def recover(self) -> int:
        """Finds the end of what was answered before this process began, and cuts off the rest; the end."""
        with self._lock:
            try:
                parts = _parts_of(self._path).read_bytes()
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                return 0
            try:
                whole = _last_whole(descriptor, parts)
                self.end = _PART.unpack_from(parts, (whole - 1) * _PART.size)[0] if whole else 0
                self._parts = whole * _PART.size
                os.ftruncate(descriptor, self.end)
            finally:
                os.close(descriptor)
            os.truncate(_parts_of(self._path), self._parts)
            return self.end

    def write(self, offset: int, data: bytes) -> int:
        """Adds the part of `data` that lies beyond the end; the new end, which is on the disk.

        Raises ARTIFACT_OFFSET_GAP, ARTIFACT_STATE_CONFLICT, ARTIFACT_NOT_FOUND and STORAGE_FULL; the
        file is then as it was.
        """
        with self._lock:
            self._check_open()
            if self._sealed:
                raise state_conflict(self.artifact_id, ARTIFACT_STATE_READY)
            if offset > self.end:
                raise offset_gap(self.artifact_id, offset, self.end)
            new = data[self.end - offset :]
            if not new:
                return self.end
            self._files.check_free(len(new))
            end = self.end + len(new)
            try:
                if not self.end:
                    self._files.make(self._path)
                _append(self._path, new, self.end)
                _append(_parts_of(self._path), _PART.pack(end, len(new), zlib.crc32(new)), self._parts)
                if not self.end:
                    _sync_directory(self._path.parent)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise KapellError(
                        ERROR_REASON_STORAGE_FULL,
                        "The chunk was not written: the disk of the data directory is full. Free some space and go on.",
                    ) from error
                raise
            self.end = end
            self._parts += _PART.size
            return end

    def seal(self) -> tuple[int, str]:
        """Size and SHA-256 of the bytes; nothing can be written until `restart`."""
        with self._lock:
            self._check_open()
            if not self._sealed:
                self._sealed = self._digest()
            return self.end, self._sealed

    def restart(self) -> None:
        """Drops all bytes, so that the upload can begin again."""
        with self._lock:
            self._sealed = ""
            self.end = self._parts = 0
            if self._dropped:
                return
            for file in (self._path, _parts_of(self._path)):
                with suppress(FileNotFoundError):
                    os.truncate(file, 0)

    def finish(self) -> None:
        """Once the artifact is READY: only its bytes stay."""
        _parts_of(self._path).unlink(missing_ok=True)

    def drop(self) -> None:
        """Removes the files. Who comes later is told that the artifact is gone."""
        with self._lock:
            self._dropped = True
            self._files.remove(self.task_id, self.artifact_id)

    def _check_open(self) -> None:
        if self._dropped:
            raise artifact_not_found(self.artifact_id)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        if not self.end:
            # An empty file is a file too.
            self._files.make(self._path)
            return digest.hexdigest()
        # Of a chunk whose part could not be written there may be more.
        os.truncate(self._path, self.end)
        left = self.end
        with self._path.open("rb", buffering=0) as file:
            while left and (block := file.read(min(_BLOCK, left))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()


def _parts_of(path: Path) -> Path:
    return path.with_name(path.name + ".parts")


def _last_whole(descriptor: int, parts: bytes) -> int:
    """How many parts count: up to the last one whose chunk is there as it was written."""
    for count in range(len(parts) // _PART.size, 0, -1):
        end, length, checksum = _PART.unpack_from(parts, (count - 1) * _PART.size)
        if 0 < length <= end:
            chunk = os.pread(descriptor, length, end - length)
            if len(chunk) == length and zlib.crc32(chunk) == checksum:
                return count
    return 0


def _append(path: Path, data: bytes, position: int) -> None:
    """Writes `data` at the position, which is the file's end, on the disk. Where that fails it is cut back."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        view, at = memoryview(data), position
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
        os.fdatasync(descriptor)
    except OSError:
        os.ftruncate(descriptor, position)
        raise
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
