"""The log of one attempt on its way to the server: bounded, in order, each line exactly once.

Lines are given offsets as they are written and kept until the server has taken them, so a lost
answer or a restarted server costs a repeat and nothing else. Three bounds: a line (MAX_LINE_BYTES),
what waits in memory (the room, beyond which `log_room` makes writers wait; four times the room,
beyond which lines of writers that do not wait are dropped) and the whole log (MAX_LOG_BYTES).
Whatever is left out is said in the log itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from kapell._worker.values import printable
from kapell.errors import KapellError, LeaseLost
from kapell.rules.redaction import Redactor
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LOG_STREAM_SYSTEM, LogEntry, LogStream
from kapell.v1.worker_pb2 import AppendTaskLogsRequest

if TYPE_CHECKING:
    from kapell._worker.leases import Lease
    from kapell._worker.session import Session

_log = logging.getLogger("kapell.worker")

MAX_LINE_BYTES = 16 * 1024
ROOM_BYTES = 2 * 1024 * 1024
ROOM_OF_ALL_BYTES = 64 * 1024 * 1024
DROP_BEYOND_ROOMS = 4
# The server keeps 16 MiB of each attempt; the difference is for our own remarks at the end.
MAX_LOG_BYTES = 16 * 1024 * 1024 - 256 * 1024
_REMARKS_BYTES = 128 * 1024

BATCH_BYTES = 256 * 1024
BATCH_ENTRIES = 1000
_HURRY_BYTES = 64 * 1024
_GATHER = 0.02
_INTERVAL = 0.1
# What an entry costs besides its text: in memory, and as it is counted on the server.
_MEMORY_OVERHEAD = 160
_STORED_OVERHEAD = 28


def room_for(slots: int) -> int:
    """The room of one of so many attempts at a time, so that all of them together have a limit."""
    return min(ROOM_BYTES, ROOM_OF_ALL_BYTES // slots)


class LogBuffer:
    """The part of an attempt's log that the server has not taken yet. One reader, any writers."""

    def __init__(self, room_bytes: int = ROOM_BYTES, redactor: Redactor | None = None) -> None:
        self._room_bytes = room_bytes
        self._redactor = redactor or Redactor()
        self.offset = 0
        """Offset of the first entry that waits."""
        self.is_full = False
        self.sender: asyncio.Task[None] | None = None
        """Who sends it; None while nothing was said."""
        self._start: Callable[[], asyncio.Task[None]] | None = None
        self._waiting: deque[LogEntry] = deque()
        self._waiting_bytes = 0
        self._written_bytes = 0
        self._dropped = 0
        self._closed = False
        self._discarding = False
        self._filled = asyncio.Event()
        self._many = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._sent = asyncio.Event()
        self._sent.set()

    def on_first(self, start: Callable[[], asyncio.Task[None]]) -> None:
        """Calls `start` for the sender as soon as there is something to send."""
        self._start = start

    def append(self, text: str, stream: LogStream.ValueType = LOG_STREAM_STDOUT, *, time_ns: int = 0) -> None:
        """Adds the lines of `text`. Never waits and never fails; see the module for what is left out."""
        at = _timestamp(time_ns or time.time_ns())
        for line in printable(self._redactor.text(text)).split("\n"):
            for part in _parts(line):
                self._add(LogEntry(time=at, stream=stream, text=part))

    async def room(self) -> None:
        """Waits until less than the room is taken."""
        await self._room.wait()

    async def sent(self) -> None:
        """Waits until the server has all that was said so far."""
        await self._sent.wait()

    def close(self) -> None:
        """No more lines come; `pending` ends when all are taken."""
        self._note_dropped()
        self._closed = True
        self._filled.set()
        self._many.set()

    def discard(self) -> None:
        """Nobody wants the rest: forgets what waits and what will come."""
        self._discarding = self.is_full = True
        self._waiting.clear()
        self._account(-self._waiting_bytes)

    async def pending(self) -> bool:
        """Waits for entries; False when the log is closed and all of it taken."""
        await self._filled.wait()
        return bool(self._waiting)

    async def gather(self, seconds: float) -> None:
        """Gives more lines the time to come, and returns early when there are many."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._many.wait()

    def batch(self) -> list[LogEntry]:
        """The first entries that wait, as many as one call takes."""
        found: list[LogEntry] = []
        size = 0
        for entry in islice(self._waiting, BATCH_ENTRIES):
            size += len(entry.text.encode()) + _STORED_OVERHEAD
            if found and size > BATCH_BYTES:
                break
            found.append(entry)
        return found

    def taken(self, next_offset: int) -> None:
        """The server has everything before `next_offset`."""
        while self._waiting and self.offset < next_offset:
            self._account(-_memory(self._waiting.popleft()))
            self.offset += 1
        self._note_dropped()

    def rewind(self, expected: int) -> None:
        """The server's log ends at `expected`, before our oldest entry: it lost some. The rest goes on from there."""
        missing = self.offset - expected
        self.offset = expected
        text = f"{missing} lines that were here are lost"
        note = LogEntry(time=_timestamp(time.time_ns()), stream=LOG_STREAM_SYSTEM, text=text)
        self._waiting.appendleft(note)
        self._account(_memory(note))

    def _add(self, entry: LogEntry) -> None:
        is_remark = entry.stream == LOG_STREAM_SYSTEM
        if self._discarding or self._closed or (self.is_full and not is_remark):
            return
        size = len(entry.text.encode()) + _STORED_OVERHEAD
        if self._written_bytes + size > MAX_LOG_BYTES + is_remark * _REMARKS_BYTES:
            self._fill_up()
        elif self._waiting_bytes > DROP_BEYOND_ROOMS * self._room_bytes and not is_remark:
            self._dropped += 1
        else:
            self._written_bytes += size
            self._waiting.append(entry)
            self._account(_memory(entry))

    def _fill_up(self) -> None:
        if not self.is_full:
            self.is_full = True
            mebibytes = MAX_LOG_BYTES // (1024 * 1024)
            self.append(f"the log is full ({mebibytes} MiB): what follows is not kept", LOG_STREAM_SYSTEM)

    def _note_dropped(self) -> None:
        if self._dropped and self._waiting_bytes < self._room_bytes:
            dropped, self._dropped = self._dropped, 0
            self.append(f"{dropped} lines were dropped: they came faster than the server took them", LOG_STREAM_SYSTEM)

    def _account(self, change: int) -> None:
        self._waiting_bytes += change
        if self.sender is None and self._start is not None:
            self.sender = self._start()
        _set(self._filled, bool(self._waiting) or self._closed)
        _set(self._many, self._waiting_bytes >= _HURRY_BYTES or len(self._waiting) >= BATCH_ENTRIES or self._closed)
        _set(self._room, self._waiting_bytes < self._room_bytes)
        _set(self._sent, not self._waiting)


async def ship(session: Session, lease: Lease) -> None:
    """Sends the lease's log until it is closed and all of it taken, or the lease is lost."""
    log = lease.log
    loop = asyncio.get_running_loop()
    last = loop.time() - _INTERVAL
    while await log.pending():
        await log.gather(max(_GATHER, last + _INTERVAL - loop.time()))
        last = loop.time()
        try:
            answer = await session.insist(session.stub.AppendTaskLogs, _appending(lease))
        except LeaseLost:
            lease.lose()
            log.discard()
            return
        except KapellError as error:
            if error.reason == "LOG_OFFSET_GAP":
                log.rewind(int(error.metadata["expected"]))
                continue
            _log.warning("the rest of the log of %s is dropped: %s", lease.task_id, error)
            log.discard()
            return
        log.taken(answer.next_offset)
        lease.follow(answer.directive)


def _appending(lease: Lease) -> Callable[[], AppendTaskLogsRequest]:
    request = AppendTaskLogsRequest(lease_token=lease.token, offset=lease.log.offset, entries=lease.log.batch())
    return lambda: request


def _parts(line: str) -> list[str]:
    """The line in pieces of at most MAX_LINE_BYTES."""
    if len(line) * 4 <= MAX_LINE_BYTES or len(line.encode()) <= MAX_LINE_BYTES:
        return [line]
    parts, data = [], line.encode()
    while data:
        cut = min(MAX_LINE_BYTES, len(data))
        while cut < len(data) and data[cut] & 0xC0 == 0x80:
            cut -= 1
        parts.append(data[:cut].decode())
        data = data[cut:]
    return parts


def _timestamp(time_ns: int) -> Timestamp:
    return Timestamp(seconds=time_ns // 1_000_000_000, nanos=time_ns % 1_000_000_000)


def _memory(entry: LogEntry) -> int:
    return len(entry.text) + _MEMORY_OVERHEAD


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()
