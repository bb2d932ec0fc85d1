"""Every command on an agent in every state: what it becomes and which event says so, or why it is refused.

`=` is an answer that changes nothing. External agents, which nobody here has
started, end differently and have a table of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.agent_pb2 import (
    AGENT_STATE_LOST,
    AGENT_STATE_TERMINATED,
    TERMINATE_MODE_FORCE,
    Agent,
    AgentState,
    DeleteAgentRequest,
    DrainAgentRequest,
    ResumeAgentRequest,
    TerminateAgentRequest,
    UpdateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.worker_pb2 import (
    AGENT_DIRECTIVE_DRAIN,
    AGENT_DIRECTIVE_NONE,
    AGENT_DIRECTIVE_STOP,
    DeregisterRequest,
    HeartbeatRequest,
    LeaseTasksRequest,
    RegisterWorkerRequest,
)
from kapell_server.domain.transitions import AGENT_FINAL, AGENT_TRANSITIONS
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted, AgentStartFailed

from tests.domain.world import USER, World, as_agent, as_ticket

STATES = ("PENDING", "STARTING", "ACTIVE", "DRAINING", "LOST", "TERMINATING", "TERMINATED", "FAILED")

MATRIX = """
              PENDING               STARTING              ACTIVE                DRAINING              LOST                  TERMINATING           TERMINATED            FAILED
update        PENDING:updated       STARTING:updated      ACTIVE:updated        DRAINING:updated      LOST:updated          TERMINATING:updated   TERMINATED:updated    FAILED:updated
drain         AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  DRAINING:status       =                     AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT
resume        AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  =                     ACTIVE:status         AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT
terminate     TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    =                     =                     =
force         TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    =                     =
delete        AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  gone:deleted          gone:deleted
register      ACTIVE:status         ACTIVE:status         =                     =                     =                     =                     TOKEN_INVALID         TOKEN_INVALID
heartbeat     =                     =                     =                     =                     ACTIVE:status         =                     =                     =
poll          AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  =                     =                     ACTIVE:status         AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT
deregister    TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    TERMINATING:status    =                     =                     =
started       STARTING:status       STARTING:status       ACTIVE:status         DRAINING:status       LOST:status           TERMINATING:status    =                     =
exited        FAILED:status         FAILED:status         FAILED:status         FAILED:status         FAILED:status         TERMINATED:status     =                     =
start-failed  FAILED:status         FAILED:status         FAILED:status         FAILED:status         FAILED:status         TERMINATED:status     =                     =
"""  # noqa: E501 - a table is read by its columns

EXTERNAL = """
              ACTIVE                DRAINING              LOST                  TERMINATING           TERMINATED            FAILED
drain         DRAINING:status       =                     AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT
resume        =                     ACTIVE:status         AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT
terminate     TERMINATING:status    TERMINATING:status    TERMINATED:status     =                     =                     =
force         TERMINATING:status    TERMINATING:status    TERMINATED:status     TERMINATING:status    =                     =
delete        AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  AGENT_STATE_CONFLICT  gone:deleted          gone:deleted
heartbeat     =                     =                     ACTIVE:status         =                     =                     =
deregister    TERMINATED:status     TERMINATED:status     TERMINATED:status     TERMINATED:status     =                     =
silence       LOST:status           DRAINING:status       =                     TERMINATED:status     =                     =
oblivion      FAILED:status         FAILED:status         FAILED:status         TERMINATED:status     =                     =
"""  # noqa: E501

DIRECTIVES = {
    "PENDING": AGENT_DIRECTIVE_NONE,
    "STARTING": AGENT_DIRECTIVE_NONE,
    "ACTIVE": AGENT_DIRECTIVE_NONE,
    "LOST": AGENT_DIRECTIVE_NONE,
    "DRAINING": AGENT_DIRECTIVE_DRAIN,
    "TERMINATING": AGENT_DIRECTIVE_STOP,
    "TERMINATED": AGENT_DIRECTIVE_STOP,
    "FAILED": AGENT_DIRECTIVE_STOP,
}
KEY = "process-of-host"
REGISTER = RegisterWorkerRequest(instance_key=KEY)


def cells(table: str) -> list[tuple[str, str, str]]:
    """(command, state, outcome) of a table."""
    head, *rows = table.strip().splitlines()
    return [
        (command, state, outcome)
        for row in rows
        for command, *outcomes in [row.split()]
        for state, outcome in zip(head.split(), outcomes, strict=True)
    ]


def spawned_in(world: World, state: str) -> str:
    """A spawned agent in the state."""
    agent_id = world.spawn()
    if state == "PENDING":
        return agent_id
    world.do(AgentProcessStarted(agent_id, 41))
    if state == "STARTING":
        return agent_id
    world.do(REGISTER, caller=as_ticket(agent_id))
    move(world, agent_id, state)
    if state in ("TERMINATED", "FAILED"):
        world.do(AgentProcessExited(agent_id, ProcessExit(code=3, message="exited with 3"), "its process died"))
    return agent_id


def external_in(world: World, state: str) -> str:
    """An external agent in the state."""
    agent_id = world.register("shell", key=KEY)
    move(world, agent_id, state)
    if state == "TERMINATED":
        world.do(DeregisterRequest(agent_id=agent_id))
    if state == "FAILED":
        world.advance(11)
        world.advance(600)
    return agent_id


def move(world: World, agent_id: str, state: str) -> None:
    match state:
        case "DRAINING":
            world.do(DrainAgentRequest(agent_id=agent_id))
        case "LOST":
            world.advance(11)
        case "TERMINATING" | "TERMINATED":
            world.do(TerminateAgentRequest(agent_id=agent_id))


COMMANDS: dict[str, Callable[[str], Any]] = {
    "update": lambda agent_id: UpdateAgentRequest(
        agent=Agent(agent_id=agent_id, display_name="new"), update_mask=FieldMask(paths=["display_name"])
    ),
    "drain": lambda agent_id: DrainAgentRequest(agent_id=agent_id),
    "resume": lambda agent_id: ResumeAgentRequest(agent_id=agent_id),
    "terminate": lambda agent_id: TerminateAgentRequest(agent_id=agent_id),
    "force": lambda agent_id: TerminateAgentRequest(agent_id=agent_id, mode=TERMINATE_MODE_FORCE),
    "delete": lambda agent_id: DeleteAgentRequest(agent_id=agent_id),
    "register": lambda agent_id: REGISTER,
    "heartbeat": lambda agent_id: HeartbeatRequest(agent_id=agent_id),
    "poll": lambda agent_id: LeaseTasksRequest(agent_id=agent_id),
    "deregister": lambda agent_id: DeregisterRequest(agent_id=agent_id),
    "started": lambda agent_id: AgentProcessStarted(agent_id, 42),
    "exited": lambda agent_id: AgentProcessExited(agent_id, ProcessExit(code=1), "its process died"),
    "start-failed": lambda agent_id: AgentStartFailed(agent_id, "no such program"),
}


@pytest.mark.parametrize(("command", "state", "outcome"), cells(MATRIX))
def test_command_on_a_spawned_agent(command: str, state: str, outcome: str) -> None:
    world = World()
    agent_id = spawned_in(world, state)

    check(world, agent_id, command, outcome)


@pytest.mark.parametrize(("command", "state", "outcome"), cells(EXTERNAL))
def test_command_on_an_external_agent(command: str, state: str, outcome: str) -> None:
    world = World()
    agent_id = external_in(world, state)

    check(world, agent_id, command, outcome)


def check(world: World, agent_id: str, command: str, outcome: str) -> None:
    before, seen = world.agent(agent_id).state, len(world.events)
    itself = as_agent(world.agent(agent_id))
    own = {"register": as_ticket(agent_id), "heartbeat": itself, "poll": itself, "deregister": itself}
    caller = own.get(command, USER)

    def act() -> None:
        if command in ("silence", "oblivion"):
            world.advance(11)
            world.advance(600 if command == "oblivion" else 0)
        else:
            world.do(COMMANDS[command](agent_id), caller=caller)

    if ":" not in outcome and outcome != "=":
        with world.refuses(outcome):
            act()
        return
    act()

    told = [event for event in world.events[seen:] if not event.startswith("alert.")]
    if outcome == "=":
        assert told == []
        assert world.agent(agent_id).state == before
        return
    after, event = outcome.split(":")
    assert set(told) == {f"agent.{event}"}
    if after == "gone":
        assert agent_id not in world.rows.agents
        return
    assert AgentState.Name(world.agent(agent_id).state) == f"AGENT_STATE_{after}"
    if command != "oblivion":
        assert world.agent(agent_id).state in {before, *AGENT_TRANSITIONS[before]}


@pytest.mark.parametrize("state", STATES)
def test_heartbeat_tells_the_agent_what_to_do(state: str) -> None:
    world = World()
    agent_id = spawned_in(world, state)

    answer = world.do(HeartbeatRequest(agent_id=agent_id), caller=as_agent(world.agent(agent_id)))

    assert answer.directive == DIRECTIVES[state]
    assert answer.heartbeat_interval.seconds == 3
    assert answer.ttl_remaining.seconds == 10


@pytest.mark.parametrize("state", STATES)
def test_an_ended_agent_has_a_time_of_its_end(state: str) -> None:
    world = World()
    found = world.agent(spawned_in(world, state))

    assert found.HasField("end_time") == (found.state in AGENT_FINAL)
    assert found.HasField("start_time") == (state not in ("PENDING", "STARTING"))


@pytest.mark.parametrize(
    "command", ["update", "drain", "resume", "terminate", "delete", "heartbeat", "poll", "deregister"]
)
def test_an_unknown_agent_is_not_found(command: str) -> None:
    world = World()

    with world.refuses("AGENT_NOT_FOUND") as caught:
        world.do(COMMANDS[command]("agent_unknown"))

    assert caught[0].metadata == {"agent_id": "agent_unknown"}


@pytest.mark.parametrize("fact", ["started", "exited", "start-failed"])
def test_a_fact_about_an_unknown_agent_is_dropped(fact: str) -> None:
    world = World()

    world.do(COMMANDS[fact]("agent_unknown"))

    assert world.events == []


def test_the_same_start_told_twice_is_one_event() -> None:
    world = World()
    agent_id = world.spawn()

    world.do(AgentProcessStarted(agent_id, 41))
    world.do(AgentProcessStarted(agent_id, 41))

    assert world.events == ["agent.spawned", "agent.status"]
    assert world.agent(agent_id).pid == 41


def test_a_drained_agent_that_was_silent_is_still_drained() -> None:
    world = World()
    agent_id = external_in(world, "DRAINING")
    world.advance(60)

    world.do(COMMANDS["heartbeat"](agent_id), caller=USER)

    assert AgentState.Name(world.agent(agent_id).state) == "AGENT_STATE_DRAINING"


def test_an_agent_resumed_after_a_long_silence_is_watched_again() -> None:
    world = World()
    agent_id = external_in(world, "DRAINING")
    world.advance(60)
    world.do(COMMANDS["heartbeat"](agent_id), caller=USER)
    world.do(COMMANDS["resume"](agent_id), caller=USER)

    world.advance(11)

    assert AgentState.Name(world.agent(agent_id).state) == "AGENT_STATE_LOST"


@pytest.mark.parametrize(
    ("command", "becomes"),
    [(ResumeAgentRequest, AGENT_STATE_LOST), (TerminateAgentRequest, AGENT_STATE_TERMINATED)],
)
def test_an_agent_that_fell_silent_while_it_drained_is_looked_at_afterwards(command: Any, becomes: int) -> None:
    world = World()
    agent_id = world.register()
    world.do(DrainAgentRequest(agent_id=agent_id))
    world.advance(30)

    world.do(command(agent_id=agent_id))
    world.do()

    assert world.agent(agent_id).state == becomes
