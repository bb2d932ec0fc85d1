"""Budgets hold: work reserves before it starts, usage settles it, its end releases the rest."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.budget_pb2 import (
    BUDGET_ACTION_NOTIFY,
    BUDGET_ACTION_STOP_ADMISSION,
    CALENDAR_UNIT_DAY,
    BudgetAmount,
    BudgetScope,
    BudgetWindow,
    CalendarWindow,
    DeleteBudgetRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_BUDGET,
    CreateTaskRequest,
    TaskSpec,
    TaskTimeouts,
)
from kapell.v1.template_pb2 import CreateTemplateRequest, TemplateSpec
from kapell.v1.worker_pb2 import CreateChildTasksRequest, FailTaskRequest, ProviderRateLimit
from kapell_server.domain.budgets.scopes import Features

from tests.domain.asking import ask_whole
from tests.domain.spending import Purse, cents, costing, thresholds


def test_an_attempt_reserves_its_estimate_usage_settles_it_and_its_end_releases_the_rest() -> None:
    world = Purse()
    world.budget(cents(100))
    agent_id = world.register()
    task_id = world.create(estimate=costing(30))

    assert world.lease(agent_id) == task_id
    assert world.figures() == (0, 30)
    assert world.attempt(task_id).budget_holds[0].reserved == cents(30)
    world.use(task_id, 12)
    assert world.figures() == (12, 18)
    world.complete(task_id)

    assert world.figures() == (12, 0)
    assert world.attempt(task_id).budget_holds[0].spent == cents(12)


def test_no_task_starts_that_no_budget_has_room_for_and_the_next_one_may_fit() -> None:
    world = Purse()
    world.budget(cents(100))
    agent_id = world.register(slots=8)
    first = world.create(estimate=costing(70))
    large = world.create(estimate=costing(40))
    small = world.create(estimate=costing(30))

    taken = [lease.task_id for lease in world.poll(agent_id, max_tasks=8).taken]

    assert taken == [first, small]
    assert world.task(large).state == TASK_STATE_QUEUED
    assert world.figures() == (0, 100)


def test_explain_names_the_budget_what_is_spent_and_reserved_and_when_it_is_reset() -> None:
    world = Purse()
    window = BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_DAY))
    world.budget(cents(100), window=window, display_name="nightly work")
    agent_id = world.register(slots=2)
    first = world.create(estimate=costing(60))
    waiting = world.create(estimate=costing(50))
    world.poll(agent_id, max_tasks=2)
    world.use(first, 20)

    blocker = world.explain(waiting).blockers[0]

    assert blocker.kind == WAIT_KIND_BUDGET
    assert "nightly work has spent $0.20 and reserved $0.40 of $1.00; the task needs $0.50." in blocker.message
    assert list(blocker.blocked_by) == ["budget_b"]
    assert blocker.until_time == world.status().window_end_time == world.status().reset_time


def test_who_waits_is_woken_by_what_is_released() -> None:
    world = Purse()
    world.budget(cents(100))
    agent_id = world.register(slots=2)
    first, second = world.create(estimate=costing(60)), world.create(estimate=costing(60))
    world.poll(agent_id, max_tasks=2)
    world.beat(agent_id, first)
    world.poll(agent_id)

    world.use(first, 40)
    assert world.task(second).state == TASK_STATE_QUEUED
    world.complete(first)

    assert world.task(second).state == TASK_STATE_RUNNING
    assert world.figures() == (40, 60)


def test_who_waits_is_woken_by_a_higher_limit_by_a_resume_and_by_the_end_of_the_budget() -> None:
    world = Purse()
    world.budget(cents(10))
    agent_id = world.register(slots=8)
    tasks = [world.create(estimate=costing(10)) for _ in range(4)]
    world.poll(agent_id, max_tasks=1)

    def running() -> int:
        world.beat(agent_id, *[one for one in tasks if world.task(one).state == TASK_STATE_RUNNING])
        world.poll(agent_id)
        return sum(world.task(one).state == TASK_STATE_RUNNING for one in tasks)

    assert running() == 1
    world.set_limit(cents(20))
    assert running() == 2
    world.resume_budget(extend_by=cents(10))
    assert running() == 3
    world.do(DeleteBudgetRequest(budget_id="budget_b"))
    assert running() == 4
    assert not world.attempt(tasks[0]).budget_holds


def test_a_calendar_window_that_ends_gives_back_what_was_spent_in_it() -> None:
    world = Purse()
    world.budget(cents(50), window=BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_DAY)))
    agent_id = world.register()
    task_id = world.create(estimate=costing(50))
    world.lease(agent_id)
    world.use(task_id, 50)
    world.complete(task_id)
    waiting = world.create(estimate=costing(1))
    world.poll(agent_id)
    assert world.task(waiting).state == TASK_STATE_QUEUED
    assert world.percents() == [50, 80, 100]
    reset: Timestamp = world.status().reset_time

    world.now_ns = reset.ToNanoseconds() - 1
    world.do()
    assert world.figures() == (50, 0)
    world.now_ns += 1
    world.poll(world.register(key="of-the-next-day"))

    assert world.figures() == (0, 1)
    assert world.task(waiting).state == TASK_STATE_RUNNING
    assert world.percents() == []
    assert world.status().window_start_time == reset
    assert world.rows.budgets.spend == {}


def test_a_rolling_window_gives_back_what_has_left_it() -> None:
    world = Purse()
    world.budget(cents(50), window=BudgetWindow(rolling=Duration(seconds=3600)))
    world.use(cost=20)
    world.advance(1800)
    world.use(cost=10)

    assert world.figures() == (30, 0)
    world.advance(1799)
    assert world.figures() == (30, 0)
    world.advance(62)
    assert world.figures() == (10, 0)
    world.advance(1800)
    assert world.figures() == (0, 0)
    assert not world.status().HasField("reset_time")


def test_every_scope_counts_its_own() -> None:
    world = Purse()
    agent_id = world.register("review", slots=1)
    for name, scope in {
        "type": BudgetScope(agent_type="review"),
        "other": BudgetScope(agent_type="shell"),
        "agent": BudgetScope(agent_id=agent_id),
        "tree": BudgetScope(root_task_id="task_root"),
        "label": BudgetScope(label="team"),
        "value": BudgetScope(label="team=search"),
        "elsewhere": BudgetScope(label="team=ads"),
        "all": BudgetScope(all=True),
        "named": BudgetScope(),
        "unnamed": BudgetScope(),
    }.items():
        world.budget(cents(1000), budget_id=f"budget_{name}", scope=scope)
    spec = {"estimate": costing(5), "labels": {"team": "search"}, "budget_id": "budget_named"}
    world.create("review", task_id="task_root", **spec)
    world.lease(agent_id)
    world.use("task_root", 2)

    spent = {name for name in world.state.budgets.tallies if world.figures(name) == (2, 3)}

    assert spent == {f"budget_{name}" for name in ("type", "agent", "tree", "label", "value", "all", "named")}


def test_children_draw_from_the_budgets_of_their_tree_and_of_their_parent() -> None:
    world = Purse()
    world.budget(cents(100), budget_id="budget_tree", scope=BudgetScope(root_task_id="task_root"))
    world.budget(cents(100), budget_id="budget_named", scope=BudgetScope())
    world.budget(cents(100), budget_id="budget_foreign", scope=BudgetScope())
    agent_id = world.register("only")
    world.create("only", task_id="task_root", budget_id="budget_named", estimate=costing(40))
    world.lease(agent_id)
    child = TaskSpec(agent_type="shell", estimate=costing(50))
    request = CreateChildTasksRequest(lease_token=world.token("task_root"), tasks=[child])
    [made] = world.do(request)
    with world.refuses("REQUEST_INVALID"):
        request.tasks[0].budget_id = "budget_foreign"
        world.do(request)

    helper = world.register("shell", key="helper-0")
    assert world.lease(helper) == made.task_id

    assert world.figures("budget_tree") == (0, 90)
    assert world.figures("budget_named") == (0, 90)
    assert world.figures("budget_foreign") == (0, 0)


def test_a_task_reserves_from_all_budgets_or_from_none() -> None:
    world = Purse()
    world.budget(cents(100), budget_id="budget_wide")
    world.budget(cents(5), budget_id="budget_narrow", scope=BudgetScope(agent_type="shell"))
    agent_id = world.register()
    world.create(estimate=costing(10))

    assert not world.poll(agent_id).taken

    assert world.figures("budget_wide") == (0, 0)
    assert world.figures("budget_narrow") == (0, 0)


def test_the_budget_of_an_agent_holds_back_that_agent_and_no_other() -> None:
    world = Purse()
    poor, rich = world.register(key="poor-agent"), world.register(key="rich-agent")
    world.budget(cents(5), scope=BudgetScope(agent_id=poor))
    task_id = world.create(estimate=costing(10))

    assert not world.poll(poor).taken
    kinds = [blocker.kind for blocker in world.explain(task_id).blockers]
    assert WAIT_KIND_BUDGET in kinds
    assert [lease.task_id for lease in world.poll(rich).taken] == [task_id]


def test_an_agent_that_waits_for_its_budget_is_served_when_it_has_room() -> None:
    world = Purse()
    agent_id = world.register()
    world.budget(cents(5), scope=BudgetScope(agent_id=agent_id))
    task_id = world.create(estimate=costing(10))
    assert not world.poll(agent_id).taken

    world.set_limit(cents(50))

    assert world.task(task_id).state == TASK_STATE_RUNNING


def test_a_lost_attempt_and_a_retry_reserve_anew_and_release() -> None:
    world = Purse()
    world.budget(cents(100))
    agent_id = world.register()
    task_id = world.create(estimate=costing(30))
    world.lease(agent_id)
    world.beat(agent_id, task_id)
    world.use(task_id, 10)

    world.advance(60)
    assert world.figures() == (10, 0)
    world.beat(agent_id)
    world.poll(agent_id)

    assert world.figures() == (10, 30)
    world.use(task_id, 5, attempt=1)
    assert world.figures() == (15, 30)
    world.use(task_id, 5, attempt=2)
    assert world.figures() == (20, 25)


def test_attempts_and_time_are_counted_by_the_attempts_themselves() -> None:
    world = Purse()
    world.budget(BudgetAmount(tasks=2), budget_id="budget_tasks")
    world.budget(BudgetAmount(wall_time=Duration(seconds=100)), budget_id="budget_time")
    agent_id = world.register(slots=4)
    timeouts = TaskTimeouts(run_timeout=Duration(seconds=40))
    first, second, third = [world.create(timeouts=timeouts) for _ in range(3)]

    taken = [lease.task_id for lease in world.poll(agent_id, max_tasks=4).taken]
    assert taken == [first, second]
    assert world.figures("budget_tasks") == (0, 2)
    assert world.figures("budget_time") == (0, 80_000)
    for _ in range(3):
        world.advance(5)
        world.beat(agent_id, first, second)
    world.complete(first)
    world.release(second)

    assert world.figures("budget_tasks") == (1, 0)
    assert world.figures("budget_time") == (15_000, 0)
    assert world.task(third).state == TASK_STATE_QUEUED


@pytest.mark.parametrize("how", ["parked", "limited by its provider"])
def test_the_time_of_an_attempt_that_comes_back_is_counted(how: str) -> None:
    world = Purse()
    world.budget(BudgetAmount(tasks=2), budget_id="budget_tasks")
    world.budget(BudgetAmount(wall_time=Duration(seconds=100)), budget_id="budget_time")
    task_id = world.running(timeouts=TaskTimeouts(run_timeout=Duration(seconds=40)))
    for _ in range(3):
        world.advance(5)
        world.beat(world.task(task_id).lease.agent_id, task_id)

    if how == "parked":
        ask_whole(world, task_id, park=True)
    else:
        limit = ProviderRateLimit(provider="p", reset_after=Duration(seconds=60))
        world.do(FailTaskRequest(lease_token=world.token(task_id), rate_limited=limit))

    assert world.figures("budget_time") == (15_000, 0)
    assert world.figures("budget_tasks") == (0, 0)


def test_an_attempt_that_takes_longer_than_it_reserved_gets_more_where_there_is_room() -> None:
    world = Purse()
    limit = BudgetAmount(wall_time=Duration(seconds=100))
    world.budget(limit, default_estimate=BudgetAmount(wall_time=Duration(seconds=10)))
    agent_id = world.register()
    task_id = world.create()
    world.lease(agent_id)

    for _ in range(6):
        world.advance(2)
        world.beat(agent_id, task_id)

    assert world.figures() == (0, 20_000)
    assert world.attempt(task_id).budget_holds[0].reserved.wall_time.seconds == 20


def test_use_beyond_the_estimate_is_reserved_for_where_there_is_room() -> None:
    world = Purse()
    world.budget(cents(100), default_estimate=cents(10))
    agent_id = world.register()
    task_id = world.create()
    world.lease(agent_id)

    world.use(task_id, 10)
    assert world.figures() == (10, 0)
    world.use(task_id, 3)
    assert world.figures() == (13, 10)
    world.use(task_id, 85)
    assert world.figures() == (98, 0)
    world.complete(task_id)
    assert world.task(task_id).state == TASK_STATE_SUCCEEDED


def test_a_template_teaches_what_its_tasks_need() -> None:
    world = Purse()
    world.budget(BudgetAmount(tokens=100_000))
    agent_id = world.register()
    spec = TemplateSpec(agent_type="shell", prompt="Sum it up")
    world.do(CreateTemplateRequest(template_id="summarise", spec=spec))
    for tokens in (100, 120, 110, 90, 130):
        task_id: str = world.do(CreateTaskRequest(task=TaskSpec(template="summarise"))).task_id
        world.beat(agent_id)
        world.lease(agent_id)
        assert world.figures()[1] == 5_000
        world.use(task_id, tokens=tokens)
        world.complete(task_id)

    world.do(CreateTaskRequest(task=TaskSpec(template="summarise")))
    world.poll(agent_id)

    assert world.figures() == (550, 130)


def test_corrections_give_back_what_was_spent() -> None:
    world = Purse()
    world.budget(cents(100))
    world.use(cost=90)
    world.use(cost=-60)

    assert world.figures() == (30, 0)
    world.use(cost=-60)
    assert world.figures() == (0, 0)


def test_usage_without_a_task_is_matched_by_what_is_said_of_it() -> None:
    world = Purse()
    world.budget(cents(100), scope=BudgetScope(label="team=search"))

    world.use(cost=5, features=Features(labels={"team": "search"}))
    world.use(cost=7, features=Features(labels={"team": "ads"}))

    assert world.figures() == (5, 0)


def test_a_budget_that_only_notifies_holds_nothing_back() -> None:
    world = Purse()
    world.budget(cents(10), thresholds=thresholds(at_100=BUDGET_ACTION_NOTIFY))
    agent_id = world.register()
    world.use(cost=50)
    task_id = world.create(estimate=costing(10))

    assert world.lease(agent_id) == task_id
    assert world.percents() == [100]


def test_a_threshold_below_the_limit_may_stop_admission() -> None:
    world = Purse()
    world.budget(cents(100), thresholds=thresholds(at_60=BUDGET_ACTION_STOP_ADMISSION))
    agent_id = world.register()
    world.use(cost=60)
    task_id = world.create(estimate=costing(1))
    assert not world.poll(agent_id).taken

    world.resume_budget()

    assert world.task(task_id).state == TASK_STATE_RUNNING
    assert list(world.status().lifted_percents) == [60]
    assert not world.status().HasField("extended_by")
