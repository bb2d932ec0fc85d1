"""The fence around an attempt: what a lease token is good for, and what none is."""

from __future__ import annotations

from typing import Any

import pytest
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    RetryPolicy,
    TaskFailure,
    TaskProgress,
)
from kapell.v1.worker_pb2 import (
    CompleteTaskRequest,
    FailTaskRequest,
    HeartbeatRequest,
    LeaseBeat,
    ReleaseTaskRequest,
    ReportProgressRequest,
    ReportUsageRequest,
)

from tests.domain.world import World, as_agent, as_program

FAILURE = TaskFailure(reason="EXIT_CODE", message="it broke")
NEVER = RetryPolicy(max_attempts=1)


def by_token(token: str) -> list[Any]:
    """Every write that a lease token is good for."""
    return [
        ReportProgressRequest(lease_token=token, progress=TaskProgress(fraction=0.3)),
        CompleteTaskRequest(lease_token=token),
        FailTaskRequest(lease_token=token, failure=FAILURE),
        ReleaseTaskRequest(lease_token=token),
    ]


@pytest.mark.parametrize("index", range(4))
def test_a_superseded_attempt_can_change_nothing(index: int) -> None:
    world = World()
    task_id = world.running()
    stale = world.token(task_id)
    world.advance(10)
    other = world.register(world.task(task_id).agent_type)
    assert world.lease(other) == task_id

    with world.refuses("LEASE_LOST") as caught:
        world.do(by_token(stale)[index])

    assert caught[0].metadata == {"task_id": task_id, "attempt": "1"}
    assert world.task(task_id).lease.agent_id == other


@pytest.mark.parametrize("index", range(4))
def test_a_damaged_token_proves_nothing(index: int) -> None:
    world = World()
    task_id = world.running()
    token = world.token(task_id)
    damaged = token[:-1] + ("0" if token[-1] != "0" else "1")

    with world.refuses("LEASE_LOST") as caught:
        world.do(by_token(damaged)[index])

    assert caught[0].metadata == {}


@pytest.mark.parametrize("index", range(4))
def test_an_agent_cannot_use_the_token_of_another(index: int) -> None:
    world = World()
    task_id = world.running()
    other = world.register("other")

    with world.refuses("NOT_OWNER"):
        world.do(by_token(world.token(task_id))[index], caller=as_agent(world.agent(other)))


@pytest.mark.parametrize("index", range(4))
def test_the_token_of_a_deleted_task_is_worth_nothing_for_one_of_the_same_id(index: int) -> None:
    world = World()
    agent_id = world.register()
    world.create(task_id="task_again", retry_policy=NEVER)
    world.lease(agent_id)
    stale = world.token("task_again")
    world.beat(agent_id, "task_again")
    world.advance(10)
    world.delete("task_again")
    world.beat(agent_id)
    world.create(task_id="task_again")
    assert world.lease(agent_id) == "task_again"

    with world.refuses("LEASE_LOST"):
        world.do(by_token(stale)[index])

    answer = world.do(HeartbeatRequest(agent_id=agent_id, leases=[LeaseBeat(lease_token=stale)]))
    assert answer.leases[0].directive == 3, "LOST"


@pytest.mark.parametrize("kind", [ReportProgressRequest, ReportUsageRequest])
def test_a_program_that_goes_on_does_not_keep_its_agents_lease(kind: type[Any]) -> None:
    world = World()
    task_id = world.running()
    program = as_program(world, task_id)

    for step in range(4):
        world.do(kind(lease_token=world.token(task_id)), caller=program)
        world.advance(3 if step < 3 else 2)

    assert world.task(task_id).state == TASK_STATE_QUEUED
    with world.refuses("LEASE_LOST"):
        world.do(by_token(world.token(task_id))[0], caller=program)


def test_a_program_speaks_for_no_other_attempt() -> None:
    world = World()
    mine, other = world.running(), world.running()
    program = as_program(world, mine)

    for command in by_token(world.token(other)):
        with world.refuses("NOT_OWNER"):
            world.do(command, caller=program)
    with world.refuses("NOT_OWNER"):
        world.do(HeartbeatRequest(agent_id=program.agent_id), caller=program)
