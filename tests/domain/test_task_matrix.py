"""Every command on a task in every state: what it becomes and which event says so, or why it is refused.

`=` is an answer that changes nothing. STOPPING is CANCELLING because a timeout struck, where
nobody has asked for a cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.approval_policy_pb2 import ApprovalPolicy
from kapell.v1.task_pb2 import (
    CancelTaskRequest,
    DeleteTaskRequest,
    RetryTaskRequest,
    Task,
    TaskFailure,
    TaskProgress,
    TaskState,
    TaskTimeouts,
    UpdateTaskRequest,
)
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CANCEL,
    LEASE_DIRECTIVE_CONTINUE,
    LEASE_DIRECTIVE_LOST,
    CompleteTaskRequest,
    FailTaskRequest,
    HeartbeatRequest,
    LeaseBeat,
    ReleaseTaskRequest,
    ReportProgressRequest,
)
from kapell_server.domain.times import SECOND, stamp
from kapell_server.domain.transitions import TASK_FINAL, TASK_TRANSITIONS

from tests.domain.world import START_NS, World

STATES = (
    "PENDING",
    "AWAITING_APPROVAL",
    "QUEUED",
    "RUNNING",
    "CANCELLING",
    "STOPPING",
    "SUCCEEDED",
    "FAILED",
    "CANCELLED",
)

MATRIX = """
            PENDING              AWAITING_APPROVAL          QUEUED               RUNNING                    CANCELLING               STOPPING                   SUCCEEDED            FAILED               CANCELLED
update      PENDING:updated      AWAITING_APPROVAL:updated  QUEUED:updated       RUNNING:updated            CANCELLING:updated       CANCELLING:updated         TASK_STATE_CONFLICT  TASK_STATE_CONFLICT  TASK_STATE_CONFLICT
cancel      CANCELLED:cancelled  CANCELLED:cancelled        CANCELLED:cancelled  CANCELLING:cancelling      =                        CANCELLING:cancelling      TASK_STATE_CONFLICT  TASK_STATE_CONFLICT  =
retry       TASK_STATE_CONFLICT  TASK_STATE_CONFLICT        TASK_STATE_CONFLICT  TASK_STATE_CONFLICT        TASK_STATE_CONFLICT      TASK_STATE_CONFLICT        TASK_STATE_CONFLICT  QUEUED:queued        QUEUED:queued
delete      CANCELLED:cancelled  CANCELLED:cancelled        CANCELLED:cancelled  CANCELLING:cancelling      =                        CANCELLING:cancelling      gone:deleted         gone:deleted         gone:deleted
progress    LEASE_LOST           LEASE_LOST                 LEASE_LOST           RUNNING:progress           =                        =                          LEASE_LOST           LEASE_LOST           LEASE_LOST
complete    LEASE_LOST           LEASE_LOST                 LEASE_LOST           SUCCEEDED:completed        CANCELLED:cancelled      SUCCEEDED:completed        =                    LEASE_LOST           LEASE_LOST
fail        LEASE_LOST           LEASE_LOST                 LEASE_LOST           PENDING:requeued           CANCELLED:cancelled      PENDING:requeued           LEASE_LOST           =                    LEASE_LOST
fail-final  LEASE_LOST           LEASE_LOST                 LEASE_LOST           FAILED:failed              CANCELLED:cancelled      PENDING:requeued           LEASE_LOST           LEASE_LOST           LEASE_LOST
release     LEASE_LOST           LEASE_LOST                 LEASE_LOST           QUEUED:requeued            CANCELLED:cancelled      PENDING:requeued           LEASE_LOST           LEASE_LOST           LEASE_LOST
"""  # noqa: E501 - a table is read by its columns

DIRECTIVES = {
    "RUNNING": LEASE_DIRECTIVE_CONTINUE,
    "CANCELLING": LEASE_DIRECTIVE_CANCEL,
    "STOPPING": LEASE_DIRECTIVE_CANCEL,
}


def cells() -> list[tuple[str, str, str]]:
    """(command, state, outcome) of the table."""
    head, *rows = MATRIX.strip().splitlines()
    assert tuple(head.split()) == STATES
    return [
        (command, state, outcome)
        for row in rows
        for command, *outcomes in [row.split()]
        for state, outcome in zip(STATES, outcomes, strict=True)
    ]


def task_in(world: World, state: str) -> str:
    """A task in the state, with retries left where that can matter."""
    match state:
        case "PENDING":
            return pending(world)
        case "AWAITING_APPROVAL":
            return world.create("nobody", prompt="p", approval=ApprovalPolicy())
        case "QUEUED":
            return world.create("nobody")
        case "RUNNING":
            return world.running()
        case "CANCELLING":
            task_id = world.running()
            world.cancel(task_id)
        case "STOPPING":
            task_id = world.running(timeouts=TaskTimeouts(run_timeout=Duration(seconds=5)))
            world.advance(5.1)
        case "SUCCEEDED":
            task_id = world.running()
            world.complete(task_id)
        case "FAILED":
            task_id = world.running(retry_policy={"max_attempts": 1})
            world.fail(task_id)
        case "CANCELLED":
            task_id = world.create("nobody")
            world.cancel(task_id)
        case _:
            raise AssertionError(state)
    return task_id


def pending(world: World) -> str:
    later = Timestamp()
    stamp(later, START_NS + 1_000 * SECOND)
    return world.create("nobody", not_before_time=later)


COMMANDS: dict[str, Callable[[str, str], Any]] = {
    "update": lambda task_id, token: UpdateTaskRequest(
        task=Task(task_id=task_id, priority=7), update_mask=FieldMask(paths=["priority"])
    ),
    "cancel": lambda task_id, token: CancelTaskRequest(task_id=task_id),
    "retry": lambda task_id, token: RetryTaskRequest(task_id=task_id),
    "delete": lambda task_id, token: DeleteTaskRequest(task_id=task_id),
    "progress": lambda task_id, token: ReportProgressRequest(lease_token=token, progress=TaskProgress(fraction=0.5)),
    "complete": lambda task_id, token: CompleteTaskRequest(lease_token=token),
    "fail": lambda task_id, token: FailTaskRequest(
        lease_token=token, failure=TaskFailure(reason="EXIT_CODE", message="it broke")
    ),
    "fail-final": lambda task_id, token: FailTaskRequest(
        lease_token=token, failure=TaskFailure(reason="EXIT_CODE", message="hopeless", retryable=False)
    ),
    "release": lambda task_id, token: ReleaseTaskRequest(lease_token=token),
}


@pytest.mark.parametrize(("command", "state", "outcome"), cells())
def test_command_in_state(command: str, state: str, outcome: str) -> None:
    world = World()
    task_id = task_in(world, state)
    request = COMMANDS[command](task_id, world.token(task_id))
    before, seen = world.rows.tasks[task_id].state, len(world.events)

    if outcome.isupper() and ":" not in outcome and outcome != "=":
        with world.refuses(outcome):
            world.do(request)
        return
    world.do(request)

    told = [event for event in world.events[seen:] if event.startswith("task.")]
    if outcome == "=":
        assert told == []
        assert world.rows.tasks[task_id].state == before
        return
    after, event = outcome.split(":")
    assert told == [f"task.{event}"]
    if after == "gone":
        assert task_id not in world.rows.tasks
        return
    assert TaskState.Name(world.rows.tasks[task_id].state) == f"TASK_STATE_{after}"
    assert before == world.rows.tasks[task_id].state or world.rows.tasks[task_id].state in TASK_TRANSITIONS[before]


@pytest.mark.parametrize("state", STATES)
def test_heartbeat_tells_what_to_do_about_a_lease_and_changes_nothing(state: str) -> None:
    world = World()
    task_id = task_in(world, state)
    agent_id = world.task(task_id).lease.agent_id or world.register("other")
    seen = len(world.events)

    answer = world.do(HeartbeatRequest(agent_id=agent_id, leases=[LeaseBeat(lease_token=world.token(task_id))]))

    assert answer.leases[0].directive == DIRECTIVES.get(state, LEASE_DIRECTIVE_LOST)
    assert world.events[seen:] == []


@pytest.mark.parametrize("state", STATES)
def test_a_leased_task_has_a_lease_and_no_other_has(state: str) -> None:
    world = World()
    task_id = task_in(world, state)
    leased = state in ("RUNNING", "CANCELLING", "STOPPING")

    assert world.task(task_id).HasField("lease") == leased
    assert (task_id in world.state.leases.by_task) == leased


@pytest.mark.parametrize("state", STATES)
def test_times_tell_what_happened(state: str) -> None:
    world = World()
    task = world.task(task_in(world, state))

    assert task.HasField("create_time")
    assert task.HasField("state_time")
    assert task.HasField("end_time") == (task.state in TASK_FINAL)
    assert task.HasField("queue_time") == (state not in ("PENDING", "AWAITING_APPROVAL"))
    assert bool(task.waiting_on) == (state == "PENDING")


@pytest.mark.parametrize("command", ["update", "cancel", "retry", "delete"])
def test_an_unknown_task_is_not_found(command: str) -> None:
    world = World()

    with world.refuses("TASK_NOT_FOUND") as caught:
        world.do(COMMANDS[command]("task_unknown", ""))

    assert caught[0].metadata == {"task_id": "task_unknown"}


def test_a_state_conflict_names_the_state_and_what_is_allowed() -> None:
    world = World()
    task_id = task_in(world, "QUEUED")

    with world.refuses("TASK_STATE_CONFLICT") as caught:
        world.retry(task_id)

    assert caught[0].metadata == {"task_id": task_id, "state": "QUEUED", "allowed": "CANCELLED, FAILED"}
    assert caught[0].message.startswith(f"Task {task_id} cannot be retried: it is QUEUED.")
