"""Running work at the edge of what is reserved for it: told to pause, asked about, let go on or stopped."""

from __future__ import annotations

from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.agent_pb2 import AGENT_ACTIVITY_WAITING_FOR_BUDGET
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_CANCEL,
    BUDGET_ACTION_REQUIRE_APPROVAL,
    Budget,
    BudgetAmount,
    BudgetWindow,
    DeleteBudgetRequest,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_RUNNING,
    ATTEMPT_WAIT_KIND_BUDGET,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_BUDGET,
    AttemptWait,
)
from kapell.v1.usage_pb2 import UsageRecord
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CANCEL,
    LEASE_DIRECTIVE_CONTINUE,
    LEASE_DIRECTIVE_PAUSE,
    HeartbeatRequest,
    LeaseBeat,
    LeaseDirective,
    LeaseStatus,
    ReportUsageRequest,
)
from kapell_server.domain.budgets.amounts import units_of

from tests.domain.asking import ALICE, decide, how, waiting
from tests.domain.spending import CENT, Purse, cents, costing, thresholds

ASKS = {"thresholds": thresholds(at_100=BUDGET_ACTION_REQUIRE_APPROVAL)}


def _beat(world: Purse, task_id: str, *, waits: bool = False) -> LeaseStatus:
    """A heartbeat for one task, as of an agent that heeds what it is told, or does not."""
    beat = LeaseBeat(lease_token=world.token(task_id))
    if waits:
        beat.waiting.CopyFrom(AttemptWait(kind=ATTEMPT_WAIT_KIND_BUDGET))
    agent_id = world.task(task_id).lease.agent_id
    [status] = world.do(HeartbeatRequest(agent_id=agent_id, leases=[beat])).leases
    found: LeaseStatus = status
    return found


def _told(world: Purse, task_id: str) -> LeaseDirective.ValueType:
    return _beat(world, task_id).directive


def _at_edge(limit: int = 10, *, estimate: int = 10, used: int = 10, **spec: object) -> tuple[Purse, str]:
    """A world in which a task has used what a budget has reserved for it, and the budget has no more."""
    world = Purse()
    world.budget(cents(limit), display_name="nightly", **spec)
    task_id = world.running(estimate=costing(estimate))
    world.use(task_id, used)
    return world, task_id


def test_who_has_used_all_and_gets_no_more_is_told_to_pause_and_why() -> None:
    world, task_id = _at_edge()

    told = _beat(world, task_id)

    assert told.directive == LEASE_DIRECTIVE_PAUSE
    assert (told.pause.budget_id, told.pause.needed) == ("budget_b", BudgetAmount(cost=_half_a_cent()))
    assert "has used the $0.10 that were reserved of budget nightly" in told.pause.reason
    assert world.events.count("task.paused") == 1
    assert world.status().paused == 1
    assert world.task(task_id).state == TASK_STATE_RUNNING


def _half_a_cent() -> object:
    """The usual reservation of a budget of ten cents: a twentieth."""
    amount = cents(0).cost
    amount.nanos = CENT // 2
    return amount


def test_the_answer_to_the_usage_itself_says_so() -> None:
    world = Purse()
    world.budget(BudgetAmount(tokens=100), default_estimate=BudgetAmount(tokens=100))
    task_id = world.running()

    def say(number: int) -> LeaseDirective.ValueType:
        record = UsageRecord(record_id=f"r{number}", model="m")
        record.tokens.output_tokens = 50
        answer = world.do(ReportUsageRequest(lease_token=world.token(task_id), records=[record]))
        assert answer.HasField("pause") == (answer.directive == LEASE_DIRECTIVE_PAUSE)
        found: LeaseDirective.ValueType = answer.directive
        return found

    assert say(1) == LEASE_DIRECTIVE_CONTINUE
    assert say(2) == LEASE_DIRECTIVE_PAUSE


def test_who_waits_is_shown_as_waiting_and_does_not_count_as_stalled() -> None:
    world, task_id = _at_edge()
    assert world.explain(task_id).summary.startswith("It is told to pause: it has used the $0.10")

    _beat(world, task_id, waits=True)

    assert world.task(task_id).waiting.kind == ATTEMPT_WAIT_KIND_BUDGET
    agent_id = world.task(task_id).lease.agent_id
    assert world.rows.agents[agent_id].activity == AGENT_ACTIVITY_WAITING_FOR_BUDGET
    [blocker] = world.explain(task_id).blockers
    assert (blocker.kind, list(blocker.blocked_by)) == (WAIT_KIND_BUDGET, ["budget_b"])
    assert blocker.message.startswith("It waits: ")


def test_room_that_comes_back_lets_it_go_on_before_new_work_starts() -> None:
    world = Purse()
    world.budget(cents(20), default_estimate=cents(10))
    first, second = world.running(estimate=costing(10)), world.running(estimate=costing(10))
    third = world.create(estimate=costing(10))
    world.poll(world.register(key="another process"))
    world.use(first, 10)
    assert _told(world, first) == LEASE_DIRECTIVE_PAUSE

    world.complete(second)

    assert _told(world, first) == LEASE_DIRECTIVE_CONTINUE
    assert world.figures() == (10, 10)
    assert world.task(third).state == TASK_STATE_QUEUED
    assert not world.task(first).HasField("pause")
    assert "task.continued" in world.events


@pytest.mark.parametrize("how_", ["raised", "resumed", "deleted", "next window"])
def test_whatever_makes_room_lets_it_go_on(how_: str) -> None:
    window = {"window": BudgetWindow(rolling=Duration(seconds=60))} if how_ == "next window" else {}
    world, task_id = _at_edge(**window)
    assert _told(world, task_id) == LEASE_DIRECTIVE_PAUSE

    match how_:
        case "raised":
            world.set_limit(cents(40))
        case "resumed":
            world.resume_budget()
        case "deleted":
            world.do(DeleteBudgetRequest(budget_id="budget_b"))
        case _:
            for _ in range(13):
                world.advance(5)
                _beat(world, task_id)

    assert _told(world, task_id) == LEASE_DIRECTIVE_CONTINUE
    assert not world.task(task_id).HasField("pause")


def test_less_than_as_much_again_is_enough_to_go_on() -> None:
    world, task_id = _at_edge(limit=15, default_estimate=cents(2))
    world.use(task_id, 1)

    assert _told(world, task_id) == LEASE_DIRECTIVE_CONTINUE
    assert world.figures() == (11, 2)


def test_a_call_that_was_under_way_is_counted_as_overrun_and_shown() -> None:
    world, task_id = _at_edge(used=8)
    world.use(task_id, 5)

    assert _told(world, task_id) == LEASE_DIRECTIVE_PAUSE
    assert world.figures() == (13, 0)
    assert world.status().overrun == cents(3)
    [hold] = world.attempt(task_id).budget_holds
    assert (hold.spent, hold.overrun) == (cents(13), cents(3))
    world.complete(task_id)
    assert world.attempt(task_id).budget_holds[0].overrun == cents(3)
    assert world.task(task_id).state == TASK_STATE_SUCCEEDED


def test_who_ends_is_never_asked_about() -> None:
    world, task_id = _at_edge(**ASKS)

    world.complete(task_id)

    assert [one.task_id for one in world.rows.approvals.values() if one.task_id] == []
    assert world.status().paused == 0


@pytest.mark.parametrize("why", ["it waits", "it has used more"])
def test_a_budget_that_asks_asks_about_the_attempt_once(why: str) -> None:
    world, task_id = _at_edge(**ASKS)
    assert not world.task(task_id).pause.approval_id

    if why == "it waits":
        _beat(world, task_id, waits=True)
    else:
        world.use(task_id, 2)
    for _ in range(3):
        _beat(world, task_id, waits=True)

    approval = waiting(world, task_id)
    assert (approval.budget_id, world.task(task_id).pause.approval_id) == ("budget_b", approval.approval_id)
    shown = world.rows.approval_contents[approval.approval_id].details
    assert "it may use $0.10 more" in shown
    assert "its task fails with BUDGET_EXCEEDED" in shown
    assert world.explain(task_id).blockers[0].message.endswith(f"Approval {approval.approval_id} decides about it.")


def test_a_yes_lets_it_go_on_with_what_it_has_used_beyond_the_limit() -> None:
    world, task_id = _at_edge(**ASKS)
    world.use(task_id, 2)
    later = world.create(estimate=costing(1))

    decide(world, waiting(world, task_id), by=ALICE)

    assert _told(world, task_id) == LEASE_DIRECTIVE_CONTINUE
    assert world.figures() == (12, 10)
    assert world.status().extended_by == cents(12)
    assert not world.status().HasField("overrun")
    assert world.attempt(task_id).budget_holds[0].granted == cents(10)
    world.use(task_id, 4)
    world.complete(task_id)
    world.poll(world.register(key="another process"))
    assert world.status().extended_by == cents(6), "what it was let and has not used is nobody's"
    assert world.task(later).state == TASK_STATE_QUEUED


def test_a_no_ends_it() -> None:
    world, task_id = _at_edge(**ASKS)
    _beat(world, task_id, waits=True)

    decide(world, waiting(world, task_id), "deny", by=ALICE)

    assert _told(world, task_id) == LEASE_DIRECTIVE_CANCEL
    world.fail(task_id)
    assert world.task(task_id).state == TASK_STATE_FAILED
    assert world.task(task_id).failure.reason == "BUDGET_EXCEEDED"
    assert "alice lets it use no more" in world.task(task_id).failure.message


def test_room_makes_the_question_none() -> None:
    world, task_id = _at_edge(**ASKS)
    _beat(world, task_id, waits=True)
    approval = waiting(world, task_id)

    world.set_limit(cents(40))

    assert how(world, approval.approval_id) == "CANCELLED"
    assert _told(world, task_id) == LEASE_DIRECTIVE_CONTINUE


@pytest.mark.parametrize("how_", ["cancelled", "silent"])
def test_the_question_ends_with_the_attempt(how_: str) -> None:
    world, task_id = _at_edge(**ASKS)
    _beat(world, task_id, waits=True)
    approval = waiting(world, task_id)

    if how_ == "cancelled":
        world.cancel(task_id)
    else:
        world.advance(60)

    assert how(world, approval.approval_id) == "CANCELLED"
    assert how_ == "cancelled" or not world.task(task_id).HasField("pause")


def test_a_budget_that_cancels_does_not_pause() -> None:
    world, task_id = _at_edge(thresholds=thresholds(at_100=BUDGET_ACTION_CANCEL), used=11)

    assert world.task(task_id).state == TASK_STATE_CANCELLING
    assert "task.paused" not in world.events


def test_time_that_is_over_pauses_too() -> None:
    world = Purse()
    world.budget(
        BudgetAmount(wall_time=Duration(seconds=5)), default_estimate=BudgetAmount(wall_time=Duration(seconds=5))
    )
    task_id = world.running()
    for _ in range(3):
        world.advance(2)
        told = _told(world, task_id)

    assert told == LEASE_DIRECTIVE_PAUSE
    world.set_limit(BudgetAmount(wall_time=Duration(seconds=60)))
    assert _told(world, task_id) == LEASE_DIRECTIVE_CONTINUE


def test_two_budgets_pause_it_one_after_the_other() -> None:
    world = Purse()
    world.budget(cents(10), budget_id="budget_a")
    world.budget(cents(10), budget_id="budget_b")
    task_id = world.running(estimate=costing(10))
    world.use(task_id, 10)
    assert world.task(task_id).pause.budget_id == "budget_a"

    world.set_limit(cents(40), "budget_a")

    assert world.task(task_id).pause.budget_id == "budget_b"
    assert (world.status("budget_a").paused, world.status("budget_b").paused) == (0, 1)
    world.set_limit(cents(40), "budget_b")
    assert _told(world, task_id) == LEASE_DIRECTIVE_CONTINUE


@given(seed=st.integers(0, 2**32), limit=st.integers(20, 120))
@settings(deadline=None, max_examples=10)
def test_spent_and_reserved_go_beyond_the_limit_only_by_calls_under_way(seed: int, limit: int) -> None:
    """Agents that heed a pause; each call may be dearer than expected. The auditor reads committed rows alone."""
    random = Random(seed)
    world = Purse()
    world.budget(cents(limit), **(ASKS if seed % 2 else {}))
    for _ in range(40):
        world.create(estimate=costing(random.randint(1, 8)))
    agents = [world.register(key=f"process-{number:03}") for number in range(8)]
    for _ in range(200):
        for agent_id in agents:
            if not world.state.polls.of_agent(agent_id) and not world.state.leases.used(agent_id):
                world.poll(agent_id)
        running = sorted(world.state.leases.by_task)
        if not running:
            break
        task_id = random.choice(running)
        if _beat(world, task_id, waits=True).directive == LEASE_DIRECTIVE_CONTINUE:
            world.use(task_id, random.randint(1, 4))
        if random.randrange(8) == 0:
            world.complete(task_id)
        for approval in [one for one in world.state.approvals.pending() if random.randrange(10) == 0]:
            if how(world, approval.approval_id) == "PENDING":  # An answer may make the next question none.
                decide(world, approval, random.choice(["approve", "deny"]))
        _audit(world)


def _audit(world: Purse) -> None:
    status = world.status()
    spent = sum(units for (_, _), units in world.rows.budgets.spend.items())
    holds = [
        (key, hold)
        for key, attempt in world.rows.attempts.items()
        if attempt.state == ATTEMPT_STATE_RUNNING
        for hold in attempt.budget_holds
    ]
    reserved = sum(units_of(hold.reserved) for _, hold in holds)
    assert (spent, reserved) == (units_of(status.spent), units_of(status.reserved))
    budget = world.state.standing.find(Budget, "budget_b")
    assert budget is not None
    most = units_of(budget.spec.limit)
    most += units_of(status.extended_by) if status.HasField("extended_by") else 0
    overrun = units_of(status.overrun) if status.HasField("overrun") else 0
    assert spent + reserved <= most + overrun
    assert overrun == max(0, spent + reserved - most)
    every = [hold for attempt in world.rows.attempts.values() for hold in attempt.budget_holds]
    beyond = sum(units_of(hold.overrun) for hold in every if hold.HasField("overrun"))
    assert overrun <= beyond, "nobody but calls under way has gone beyond the limit"
    running = [(key[0], hold) for key, hold in holds if world.task(key[0]).state == TASK_STATE_RUNNING]
    for task_id, hold in running:
        if world.task(task_id).HasField("pause"):
            assert not units_of(hold.reserved), "who has something left is not paused"
        else:
            assert not hold.HasField("overrun"), "who has used more than it has got is paused"
