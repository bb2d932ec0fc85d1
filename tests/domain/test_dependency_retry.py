"""Tasks with dependencies that are retried by hand, and batches with dependencies that are taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_STARTED as STARTED,
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
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.task_pb2 import (
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    CancelTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    RetryTaskRequest,
    TaskFailure,
    TaskSpec,
)
from kapell.v1.worker_pb2 import CompleteTaskRequest, FailTaskRequest, LeaseTasksRequest

from tests.domain.test_rollback import fail_commit
from tests.domain.world import World

# -- retried by hand ---------------------------------------------------------------------------------


def test_a_retry_is_refused_while_a_dependency_has_failed_and_says_which() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other, name="build")])
    world.cancel(other)

    with world.refuses("DEPENDENCY_FAILED") as refusals:
        world.retry(task_id)

    [refusal] = refusals
    assert f"Retry {other} first" in refusal.message
    assert refusal.metadata == {"task_id": task_id, "dependency_id": other, "state": "CANCELLED"}


def test_a_retried_task_waits_again_for_one_that_lives() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other, on_failure=SKIP)])
    world.cancel(other)
    world.retry(other)

    task = world.retry(task_id)

    assert (task.state, task.skipped, task.state_reason) == (TASK_STATE_PENDING, False, "")
    assert world.events[-1] == "task.requeued"
    assert len(world.rows.edges) == 1
    world.lease(world.register("other"))
    world.complete(other)
    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_a_retried_task_runs_at_once_where_its_dependencies_are_met_or_gone() -> None:
    world = World()
    done, gone = world.create("other"), world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=done), TaskDependency(task_id=gone, on_failure=RUN)])
    agent_id = world.register("other")
    world.lease(agent_id)
    world.complete(done)
    world.cancel(gone)
    world.delete(gone)
    world.cancel(task_id)

    assert world.retry(task_id).state == TASK_STATE_QUEUED
    assert world.edges() == {}


def test_an_end_counts_even_if_the_task_is_retried_in_the_same_batch() -> None:
    world = World()
    other = world.create("other")
    task_id = world.create(dependencies=[TaskDependency(task_id=other)])

    world.do(CancelTaskRequest(task_id=other), RetryTaskRequest(task_id=other))

    assert world.task(other).state == TASK_STATE_QUEUED
    assert world.task(task_id).state == TASK_STATE_FAILED


# -- undone --------------------------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[World], Any]] = {
    "complete": lambda world: CompleteTaskRequest(lease_token=world.token("task_other")),
    "fail": lambda world: FailTaskRequest(
        lease_token=world.token("task_other"), failure=TaskFailure(reason="X", retryable=False)
    ),
    "cancel what waits": lambda world: CancelTaskRequest(task_id="task_0"),
    "delete what waits": lambda world: DeleteTaskRequest(task_id="task_1"),
    "retry into waiting": lambda world: RetryTaskRequest(task_id="task_again"),
    "delete what was waited for": lambda world: DeleteTaskRequest(task_id="task_ended"),
    "create": lambda world: CreateTaskRequest(
        task=TaskSpec(agent_type="shell", dependencies=[TaskDependency(task_id="task_other")])
    ),
    "create a failed one": lambda world: CreateTaskRequest(
        task=TaskSpec(agent_type="shell", dependencies=[TaskDependency(task_id="task_ended")])
    ),
    "create a child": lambda world: CreateTaskRequest(task=TaskSpec(agent_type="shell", parent_task_id="task_root")),
    "cancel a tree": lambda world: CancelTaskRequest(task_id="task_root"),
    "lease": lambda world: LeaseTasksRequest(agent_id=world.register("late")),
}


def busy_world() -> World:
    """task_other runs and six wait for it; task_again has been given up; task_root has a child."""
    world = World()
    world.create("other", task_id="task_other")
    for index, on_failure in enumerate((FAIL, SKIP, RUN)):
        wanted = TaskDependency(task_id="task_other", name="o", on_failure=on_failure)
        world.create(task_id=f"task_{index}", prompt="{deps.o.result}", dependencies=[wanted])
        world.create(dependencies=[TaskDependency(task_id=f"task_{index}", on_failure=on_failure)])
    world.create(task_id="task_again", dependencies=[TaskDependency(task_id="task_other")])
    world.cancel("task_again")
    world.create(task_id="task_ended")
    world.cancel("task_ended")
    world.create(task_id="task_root")
    world.create(parent_task_id="task_root")
    world.create("late", task_id="task_late")
    world.create(dependencies=[TaskDependency(task_id="task_late", condition=STARTED)])
    world.lease(world.register("other"))
    world.state.families.of("task_root")
    return world


@pytest.mark.parametrize("name", COMMANDS)
def test_undone_is_undone(name: str) -> None:
    world = busy_world()
    command = COMMANDS[name](world)
    before = world.picture()
    members = dict(world.state.families.of("task_root"))

    fail_commit(world, command)

    assert world.picture() == before
    assert world.state.families.of("task_root") == members
    world.do(command)
    assert world.rows.edges == world.edges()
    assert world.picture() != before
