"""What a task waits for of other tasks: every condition, every end of the other task, every wish for its failure."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_FINISHED as FINISHED,
)
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_STARTED as STARTED,
)
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_SUCCEEDED as SUCCEEDED,
)
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_FAILURE_ACTION_FAIL as FAIL,
)
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_FAILURE_ACTION_RUN as RUN,
)
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_FAILURE_ACTION_SKIP as SKIP,
)
from kapell.v1.dependency_pb2 import DependencyCondition, TaskDependency
from kapell.v1.task_pb2 import (
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    WAIT_KIND_DEPENDENCY,
    WAIT_KIND_NOT_BEFORE,
    BatchCreateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    Task,
    TaskSpec,
    TaskState,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import CompleteTaskRequest
from kapell_server.domain.times import SECOND, stamp

from tests.domain.world import World

# State of the other task × condition → what the dependency is: open, met or failed.
VERDICTS = """
                       SUCCEEDED  FINISHED  STARTED
PENDING                open       open      open
QUEUED                 open       open      open
RUNNING                open       open      met
CANCELLING             open       open      met
REQUEUED               open       open      met
SUCCEEDED              met        met       met
FAILED                 failed     met       met
CANCELLED              failed     met       met
FAILED-UNSTARTED       failed     met       failed
CANCELLED-UNSTARTED    failed     met       failed
SKIPPED                failed     met       failed
"""
OUTCOMES = {FAIL: "FAILED", SKIP: "CANCELLED", RUN: "QUEUED"}


def cells() -> list[tuple[str, Any, Any, str]]:
    """(state of the other task, condition, on_failure, state of the task)."""
    head, *rows = VERDICTS.strip().splitlines()
    found = []
    for row in rows:
        state, *verdicts = row.split()
        for name, verdict in zip(head.split(), verdicts, strict=True):
            condition = DependencyCondition.Value(f"DEPENDENCY_CONDITION_{name}")
            for on_failure in (FAIL, SKIP, RUN):
                outcome = {"open": "PENDING", "met": "QUEUED", "failed": OUTCOMES[on_failure]}[verdict]
                found.append((state, condition, on_failure, outcome))
    return found


def bring(world: World, task_id: str, state: str) -> None:
    """Brings a QUEUED task, the only one of its type, into a state."""
    if state == "PENDING":
        return  # It was made so: see `other_task`.
    if state == "CANCELLED-UNSTARTED":
        world.cancel(task_id)
    elif state == "FAILED-UNSTARTED":
        world.advance(61)
    elif state not in ("QUEUED", "SKIPPED"):
        agent_id = world.register("other")
        assert world.lease(agent_id) == task_id
        world.beat(agent_id, task_id)
        match state:
            case "CANCELLING":
                world.cancel(task_id)
            case "CANCELLED":
                world.cancel(task_id)
                world.fail(task_id)
            case "REQUEUED":
                world.fail(task_id)
            case "SUCCEEDED":
                world.complete(task_id)
            case "FAILED":
                world.fail(task_id, retryable=False)


def other_task(world: World, state: str) -> str:
    """The task that is waited for, still QUEUED where it has to get somewhere."""
    if state == "PENDING":
        return world.create("other", not_before_time=in_seconds(world, 600))
    if state == "SKIPPED":
        failed = world.create("third")
        skipped = world.create("other", dependencies=[TaskDependency(task_id=failed, on_failure=SKIP)])
        world.cancel(failed)
        assert world.task(skipped).skipped
        return skipped
    timeouts = TaskTimeouts(queue_timeout=Duration(seconds=60)) if state == "FAILED-UNSTARTED" else None
    return world.create("other", timeouts=timeouts)


def in_seconds(world: World, seconds: int) -> Timestamp:
    time = Timestamp()
    stamp(time, world.now_ns + seconds * SECOND)
    return time


def state_name(task: Task) -> str:
    return TaskState.Name(task.state).removeprefix("TASK_STATE_")


@pytest.mark.parametrize("order", ["created before", "created after"])
@pytest.mark.parametrize(
    ("state", "condition", "on_failure", "outcome"),
    cells(),
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_a_dependency_in_every_state(state: str, condition: Any, on_failure: Any, outcome: str, order: str) -> None:
    world = World()
    other = other_task(world, state)
    wanted = TaskDependency(task_id=other, condition=condition, on_failure=on_failure)

    if order == "created after":
        bring(world, other, state)
    task_id = world.create(dependencies=[wanted])
    if order == "created before":
        bring(world, other, state)

    task = world.task(task_id)
    assert state_name(task) == outcome
    assert bool(world.edges()) == (outcome == "PENDING")
    assert world.rows.edges == world.edges()
    assert [wait.kind for wait in task.waiting_on] == ([WAIT_KIND_DEPENDENCY] if outcome == "PENDING" else [])
    assert task.HasField("queue_time") == (outcome == "QUEUED")
    assert task.skipped == (outcome == "CANCELLED")
    if outcome == "FAILED":
        assert task.failure.reason == "DEPENDENCY_FAILED"
        assert other in task.failure.message
        assert task.failure.details["task_id"] == other
    if outcome in ("FAILED", "CANCELLED"):
        assert task.HasField("end_time")
        assert other in task.state_reason


def test_defaults_are_filled_in() -> None:
    world = World()
    other = world.create()

    task_id = world.create(dependencies=[TaskDependency(task_id=other)])

    [kept] = world.task(task_id).dependencies
    assert kept == TaskDependency(task_id=other, name=other, condition=SUCCEEDED, on_failure=FAIL)


def test_a_waiting_task_is_given_to_nobody() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other)])
    agent_id = world.register()

    poll = world.poll(agent_id)

    assert poll.taken == []
    assert world.state.queues.ready.depths() == {"other": 1}
    helper = world.register("other")
    world.lease(helper)
    world.complete(other)
    assert [lease.task_id for lease in poll.taken] == [task_id], "it is given away in the batch that wakes it"


def test_a_start_wakes_and_gives_away_in_the_same_batch() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other, condition=STARTED)])
    poll = world.poll(world.register())

    world.lease(world.register("other"))

    assert world.task(other).state == TASK_STATE_RUNNING
    assert [lease.task_id for lease in poll.taken] == [task_id]


def test_a_fan_in_of_500_is_put_once() -> None:
    world = World()
    others = [world.create("other") for _ in range(500)]
    task_id = world.create(dependencies=[TaskDependency(task_id=other) for other in others])
    agent_id = world.register("other", slots=250)
    world.events.clear()

    for _ in range(2):
        world.poll(agent_id, max_tasks=250)
        for other in others:
            if world.task(other).state == TASK_STATE_RUNNING:
                world.complete(other)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert world.events.count("task.queued") == 1
    assert "task.updated" not in world.events
    assert world.edges() == {}


def test_2000_tasks_wake_in_the_batch_that_completes_what_they_wait_for() -> None:
    world = World()
    other = world.create("other")
    request = BatchCreateTasksRequest()
    for _ in range(2000):
        request.tasks.add(agent_type="shell").dependencies.add(task_id=other)
    ids = [task.task_id for task in world.do(request)]
    world.lease(world.register("other"))
    before = world.state.revision

    world.complete(other)

    woken = [world.task(task_id) for task_id in ids]
    assert {task.state for task in woken} == {TASK_STATE_QUEUED}
    revisions = [task.revision for task in woken]
    assert revisions == list(range(before + 2, before + 2002)), "one put each, in the order of their creation"
    assert world.rows.edges == {}


def test_a_failure_runs_through_a_chain_in_one_batch() -> None:
    world = World()
    first = previous = world.create("other")
    chain = [previous := world.create(dependencies=[TaskDependency(task_id=previous)]) for _ in range(300)]
    world.events.clear()

    world.cancel(first)

    assert {state_name(world.task(task_id)) for task_id in chain} == {"FAILED"}
    assert world.events == ["task.cancelled", *["task.failed"] * 300]
    assert world.task(chain[-1]).failure.message == f"its dependency {chain[-2]} has failed"


def test_skipping_spreads_as_each_task_wishes() -> None:
    world = World()
    first = world.create("other")
    skipped = world.create(dependencies=[TaskDependency(task_id=first, on_failure=SKIP)])
    fails, skips, runs, ends = [
        world.create(dependencies=[wanted])
        for wanted in (
            TaskDependency(task_id=skipped, name="b"),
            TaskDependency(task_id=skipped, on_failure=SKIP),
            TaskDependency(task_id=skipped, on_failure=RUN),
            TaskDependency(task_id=skipped, condition=FINISHED),
        )
    ]

    world.cancel(first)

    assert world.task(fails).failure.message == f"its dependency b ({skipped}) was skipped"
    assert world.task(skips).skipped
    assert state_name(world.task(runs)) == "QUEUED"
    assert state_name(world.task(ends)) == "QUEUED"


def test_the_first_failure_decides_and_closes_all_edges() -> None:
    world = World()
    one, two = world.create("other"), world.create("other")
    task_id = world.create(
        dependencies=[TaskDependency(task_id=one, on_failure=SKIP), TaskDependency(task_id=two, on_failure=FAIL)]
    )

    world.do(*(DeleteTaskRequest(task_id=other) for other in (two, one)))

    assert world.task(task_id).state == TASK_STATE_FAILED
    assert world.edges() == {}


def test_dependency_and_time_must_both_be_over() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other)], not_before_time=in_seconds(world, 60))
    kinds = [wait.kind for wait in world.task(task_id).waiting_on]
    assert kinds == [WAIT_KIND_DEPENDENCY, WAIT_KIND_NOT_BEFORE]

    world.lease(world.register("other"))
    world.complete(other)
    task = world.task(task_id)
    assert (task.state, [wait.kind for wait in task.waiting_on]) == (TASK_STATE_PENDING, [WAIT_KIND_NOT_BEFORE])

    world.advance(61)
    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_time_alone_wakes_no_task_that_waits_for_another() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other)], not_before_time=in_seconds(world, 60))

    world.advance(120)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.lease(world.register("other"))
    world.complete(other)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert not world.task(task_id).waiting_on


def test_total_timeout_runs_while_a_task_waits_and_queue_timeout_does_not() -> None:
    world = World()
    other = world.create("other")
    limits = TaskTimeouts(queue_timeout=Duration(seconds=10), total_timeout=Duration(seconds=100))
    first, second = [world.create(dependencies=[TaskDependency(task_id=other)], timeouts=limits) for _ in range(2)]

    world.advance(50)
    assert world.task(first).state == TASK_STATE_PENDING
    world.cancel(second)
    world.advance(51)

    assert world.task(first).failure.reason == "TOTAL_TIMEOUT"
    assert world.edges() == {}


def test_queue_timeout_counts_from_the_last_dependency() -> None:
    world = World()
    other = world.create("other")
    limits = TaskTimeouts(queue_timeout=Duration(seconds=10))
    task_id = world.create(dependencies=[TaskDependency(task_id=other)], timeouts=limits)
    world.advance(50)
    world.lease(world.register("other"))
    world.complete(other)

    world.advance(9)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    world.advance(2)
    assert world.task(task_id).failure.reason == "QUEUE_TIMEOUT"


def test_completed_and_deleted_in_one_batch_still_wakes() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(prompt="{deps.o.result}", dependencies=[TaskDependency(task_id=other, name="o")])
    world.lease(world.register("other"))
    completion = CompleteTaskRequest(lease_token=world.token(other))
    completion.result.string_value = "done"

    world.do(completion, DeleteTaskRequest(task_id=other))

    assert world.task(task_id).state == TASK_STATE_QUEUED
    assert world.content(task_id).prompt == "done"


def test_a_task_may_be_made_again_under_the_id_of_one_that_was_waited_for() -> None:
    world = World()
    world.create("other", task_id="task_a")
    waits = world.create(dependencies=[TaskDependency(task_id="task_a", on_failure=RUN)])
    again = CreateTaskRequest(task=TaskSpec(agent_type="other", task_id="task_a"))

    world.cancel("task_a")
    world.do(DeleteTaskRequest(task_id="task_a"), again)

    assert world.task(waits).state == TASK_STATE_QUEUED
    assert world.task("task_a").state == TASK_STATE_QUEUED


def test_one_that_has_failed_before_the_creation_is_judged_at_once() -> None:
    world = World()
    other = world.create("other")
    world.cancel(other)

    failed: Task = world.do(
        CreateTaskRequest(task=TaskSpec(agent_type="shell", dependencies=[TaskDependency(task_id=other)]))
    )

    assert failed.state == TASK_STATE_FAILED, "the answer tells how it stands"
    assert world.events[-2:] == ["task.created", "task.failed"]
