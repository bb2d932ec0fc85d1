"""Logs of task attempts: one append-only file an attempt, beside the database.

A file is a run of entries, each a varint length and an encoded LogEntry; an entry's offset is
how many came before it. An append is on the disk (fdatasync) before it is answered. A crash
can leave half an entry at the end, which was never answered and is cut off at the first use.
Nothing here is an event, so a chatty program costs the event log nothing.

Files are worked on in threads; one append at a time to each attempt. The surprise is that an
append goes on when its caller is cancelled, and is then a repeat when the caller comes again.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from google.protobuf.message import DecodeError
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LOG_STREAM_UNSPECIFIED, LogEntry
from kapell.v1.error_pb2 import (
    ERROR_REASON_LOG_OFFSET_GAP,
    ERROR_REASON_PAYLOAD_TOO_LARGE,
    ERROR_REASON_STORAGE_FULL,
)

from kapell_server.domain.errors import KapellError

P = ParamSpec("P")
R = TypeVar("R")

MAX_BYTES = 16 * 1024 * 1024
# A read ends with the entry that reaches this size, so that its answer stays a small message.
READ_BYTES = 512 * 1024
# One known position in the file for so many entries.
_INDEX_STEP = 128
_KEPT_OPEN = 2048
_THREADS = 4
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class LogStore:
    """The logs below `root`. Methods belong to the loop thread; `close` when done."""

    def __init__(self, root: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kapell-logs")
        self._logs: OrderedDict[tuple[str, int], _AttemptLog] = OrderedDict()

    async def append(self, task_id: str, attempt: int, offset: int, entries: Sequence[LogEntry]) -> int:
        """Writes `entries`, the first of which has `offset`, and returns the offset that comes next.

        Entries below the end of the log are taken as repeats and dropped. Raises KapellError
        LOG_OFFSET_GAP (metadata: expected), PAYLOAD_TOO_LARGE beyond the cap of an attempt, and
        STORAGE_FULL; the log is then as it was.
        """
        log = self._log(task_id, attempt)
        return await self._run(log, log.append, offset, entries, self._max_bytes)

    async def read(self, task_id: str, attempt: int, offset: int, max_entries: int = 500) -> list[LogEntry]:
        """Entries from `offset` on in order; fewer than `max_entries` where they are long; [] at the end.

        Raises KapellError LOG_OFFSET_GAP for an offset beyond the end.
        """
        log = self._log(task_id, attempt)
        return await self._run(log, log.read, offset, max_entries)

    async def wait(self, task_id: str, attempt: int, offset: int, timeout: float) -> bool:
        """Waits until there is an entry at `offset`: True; False after `timeout` seconds or deletion."""
        log = self._log(task_id, attempt)
        loop = asyncio.get_running_loop()
        if not log.loaded:
            await self._run(log, log.load)
        if log.end.count > offset:
            return True
        waiter: asyncio.Future[bool] = loop.create_future()
        log.waiters[waiter] = offset
        timer = loop.call_later(timeout, _answer, waiter, False)
        try:
            return await waiter
        finally:
            timer.cancel()
            log.waiters.pop(waiter, None)

    async def delete(self, task_id: str) -> None:
        """Removes the logs of all attempts of the task; nothing happens where there are none."""
        for key in [key for key in self._logs if key[0] == task_id]:
            log = self._logs.pop(key)
            for waiter in list(log.waiters):
                _answer(waiter, False)
        loop = asyncio.get_running_loop()
        directory = self._directory(task_id)
        await loop.run_in_executor(self._threads, lambda: shutil.rmtree(directory, ignore_errors=True))

    def close(self) -> None:
        """Waits for appends under way. Nothing may be called afterwards."""
        self._threads.shutdown(wait=True)

    async def _run(self, log: _AttemptLog, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Does `work` on `log` in a thread. It is finished even when the caller is cancelled."""
        log.pending += 1
        job = asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))
        job.add_done_callback(log.finished)
        return await asyncio.shield(job)

    def _log(self, task_id: str, attempt: int) -> _AttemptLog:
        key = (task_id, attempt)
        log = self._logs.get(key)
        if log is None:
            log = self._logs[key] = _AttemptLog(self._directory(task_id) / f"{attempt}.log")
            self._close_idle()
        self._logs.move_to_end(key)
        return log

    def _close_idle(self) -> None:
        for key in list(islice(self._logs, max(0, len(self._logs) - _KEPT_OPEN))):
            if not self._logs[key].busy:
                del self._logs[key]

    def _directory(self, task_id: str) -> Path:
        assert _TASK_ID.fullmatch(task_id), f"{task_id!r} is no task id"
        # Spread, because a directory with a million entries is slow to work with.
        spread = hashlib.blake2b(task_id.encode(), digest_size=1).hexdigest()
        return self._root / spread / task_id


@dataclass(frozen=True, slots=True)
class _End:
    """Where a log ends: its entries and its bytes. Replaced as a whole, so threads may read it unlocked."""

    count: int = 0
    size: int = 0


@dataclass(slots=True, eq=False)
class _AttemptLog:
    """One file. `append`, `read` and `load` run in threads, everything else on the loop thread."""

    path: Path
    end: _End = _End()
    loaded: bool = False
    pending: int = 0
    waiters: dict[asyncio.Future[bool], int] = field(default_factory=dict)
    _positions: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def busy(self) -> bool:
        """Whether somebody works on it or waits for it, so that it must not be forgotten."""
        return self.pending > 0 or bool(self.waiters)

    def load(self) -> None:
        """Finds the end of the file and cuts off what a crash left of an entry."""
        if self.loaded:
            return
        with self._lock:
            if not self.loaded:
                self._scan()
                self.loaded = True

    def append(self, offset: int, entries: Sequence[LogEntry], max_bytes: int) -> int:
        self.load()
        with self._lock:
            end = self.end
            if offset > end.count:
                raise _gap(offset, end.count)
            new = entries[end.count - offset :]
            if not new:
                return end.count
            data, positions = _encode(new, end)
            if end.size + len(data) > max_bytes:
                raise KapellError(
                    ERROR_REASON_PAYLOAD_TOO_LARGE,
                    f"The attempt's log would grow beyond {max_bytes} bytes. Nothing was added; log less.",
                    metadata={"limit": str(max_bytes)},
                )
            self._write(data, end)
            self._positions += positions
            self.end = _End(end.count + len(new), end.size + len(data))
            return self.end.count

    def read(self, offset: int, max_entries: int) -> list[LogEntry]:
        self.load()
        end = self.end
        if offset > end.count:
            raise _gap(offset, end.count)
        last = min(offset + max_entries, end.count)
        if offset == last:
            return []
        begin = self._positions[offset // _INDEX_STEP]
        stop = -(-last // _INDEX_STEP)
        size = self._positions[stop] if stop < len(self._positions) else end.size
        try:
            data = _read_range(self.path, begin, size)
        except FileNotFoundError:
            return []
        return _decode(data, offset % _INDEX_STEP, last - offset)

    def finished(self, job: asyncio.Future[Any]) -> None:
        """Notes that a thread is done, and answers those who wait for entries that are there by now."""
        job.exception()  # Its caller may be gone; then it is nobody's.
        self.pending -= 1
        for waiter, offset in list(self.waiters.items()):
            if self.end.count > offset:
                _answer(waiter, True)

    def _scan(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        count = position = 0
        positions = []
        while (after := _entry_end(data, position)) is not None:
            if count % _INDEX_STEP == 0:
                positions.append(position)
            count, position = count + 1, after
        if position < len(data):
            os.truncate(self.path, position)
        self._positions = positions
        self.end = _End(count, position)

    def _write(self, data: bytes, end: _End) -> None:
        """Puts `data` at the end, on the disk. Where that fails the file is cut back to `end`."""
        new_file = end.size == 0
        try:
            if new_file:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write_all(descriptor, data, end.size)
            except OSError:
                os.ftruncate(descriptor, end.size)
                raise
            finally:
                os.close(descriptor)
            if new_file:
                for directory in (self.path.parent, self.path.parent.parent):
                    _sync_directory(directory)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise KapellError(
                    ERROR_REASON_STORAGE_FULL,
                    "The log was not written: the disk of the data directory is full. Free some space and retry.",
                ) from error
            raise


def _answer(waiter: asyncio.Future[bool], answer: bool) -> None:
    if not waiter.done():
        waiter.set_result(answer)


def _gap(offset: int, expected: int) -> KapellError:
    return KapellError(
        ERROR_REASON_LOG_OFFSET_GAP,
        f"Offset {offset} lies beyond the end of the log, which has {expected} entries. Go on at {expected}.",
        metadata={"expected": str(expected)},
    )


def _encode(entries: Sequence[LogEntry], end: _End) -> tuple[bytes, list[int]]:
    """The bytes of `entries` and the positions of those that the index holds."""
    data = bytearray()
    positions = []
    for number, entry in enumerate(entries, end.count):
        if number % _INDEX_STEP == 0:
            positions.append(end.size + len(data))
        if entry.stream == LOG_STREAM_UNSPECIFIED:
            # Also keeps every entry longer than nothing: zeros at the end of a file are no entries.
            entry = LogEntry(time=entry.time, stream=LOG_STREAM_STDOUT, text=entry.text)
        encoded = entry.SerializeToString()
        length = len(encoded)
        while length > 0x7F:
            data.append(length & 0x7F | 0x80)
            length >>= 7
        data.append(length)
        data += encoded
    return bytes(data), positions


def _entry_span(data: bytes, position: int) -> tuple[int, int] | None:
    """Begin and end of the entry at `position`, without its length; None where it is not whole."""
    length = shift = 0
    while position < len(data) and shift <= 28:
        byte = data[position]
        position += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            end = position + length
            return (position, end) if length > 0 and end <= len(data) else None
        shift += 7
    return None


def _entry_end(data: bytes, position: int) -> int | None:
    """Where the entry at `position` ends; None where there is none, or a damaged one."""
    span = _entry_span(data, position)
    if span is None:
        return None
    try:
        LogEntry.FromString(data[span[0] : span[1]])
    except DecodeError:
        return None
    return span[1]


def _decode(data: bytes, skip: int, count: int) -> list[LogEntry]:
    entries: list[LogEntry] = []
    position = size = 0
    while len(entries) < count and size < READ_BYTES:
        span = _entry_span(data, position)
        if span is None:
            break
        position = span[1]
        if skip:
            skip -= 1
            continue
        entries.append(LogEntry.FromString(data[span[0] : span[1]]))
        size += span[1] - span[0]
    return entries


def _read_range(path: Path, begin: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _write_all(descriptor: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, position)
        view = view[written:]
        position += written
    os.fdatasync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
