"""Agents in memory: the engine and the reads as the spawner sees them, without a database.

The states move as the engine moves them; tests/spawner/test_agents_end_to_end.py runs the same
spawner under the real one.
"""

from __future__ import annotations

import asyncio
import os
import signal

from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATED,
    AGENT_STATE_TERMINATING,
    TERMINATE_MODE_FORCE,
    TERMINATE_MODE_GRACEFUL,
    Agent,
    AgentSpec,
    AgentState,
    CommandRuntime,
    ListAgentsRequest,
    ListAgentsResponse,
    SpawnAgentResponse,
    TerminateAgentRequest,
    TerminateMode,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.error_pb2 import ERROR_REASON_AGENT_NOT_FOUND
from kapell.v1.watch_pb2 import EVENT_KIND_AGENT_DELETED, EVENT_KIND_AGENT_SPAWNED, EVENT_KIND_AGENT_STATUS, EventKind
from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted, AgentStartFailed, Termination
from kapell_server.spawner.ports import Submission
from kapell_server.store.record import Record
from kapell_server.watch.ring import Ring

from tests.support.memory_log import MemoryLog

FINAL = (AGENT_STATE_TERMINATED, AGENT_STATE_FAILED)
SPEC = AgentSpec(agent_types=["shell"], slots=1, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))


class AgentRecords:
    """Engine and reads in one. Facts that came are in `facts`; `refusals` are raised first, one a submission."""

    def __init__(self, *, log_id: str, ring_capacity: int = 16384, registers: bool = True) -> None:
        """With `registers` a started agent becomes ACTIVE at once, as if its host had registered."""
        self.log_id = log_id
        self.facts: list[Submission] = []
        self.refusals: list[KapellError] = []
        self.directives = True
        self._log = MemoryLog(ring_capacity=ring_capacity)
        self._agents: dict[str, Agent] = {}
        self._asked: dict[str, Termination] = {}
        self._registers = registers
        self._looked: dict[str, asyncio.Event] = {}

    @property
    def ring(self) -> Ring:
        return self._log.ring

    # The engine as tests use it.

    def spawn(
        self, agent_id: str, *, state: AgentState.ValueType = AGENT_STATE_PENDING, runtime: str = "command"
    ) -> None:
        agent = Agent(agent_id=agent_id, state=state, runtime=runtime, spec=SPEC)
        self._put(EVENT_KIND_AGENT_SPAWNED, agent)

    def terminate(
        self,
        agent_id: str,
        *,
        mode: TerminateMode.ValueType = TERMINATE_MODE_FORCE,
        grace_seconds: float = 5.0,
        reason: str = "asked by a test",
    ) -> None:
        agent = self.agent(agent_id)
        if agent.state in FINAL:
            return
        self._asked[agent_id] = Termination(mode == TERMINATE_MODE_FORCE, grace_seconds, reason)
        self._move(agent_id, AGENT_STATE_TERMINATING)
        if mode == TERMINATE_MODE_GRACEFUL and self.directives and agent.pid:
            # The directive reaches the host by its heartbeat; here by a signal.
            os.kill(agent.pid, signal.SIGUSR1)

    def leave(self, agent_id: str) -> int:
        """The host has deregistered and is about to exit; its pid."""
        self._move(agent_id, AGENT_STATE_TERMINATING, reason="said goodbye")
        return self.agent(agent_id).pid

    def lose(self, agent_id: str) -> None:
        """Nothing was heard of it for the length of a lease."""
        self._move(agent_id, AGENT_STATE_LOST)

    def end(self, agent_id: str) -> None:
        """The record is final, whatever the processes do."""
        self._move(agent_id, AGENT_STATE_FAILED)

    def compact(self) -> None:
        """Forgets the events that the ring does not hold."""
        self._log.compact(self.ring.oldest)

    def will_look_for(self, agent_id: str) -> asyncio.Event:
        """Set when the agent is next read by its id."""
        return self._looked.setdefault(agent_id, asyncio.Event())

    def delete(self, agent_id: str) -> None:
        self._put(EVENT_KIND_AGENT_DELETED, self._agents[agent_id])
        del self._agents[agent_id]

    def agent(self, agent_id: str) -> Agent:
        return self._agents[agent_id]

    async def reached(self, agent_id: str, *states: AgentState.ValueType) -> Agent:
        """Waits until the agent is in one of the states."""
        while (agent := self.agent(agent_id)).state not in states:
            await self.ring.wait_resource(agent_id, agent.revision, 60.0)
        return agent

    async def ended(self, agent_id: str) -> Agent:
        return await self.reached(agent_id, *FINAL)

    def forget_terminations(self) -> None:
        """As a restart of the server: what was being terminated is from now on forced."""
        self._asked.clear()

    # The engine as the spawner uses it.

    async def submit(self, request: Submission, caller: Caller) -> bytes:
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        assert caller.name == "spawner"
        if request.agent_id not in self._agents:
            raise KapellError(ERROR_REASON_AGENT_NOT_FOUND, "No such agent.")
        self.facts.append(request)
        state = self.agent(request.agent_id).state
        match request:
            case TerminateAgentRequest():
                grace = request.grace_period.ToNanoseconds() / 1e9
                self.terminate(request.agent_id, mode=request.mode, grace_seconds=grace, reason=request.reason)
            case AgentProcessStarted() if state == AGENT_STATE_PENDING:
                self._move(request.agent_id, AGENT_STATE_STARTING, pid=request.pid)
                if self._registers:
                    self._move(request.agent_id, AGENT_STATE_ACTIVE)
            case AgentProcessExited() if state not in FINAL:
                asked = state == AGENT_STATE_TERMINATING
                after = AGENT_STATE_TERMINATED if asked else AGENT_STATE_FAILED
                self._move(request.agent_id, after, reason=request.reason, exit=request.exit)
            case AgentStartFailed() if state not in FINAL:
                self._move(request.agent_id, AGENT_STATE_FAILED, reason=request.reason)
            case _:
                pass
        return SpawnAgentResponse(agent=self.agent(request.agent_id)).SerializeToString()

    def termination(self, agent_id: str) -> Termination | None:
        return self._asked.get(agent_id)

    # The reads.

    async def get_agent(self, agent_id: str) -> Agent:
        await asyncio.sleep(0)
        if agent_id in self._looked:
            self._looked[agent_id].set()
        if agent_id not in self._agents:
            raise KapellError(ERROR_REASON_AGENT_NOT_FOUND, "No such agent.")
        return self._agents[agent_id]

    async def agent_spec(self, agent_id: str) -> AgentSpec:
        return (await self.get_agent(agent_id)).spec

    async def list_agents(self, request: ListAgentsRequest) -> ListAgentsResponse:
        await asyncio.sleep(0)
        wanted = [agent for agent in self._agents.values() if agent.state in request.filter.states]
        begin = int(request.page_token or 0)
        end = begin + 3
        return ListAgentsResponse(
            agents=wanted[begin:end],
            next_page_token=str(end) if end < len(wanted) else "",
            revision=self._log.head,
        )

    async def events_after(self, revision: int, limit: int) -> list[Record]:
        return await self._log.events_after(revision, limit)

    def _move(
        self,
        agent_id: str,
        state: AgentState.ValueType,
        *,
        pid: int = 0,
        reason: str = "",
        exit: ProcessExit | None = None,
    ) -> None:
        after = Agent()
        after.CopyFrom(self._agents[agent_id])
        after.state = state
        after.state_reason = reason
        if pid:
            after.pid = pid
        if exit is not None:
            after.exit.CopyFrom(exit)
        self._put(EVENT_KIND_AGENT_STATUS, after)

    def _put(self, kind: EventKind.ValueType, agent: Agent) -> None:
        record = self._log.put(kind, agent)
        assert isinstance(record.resource, Agent)
        self._agents[agent.agent_id] = record.resource
