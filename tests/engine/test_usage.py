"""The ledger on the real engine and both databases: sums, lists, totals and restarts agree to the nano-dollar (B2)."""

from __future__ import annotations

import datetime
import itertools
from collections import defaultdict
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST
from kapell.v1.event_pb2 import EventFilter, ListEventsRequest, ListEventsResponse
from kapell.v1.task_pb2 import DeleteTaskRequest, ListTasksRequest, ListTasksResponse, Task
from kapell.v1.usage_pb2 import (
    USAGE_BUCKET_DAY,
    USAGE_BUCKET_HOUR,
    USAGE_BUCKET_MINUTE,
    USAGE_BUCKET_MONTH,
    USAGE_BUCKET_UNSPECIFIED,
    USAGE_BUCKET_WEEK,
    ListUsageRecordsRequest,
    QueryUsageRequest,
    QueryUsageResponse,
    RecordUsageRequest,
    TokenCounts,
    UsageFilter,
    UsageRecord,
)
from kapell.v1.watch_pb2 import EVENT_KIND_USAGE_UPDATE
from kapell_server.domain.errors import KapellError
from kapell_server.domain.usage.figures import Sums
from kapell_server.store import usage_reads

from tests.domain.usage_corpus import CORPUS
from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import LiveEngine

MODELS = ("claude-sonnet-4-5", "gpt-5", "gemini-2.5-pro", "wonder-1")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Auckland")
DIMENSIONS = {
    "agent": lambda record: record.agent_id,
    "agent_type": lambda record: record.agent_type,
    "task": lambda record: record.task_id,
    "root_task": lambda record: record.root_task_id,
    "template": lambda record: record.template_id,
    "model": lambda record: record.model,
    "provider": lambda record: record.provider,
    "label:team": lambda record: record.labels.get("team", ""),
}


def moment(text: str) -> Timestamp:
    stamp = Timestamp()
    stamp.FromJsonString(text)
    return stamp


async def history(live: LiveEngine, seed: int, count: int) -> None:
    """Records over a year, on both sides of changes of clocks, of tasks, agents and nobody; some of them corrected."""
    random = Random(seed)
    agents = [await live.register(f"type-{number}") for number in range(3)]
    tasks = [(await live.create(f"type-{number}", labels={"team": f"t{number}"})).task_id for number in range(2)]
    tasks.append((await live.create("type-0", parent_task_id=tasks[0])).task_id)
    start = int(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp())
    records: list[UsageRecord] = []
    for number in range(count):
        at = start + random.choice((random.randrange(365 * 86_400), 75 * 86_400 + random.randrange(30 * 86_400)))
        record = UsageRecord(
            record_id=f"r{number}",
            model=random.choice(MODELS),
            tokens=TokenCounts(
                uncached_input_tokens=random.randrange(10_000),
                cache_read_tokens=random.choice((0, random.randrange(300_000))),
                output_tokens=1 + random.randrange(5_000),
            ),
            task_id=random.choice(("", *tasks)),
            agent_id=random.choice(("", *agents)),
            labels=random.choice(({}, {"team": "mine"}, {"team": "t0", "other": "x"})),
        )
        record.event_time.FromSeconds(at)
        record.event_time.nanos = random.randrange(10**9)
        records.append(record)
    for index in range(0, count, 100):
        await live.call(RecordUsageRequest(records=records[index : index + 100]))
    corrected = [
        UsageRecord(record_id=record.record_id, correction=True, tokens=TokenCounts(output_tokens=random.randrange(99)))
        for record in random.sample(records, count // 10)
    ]
    await live.call(RecordUsageRequest(records=corrected))


async def all_records(live: LiveEngine, **asked: Any) -> list[UsageRecord]:
    found: list[UsageRecord] = []
    request = ListUsageRecordsRequest(page_size=90, **{"order": LIST_ORDER_OLDEST_FIRST, **asked})
    while True:
        answer = await live.engine.reads.usage.list_records(request)
        found += answer.records
        request.page_token = answer.next_page_token
        if not request.page_token:
            return found


async def query(live: LiveEngine, **asked: Any) -> QueryUsageResponse:
    return await live.engine.reads.usage.query(QueryUsageRequest(**asked), live.clock.now_ns())


def sums(record: UsageRecord) -> Sums:
    """What a record adds, reckoned from the message alone."""
    tokens = record.tokens
    return Sums(
        1,
        tokens.uncached_input_tokens,
        tokens.cache_read_tokens,
        tokens.cache_write_5m_tokens,
        tokens.cache_write_1h_tokens,
        tokens.output_tokens,
        tokens.reasoning_tokens,
        record.cost.units * 10**9 + record.cost.nanos,
        int(record.unpriced),
        int(3 in (record.basis, record.cost_basis)),
    )


def begin_of(record: UsageRecord, bucket: int, zone: ZoneInfo) -> datetime.datetime | None:
    """The local time at which the record's stretch begins, reckoned by the calendar alone."""
    at = datetime.datetime.fromtimestamp(record.event_time.seconds, zone)
    match bucket:
        case 1:
            return at.replace(second=0, microsecond=0)
        case 3:
            return at.replace(hour=0, minute=0, second=0, microsecond=0)
        case 4:
            day = at.date() - datetime.timedelta(days=at.weekday())
            return datetime.datetime(day.year, day.month, day.day, tzinfo=zone)
        case 5:
            return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return None


@pytest.mark.parametrize("seed", range(3))
async def test_sums_by_any_zone_and_group_are_those_of_the_listed_records(live: LiveEngine, seed: int) -> None:
    await history(live, seed, 400)
    random = Random(seed)
    year = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}
    records = await all_records(live)
    assert len(records) == 400

    for bucket in (USAGE_BUCKET_UNSPECIFIED, USAGE_BUCKET_DAY, USAGE_BUCKET_WEEK, USAGE_BUCKET_MONTH):
        for zone in ZONES:
            by = random.sample(sorted(DIMENSIONS), random.randrange(4))
            answer = await query(live, bucket=bucket, time_zone=zone, group_by=by, **year)

            expected: dict[tuple[Any, ...], Sums] = defaultdict(Sums)
            for record in records:
                begin = begin_of(record, bucket, ZoneInfo(zone))
                group = tuple(DIMENSIONS[name](record) for name in by)
                key = (begin.timestamp() if begin is not None else year["start_time"].seconds, group)
                expected[key] = expected[key].plus(sums(record))
            found = {(row.bucket_time.seconds, tuple(row.group)): Sums.of(row.usage) for row in answer.rows}
            assert found == {(int(at), group): one for (at, group), one in expected.items()}, (bucket, zone, by)
            total = Sums()
            for record in records:
                total = total.plus(sums(record))
            assert Sums.of(answer.total) == total


@pytest.mark.parametrize("bucket", [USAGE_BUCKET_HOUR, USAGE_BUCKET_MINUTE, USAGE_BUCKET_DAY, USAGE_BUCKET_UNSPECIFIED])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "Europe/Berlin"])
async def test_a_range_that_begins_and_ends_anywhere_is_exact(live: LiveEngine, bucket: int, zone: str) -> None:
    await history(live, 7, 300)
    hours = 20 if bucket == USAGE_BUCKET_MINUTE else 40 * 24
    start = moment("2026-03-28T21:07:11.5Z")
    end = Timestamp(seconds=start.seconds + hours * 3600 + 77, nanos=1)

    answer = await query(live, start_time=start, end_time=end, bucket=bucket, time_zone=zone, group_by=["model"])

    records = await all_records(live, start_time=start, end_time=end)
    total = Sums()
    for record in records:
        total = total.plus(sums(record))
    assert Sums.of(answer.total) == total
    assert total.records or bucket == USAGE_BUCKET_MINUTE
    starts = [row.bucket_time.ToNanoseconds() for row in answer.rows]
    assert starts == sorted(starts)


async def test_a_filter_sums_what_it_lists(live: LiveEngine) -> None:
    await history(live, 3, 300)
    everything = await all_records(live)
    some = everything[5]
    filters = [
        UsageFilter(agent_ids=[record.agent_id for record in everything if record.agent_id][:1]),
        UsageFilter(agent_types=["type-0"]),
        UsageFilter(task_ids=[record.task_id for record in everything if record.task_id][:1]),
        UsageFilter(root_task_ids=[record.root_task_id for record in everything if record.root_task_id][:1]),
        UsageFilter(providers=["openai", "google"], models=["gpt-5"]),
        UsageFilter(labels={"team": "t0"}),
        UsageFilter(labels={"team": "t0", "other": "x"}, models=[some.model]),
        UsageFilter(unpriced=True),
        UsageFilter(unpriced=False, agent_types=["type-1"]),
        UsageFilter(models=["nothing"]),
    ]
    times = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}
    for wanted in filters:
        listed = await all_records(live, filter=wanted, **times)
        answer = await query(live, filter=wanted, group_by=["model", "agent"], **times)

        assert answer.total.records == len(listed)
        assert answer.total.cost == sum_money(listed)
        assert bool(listed) == (wanted.models[:] != ["nothing"])
    unpriced = await query(live, **times)
    assert [(one.provider, one.model) for one in unpriced.unpriced_models] == [("", "wonder-1")]


def sum_money(records: list[UsageRecord]) -> Money:
    cost = sum(record.cost.units * 10**9 + record.cost.nanos for record in records)
    return Money(currency_code="USD", units=cost // 10**9, nanos=cost % 10**9)


async def test_tasks_trees_and_agents_carry_the_sums_of_their_records(live: LiveEngine) -> None:
    await history(live, 5, 300)
    records = await all_records(live)

    tasks = ListTasksResponse.FromString(await live.engine.reads.list_tasks(ListTasksRequest())).tasks
    for task in tasks:
        own, below = Sums(), Sums()
        family = {task.task_id, *(one.task_id for one in tasks if one.parent_task_id == task.task_id)}
        for record in records:
            own = own.plus(sums(record)) if record.task_id == task.task_id else own
            below = below.plus(sums(record)) if record.task_id in family else below
        assert (Sums.of(task.usage), Sums.of(task.tree_usage)) == (own, below)
        got = Task.FromString(await live.engine.reads.get_task(task.task_id))
        assert (got.usage, got.tree_usage) == (task.usage, task.tree_usage)
    agent_ids = {record.agent_id for record in records} - {""}
    for agent_id in agent_ids:
        agent = await live.engine.reads.get_agent(agent_id)
        mine = [record for record in records if record.agent_id == agent_id]
        assert (agent.usage.records, agent.usage.cost) == (len(mine), sum_money(mine))


async def test_everything_again_after_a_restart_changes_nothing(live: LiveEngine) -> None:
    payloads = [payload for case in CORPUS.values() for payload in case.payloads]
    sent = RecordUsageRequest(records=[UsageRecord(raw=ParseDict(one, Struct()), keep_raw=True) for one in payloads])
    await live.call(sent)
    before = await all_records(live, include_superseded=True, include_raw=True)
    total = (await query(live)).total

    await live.restart()
    answer = await live.call(sent)

    assert {outcome.kind for outcome in answer.outcomes} == {2}
    assert await all_records(live, include_superseded=True, include_raw=True) == before
    assert (await query(live)).total == total
    assert any(record.raw.fields for record in before)
    await live.call(RecordUsageRequest(records=[UsageRecord(record_id="new", tokens=TokenCounts(output_tokens=1))]))
    assert (await query(live)).total.records == total.records + 1


async def test_a_series_goes_on_after_a_restart_as_if_there_had_been_none(live: LiveEngine) -> None:
    def told(output: int, cost: int | None = None) -> RecordUsageRequest:
        record = UsageRecord(series="s", model="gpt-5", tokens=TokenCounts(output_tokens=output))
        if cost is not None:
            record.cost.nanos = cost
        return RecordUsageRequest(records=[record])

    costs = []
    for sent in (told(100), told(200, 0), told(300), told(300, 5)):
        await live.call(sent)
        await live.restart()
        costs.append((await query(live)).total.cost.nanos)
        answer = await live.call(sent)
        assert [outcome.kind for outcome in answer.outcomes] == [2]

    assert costs == [1_000_000, 0, 0, 5]
    assert (await query(live)).total.tokens.output_tokens == 300


async def test_a_commit_that_fails_leaves_nothing_in_memory(live: LiveEngine) -> None:
    task = await live.create()
    record = UsageRecord(record_id="a", model="gpt-5", task_id=task.task_id, tokens=TokenCounts(output_tokens=5))
    assert isinstance(live.database, FaultyDatabase)
    live.database.faults.append(Fault(busy()))

    with pytest.raises(KapellError):
        await live.call(RecordUsageRequest(records=[record]))
    answer = await live.call(RecordUsageRequest(records=[record]))

    assert [outcome.kind for outcome in answer.outcomes] == [1]
    assert (await query(live)).total.records == 1
    got = Task.FromString(await live.engine.reads.get_task(task.task_id))
    assert got.usage.tokens.output_tokens == 5


async def test_what_was_not_told_before_a_crash_is_told_after_it(live: LiveEngine) -> None:
    task = await live.create()
    for number in range(2):
        record = UsageRecord(record_id=f"r{number}", task_id=task.task_id, tokens=TokenCounts(output_tokens=5))
        await live.call(RecordUsageRequest(records=[record]))

    await live.crash()
    await live.advance(2)

    asked = ListEventsRequest(filter=EventFilter(kinds=[EVENT_KIND_USAGE_UPDATE]))
    events = ListEventsResponse.FromString(await live.engine.reads.list_events(asked)).events
    assert events[0].usage.task_id == task.task_id
    assert events[0].usage.usage.records == 2


async def test_deleting_tasks_leaves_their_records(live: LiveEngine) -> None:
    task = await live.create()
    record = UsageRecord(record_id="a", model="gpt-5", task_id=task.task_id, tokens=TokenCounts(output_tokens=5))
    await live.call(RecordUsageRequest(records=[record]))
    await live.call(DeleteTaskRequest(task_id=task.task_id))
    await live.call(DeleteTaskRequest(task_id=task.task_id))

    listed = await all_records(live, filter=UsageFilter(task_ids=[task.task_id]))
    summed = await query(live, filter=UsageFilter(task_ids=[task.task_id]))

    assert [one.record_id for one in listed] == ["a"]
    assert summed.total.cost == Money(currency_code="USD", nanos=50_000)


async def test_a_label_of_a_task_that_columns_do_not_take_is_left_out(live: LiveEngine) -> None:
    task = await live.create(labels={"odd": "a\0b", "team": "t"})
    record = UsageRecord(record_id="a", task_id=task.task_id, tokens=TokenCounts(output_tokens=5))

    await live.call(RecordUsageRequest(records=[record]))

    assert [dict(one.labels) for one in await all_records(live)] == [{"team": "t"}]


@pytest.mark.parametrize("order", [LIST_ORDER_OLDEST_FIRST, LIST_ORDER_NEWEST_FIRST])
async def test_a_page_looks_at_a_bounded_number_of_records(
    live: LiveEngine, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(live, 2, 100)
    whole = [record.record_id for record in await all_records(live, filter=UsageFilter(models=["gpt-5"]), order=order)]
    monkeypatch.setattr(usage_reads, "_WINDOW", 7)

    found: list[str] = []
    request = ListUsageRecordsRequest(page_size=3, order=order, filter=UsageFilter(models=["gpt-5"]))  # type: ignore[arg-type]
    pages = 0
    while True:
        answer = await live.engine.reads.usage.list_records(request)
        found += [record.record_id for record in answer.records]
        pages += 1
        request.page_token = answer.next_page_token
        if not request.page_token:
            break

    assert found == whole
    assert pages >= 110 // 7


async def test_no_more_sums_are_held_than_there_may_be_rows(
    on_sqlite: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(on_sqlite, 3, 100)
    year = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}
    rows = len((await query(on_sqlite, group_by=["task", "model"], **year)).rows)
    monkeypatch.setattr(usage_reads, "_MOST_FOUND", rows - 1)

    with pytest.raises(KapellError, match=f"more than {rows - 1} rows") as refusal:
        await query(on_sqlite, group_by=["task", "model"], **year)
    assert refusal.value.reason_name == "USAGE_QUERY_TOO_LARGE"


@pytest.mark.parametrize("name", ["task", "root_task", "label:team", "label:gone"])
async def test_sums_of_whole_days_by_one_value_read_no_records(
    live: LiveEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(live, 4, 300)
    year = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}
    records = await all_records(live)
    monkeypatch.setattr(usage_reads, "MOST_READ", 0)

    for bucket, wanted in itertools.product(
        (USAGE_BUCKET_UNSPECIFIED, USAGE_BUCKET_DAY, USAGE_BUCKET_MONTH),
        (UsageFilter(), UsageFilter(models=["gpt-5", "wonder-1"])),
    ):
        answer = await query(live, bucket=bucket, group_by=["model", name], filter=wanted, **year)

        expected: dict[tuple[Any, ...], Sums] = defaultdict(Sums)
        for record in records:
            if not wanted.models or record.model in wanted.models:
                begin = begin_of(record, bucket, ZoneInfo("UTC"))
                at = begin.timestamp() if begin is not None else year["start_time"].seconds
                key = (at, record.model, DIMENSIONS.get(name, lambda _: "")(record))
                expected[key] = expected[key].plus(sums(record))
        found = {(row.bucket_time.seconds, *row.group): Sums.of(row.usage) for row in answer.rows}
        assert found == expected


async def test_records_of_a_frequent_label_are_summed_by_days(
    live: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(live, 6, 300)
    asked = {
        "start_time": moment("2026-01-07T11:00:00Z"),
        "end_time": moment("2026-11-02T17:20:07Z"),
        "bucket": USAGE_BUCKET_WEEK,
        "time_zone": "America/New_York",
        "filter": UsageFilter(labels={"team": "t0"}),
    }
    by_index = [await query(live, group_by=by, **asked) for by in (["model"], ["model", "task"])]

    monkeypatch.setattr(usage_reads, "_MANY", 0)
    by_day = [await query(live, group_by=by, **asked) for by in (["model"], ["model", "task"])]
    monkeypatch.setattr(usage_reads, "MOST_READ", by_index[0].total.records // 2)
    with pytest.raises(KapellError, match="would be summed from"):
        await query(live, group_by=["task"], **asked)

    assert by_day == by_index
    assert len(by_index[0].rows) > 20


async def test_a_sum_of_too_many_records_is_refused_with_what_has_no_limit(
    on_sqlite: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await history(on_sqlite, 3, 100)
    year = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}
    monkeypatch.setattr(usage_reads, "MOST_READ", 99)
    asked = [
        {"group_by": ["label:team", "task"]},
        {"group_by": ["label:team"], "bucket": USAGE_BUCKET_DAY, "time_zone": "Asia/Kathmandu"},
        {"filter": UsageFilter(unpriced=False)},
    ]

    for one in asked:
        with pytest.raises(KapellError) as refusal:
            await query(on_sqlite, **one, **year)
        assert refusal.value.reason_name == "USAGE_QUERY_TOO_LARGE"
        assert "100 records" in refusal.value.message
        assert "whole days" in refusal.value.message
    week = {**year, "end_time": moment("2026-01-20T00:00:00Z")}
    for one in (*asked, {"filter": UsageFilter(unpriced=True)}):
        await query(on_sqlite, **one, **week)


async def test_what_is_asked_for_by_a_value_is_found_by_an_index(on_sqlite: LiveEngine) -> None:
    statements: list[tuple[str, Any]] = []

    def noted(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        statements.append((statement, parameters))

    task = await on_sqlite.create()
    times = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}
    sa.event.listen(sa.Engine, "before_cursor_execute", noted)
    try:
        for wanted in (
            UsageFilter(task_ids=[task.task_id]),
            UsageFilter(root_task_ids=[task.task_id]),
            UsageFilter(labels={"team": "t0"}),
            UsageFilter(unpriced=True),
        ):
            await query(on_sqlite, filter=wanted, **times)
        await query(on_sqlite, group_by=["label:team"], **times)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", noted)

    def plan(connection: sa.Connection) -> list[str]:
        asked = [(text, values) for text, values in statements if "FROM usage_" in text and "max(" not in text]
        return [
            str(row[3])
            for text, values in asked
            for row in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + text, values)
        ]

    steps = await on_sqlite.database.read(plan)
    assert len(steps) > 5
    assert [step for step in steps if step.startswith(("SCAN usage_records", "SCAN usage_values"))] == []
    for name in ("task_id", "root_id", "unpriced"):
        assert any(f"ix_usage_records_{name}" in step for step in steps), name


async def test_too_long_an_answer_is_refused_with_what_to_do(on_sqlite: LiveEngine) -> None:
    times = {"start_time": moment("2026-01-01T00:00:00Z"), "end_time": moment("2027-01-02T00:00:00Z")}

    with pytest.raises(KapellError) as refusal:
        await query(on_sqlite, bucket=USAGE_BUCKET_MINUTE, **times)
    with pytest.raises(KapellError) as unknown:
        await query(on_sqlite, time_zone="Europe/Atlantis")

    assert refusal.value.reason_name == "USAGE_QUERY_TOO_LARGE"
    assert unknown.value.reason_name == "REQUEST_INVALID"
