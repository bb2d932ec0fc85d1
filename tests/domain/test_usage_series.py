"""Running totals: the sum of a series is what was told of it, whichever fields come when and however often."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from google.type.money_pb2 import Money
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kapell.v1.price_pb2 import Price, SetPriceRequest
from kapell.v1.usage_pb2 import (
    USAGE_BASIS_REPORTED,
    RecordUsageRequest,
    RepriceUsageRequest,
    TokenCounts,
    UsageOutcomeKind,
    UsageRecord,
)
from kapell.v1.worker_pb2 import ReportUsageRequest
from kapell_server.domain.usage import series as series_of_usage
from kapell_server.domain.usage.entry import usage_id_of_task
from kapell_server.domain.usage.figures import FIELDS, Figures, Sums, money, nanos
from kapell_server.domain.usage.reprice import RepriceCommand

from tests.domain.world import World

TOKENS = ("uncached_input_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")


def report(tokens: dict[str, int] | None = None, cost: int | None = None, **fields: Any) -> UsageRecord:
    """Running totals of the series s; `cost` in nano-dollars."""
    said = {"series": "s", "model": "gpt-5", **fields}
    record = UsageRecord(tokens=TokenCounts(**(tokens or {})), **said)
    if cost is not None:
        record.cost.CopyFrom(money(cost))
    return record


def send(world: World, *records: UsageRecord) -> list[str]:
    outcomes = world.do(RecordUsageRequest(records=records)).outcomes
    return [UsageOutcomeKind.Name(outcome.kind).removeprefix("USAGE_OUTCOME_KIND_") for outcome in outcomes]


def whole(world: World) -> Sums:
    total = Sums()
    for entry in world.rows.usage.counting():
        total = total.plus(entry.sums)
    return total


@st.composite
def reports(draw: st.DrawFn) -> list[tuple[dict[str, int], int | None, int]]:
    """Totals that only grow, each report with some of the fields: tokens, cost and searches."""
    totals = dict.fromkeys((*FIELDS, "cost", "searches"), 0)
    found = []
    for _ in range(draw(st.integers(1, 7))):
        for name in totals:
            totals[name] += draw(st.sampled_from((0, 0, 1, 7, 1000)))
        totals["output_tokens"] = max(totals["output_tokens"], totals["reasoning_tokens"])
        told = draw(st.sets(st.sampled_from(FIELDS)))
        if "reasoning_tokens" in told:
            told.add("output_tokens")
        tokens = {name: totals[name] for name in told}
        cost = totals["cost"] if draw(st.booleans()) else None
        found.append((tokens, cost, totals["searches"] if draw(st.booleans()) else 0))
    return found


@settings(max_examples=150)
@example(history=[({}, 0, 0), ({"cache_write_1h_tokens": 1}, None, 0)], model="gpt-5", seed=None)
@given(history=reports(), model=st.sampled_from(("gpt-5", "wonder-1")), seed=st.none() | st.integers(0, 5))
def test_the_sum_of_a_series_is_what_was_told_last_of_each_field(
    history: list[tuple[dict[str, int], int | None, int]], model: str, seed: int | None
) -> None:
    world = World()
    sent = [
        report(tokens, cost, model=model, units={"searches": searches} if searches else {})
        for tokens, cost, searches in history
    ]
    if seed is not None:
        Random(seed).shuffle(sent)

    for number, record in enumerate(sent):
        outcomes = send(world, record, *sent[:number])
        assert all(kind in ("DUPLICATE", "REFUSED") for kind in outcomes[1:]), "what comes again changes nothing"

    counting = world.rows.usage.counting()
    expected = {name: max(tokens.get(name, 0) for tokens, _, _ in history) for name in FIELDS}
    costs = [cost for tokens, cost, searches in history if cost is not None]
    assert whole(world).figures() == Figures(*expected.values())
    assert sum(entry.record.units["searches"] for entry in counting) == max(searches for _, _, searches in history)
    assert all(entry.record.tokens.reasoning_tokens <= entry.record.tokens.output_tokens for entry in counting)
    if costs:
        assert whole(world).cost == max(costs)
        assert whole(world).unpriced == 0
        assert {entry.record.cost_basis for entry in counting} <= {USAGE_BASIS_REPORTED}


def test_a_cost_that_comes_late_takes_the_place_of_what_the_prices_said() -> None:
    world = World()
    task = world.create()
    tokens = {"uncached_input_tokens": 1000, "output_tokens": 100}
    more = {"uncached_input_tokens": 3000, "output_tokens": 300}

    kinds = [
        *send(world, report(tokens, task_id=task)),
        *send(world, report(more, 5_000_000, task_id=task)),
        *send(world, report(more, 5_000_000, task_id=task)),
        *send(world, report({**more, "output_tokens": 400}, task_id=task)),
        *send(world, report(None, 9_000_000, task_id=task)),
    ]

    assert kinds == ["RECORDED", "RECORDED", "DUPLICATE", "RECORDED", "RECORDED"]
    total = world.rows.usage.totals[usage_id_of_task(task)].own
    assert total == whole(world) == Sums(4, 3000, 0, 0, 0, 400, 0, 9_000_000)
    first, settled = [entry.record for entry in world.rows.usage.entries if entry.record.record_id == "s#1"]
    assert (first.version, nanos(first.cost), first.price_id != "") == (1, 2_250_000, True)
    assert (settled.version, nanos(settled.cost), settled.price_id) == (2, 0, "")


def test_a_first_report_without_a_price_is_settled_by_a_cost_and_costed_no_more() -> None:
    world = World()
    send(world, report({"output_tokens": 1000}, model="wonder-1", provider="acme"))
    unpriced = whole(world).unpriced

    settled = send(world, report({"output_tokens": 1000}, 4, model="wonder-1", provider="acme"))
    price = Price(provider="acme", model="wonder-1")
    price.rates.input.CopyFrom(Money(units=1))
    price.rates.output.CopyFrom(Money(units=1))
    world.do(SetPriceRequest(price=price))
    anew = world.do(RepriceCommand(RepriceUsageRequest(), ("s#1", "s#2"), False))

    assert (unpriced, settled, anew.changed) == (1, ["RECORDED"], 0)
    assert whole(world) == Sums(2, output=1000, cost=4)


def test_reasoning_that_is_told_after_its_output_is_not_output_again() -> None:
    world = World()

    first = send(world, report({"output_tokens": 100}), report({"output_tokens": 150}))
    late = send(world, report({"output_tokens": 150, "reasoning_tokens": 120}))
    again = send(world, report({"output_tokens": 150, "reasoning_tokens": 120}))

    assert (first, late, again) == (["RECORDED", "RECORDED"], ["CORRECTED"], ["DUPLICATE"])
    assert whole(world) == Sums(2, output=150, reasoning=120, cost=1_500_000)


def test_an_agent_changes_nothing_that_was_recorded_for_another_task() -> None:
    world = World()
    worker = world.register()
    victim, task = world.create(agent_type="other"), world.create()
    world.lease(worker)
    send(world, report({"output_tokens": 1000}, task_id=victim))

    world.do(ReportUsageRequest(lease_token=world.token(task), records=[report({"output_tokens": 1000}, 1)]))

    assert world.rows.usage.totals[usage_id_of_task(victim)].own.cost == 10_000_000
    assert world.rows.usage.totals[usage_id_of_task(task)].own.cost == 1


def test_one_report_amends_a_bounded_number_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_of_usage, "MOST_AMENDED", 2)
    world = World()
    for tokens in (100, 200, 300):
        send(world, report({"output_tokens": tokens}))

    send(world, report(None, 7))

    assert whole(world) == Sums(4, output=300, cost=1_000_000 + 7)
