"""Files that the agent reads and writes through us: those of its working directory, and what its locks allow.

A path is judged by where it really leads, so that neither `..` nor a symbolic link leaves the directory.
"""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from acp.exceptions import RequestError
from acp.schema import ReadTextFileRequest, WriteTextFileRequest

from kapell._guard.workspace import NoWorkspace, Workspace, find
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

MOST_READ_BYTES = 8 * 1024 * 1024


def refused(text: str) -> RequestError:
    """The answer to a request that is not served, in words for the agent."""
    return RequestError(-32602, text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where an attempt works."""

    directory: Path
    """Without symbolic links."""
    is_private: bool
    """Nobody else has files in it."""
    locks: Workspace | None
    """The lock paths of its files; None where nothing says which they are."""

    def inside(self, path: str) -> str:
        """Where a path really leads. Raises RequestError for one that is relative or leads out of the directory."""
        if not path.startswith("/") or "\0" in path:
            raise refused(f"{path!r} is no absolute path")
        real = os.path.realpath(path)
        if real != str(self.directory) and not real.startswith(f"{self.directory}/"):
            raise refused(
                f"{path} is outside of the working directory {self.directory}, which this agent may not leave"
            )
        return real

    def has(self, path: str) -> bool:
        """Whether a path, also a relative one, is in the directory. Blocks."""
        if "\0" in path:
            return False
        real = os.path.realpath(self.directory / os.path.expanduser(path))  # noqa: PTH111 - it may not be expandable
        return real == str(self.directory) or real.startswith(f"{self.directory}/")


def place_of(directory: Path, *, is_private: bool, prefix: str) -> Place:
    """The place of an attempt; `prefix` is the lock path of the directory where no repository tells it. Blocks."""
    real = os.path.realpath(directory)
    locks = None
    if not is_private:
        try:
            locks = find(root=real if prefix else None, prefix=prefix or None, cwd=real)
        except NoWorkspace:
            locks = None
    return Place(directory=Path(real), is_private=is_private, locks=locks)


class Files:
    """Serves fs/read_text_file and fs/write_text_file for one attempt."""

    def __init__(self, attempt: Attempt, place: Place, *, writes: bool) -> None:
        self._attempt = attempt
        self._place = place
        self._writes = writes

    async def read(self, request: ReadTextFileRequest) -> dict[str, Any]:
        real = await asyncio.to_thread(self._place.inside, request.path)
        text = await asyncio.to_thread(_read, real, request.line or 1, request.limit)
        return {"content": text}

    async def write(self, request: WriteTextFileRequest) -> dict[str, Any]:
        if not self._writes:
            raise refused("this agent may not write files: its profile denies it")
        real = await asyncio.to_thread(self._place.inside, request.path)
        reason = await lock_refusal(self._attempt, self._place, request.path)
        if reason:
            self._attempt.log(f"refused to write {request.path}: {reason}", LOG_STREAM_SYSTEM)
            raise refused(f"{request.path} may not be written: {reason}")
        await asyncio.to_thread(_write, real, request.content)
        size = len(request.content.encode(errors="replace"))
        shown = real.removeprefix(f"{self._place.directory}/")
        self._attempt.log(f"wrote {shown}, {size} bytes", LOG_STREAM_SYSTEM)
        return {}


async def lock_refusal(attempt: Attempt, place: Place, file: str = "") -> str:
    """Why a file, or with no name any, may not be changed; empty where it may.

    With locks of its own the task changes what these cover, while they are in force; without any, what nobody
    else has locked.
    """
    if place.is_private:
        return ""
    if place.locks is None:
        if not attempt.locks:
            return ""
        return (
            f"the task has locks, and nothing says which lock path {place.directory} has - "
            "make it a git repository, or set KAPELL_LOCK_PREFIX in the profile's env"
        )
    needed = await asyncio.to_thread(place.locks.lock_paths, file, str(place.directory)) if file else set()
    return await attempt.lock_refusal(needed)


def _read(path: str, line: int, limit: int | None) -> str:
    with _opened(path) as file:
        if line == 1 and limit is None:
            data = file.read(MOST_READ_BYTES + 1)
            if len(data) > MOST_READ_BYTES:
                raise refused(f"{path} has more than {MOST_READ_BYTES} bytes - read a part of it, by line and limit")
            return data.decode(errors="replace")
        found, size = bytearray(), 0
        for number, content in enumerate(iter(lambda: file.readline(MOST_READ_BYTES), b""), 1):
            if limit is not None and number >= line + limit:
                break
            if number >= line:
                size += len(content)
                if size > MOST_READ_BYTES:
                    raise refused(f"these lines of {path} have more than {MOST_READ_BYTES} bytes - read fewer")
                found += content
        return found.decode(errors="replace")


def _opened(path: str) -> IO[bytes]:
    """The file, if it is one: a pipe or a device would never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise RequestError.resource_not_found(path) from None
    except OSError as error:
        raise refused(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused(f"{path} is no file")
    return os.fdopen(descriptor, "rb")


def _write(path: str, content: str) -> None:
    """Replaces what the file holds; directories above it are made."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refused(f"{path} is no file")
            file.truncate()
            file.write(content.encode(errors="replace"))
    except OSError as error:
        raise refused(f"{path} cannot be written: {error.strerror}") from None
