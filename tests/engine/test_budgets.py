"""Budgets on the real engine and both databases: restarts, kills, failed commits, reads, what watchers see."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from kapell.v1.alert_pb2 import (
    ALERT_KIND_APPROVAL_OLD,
    ALERT_KIND_UNPRICED_MODEL,
    ALERT_STATE_FIRING,
    ALERT_STATE_RESOLVED,
    AlertFilter,
    ListAlertsRequest,
)
from kapell.v1.approval_pb2 import APPROVAL_ORDER_NEWEST_FIRST, Approval, DecideApprovalRequest, ListApprovalsRequest
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_REQUIRE_APPROVAL,
    Budget,
    BudgetHold,
    BudgetScope,
    BudgetSpec,
    BudgetWindow,
    CreateBudgetRequest,
    DeleteBudgetRequest,
    GetBudgetRequest,
    ListBudgetsRequest,
    ReserveBudgetRequest,
    SettleReservationRequest,
)
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RUNNING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    CreateTaskRequest,
    TaskAttempt,
    TaskSpec,
)
from kapell.v1.template_pb2 import CreateTemplateRequest, TemplateSpec
from kapell.v1.usage_pb2 import (
    USAGE_OUTCOME_KIND_RECORDED,
    ListUsageRecordsRequest,
    RecordUsageRequest,
    TokenCounts,
    UsageRecord,
)
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CONTINUE,
    LEASE_DIRECTIVE_LOST,
    LEASE_DIRECTIVE_PAUSE,
    ReportUsageRequest,
)
from kapell_server.domain.budgets.amounts import units_of
from kapell_server.domain.budgets.budgets import Settlement
from kapell_server.domain.state import State
from kapell_server.engine import batch
from kapell_server.store.database import Connection
from kapell_server.store.schema import attempts, budget_reservations, budget_spend

from tests.domain.spending import CENT, cents, costing, thresholds
from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import LiveEngine


@dataclass(frozen=True)
class Recorded:
    """A fact of the tests: usage that a ledger would record."""

    settlement: Settlement


def _record(state: State, fact: Recorded) -> None:
    state.budgets.settle(fact.settlement)


@pytest.fixture(autouse=True)
def ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the engine take in usage."""
    monkeypatch.setitem(batch.DECIDERS, Recorded, _record)


def _usage(task_id: str, cost: int) -> Recorded:
    return Recorded(Settlement(task_id=task_id, cost=cost * CENT, tokens=0))


async def use(live: LiveEngine, task_id: str = "", cost: int = 0) -> None:
    await live.call(_usage(task_id, cost))


async def make(live: LiveEngine, number: int, budget_id: str = "budget_b", **spec: Any) -> None:
    said = BudgetSpec(**{"limit": cents(number), "scope": BudgetScope(all=True), **spec})
    await live.call(CreateBudgetRequest(budget_id=budget_id, spec=said))


async def get(live: LiveEngine, budget_id: str = "budget_b") -> Budget:
    found: Budget = (await live.call(GetBudgetRequest(budget_id=budget_id))).budget
    return found


async def figures(live: LiveEngine, budget_id: str = "budget_b") -> tuple[int, int]:
    """Spent and reserved, in cents."""
    status = (await get(live, budget_id)).status
    return units_of(status.spent) // CENT, units_of(status.reserved) // CENT


def _booked(connection: Connection) -> int:
    """What the rows say is spent and reserved, in one look at the database."""
    spent = connection.scalar(sa.select(sa.func.sum(budget_spend.c.units))) or 0
    rows = connection.scalars(sa.select(attempts.c.data).where(attempts.c.state == ATTEMPT_STATE_RUNNING))
    holds = [hold for data in rows for hold in TaskAttempt.FromString(data).budget_holds]
    return int(spent) + sum(units_of(hold.reserved) for hold in holds)


async def test_a_killed_server_comes_back_with_what_is_spent_reserved_and_crossed(live: LiveEngine) -> None:
    await make(live, 100)
    agent_id = await live.register(slots=2)
    first = await live.create(estimate=costing(40))
    await live.create(estimate=costing(30))
    await live.lease(agent_id, max_tasks=2)
    await use(live, first.task_id, 55)
    reserved = await live.call(ReserveBudgetRequest(budget_id="budget_b", amount=cents(5)))
    before = await get(live)

    await live.crash()

    after = await get(live)
    assert after.status == before.status
    assert list(after.status.crossed_percents) == [50]
    alerts = await live.engine.reads.standing.list_alerts(ListAlertsRequest())
    assert [alert.percent for alert in alerts.alerts] == [50]
    await use(live, first.task_id, 1)
    request = SettleReservationRequest(reservation_id=reserved.reservation.reservation_id, amount=cents(2))
    await live.call(request)
    assert (await figures(live))[0] == 58
    assert (await live.engine.reads.standing.list_alerts(ListAlertsRequest())).alerts == alerts.alerts


async def test_a_task_that_waits_for_a_budget_waits_on_after_a_kill_and_is_woken(live: LiveEngine) -> None:
    await make(live, 50)
    agent_id = await live.register(slots=2)
    first = await live.create(estimate=costing(40))
    second = await live.create(estimate=costing(40))
    [offer] = await live.lease(agent_id, max_tasks=2)

    await live.crash()
    await live.beat(agent_id, offer)
    assert await live.lease(agent_id) == []
    assert (await live.task(second.task_id)).state == TASK_STATE_QUEUED
    await live.complete(offer)

    assert (await live.offer(agent_id)).task.task_id == second.task_id
    assert (await live.task(first.task_id)).attempt == 1
    assert await figures(live) == (0, 40)


async def test_a_window_that_ended_while_the_server_was_down_has_ended(live: LiveEngine) -> None:
    await make(live, 50, window=BudgetWindow(rolling=Duration(seconds=3600)))
    await use(live, cost=50)
    await live.stop()
    live.clock.advance(4000)
    await live.start()

    assert await figures(live) == (0, 0)
    alerts = (await live.engine.reads.standing.list_alerts(ListAlertsRequest())).alerts
    assert {alert.state for alert in alerts} == {ALERT_STATE_RESOLVED}


async def test_a_commit_that_fails_leaves_the_books_as_they_were(live: LiveEngine) -> None:
    await make(live, 50)
    agent_id = await live.register()
    task = await live.create(estimate=costing(40))
    await live.lease(agent_id)
    database = live.database
    assert isinstance(database, FaultyDatabase)
    before = await get(live)

    database.faults.append(Fault(busy()))
    assert (await live.refusal(_usage(task.task_id, 30))).reason_name == "STORAGE_BUSY"

    assert (await get(live)).status == before.status
    await use(live, task.task_id, 30)
    assert await figures(live) == (30, 10)


async def test_many_agents_at_once_never_exceed_the_limit_in_any_committed_state(live: LiveEngine) -> None:
    await make(live, 100)
    agents = [await live.register() for _ in range(16)]
    for _ in range(40):
        await live.create(estimate=costing(7))
    done = asyncio.Event()
    looks: list[int] = []

    async def audit() -> None:
        while not done.is_set():
            looks.append(await live.database.read(_booked))
            await asyncio.sleep(0)

    async def work(agent_id: str) -> None:
        for offer in await live.lease(agent_id):
            await use(live, offer.task.task_id, 4)
            await use(live, offer.task.task_id, 3)
            await live.complete(offer)

    auditor = asyncio.ensure_future(audit())
    for _ in range(3):
        await asyncio.gather(*[work(agent_id) for agent_id in agents])
    done.set()
    await auditor

    assert max(looks) <= 100 * CENT
    assert await figures(live) == (98, 0)
    shown = [event.budget for event in await _events(live) if event.HasField("budget")]
    assert all(units_of(one.status.spent) + units_of(one.status.reserved) <= 100 * CENT for one in shown)


async def _events(live: LiveEngine) -> list[Event]:
    return [Event.FromString(record.data) for record in await live.log()]


async def test_a_deleted_budget_leaves_no_rows(live: LiveEngine) -> None:
    await make(live, 100)
    await use(live, cost=5)
    await live.call(ReserveBudgetRequest(budget_id="budget_b", amount=cents(5)))

    await live.call(DeleteBudgetRequest(budget_id="budget_b"))

    def count(connection: Connection) -> list[int]:
        tables = (budget_spend, budget_reservations)
        return [connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables]

    assert await live.database.read(count) == [0, 0]
    await live.restart()


async def test_lists_show_exact_figures_and_alerts_with_those_that_fire_first(live: LiveEngine) -> None:
    await make(live, 100, "budget_a")
    await make(live, 10, "budget_b", scope=BudgetScope(agent_type="shell"))
    await use(live, cost=60)
    listed = await live.engine.reads.standing.list_budgets(ListBudgetsRequest(page_size=1))
    assert [one.budget_id for one in listed.budgets] == ["budget_b"]
    assert listed.next_page_token
    await live.call(DeleteBudgetRequest(budget_id="budget_a"))
    await make(live, 50, "budget_c")
    await use(live, cost=30)

    page = await live.engine.reads.standing.list_alerts(ListAlertsRequest(page_size=1))
    assert [(alert.subject, alert.state) for alert in page.alerts] == [("budget_c", ALERT_STATE_FIRING)]
    rest = await live.engine.reads.standing.list_alerts(ListAlertsRequest(page_token=page.next_page_token))
    assert [(alert.subject, alert.state) for alert in rest.alerts] == [("budget_a", ALERT_STATE_RESOLVED)]
    only = ListAlertsRequest(filter=AlertFilter(states=[ALERT_STATE_RESOLVED]))
    assert len((await live.engine.reads.standing.list_alerts(only)).alerts) == 1


async def test_a_snapshot_shows_budgets_and_alerts(live: LiveEngine) -> None:
    await make(live, 100)
    await use(live, cost=60)

    budgets, _ = await live.engine.reads.snapshot("budget", 0, live.engine.revision, 100)
    alerts, _ = await live.engine.reads.snapshot("alert", 0, live.engine.revision, 100)

    assert [record.resource_id for record in budgets] == ["budget_b"]
    assert [record.resource.percent for record in alerts] == [50]  # type: ignore[union-attr]


async def test_the_reservation_ends_with_the_attempt_of_a_server_that_was_killed(live: LiveEngine) -> None:
    await make(live, 50)
    agent_id = await live.register()
    task = await live.create(estimate=costing(40))
    [offer] = await live.lease(agent_id)
    await live.beat(agent_id, offer)

    await live.crash()
    assert (await live.task(task.task_id)).state == TASK_STATE_RUNNING
    assert await figures(live) == (0, 40)
    await live.advance(30)

    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED
    assert await figures(live) == (0, 0)


async def test_what_the_ledger_records_is_settled_once_and_corrections_by_their_difference(live: LiveEngine) -> None:
    await make(live, 100)
    agent_id = await live.register()
    task = await live.create(estimate=costing(40))
    await live.lease(agent_id)
    record = UsageRecord(record_id="msg_1", task_id=task.task_id, attempt=1, cost=cents(12).cost)

    for _ in range(2):
        await live.call(RecordUsageRequest(records=[record]))
    assert await figures(live) == (12, 28)
    record.cost.CopyFrom(cents(15).cost)
    await live.call(RecordUsageRequest(records=[record]))
    assert await figures(live) == (15, 25)
    nameless = UsageRecord(record_id="msg_2", model="no-such-model", tokens=TokenCounts(uncached_input_tokens=10))
    await live.call(RecordUsageRequest(records=[nameless]))

    firing = ListAlertsRequest(filter=AlertFilter(kinds=[ALERT_KIND_UNPRICED_MODEL]))
    [alert] = (await live.engine.reads.standing.list_alerts(firing)).alerts
    assert alert.subject == "no-such-model"


async def test_what_a_budget_asks_outlives_a_kill_and_the_answer_lets_work_start(live: LiveEngine) -> None:
    asks = thresholds(at_100=BUDGET_ACTION_REQUIRE_APPROVAL)
    await make(live, 10, thresholds=asks)
    await use(live, cost=10)
    task = await live.create(estimate=costing(1))
    [question] = await _asked(live)

    await live.crash()

    assert [one.approval_id for one in await _asked(live)] == [question.approval_id]
    agent_id = await live.register()
    assert await live.lease(agent_id) == []
    live.clock.advance(3601)
    await get(live)
    decision = DecideApprovalRequest(
        approval_id=question.approval_id, option="approve", shown_hash=question.content_hash
    )
    await live.call(decision)
    assert (await get(live)).status.extended_by == cents(10)
    await live.crash()
    assert await _asked(live) == []
    fired = (await live.engine.reads.standing.list_alerts(ListAlertsRequest())).alerts
    assert [one.state for one in fired if one.kind == ALERT_KIND_APPROVAL_OLD] == [ALERT_STATE_RESOLVED]
    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED


async def _asked(live: LiveEngine) -> list[Approval]:
    """What waits for a decision, as the database has it."""
    page = await live.engine.reads.approvals.list(ListApprovalsRequest(order=APPROVAL_ORDER_NEWEST_FIRST))
    return [one for one in page.approvals if one.state == APPROVAL_STATE_PENDING]


async def test_what_tasks_of_a_template_need_is_known_after_a_restart(live: LiveEngine) -> None:
    await make(live, 10_000)
    agent_id = await live.register()
    spec = TemplateSpec(agent_type="shell", prompt="Sum it up")
    await live.call(CreateTemplateRequest(template_id="summarise", spec=spec))
    for cost in (3, 9, 4, 5, 6):
        task = (await live.call(CreateTaskRequest(task=TaskSpec(template="summarise")))).task
        offer = await live.offer(agent_id)
        tokens = UsageRecord(record_id=task.task_id, cost=cents(cost).cost)
        await live.call(ReportUsageRequest(lease_token=offer.lease_token, records=[tokens]))
        await live.complete(offer)
    await live.call(CreateTaskRequest(task=TaskSpec(template="summarise")))
    await live.offer(agent_id)
    assert (await figures(live))[1] == 9

    await live.crash()

    other = await live.register()
    await live.call(CreateTaskRequest(task=TaskSpec(template="summarise")))
    await live.offer(other)
    assert (await figures(live))[1] == 18


async def test_a_pause_outlives_a_kill_and_ends_with_room(live: LiveEngine) -> None:
    await make(live, 10, thresholds=thresholds(at_100=BUDGET_ACTION_REQUIRE_APPROVAL))
    agent_id = await live.register()
    task = await live.create(estimate=costing(10))
    offer = await live.offer(agent_id)
    used = UsageRecord(record_id="call", cost=cents(13).cost)
    told = await live.call(ReportUsageRequest(lease_token=offer.lease_token, records=[used]))
    assert told.directive == LEASE_DIRECTIVE_PAUSE
    before = await get(live)

    await live.crash()

    [status] = (await live.beat(agent_id, offer)).leases
    assert (status.directive, status.pause) == (LEASE_DIRECTIVE_PAUSE, (await live.task(task.task_id)).pause)
    assert (await get(live)).status == before.status
    assert before.status.overrun == cents(3)
    asked = await live.engine.reads.approvals.list(ListApprovalsRequest(order=APPROVAL_ORDER_NEWEST_FIRST))
    [approval] = [one for one in asked.approvals if one.task_id == task.task_id]
    await live.call(
        DecideApprovalRequest(approval_id=approval.approval_id, option="approve", shown_hash=approval.content_hash)
    )
    [status] = (await live.beat(agent_id, offer)).leases
    assert status.directive == LEASE_DIRECTIVE_CONTINUE
    assert await figures(live) == (13, 10)
    await live.crash()
    [hold] = await _holds(live, task.task_id)
    assert (hold.granted, hold.reserved) == (cents(10), cents(10))
    await live.complete(offer)
    assert (await get(live)).status.extended_by == cents(3)


async def _holds(live: LiveEngine, task_id: str) -> list[BudgetHold]:
    found = await live.engine.reads.list_attempts(task_id)
    return [hold for attempt in found.attempts for hold in attempt.budget_holds]


async def test_usage_of_an_attempt_that_ended_long_ago_is_recorded_after_a_restart(live: LiveEngine) -> None:
    await make(live, 100)
    agent_id = await live.register()
    task = await live.create()
    offer = await live.offer(agent_id)
    await live.complete(offer)
    await live.crash()

    late = ReportUsageRequest(lease_token=offer.lease_token, records=[UsageRecord(record_id="c", cost=cents(4).cost)])
    answer = await live.call(late)

    assert answer.directive == LEASE_DIRECTIVE_LOST
    assert [one.kind for one in answer.outcomes] == [USAGE_OUTCOME_KIND_RECORDED]
    assert await figures(live) == (4, 0)
    found = await live.engine.reads.usage.list_records(ListUsageRecordsRequest())
    assert [(one.task_id, one.attempt) for one in found.records] == [(task.task_id, 1)]
