"""The ledger: records a second, dispatch beside a flood of records, and sums of a year of a million records."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.usage_pb2 import (
    USAGE_BUCKET_DAY,
    USAGE_BUCKET_MONTH,
    QueryUsageRequest,
    QueryUsageResponse,
    RecordUsageRequest,
    TokenCounts,
    UsageFilter,
    UsageRecord,
)

from tests.bench.load import RawClient, percentile
from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.bench.working import dispatch_times, register

USAGE = "/kapell.v1.UsageService/"
AGENTS, BURST, TEAMS = 10, 20, 12
MODELS = ("claude-sonnet-4-5", "claude-haiku-4-5", "gpt-5", "gemini-2.5-pro")
YEAR_BEGINS = 1_735_689_600
YEAR = 365 * 86_400
CALLERS = 4
DISPATCHES = 100
QUESTIONS = 50


def records(agents: Sequence[str], seed: int) -> Iterator[UsageRecord]:
    """Calls of models as agents make them: twenty within minutes, at any time of the year 2025."""
    chance = random.Random(seed)
    for number in itertools.count():
        begin = YEAR_BEGINS + chance.randrange(YEAR - 600)
        agent_id, model = chance.choice(agents), chance.choice(MODELS)
        for call in range(BURST):
            yield UsageRecord(
                record_id=f"msg_{seed}_{number}_{call}",
                model=model,
                agent_id=agent_id,
                event_time=Timestamp(seconds=begin + 10 * call, nanos=chance.randrange(10**9)),
                tokens=TokenCounts(
                    uncached_input_tokens=chance.randrange(5_000),
                    cache_read_tokens=chance.randrange(50_000),
                    output_tokens=1 + chance.randrange(2_000),
                ),
            )


def requests(agents: Sequence[str], seed: int, size: int, teams: int = 0) -> Iterator[bytes]:
    """Batches of so many records; with a label that has so many values."""
    found = records(agents, seed)
    while True:
        batch = list(itertools.islice(found, size))
        for number, record in enumerate(batch if teams else ()):
            record.labels["team"] = f"team-{number // BURST % teams}"
        yield RecordUsageRequest(records=batch).SerializeToString()


@benchmark("ledger")
async def records_a_second(setting: Setting) -> Sequence[Row]:
    """RecordUsage in batches of 100 and of 1,000 from four callers; the floor is the bare echo."""
    rates: dict[int, list[float]] = {100: [], 1_000: []}
    floors: list[float] = []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            agents = [(await register(server, client, f"ledger-{one}", f"type-{one % 3}"))[0] for one in range(AGENTS)]
            for number in range(setting.repetitions):
                floors.append((await setting.echo(width=64)).rate)
                for size, found in rates.items():
                    # Made beforehand: the load generator must not be what is measured.
                    made = list(itertools.islice(requests(agents, number * 10_000 + size, size), 40_000 // size))
                    source = iter(made)
                    begin = time.perf_counter()
                    await asyncio.gather(*[_send(client, source) for _ in range(CALLERS)])
                    found.append(len(made) * size / (time.perf_counter() - begin))
    return [
        Row(
            name=f"records through RecordUsage, {size:,} a call, {CALLERS} callers",
            unit="/s",
            figures=found,
            floors=floors,
            higher_is_better=True,
            note="floor: echo calls a second",
        )
        for size, found in rates.items()
    ]


async def _send(client: RawClient, source: Iterator[bytes]) -> None:
    record = client.unary(USAGE + "RecordUsage")
    for request in source:
        await record(request)


@benchmark("ledger-flood")
async def dispatch_beside_a_flood(setting: Setting) -> Sequence[Row]:
    """How soon a waiting worker has its task while four callers send a thousand records at a time."""
    quiet: list[list[float]] = []
    going: list[list[float]] = []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client, RawClient(server.address, server.token) as other:
            agents = [(await register(server, client, "ledger", "ledger"))[0]]
            for number in range(setting.repetitions):
                quiet.append(await dispatch_times(server, client, f"quiet-{number}", count=DISPATCHES))
                source = requests(agents, number, 1_000)
                flood = [asyncio.ensure_future(_send(other, source)) for _ in range(CALLERS)]
                going.append(await dispatch_times(server, client, f"going-{number}", count=DISPATCHES))
                for one in flood:
                    one.cancel()
                    with suppress(asyncio.CancelledError):
                        await one
    return [
        Row(
            name=f"dispatch p{share} beside a flood of records",
            unit="ms",
            figures=[percentile(times, share) * 1e3 for times in going],
            floors=[percentile(times, share) * 1e3 for times in quiet],
            note="floor: the same in quiet",
        )
        for share in (50, 99)
    ]


@benchmark("ledger-million", long=True)
async def sums_of_a_year(setting: Setting) -> Sequence[Row]:
    """QueryUsage over a year of --tasks records: by day, model and agent in three zones, by month and by label."""
    day = {"bucket": USAGE_BUCKET_DAY, "group_by": ["model", "agent"]}
    asked = {
        "day × model × agent, UTC": day,
        "day × model × agent, Europe/Berlin": {**day, "time_zone": "Europe/Berlin"},
        "day × model × agent, America/New_York": {**day, "time_zone": "America/New_York"},
        "day × model, Europe/Berlin": {**day, "group_by": ["model"], "time_zone": "Europe/Berlin"},
        "month × model, Europe/Berlin": {
            "bucket": USAGE_BUCKET_MONTH,
            "group_by": ["model"],
            "time_zone": "Europe/Berlin",
        },
        "label": {"group_by": ["label:team"]},
        "month × label × model, Europe/Berlin": {
            "bucket": USAGE_BUCKET_MONTH,
            "group_by": ["label:team", "model"],
            "time_zone": "Europe/Berlin",
        },
        "day × model with a label": {**day, "group_by": ["model"], "filter": UsageFilter(labels={"team": "team-1"})},
    }
    found: dict[str, list[list[float]]] = {name: [] for name in asked}
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            agents = [(await register(server, client, f"ledger-{one}", f"type-{one % 3}"))[0] for one in range(AGENTS)]
            await _fill(client, agents, setting.tasks)
            query = client.unary(USAGE + "QueryUsage")
            for _ in range(setting.repetitions):
                for name, fields in asked.items():
                    found[name].append(await _times(query, fields, setting.tasks))
    return [
        _figure(f"{name}: a year of {setting.tasks:,} records, p{share}", found[name], share)
        for name in asked
        for share in (50, 99)
    ]


def _figure(name: str, times: Sequence[Sequence[float]], share: int) -> Row:
    milliseconds = [percentile(one, share) * 1e3 for one in times]
    return Row(name=name, unit="ms", figures=milliseconds, compared=milliseconds, compared_unit="ms")


async def _fill(client: RawClient, agents: Sequence[str], count: int) -> None:
    source = itertools.islice(requests(agents, 0, 1_000, teams=TEAMS), -(-count // 1_000))
    await asyncio.gather(*[_send(client, source) for _ in range(CALLERS)])


async def _times(query: object, fields: dict[str, object], count: int) -> list[float]:
    """Seconds of each of some questions, one after the other."""
    start, end = Timestamp(seconds=YEAR_BEGINS - 86_400), Timestamp(seconds=YEAR_BEGINS + YEAR + 86_400)
    request = QueryUsageRequest(start_time=start, end_time=end, **fields).SerializeToString()  # type: ignore[arg-type]
    times = []
    for _ in range(QUESTIONS):
        begin = time.perf_counter()
        answer = await query(request)  # type: ignore[operator]
        times.append(time.perf_counter() - begin)
    total = QueryUsageResponse.FromString(answer).total
    everything = -(-count // 1_000) * 1_000
    assert total.records == everything if "filter" not in fields else 0 < total.records < everything, "of all records"
    return times
