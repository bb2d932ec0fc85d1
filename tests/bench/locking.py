"""What locks cost: taken and given back beside none and beside a hundred thousand, handed over, in sets."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence

from kapell.v1 import lock_pb2 as pb

from tests.bench.load import Call, RawClient, in_flight, median, percentile, same
from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

LOCKS = "/kapell.v1.LockService/"
WIDTH = 64
HELD = (10_000, 100_000)
SET = 64
ROUNDS = 200
DAY = 86_400


@benchmark("locks")
async def pair_rate(setting: Setting) -> Sequence[Row]:
    """Acquire and release of a free lock, 64 in flight: beside nothing, then beside many that are held."""
    alone: list[float] = []
    floors: list[float] = []
    rows: list[Row] = []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            for number in range(setting.repetitions):
                floors.append((await setting.echo(width=WIDTH)).rate)
                alone.append(await _pairs(client, f"alone-{number}", setting.seconds))
            for count in HELD:
                await _fill(client, count)
                beside = [await _pairs(client, f"{count}-{n}", setting.seconds) for n in range(setting.repetitions)]
                rows.append(
                    Row(
                        name=f"the same beside {count:,} held locks",
                        unit="/s",
                        figures=beside,
                        floors=alone,
                        goal=1 / 1.5,
                        higher_is_better=True,
                        note="floor: beside none",
                    )
                )
    first = Row(
        name="acquire + release of a free lock, pairs, 64 in flight",
        unit="/s",
        figures=alone,
        floors=floors,
        goal=0.45,
        stretch=0.55,
        higher_is_better=True,
    )
    return [first, *rows]


@benchmark("lock-handover")
async def hand_over(setting: Setting) -> Sequence[Row]:
    """From a release to the grant in the hands of the next who waits, as multiples of an echo."""
    figures: dict[int, list[float]] = {50: [], 99: []}
    floors: list[float] = []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as one, RawClient(server.address, server.token) as other:
            for number in range(setting.repetitions):
                floors.append((await setting.echo(width=1)).percentile(50) * 1e3)
                taken = await _hand_overs(one, other, f"baton-{number}")
                for percent, values in figures.items():
                    values.append(percentile(taken, percent) * 1e3)
    return [
        Row(name=f"release to the next waiter's grant, p{percent}", unit="ms", figures=values, floors=floors)
        for percent, values in figures.items()
    ]


@benchmark("lock-set")
async def sets(setting: Setting) -> Sequence[Row]:
    """A set of 64 locks in one call, against one lock."""
    figures: list[float] = []
    floors: list[float] = []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            for _ in range(setting.repetitions):
                floors.append(await _one_after_the_other(client, 1))
                figures.append(await _one_after_the_other(client, SET))
    return [
        Row(
            name=f"acquire of a set of {SET}, p50",
            unit="ms",
            figures=figures,
            floors=floors,
            goal=10,
            note="floor: one lock",
        )
    ]


def _acquire(*paths: str, session_id: str = "", wait: int = 0) -> bytes:
    request = pb.AcquireLocksRequest(items=[pb.LockItem(path=path) for path in paths], wait={"seconds": wait})
    if session_id:
        request.session_id = session_id
    return request.SerializeToString()


def _release(answer: bytes) -> bytes:
    locks = pb.AcquireLocksResponse.FromString(answer).locks
    return pb.ReleaseLocksRequest(lock_ids=[lock.lock_id for lock in locks]).SerializeToString()


async def _pairs(client: RawClient, name: str, seconds: float) -> float:
    """Pairs a second; each on a path of its own, in a tree as of a repository."""
    acquire, release = client.unary(LOCKS + "AcquireLocks"), client.unary(LOCKS + "ReleaseLocks")
    numbers = itertools.count()

    async def pair(_: bytes) -> bytes:
        number = next(numbers)
        return await release(_release(await acquire(_acquire(f"{name}/src/{number % 50}/{number}"))))

    return (await in_flight(pair, same(b""), width=WIDTH, seconds=seconds)).rate


async def _fill(client: RawClient, count: int) -> None:
    """So many locks that stay, in sessions of 1,000."""
    open_session, acquire = client.unary(LOCKS + "OpenSession"), client.unary(LOCKS + "AcquireLocks")
    opening = pb.OpenSessionRequest(ttl={"seconds": DAY}).SerializeToString()

    async def session(number: int) -> None:
        session_id = pb.OpenSessionResponse.FromString(await open_session(opening)).session.session_id
        paths = [f"held-{count}/{number}/{at % 30}/{at}" for at in range(min(1000, count))]
        for begin in range(0, len(paths), SET):
            await acquire(_acquire(*paths[begin : begin + SET], session_id=session_id))

    for begin in range(0, count // 1000, 8):
        await asyncio.gather(*(session(number) for number in range(begin, min(begin + 8, count // 1000))))


async def _hand_overs(one: RawClient, other: RawClient, path: str) -> list[float]:
    """Seconds from the call that releases to the answer that grants, back and forth between two."""
    holder, waiter = one, other
    held = await holder.unary(LOCKS + "AcquireLocks")(_acquire(path))
    taken = []
    for _ in range(ROUNDS):
        waiting = asyncio.ensure_future(waiter.unary(LOCKS + "AcquireLocks")(_acquire(path, wait=60)))
        await _until_queued(holder.unary(LOCKS + "ListLocks"), path)
        begin = time.perf_counter()
        releasing = asyncio.ensure_future(holder.unary(LOCKS + "ReleaseLocks")(_release(held)))
        held = await waiting
        taken.append(time.perf_counter() - begin)
        await releasing
        holder, waiter = waiter, holder
    await holder.unary(LOCKS + "ReleaseLocks")(_release(held))
    return taken


async def _until_queued(list_locks: Call, path: str) -> None:
    request = pb.ListLocksRequest(filter={"path": path}, page_size=1).SerializeToString()
    while not pb.ListLocksResponse.FromString(await list_locks(request)).waiter_count:
        pass


async def _one_after_the_other(client: RawClient, size: int) -> float:
    """Median milliseconds of an acquisition of so many paths."""
    acquire, release = client.unary(LOCKS + "AcquireLocks"), client.unary(LOCKS + "ReleaseLocks")
    request = _acquire(*(f"set/{number % 8}/{number}" for number in range(size)))
    taken = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        answer = await acquire(request)
        taken.append((time.perf_counter() - begin) * 1e3)
        await release(_release(answer))
    return median(taken)
