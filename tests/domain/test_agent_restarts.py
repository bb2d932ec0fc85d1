"""When an agent is started again: its pauses, the row of restarts, and what ends it for good."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_PENDING,
    AGENT_STATE_TERMINATED,
    RESTART_MODE_ALWAYS,
    RESTART_MODE_NEVER,
    RESTART_MODE_ON_FAILURE,
    Agent,
    AgentSpec,
    CommandRuntime,
    DrainAgentRequest,
    RestartMode,
    RestartPolicy,
    TerminateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import TASK_STATE_QUEUED
from kapell.v1.worker_pb2 import DeregisterRequest, RegisterWorkerRequest
from kapell_server.domain.times import SECOND, timestamp_ns
from kapell_server.domain.workers.restart import pause_ns
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted, AgentStartFailed

from tests.domain.world import World, as_agent, as_ticket

DIED = ProcessExit(signal=9, message="killed by SIGKILL")


def restarting(world: World, mode: RestartMode.ValueType = RESTART_MODE_ON_FAILURE, **policy: object) -> str:
    """A PENDING agent that is started again."""
    restart = RestartPolicy(mode=mode, **policy)  # type: ignore[arg-type]
    return world.spawn(
        spec=AgentSpec(agent_types=["shell"], slots=1, command=CommandRuntime(argv=["sh"]), restart=restart)
    )


def begin(world: World, agent_id: str, process: str) -> None:
    """A process of the agent starts and registers."""
    world.do(AgentProcessStarted(agent_id, 41))
    world.do(RegisterWorkerRequest(instance_key=process), caller=as_ticket(agent_id))
    assert world.agent(agent_id).state == AGENT_STATE_ACTIVE


def die(world: World, agent_id: str) -> Agent:
    world.do(AgentProcessExited(agent_id, DIED, "its host killed by SIGKILL"))
    return world.agent(agent_id)


def pause(world: World, agent_id: str) -> float:
    """Seconds until its next start."""
    return (timestamp_ns(world.agent(agent_id).next_start_time) - world.now_ns) / SECOND


def test_an_agent_that_died_waits_and_starts_again() -> None:
    world = World()
    agent_id = restarting(world)
    begin(world, agent_id, "first")
    task_id = world.create()
    assert world.lease(agent_id) == task_id

    agent = die(world, agent_id)

    assert agent.state == AGENT_STATE_PENDING
    assert (agent.restart_count, agent.pid, agent.slots_used) == (1, 0, 0)
    assert agent.state_reason == "is started again (1 of 5 in a row): its host killed by SIGKILL"
    assert agent.exit.signal == 9
    assert pause(world, agent_id) == pytest.approx(1.0)
    assert world.task(task_id).state == TASK_STATE_QUEUED
    with world.refuses("TOKEN_INVALID"):
        world.do(RegisterWorkerRequest(instance_key="too early"), caller=as_ticket(agent_id))

    world.advance(1.0)

    assert not world.agent(agent_id).HasField("next_start_time"), "now the spawner may start it"
    begin(world, agent_id, "second")
    assert world.agent(agent_id).instance == 2
    assert world.lease(agent_id) == task_id


def test_pauses_double_up_to_the_longest_and_then_it_is_given_up() -> None:
    world = World()
    agent_id = restarting(world, longest_pause=Duration(seconds=3))
    pauses = []
    for start in range(5):
        begin(world, agent_id, f"process {start}")
        die(world, agent_id)
        pauses.append(pause(world, agent_id))
        world.advance(pauses[-1])

    begin(world, agent_id, "the last")
    agent = die(world, agent_id)

    assert pauses == pytest.approx([1, 2, 3, 3, 3])
    assert agent.state == AGENT_STATE_FAILED
    assert agent.state_reason == "given up after 5 restarts in a row: its host killed by SIGKILL"


def test_a_stable_process_begins_the_row_anew() -> None:
    world = World(lease_duration=1000.0, silent_after=900.0)
    agent_id = restarting(world, max_restarts=1, stable_after=Duration(seconds=60))
    begin(world, agent_id, "first")
    die(world, agent_id)
    world.advance(1)
    begin(world, agent_id, "second")
    world.advance(60)

    agent = die(world, agent_id)

    assert agent.state == AGENT_STATE_PENDING
    assert (agent.restart_count, agent.restarts_in_a_row) == (2, 1)


def test_a_process_that_never_registered_is_not_stable_however_long_it_took() -> None:
    world = World(start_timeout=5000.0)
    agent_id = restarting(world, max_restarts=1, stable_after=Duration(seconds=60))
    begin(world, agent_id, "first")
    die(world, agent_id)
    world.advance(1)
    world.do(AgentProcessStarted(agent_id, 41))
    world.advance(600)

    assert die(world, agent_id).state == AGENT_STATE_FAILED


@pytest.mark.parametrize(
    ("mode", "state"),
    [
        (RESTART_MODE_NEVER, AGENT_STATE_TERMINATED),
        (RESTART_MODE_ON_FAILURE, AGENT_STATE_TERMINATED),
        (RESTART_MODE_ALWAYS, AGENT_STATE_PENDING),
    ],
)
def test_a_goodbye_is_no_failure(mode: RestartMode.ValueType, state: int) -> None:
    world = World()
    agent_id = restarting(world, mode)
    begin(world, agent_id, "first")
    world.do(DeregisterRequest(agent_id=agent_id, reason="enough"), caller=as_agent(world.agent(agent_id)))

    world.do(AgentProcessExited(agent_id, ProcessExit(message="exited with code 0"), ""))

    assert world.agent(agent_id).state == state


@pytest.mark.parametrize("mode", [RESTART_MODE_ON_FAILURE, RESTART_MODE_ALWAYS])
def test_one_that_was_asked_to_end_stays_ended(mode: RestartMode.ValueType) -> None:
    world = World()
    agent_id = restarting(world, mode)
    begin(world, agent_id, "first")
    world.do(TerminateAgentRequest(agent_id=agent_id))
    assert world.agent(agent_id).end_requested

    assert die(world, agent_id).state == AGENT_STATE_TERMINATED


def test_one_that_drains_is_not_started_again() -> None:
    world = World()
    agent_id = restarting(world, RESTART_MODE_ALWAYS)
    begin(world, agent_id, "first")
    world.do(DrainAgentRequest(agent_id=agent_id))

    assert die(world, agent_id).state == AGENT_STATE_FAILED


def test_one_that_drained_and_left_is_not_started_again() -> None:
    world = World()
    agent_id = restarting(world, RESTART_MODE_ALWAYS)
    begin(world, agent_id, "first")
    world.do(DrainAgentRequest(agent_id=agent_id))
    world.do(DeregisterRequest(agent_id=agent_id), caller=as_agent(world.agent(agent_id)))

    assert die(world, agent_id).state == AGENT_STATE_TERMINATED


def test_one_that_is_asked_to_end_while_it_leaves_stays_ended() -> None:
    world = World()
    agent_id = restarting(world, RESTART_MODE_ALWAYS)
    begin(world, agent_id, "first")
    world.do(DeregisterRequest(agent_id=agent_id, reason="enough"), caller=as_agent(world.agent(agent_id)))

    world.do(TerminateAgentRequest(agent_id=agent_id))
    agent = die(world, agent_id)

    assert (agent.state, agent.state_reason) == (AGENT_STATE_TERMINATED, "enough")


def test_an_end_that_is_told_twice_is_one_restart() -> None:
    world = World()
    agent_id = restarting(world)
    begin(world, agent_id, "first")
    die(world, agent_id)
    revision = world.state.revision

    agent = die(world, agent_id)

    assert (agent.restart_count, agent.restarts_in_a_row) == (1, 1)
    assert world.state.revision == revision


def test_a_goodbye_costs_no_attempt_of_what_was_not_begun() -> None:
    world = World()
    agent_id = restarting(world, RESTART_MODE_ALWAYS)
    begin(world, agent_id, "first")
    task_id = world.create()
    world.lease(agent_id)
    world.do(DeregisterRequest(agent_id=agent_id), caller=as_agent(world.agent(agent_id)))

    world.do(AgentProcessExited(agent_id, ProcessExit(message="exited with code 0"), ""))

    assert (world.task(task_id).state, world.task(task_id).attempts_used) == (TASK_STATE_QUEUED, 0)


def test_terminating_one_that_waits_ends_it() -> None:
    world = World()
    agent_id = restarting(world)
    begin(world, agent_id, "first")
    die(world, agent_id)

    world.do(TerminateAgentRequest(agent_id=agent_id))
    agent = die(world, agent_id)

    assert agent.state == AGENT_STATE_TERMINATED
    assert not agent.HasField("next_start_time")


def test_a_start_that_failed_and_one_that_did_not_register_are_failures() -> None:
    world = World(start_timeout=5.0)
    agent_id = restarting(world)
    world.do(AgentStartFailed(agent_id, "its host could not be started: no memory"))
    assert world.agent(agent_id).state == AGENT_STATE_PENDING
    world.advance(1)
    world.do(AgentProcessStarted(agent_id, 41))
    world.advance(5)

    agent = die(world, agent_id)

    assert agent.state == AGENT_STATE_PENDING
    assert "did not register" in agent.state_reason


def test_the_first_pause_holds_even_beyond_the_longest() -> None:
    policy = RestartPolicy(first_pause=Duration(seconds=120))

    assert [pause_ns(policy, row) // SECOND for row in (1, 2, 1000)] == [120, 120, 120]
