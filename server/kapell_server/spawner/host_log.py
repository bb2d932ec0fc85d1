"""The log of a host, as lines with numbers that never change; its oldest part is given up.

The host writes straight to the file and is never asked to cooperate, so nothing is renamed,
copied or truncated under it. To keep a flood from filling the disk `trim` notes in a side file
how many bytes and lines of the head are given up, and then punches a hole into that part: the
file keeps its apparent size and every line its offset, the disk gets its blocks back, and a
crash in between costs nothing. Where the file system knows no holes the log only grows.

Followers look for new lines a few times a second, and only while somebody follows; the host
cannot ring a bell.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LogEntry
from kapell.v1.error_pb2 import ERROR_REASON_LOG_OFFSET_GAP

from kapell_server.domain.errors import KapellError

_log = structlog.get_logger(__name__)

# What is kept of a log that was trimmed; it is trimmed when it has twice as much.
KEEP_BYTES = 8 * 1024 * 1024
PAGE_ENTRIES = 500
PAGE_BYTES = 256 * 1024
LINE_BYTES = 16 * 1024
_CUT = " … (cut)"
_CHUNK = 64 * 1024
# How often a follower looks for more, seconds.
_LOOK_INTERVAL = 0.2

# fallocate(2)
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


@dataclass(frozen=True, slots=True)
class LogPage:
    """Lines in order. `offset` is that of the first; larger than asked for where older ones were given up."""

    offset: int
    entries: list[LogEntry] = field(default_factory=list)

    @property
    def next_offset(self) -> int:
        """Where the next page begins."""
        return self.offset + len(self.entries)


@dataclass(slots=True)
class _Position:
    """A place in the file, always the beginning of a line: how many bytes and lines lie before it."""

    byte: int = 0
    line: int = 0


async def read_log(path: Path, offset: int, limit: int = PAGE_ENTRIES, *, ended: bool = False) -> LogPage:
    """Up to `limit` lines from line `offset` on. A log that does not exist is empty.

    A line without its newline counts only when the host has `ended`. Raises KapellError
    LOG_OFFSET_GAP where the log has fewer lines than `offset`.
    """
    return await asyncio.to_thread(_LogReader(path).page_at, offset, limit, ended)


def last_words(path: Path) -> str:
    """The last line that is not empty, cut at 300 characters; empty where there is none. Blocks."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LINE_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


async def follow_log(
    path: Path, offset: int, ended: asyncio.Event, *, limit: int = PAGE_ENTRIES
) -> AsyncIterator[LogPage]:
    """Pages from line `offset` on, each with at least one line, until `ended` is set and all is read.

    Raises KapellError LOG_OFFSET_GAP where the log has fewer lines than `offset`.
    """
    reader = _LogReader(path)
    page = await asyncio.to_thread(reader.page_at, offset, limit, False)
    while True:
        if page.entries:
            yield page
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_INTERVAL):
                    await ended.wait()
        # Asked before reading: what was written before the end is then surely read.
        last = ended.is_set()
        page = await asyncio.to_thread(reader.next_page, limit, last)
        if last and not page.entries:
            return


class _LogReader:
    """Reads forward and remembers where it is. All methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = _Position()

    def page_at(self, offset: int, limit: int, ended: bool) -> LogPage:
        """The page that begins at line `offset`."""
        self._at = _read_head(self._path)
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at.byte)
            while self._at.line < offset:
                _, length, complete = _read_line(file)
                if not complete:
                    break
                self._at = _Position(self._at.byte + length, self._at.line + 1)
        if self._at.line < offset:
            raise KapellError(
                ERROR_REASON_LOG_OFFSET_GAP,
                f"Cannot read the agent's log from line {offset}: it has {self._at.line} lines."
                f" Ask again with an offset of at most {self._at.line}.",
                metadata={"expected": str(self._at.line)},
            )
        return self.next_page(limit, ended)

    def next_page(self, limit: int, ended: bool) -> LogPage:
        """What follows; empty when nothing does."""
        while True:
            self._skip_hole()
            entries, end = self._parse(limit, ended)
            # A hole punched while we read: what we have may be its zeros.
            if _read_head(self._path).byte > self._at.byte:
                continue
            page = LogPage(self._at.line, entries)
            self._at = _Position(end, page.next_offset)
            return page

    def _skip_hole(self) -> None:
        head = _read_head(self._path)
        if head.byte > self._at.byte:
            self._at = head

    def _parse(self, limit: int, ended: bool) -> tuple[list[LogEntry], int]:
        entries: list[LogEntry] = []
        end = self._at.byte
        size = 0
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(end)
            while len(entries) < limit and size < PAGE_BYTES:
                start, length, complete = _read_line(file)
                if not length or (not complete and not ended):
                    break
                entries.append(_entry(start, length))
                size += len(start)
                end += length
        return entries, end


def _read_line(file: BinaryIO) -> tuple[bytes, int, bool]:
    """The beginning of the next line, its length in the file, and whether it has its newline.

    At the end of the file the length is 0.
    """
    piece = file.readline(_CHUNK)
    start, length = piece[: LINE_BYTES + 1], len(piece)
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(_CHUNK)
        length += len(piece)
    return start, length, piece.endswith(b"\n")


def _entry(start: bytes, length: int) -> LogEntry:
    text = start.decode(errors="replace").rstrip("\r\n")
    if length > len(start) or len(text.encode()) > LINE_BYTES:
        text = text.encode()[: LINE_BYTES - len(_CUT.encode())].decode(errors="ignore") + _CUT
    return LogEntry(stream=LOG_STREAM_STDOUT, text=text)


def trim(path: Path, keep: int = KEEP_BYTES) -> int:
    """Gives up the oldest part of a log that has grown beyond twice `keep` bytes; tells how many bytes. Blocks.

    Safe while the host writes and while others read, but not against another `trim` of the same log.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    head = _read_head(path)
    if size - head.byte <= 2 * keep:
        return 0
    fresh = _Position(head.byte, head.line)
    with path.open("rb") as file:
        file.seek(head.byte)
        while fresh.byte < size - keep:
            _, length, complete = _read_line(file)
            if not complete:
                # One line without an end: it loses its beginning and keeps its number.
                fresh = _Position(size - keep, fresh.line)
                break
            fresh = _Position(fresh.byte + length, fresh.line + 1)
    _write_head(path, fresh)
    _punch(path, fresh.byte)
    return fresh.byte - head.byte


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(path: Path) -> _Position:
    """Where the kept part begins."""
    try:
        return _Position(**json.loads(_head_path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return _Position()


def _write_head(path: Path, head: _Position) -> None:
    fresh = _head_path(path).with_suffix(".new")
    fresh.write_text(json.dumps({"byte": head.byte, "line": head.line}), encoding="utf-8")
    fresh.replace(_head_path(path))


def _punch(path: Path, length: int) -> None:
    """Gives the first `length` bytes of the file back to the disk; they then read as zeros."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        result = libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(length))
        if result != 0:
            _log.warning("cannot shrink an agent's log", path=str(path), error=os.strerror(ctypes.get_errno()))
    finally:
        os.close(fd)
