"""`client.budgets` and amounts: what people say becomes what the server is asked; a flood stops at its limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money
from kapell import Client, SyncClient, errors
from kapell.amounts import amount_text, budget_amount, task_estimate
from kapell.budgets import budget_scope, budget_window
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_CANCEL,
    CALENDAR_UNIT_WEEK,
    BudgetAmount,
    BudgetScope,
    BudgetWindow,
    CalendarWindow,
)
from kapell_server.testing import TestServer, serve

from tests.clients.every_method import Recorder, recording


@pytest.fixture
async def recorded() -> AsyncIterator[tuple[Client, Recorder]]:
    async with recording() as (address, recorder), Client(address, token="secret-token") as client:
        yield client, recorder


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path) as server:
        yield server


def _usd(units: int, nanos: int = 0) -> BudgetAmount:
    return BudgetAmount(cost=Money(currency_code="USD", units=units, nanos=nanos))


@pytest.mark.parametrize(
    ("said", "meant", "shown"),
    [
        ("$5", _usd(5), "$5.00"),
        ("$0.000001", _usd(0, 1_000), "$0.000001"),
        ("1,250.5 usd", _usd(1250, 500_000_000), "$1,250.50"),
        ("200k tokens", BudgetAmount(tokens=200_000), "200,000 tokens"),
        ("1.5m tokens", BudgetAmount(tokens=1_500_000), "1,500,000 tokens"),
        ("1 attempt", BudgetAmount(tasks=1), "1 attempt"),
        ("20 tasks", BudgetAmount(tasks=20), "20 attempts"),
        ("90m", BudgetAmount(wall_time=Duration(seconds=5400)), "1h 30m"),
        ("0.5s", BudgetAmount(wall_time=Duration(nanos=500_000_000)), "0.5s"),
    ],
)
def test_an_amount_is_read_and_shown(said: str, meant: BudgetAmount, shown: str) -> None:
    assert budget_amount(said) == meant
    assert amount_text(meant) == shown
    assert budget_amount(meant) is meant


@pytest.mark.parametrize("said", ["", "5", "$", "$5 tokens", "5 euros", "-$5", "1.5 tokens", "all of it"])
def test_what_is_no_amount_is_refused_with_examples(said: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="200k tokens"):
        budget_amount(said)


def test_an_estimate_may_have_several_amounts() -> None:
    estimate = task_estimate("$0.20, 50k tokens, 10m")

    assert (estimate.cost.nanos, estimate.tokens, estimate.wall_time.seconds) == (200_000_000, 50_000, 600)
    with pytest.raises(errors.InvalidRequest):
        task_estimate("2 attempts")


def test_scopes_and_windows_are_read() -> None:
    assert budget_scope("all") == BudgetScope(all=True)
    assert budget_scope("named") == BudgetScope()
    assert budget_scope("label:team=search") == BudgetScope(label="team=search")
    assert budget_scope("tree:task_a") == BudgetScope(root_task_id="task_a")
    weekly = BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_WEEK, time_zone="Asia/Tokyo"))
    assert budget_window("weekly", "Asia/Tokyo") == weekly
    assert budget_window(3600) == BudgetWindow(rolling=Duration(seconds=3600))
    assert budget_window("lifetime") == BudgetWindow()
    for wrong in ("team", "type:", "colour:red"):
        with pytest.raises(errors.InvalidRequest):
            budget_scope(wrong)


async def test_a_budget_is_created_as_described(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.budgets.create(
        "$5", budget_id="budget_mine", scope="type:review", thresholds={100: "cancel"}, default_estimate="$0.10"
    )

    request = recorder.requests["CreateBudget"]
    assert request.budget_id == "budget_mine"
    assert request.spec.scope.agent_type == "review"
    assert [(one.percent, one.action) for one in request.spec.thresholds] == [(100, BUDGET_ACTION_CANCEL)]
    assert request.spec.default_estimate == _usd(0, 100_000_000)


async def test_a_flood_stops_at_its_limit_and_goes_on_when_it_is_resumed(server: TestServer) -> None:
    async with Client(server.address, token=server.admin_token) as client:
        asks = {100: "approval"}
        await client.budgets.create("3 attempts", budget_id="budget_few", scope="type:shell", thresholds=asks)
        tasks = [await client.tasks.create("shell", "true", estimate="$0.01") for _ in range(5)]
        await client.agents.spawn("shell", wait=20)

        for task in tasks[:3]:
            await client.tasks.wait(task.task_id, timeout=30)
        told = await client.tasks.explain(tasks[3].task_id)
        assert "Budget few has spent 3 attempts" in told.blockers[0].message
        firing = await client.alerts.list(states=["firing"], kinds=["budget_threshold"], subjects=["budget_few"])
        [alert] = firing.alerts
        assert alert.percent == 100
        noted = await client.alerts.acknowledge(alert.alert_id, comment="two more")
        assert noted.acknowledge_comment == "two more"
        resumed = await client.budgets.resume("budget_few", extend_by="2 attempts")
        assert resumed.status.extended_by.tasks == 2

        for task in tasks[3:]:
            await client.tasks.wait(task.task_id, timeout=30)
        assert (await client.budgets.get("budget_few")).status.spent.tasks == 5


def test_the_blocking_client_reserves_and_settles(tmp_path: Path) -> None:
    import asyncio

    async def run() -> None:
        async with serve(tmp_path) as server:
            await asyncio.to_thread(_reserve, server.address, server.admin_token)

    asyncio.run(run())


def _reserve(address: str, token: str) -> None:
    with SyncClient(address, token=token) as client:
        client.budgets.create("$1", budget_id="budget_s")
        held = client.budgets.reserve("budget_s", "$0.80", ttl=60, reason="a call")
        with pytest.raises(errors.KapellError) as refused:
            client.budgets.reserve("budget_s", "$0.30")
        assert refused.value.reason == "BUDGET_EXCEEDED"
        assert client.budgets.settle(held.reservation_id, "$0.25").status.spent == _usd(0, 250_000_000)
        assert [one.budget_id for one in client.budgets.iterate()] == ["budget_s"]
        client.budgets.delete("budget_s")
