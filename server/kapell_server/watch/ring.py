"""The newest records of the log, once, for all watchers; and the bell that wakes them.

Fed by the engine after each commit, on the loop thread; nothing here awaits the database or
a client, so publishing costs the same with no watcher and with thousands. A watcher is a
revision it has seen (its cursor), never a queue: whoever is too slow finds its cursor behind
`oldest` and reads the log instead.

The surprise is the bell. Waking a thousand watchers for each commit would cost more than all
commits together, so wakes come in waves: a publish during a wave, or in the pause after it,
only moves `head`, and the next wave tells of all of it at once. A wave rings for a few
watchers, lets the loop serve everybody else, and goes on. A handful of watchers is woken
without any pause.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar

from kapell.v1.error_pb2 import ERROR_REASON_SERVER_DRAINING
from kapell.v1.queue_pb2 import ConcurrencyLimit, Queue
from kapell.v1.secret_pb2 import Secret
from kapell.v1.template_pb2 import Template

from kapell_server.domain.errors import KapellError
from kapell_server.store.record import Record

T = TypeVar("T")

CAPACITY = 16384
MAX_BYTES = 64 * 1024 * 1024
# Watchers rung for at once: bounds how long a wave holds up a commit.
WAVE_STEP = 32
# A wave of at most this many is one step.
SMALL_WAVE = 128
# After each step the loop is left to everybody else for this share of the time the step took,
# and for at least so many seconds: the threads that receive calls need the processor too.
REST_SHARE = 1.0
REST_SECONDS = 0.001
# A wave of at most this many takes no rest.
TINY_WAVE = 16
# Nobody waits for one of these, and people name them as they like: perhaps by the id of a task.
_NAMED_BY_PEOPLE = frozenset({Queue, ConcurrencyLimit, Secret, Template})


class Ring:
    """A bounded window on the end of the log. All methods belong to the loop thread."""

    def __init__(self, *, revision: int, capacity: int = CAPACITY, max_bytes: int = MAX_BYTES) -> None:
        self.head = revision
        self.oldest = revision + 1
        self._slots: list[Record | None] = [None] * capacity
        self._bytes = 0
        self._max_bytes = max_bytes
        self._latest: dict[str, int] = {}
        self._resource_waiters: dict[str, dict[asyncio.Future[Record | None], None]] = {}
        self._waiters: dict[asyncio.Future[bool], int] = {}
        self._announced = revision
        self._wave: list[asyncio.Future[bool]] = []
        self._bell: asyncio.Handle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Watchers that are waiting for something new."""
        return len(self._waiters)

    def publish(self, records: Sequence[Record]) -> None:
        """Appends `records`, which continue at `head` + 1 without a gap, and has waiters told of them."""
        for record in records:
            assert record.revision == self.head + 1, f"revision {record.revision} after {self.head}"
            self._append(record)
            if record.resource_id not in self._resource_waiters or type(record.resource) in _NAMED_BY_PEOPLE:
                continue
            for waiter in self._resource_waiters.pop(record.resource_id):
                if not waiter.done():
                    waiter.set_result(record)
        if self._bell is None and self._waiters:
            self._bell = asyncio.get_running_loop().call_soon(self._start_wave)

    def after(self, cursor: int, limit: int) -> list[Record] | None:
        """Up to `limit` records beyond `cursor` in order; None where the ring has lost the first of them."""
        if cursor >= self.head:
            return []
        if cursor < self.oldest - 1:
            return None
        capacity = len(self._slots)
        begin = (cursor + 1) % capacity
        end = begin + min(limit, self.head - cursor)
        found = self._slots[begin:end]
        if end > capacity:
            found += self._slots[: end - capacity]
        return found  # type: ignore[return-value]  # slots between oldest and head are filled

    async def wait_beyond(self, revision: int, timeout: float) -> bool:
        """Waits until watchers are told of records beyond `revision`: True, or False after `timeout` seconds.

        With many watchers that is a few milliseconds after `head` has moved; see the module.
        Raises KapellError SERVER_DRAINING when the ring is closed.
        """
        self._refuse_when_closed()
        if self._announced > revision:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters[waiter] = revision
        timer = loop.call_later(timeout, _answer, waiter, False)
        if self._bell is None and self.head > revision:
            self._bell = loop.call_soon(self._start_wave)
        try:
            told = await waiter
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)
        self._refuse_when_closed()
        return told

    async def wait_resource(self, resource_id: str, after_revision: int, timeout: float) -> Record | None:
        """The next change of one resource beyond `after_revision`, or the newest if there were some already.

        None after `timeout` seconds. `after_revision` is that of the resource as the caller has just
        read it. Never delayed by a wave. Raises KapellError SERVER_DRAINING when the ring is closed.
        """
        self._refuse_when_closed()
        latest = self._latest.get(resource_id, 0)
        if latest > after_revision:
            return self._slots[latest % len(self._slots)]
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Record | None] = loop.create_future()
        self._resource_waiters.setdefault(resource_id, {})[waiter] = None
        timer = loop.call_later(timeout, _answer, waiter, None)
        try:
            record = await waiter
        finally:
            timer.cancel()
            self._forget(resource_id, waiter)
        self._refuse_when_closed()
        return record

    def close(self) -> None:
        """Wakes everybody; waiting is refused from here on. Reading goes on."""
        self._closed = True
        if self._bell is not None:
            self._bell.cancel()
            self._bell = None
        for waiter in list(self._waiters):
            _answer(waiter, False)
        for waiters in list(self._resource_waiters.values()):
            for resource_waiter in list(waiters):
                _answer(resource_waiter, None)

    def _append(self, record: Record) -> None:
        index = record.revision % len(self._slots)
        if self._slots[index] is not None:
            self._drop_oldest()
        self._slots[index] = record
        if type(record.resource) not in _NAMED_BY_PEOPLE:
            self._latest[record.resource_id] = record.revision
        self._bytes += len(record.data)
        self.head = record.revision
        while self._bytes > self._max_bytes and self.oldest < self.head:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        index = self.oldest % len(self._slots)
        dropped = self._slots[index]
        assert dropped is not None, f"slot of revision {self.oldest} is empty"
        self._slots[index] = None
        self._bytes -= len(dropped.data)
        if self._latest.get(dropped.resource_id) == dropped.revision:
            del self._latest[dropped.resource_id]
        self.oldest += 1

    def _start_wave(self) -> None:
        self._announced = self.head
        self._wave = [waiter for waiter, revision in self._waiters.items() if revision < self._announced]
        self._wave.reverse()
        if len(self._wave) > TINY_WAVE:
            self._ring_some(WAVE_STEP if len(self._wave) > SMALL_WAVE else SMALL_WAVE)
            return
        for waiter in self._wave:
            _answer(waiter, True)
        self._bell = None

    def _ring_some(self, count: int) -> None:
        """One step of a wave that is not tiny."""
        begin = time.perf_counter()
        for _ in range(min(count, len(self._wave))):
            _answer(self._wave.pop(), True)
        # Called after those who were just woken have run.
        self._bell = asyncio.get_running_loop().call_soon(self._rest, begin)

    def _rest(self, begin: float) -> None:
        taken = time.perf_counter() - begin
        rest = max(REST_SECONDS, taken * REST_SHARE)
        loop = asyncio.get_running_loop()
        if self._wave:
            self._bell = loop.call_later(rest, self._ring_some, WAVE_STEP)
        else:
            self._bell = loop.call_later(rest, self._end_wave)

    def _end_wave(self) -> None:
        self._bell = None
        if self._waiters and self.head > self._announced:
            self._start_wave()

    def _forget(self, resource_id: str, waiter: asyncio.Future[Record | None]) -> None:
        waiters = self._resource_waiters.get(resource_id)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self._resource_waiters[resource_id]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise KapellError(
                ERROR_REASON_SERVER_DRAINING,
                "The server is stopping, so it watches nothing any more."
                " Reconnect and resume after the last revision seen.",
            )


def _answer(waiter: asyncio.Future[T], result: T) -> None:
    if not waiter.done():
        waiter.set_result(result)
