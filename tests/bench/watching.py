"""Watches: how soon a commit is received, what watchers cost the writer, and what they weigh."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kapell.v1.event_pb2 import WatchRequest, WatchResponse

from tests.bench import messages
from tests.bench.load import RawClient, percentile
from tests.bench.place import Target, beside, floor, kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

RATE = 200
WATCH = messages.EVENTS + "Watch"
FLOOR_FOLLOW = "/kapell.bench.Floor/Follow"
FLOOR_PUBLISH = "/kapell.bench.Floor/Publish"
# Streams on one connection; the client's cost per stream grows with more.
STREAMS_A_CONNECTION = 250
IDLE = 1000
IDLE_CONNECTIONS = 200

Times = Callable[[bytes], list[int]]


def event_times(message: bytes) -> list[int]:
    """When each event of a WatchResponse was decided, nanoseconds since 1970."""
    return [event.event_time.ToNanoseconds() for event in WatchResponse.FromString(message).events]


def floor_times(message: bytes) -> list[int]:
    """The same for a message of the bare fan-out, whose parts begin with their time."""
    size = 400
    return [int(message[begin : begin + 20]) for begin in range(0, len(message) - 19, size)]


@dataclass(slots=True)
class Audience:
    """Many watchers in one process. Equal messages are looked into once."""

    times: Times
    delays: list[float] = field(default_factory=list)
    received: int = 0
    open: int = 0
    _known: dict[bytes, list[int]] = field(default_factory=dict)

    async def watch(self, call: Any) -> None:
        """Takes all messages of one stream until cancelled."""
        first = True
        try:
            async for message in call:
                if first:
                    self.open, first = self.open + 1, False
                self._take(message)
        finally:
            call.cancel()

    def forget(self) -> None:
        """Starts a new measurement."""
        self.delays, self.received, self._known = [], 0, {}

    def _take(self, message: bytes) -> None:
        now = time.time_ns()
        known = self._known.get(message)
        if known is None:
            known = self._known[message] = self.times(message)
        self.received += len(known)
        self.delays += [(now - decided) / 1e9 for decided in known]


@asynccontextmanager
async def audience(
    target: Target,
    count: int,
    *,
    path: str = WATCH,
    request: bytes = b"",
    times: Times = event_times,
    streams_a_connection: int = STREAMS_A_CONNECTION,
) -> AsyncIterator[Audience]:
    """`count` open watches, all past their first message."""
    crowd = Audience(times)
    async with AsyncExitStack() as stack:
        tasks = []
        for first in range(0, count, streams_a_connection):
            client = await stack.enter_async_context(RawClient(target.address, target.token))
            stream = client.stream(path)
            for _ in range(min(streams_a_connection, count - first)):
                tasks.append(asyncio.ensure_future(crowd.watch(stream(request))))
        while crowd.open < count:
            failed = [task for task in tasks if task.done()]
            assert not failed, failed[0].exception()
            await asyncio.sleep(0.02)
        try:
            yield crowd
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@benchmark("watch")
async def watch_latency(setting: Setting) -> Sequence[Row]:
    """200 writes a second under 100 and 1,000 watchers, against a bare fan-out of ready bytes."""
    rows: list[Row] = []
    alone: list[float] = []
    with kapell(setting.directory) as server:
        for _ in range(setting.repetitions):
            found = await beside("writer", server, RATE, setting.seconds * 2)
            alone.append(found["p99_ms"])
        for count, goal, stretch in ((100, 5.0, 2.0), (1000, 40.0, 25.0)):
            rows += await _watched(setting, server, count, goal, stretch, alone)
    return rows


async def _watched(
    setting: Setting, server: Target, count: int, goal: float, stretch: float, alone: Sequence[float]
) -> list[Row]:
    seconds = setting.seconds * 2
    figures, medians, floors, writes = [], [], [], []
    for _ in range(setting.repetitions):
        async with audience(setting.floor, count, path=FLOOR_FOLLOW, times=floor_times) as crowd:
            async with RawClient(setting.floor.address) as client:
                crowd.forget()
                await client.unary(FLOOR_PUBLISH)(f"{RATE} {seconds}".encode())
            floors.append(percentile(crowd.delays, 99) * 1e3)
        async with audience(server, count) as crowd:
            crowd.forget()
            found = await beside("writer", server, RATE, seconds)
            await _all_received(crowd, int(RATE * seconds) * count)
            figures.append(percentile(crowd.delays, 99) * 1e3)
            medians.append(percentile(crowd.delays, 50) * 1e3)
            writes.append(found["p99_ms"])
    received = Row(
        name=f"watch: decided → received p99, {count} watchers, {RATE} writes/s",
        unit="ms",
        figures=figures,
        floors=floors,
        compared=figures,
        compared_unit="ms",
        goal=goal,
        stretch=stretch,
        note=f"p50 {sorted(medians)[len(medians) // 2]:.1f} ms; the commit is included",
    )
    beyond_floor = Row(name="  the same against bare fan-out", unit="ms", figures=figures, floors=floors, goal=1.5)
    if count < 1000:
        return [received, beyond_floor]
    slowed = Row(
        name=f"create p99 while {count} watchers follow",
        unit="ms",
        figures=writes,
        floors=alone,
        goal=2.0,
        stretch=1.3,
        note="floor: create p99 without watchers",
    )
    return [received, beyond_floor, slowed]


async def _all_received(crowd: Audience, expected: int) -> None:
    async with asyncio.timeout(30):
        while crowd.received < expected:  # noqa: ASYNC110 - an event would cost at each message
            await asyncio.sleep(0.02)
    assert crowd.received == expected, f"{crowd.received} events received, {expected} expected"


@benchmark("watch-memory")
async def watcher_memory(setting: Setting) -> Sequence[Row]:
    """Memory of the server for each idle watcher, on shared connections and on their own."""
    request = WatchRequest().SerializeToString()
    found: dict[str, list[float]] = {"shared": [], "own": [], "shared floor": [], "own floor": []}
    for _ in range(setting.repetitions):
        with kapell(setting.directory) as server:
            found["shared"].append(await _weight(server, IDLE, STREAMS_A_CONNECTION, WATCH, request))
        with kapell(setting.directory) as server:
            found["own"].append(await _weight(server, IDLE_CONNECTIONS, 1, WATCH, request))
        with floor() as bare:
            found["shared floor"].append(await _weight(bare, IDLE, STREAMS_A_CONNECTION, FLOOR_FOLLOW, b""))
        with floor() as bare:
            found["own floor"].append(await _weight(bare, IDLE_CONNECTIONS, 1, FLOOR_FOLLOW, b""))
    return [
        Row(
            name=f"memory of an idle watcher, {name} connection",
            unit="KB",
            figures=found[name],
            floors=found[f"{name} floor"],
            compared=found[name],
            compared_unit="KB",
            goal=goal,
            stretch=stretch,
        )
        for name, goal, stretch in (("shared", 30.0, 25.0), ("own", 45.0, 40.0))
    ]


async def _weight(target: Target, count: int, streams_a_connection: int, path: str, request: bytes) -> float:
    """KB of the server's process a watcher. A few were open before, so that nothing is counted but watchers."""

    def unread(_: bytes) -> list[int]:
        return []

    async with audience(target, 20, path=path, request=request, times=unread, streams_a_connection=1):
        before = target.memory()
        async with audience(
            target, count, path=path, request=request, times=unread, streams_a_connection=streams_a_connection
        ):
            return (target.memory() - before) / count / 1000
