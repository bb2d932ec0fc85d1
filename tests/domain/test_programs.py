"""Programs of attempts: they speak for their own, and neither keep nor end it."""

from __future__ import annotations

from typing import Any

import pytest
from kapell.v1.approval_pb2 import RequestApprovalRequest
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_RUNNING
from kapell.v1.worker_pb2 import HeartbeatRequest, ReportProgressRequest, ReportUsageRequest

from tests.domain.test_attempts import by_token
from tests.domain.world import World, as_program


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
        world.do(ReportProgressRequest(lease_token=world.token(task_id)), caller=program)


def test_a_program_speaks_for_no_other_attempt() -> None:
    world = World()
    mine, other = world.running(), world.running()
    program = as_program(world, mine)

    for command in by_token(world.token(other)):
        with world.refuses("NOT_OWNER"):
            world.do(command, caller=program)
    with world.refuses("NOT_OWNER"):
        world.do(HeartbeatRequest(agent_id=program.agent_id), caller=program)


def test_a_program_asks_but_does_not_end_the_attempt_by_parking_it() -> None:
    world = World()
    task_id = world.running()
    wish = RequestApprovalRequest(lease_token=world.token(task_id), title="Go on?", park=True)

    with world.refuses("REQUEST_INVALID"):
        world.do(wish, caller=as_program(world, task_id))

    assert world.task(task_id).state == TASK_STATE_RUNNING
