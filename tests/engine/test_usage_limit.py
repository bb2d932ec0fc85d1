"""The largest sums of the ledger on both databases: exact up to 2^63 - 1, and refused beyond it without a trace."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money
from kapell.v1.price_pb2 import Price, SetPriceRequest
from kapell.v1.task_pb2 import Task
from kapell.v1.usage_pb2 import (
    USAGE_BUCKET_DAY,
    EstimateCostRequest,
    EstimateCostResponse,
    RecordUsageRequest,
    RepriceUsageRequest,
    TokenCounts,
    UsageFilter,
    UsageOutcome,
    UsageRecord,
)
from kapell_server.domain.errors import KapellError
from kapell_server.domain.usage.figures import MOST_SUM, NANO, nanos
from kapell_server.domain.usage.reprice import RepriceCommand
from kapell_server.store.usage_tables import usage_days, usage_records, usage_slots

from tests.engine.test_usage import all_records, query
from tests.support.live_engine import LiveEngine

AT = Timestamp(seconds=1_775_000_000)
YEAR = {"start_time": Timestamp(seconds=AT.seconds - 300 * 86_400), "end_time": Timestamp(seconds=AT.seconds + 86_400)}
BY_DAY = {**YEAR, "bucket": USAGE_BUCKET_DAY, "time_zone": "Europe/Berlin"}
MILLION = Money(currency_code="USD", units=1_000_000)
WHOLE = MOST_SUM // (1_000_000 * NANO)
"""Records of a million dollars that one sum holds."""


async def send(live: LiveEngine, *records: UsageRecord) -> list[UsageOutcome]:
    return list((await live.call(RecordUsageRequest(records=records))).outcomes)


def costing(record_id: str, cost: Money, task_id: str = "", **fields: object) -> UsageRecord:
    record = UsageRecord(record_id=record_id, model="m", task_id=task_id, cost=cost, event_time=AT, **fields)
    record.labels["team"] = "one"
    return record


async def test_every_sum_is_exact_up_to_the_largest_number_and_no_record_goes_beyond_it(live: LiveEngine) -> None:
    task = await live.create()
    for first in range(0, WHOLE, 500):
        numbers = range(first, min(first + 500, WHOLE))
        await send(live, *[costing(f"r{number}", MILLION, task.task_id) for number in numbers])
    rest = MOST_SUM - WHOLE * 1_000_000 * NANO
    last = costing("last", Money(units=rest // NANO, nanos=rest % NANO), task.task_id)

    [taken] = await send(live, last)
    beyond = costing("beyond", Money(nanos=1), task.task_id)
    refused, without_cost = await send(live, beyond, costing("free", Money(), task.task_id))
    await live.restart()
    [again] = await send(live, beyond)

    assert (taken.kind, without_cost.kind) == (1, 1)
    assert (refused.reason, again.reason) == ("USAGE_LIMIT", "USAGE_LIMIT")
    assert "9,223,372,036 dollars" in refused.message
    asked = [
        YEAR,
        BY_DAY,
        {**BY_DAY, "group_by": ["label:team", "task", "root_task", "model"]},
        {**YEAR, "filter": UsageFilter(task_ids=[task.task_id])},
        {**YEAR, "filter": UsageFilter(labels={"team": "one"})},
    ]
    for one in asked:
        answer = await query(live, **one)
        assert nanos(answer.total.cost) == MOST_SUM, one
        assert answer.total.records == WHOLE + 2
        assert len(answer.rows) == 1
    found = Task.FromString(await live.engine.reads.get_task(task.task_id))
    assert nanos(found.usage.cost) == nanos(found.tree_usage.cost) == MOST_SUM

    [corrected] = await send(live, costing("last", Money(nanos=5), correction=True))
    [fits] = await send(live, beyond)
    assert (corrected.kind, fits.kind) == (3, 1)
    assert nanos((await query(live, **YEAR)).total.cost) == WHOLE * 1_000_000 * NANO + 6


async def test_tokens_are_held_to_the_same_number(live: LiveEngine) -> None:
    [_] = await send(live, UsageRecord(record_id="many", event_time=AT, tokens=TokenCounts(output_tokens=1)))
    await _grow(live, MOST_SUM - 5)
    await live.restart()

    six = TokenCounts(uncached_input_tokens=2, cache_write_1h_tokens=2, output_tokens=2)
    five = TokenCounts(uncached_input_tokens=1, cache_read_tokens=2, cache_write_5m_tokens=1, output_tokens=1)
    outcomes = await send(
        live,
        UsageRecord(record_id="six", event_time=AT, tokens=six),
        UsageRecord(record_id="five", event_time=AT, tokens=five),
        UsageRecord(record_id="one", event_time=AT, tokens=TokenCounts(cache_read_tokens=1)),
    )

    assert [outcome.reason for outcome in outcomes] == ["USAGE_LIMIT", "", "USAGE_LIMIT"]
    for asked in (YEAR, BY_DAY, {**YEAR, "group_by": ["task"]}):
        tokens = (await query(live, **asked)).total.tokens
        assert (tokens.input_tokens, tokens.output_tokens) == (4, MOST_SUM - 4)


async def _grow(live: LiveEngine, output: int) -> None:
    """Makes the one record there is as large as nobody can send it, with its sums."""

    def work(connection: sa.Connection) -> None:
        for table in (usage_records, usage_days, usage_slots):
            connection.execute(sa.update(table).values(output=output))

    await live.database.write(work)


async def test_costing_anew_beyond_the_largest_number_changes_nothing(live: LiveEngine) -> None:
    free = UsageRecord(
        record_id="free", provider="acme", model="m", event_time=AT, tokens=TokenCounts(output_tokens=10**6)
    )
    await send(live, free)
    for first in range(0, WHOLE, 500):
        numbers = range(first, min(first + 500, WHOLE))
        await send(live, *[costing(f"r{number}", MILLION) for number in numbers])
    price = Price(provider="acme", model="m")
    price.rates.input.CopyFrom(MILLION)
    price.rates.output.CopyFrom(MILLION)
    await live.call(SetPriceRequest(price=price))
    before = await all_records(live, include_superseded=True)

    with pytest.raises(KapellError) as refusal:
        await live.call(RepriceCommand(RepriceUsageRequest(), ("free",), False))

    assert refusal.value.reason_name == "USAGE_LIMIT"
    assert await all_records(live, include_superseded=True) == before
    assert nanos((await query(live, **YEAR)).total.cost) == WHOLE * 1_000_000 * NANO


async def test_the_dearest_estimate_there_can_be_is_told(on_sqlite: LiveEngine) -> None:
    price = Price(provider="acme", model="m")
    price.rates.input.CopyFrom(MILLION)
    price.rates.output.CopyFrom(MILLION)
    await on_sqlite.call(SetPriceRequest(price=price))

    def asked(tokens: int) -> EstimateCostRequest:
        counts = TokenCounts(output_tokens=tokens)
        return EstimateCostRequest(provider="acme", model="m", tokens=counts, runs=10**9)

    dearest: EstimateCostResponse = await on_sqlite.call(asked(10**6))
    beyond: EstimateCostResponse = await on_sqlite.call(asked(10**6 + 1))

    assert dearest.cost.units == 10**15
    assert not beyond.HasField("cost")
    assert "more than 1,000,000 dollars" in beyond.note
