"""AgentService: hands commands to the engine; waits for processes where the call promises it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import TYPE_CHECKING

from kapell.v1 import agent_pb2
from kapell.v1.error_pb2 import ERROR_REASON_DEADLINE_EXCEEDED

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.domain.workers.agent import without_secrets
from kapell_server.engine.facts import SpawnCommand
from kapell_server.rpc.durations import seconds
from kapell_server.rpc.pipeline import waits
from kapell_server.rpc.spawning import spec_for
from kapell_server.watch.filters import for_agents
from kapell_server.watch.follow import Watches

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.spawner.spawner import Spawner
    from kapell_server.store.reads import Reads

DEFAULT_GRACE = 5.0
# Beyond the grace period an end needs signals, time for them to work, and the sweep of what is left.
KILL_ALLOWANCE = 30.0
# A hint may be lost, so waiting looks again after this long, seconds.
RECHECK = 5.0
LOOK_AGAIN = 0.25
EXTERNAL = "external"

_SETTLED = AGENT_FINAL | {agent_pb2.AGENT_STATE_ACTIVE, agent_pb2.AGENT_STATE_DRAINING}


class AgentServicer:
    """The methods of AgentService."""

    def __init__(
        self,
        engine: Engine,
        reads: Reads,
        *,
        watches: Watches,
        spawner: Spawner,
        profiles: Mapping[str, agent_pb2.AgentProfile],
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._watches = watches
        self._spawner = spawner
        self._profiles = profiles
        self.UpdateAgent = engine.submit
        self.DrainAgent = engine.submit
        self.ResumeAgent = engine.submit
        self.DeleteAgent = engine.submit

    @waits
    async def SpawnAgent(
        self, request: agent_pb2.SpawnAgentRequest, caller: Caller, patience: float
    ) -> bytes | agent_pb2.SpawnAgentResponse:
        spec = spec_for(request, caller, self._profiles)
        self._spawner.find_program(spec)
        command = SpawnCommand(request=request, profile=request.profile, spec=spec)
        answer = await self._engine.submit(command, caller)
        if not request.HasField("wait"):
            return answer
        response = agent_pb2.SpawnAgentResponse.FromString(answer)
        wait = min(seconds(request.wait), patience)
        response.agent.CopyFrom(await self._until(response.agent.agent_id, _SETTLED, wait))
        response.revision = self._engine.revision
        return response

    async def GetAgent(self, request: agent_pb2.GetAgentRequest, caller: Caller) -> agent_pb2.GetAgentResponse:
        revision = self._engine.revision
        return agent_pb2.GetAgentResponse(agent=await self._reads.get_agent(request.agent_id), revision=revision)

    async def ListAgents(self, request: agent_pb2.ListAgentsRequest, caller: Caller) -> agent_pb2.ListAgentsResponse:
        return await self._reads.list_agents(request)

    @waits
    async def TerminateAgent(
        self, request: agent_pb2.TerminateAgentRequest, caller: Caller, patience: float
    ) -> agent_pb2.TerminateAgentResponse:
        """Answers when the agent has ended. A client's deadline ends the call, not the terminating."""
        answer = await self._engine.submit(request, caller)
        response = agent_pb2.TerminateAgentResponse.FromString(answer)
        grace = seconds(request.grace_period) if request.HasField("grace_period") else DEFAULT_GRACE
        wait = grace + KILL_ALLOWANCE if patience == float("inf") else patience
        agent = await self._until(request.agent_id, AGENT_FINAL, wait)
        if agent.state not in AGENT_FINAL:
            raise _still_ending(agent, wait)
        response.agent.CopyFrom(agent)
        response.revision = self._engine.revision
        return response

    async def StreamAgentLogs(
        self, request: agent_pb2.StreamAgentLogsRequest, caller: Caller
    ) -> AsyncGenerator[agent_pb2.StreamAgentLogsResponse, None]:
        """First what is there, then, with follow, what comes until the agent has ended."""
        agent = await self._reads.get_agent(request.agent_id)
        offset = request.offset
        said_anything = False
        async for page in self._spawner.stream_log(request.agent_id, offset, follow=False):
            yield agent_pb2.StreamAgentLogsResponse(offset=page.offset, entries=page.entries)
            said_anything, offset = True, page.next_offset
        if not said_anything:
            yield agent_pb2.StreamAgentLogsResponse(offset=offset)
        follows = request.follow and agent.runtime != EXTERNAL
        while follows:
            follows = agent.state not in AGENT_FINAL
            async for page in self._spawner.stream_log(request.agent_id, offset, follow=True):
                yield agent_pb2.StreamAgentLogsResponse(offset=page.offset, entries=page.entries)
                offset = page.next_offset
            if follows:
                # Its process is not being looked after yet, or no more: the record says which.
                agent = await self._until(request.agent_id, AGENT_FINAL, LOOK_AGAIN)

    def WatchAgents(self, request: agent_pb2.WatchAgentsRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        return self._watches.follow(for_agents(request.filter), request.options)

    async def ListAgentProfiles(
        self, request: agent_pb2.ListAgentProfilesRequest, caller: Caller
    ) -> agent_pb2.ListAgentProfilesResponse:
        response = agent_pb2.ListAgentProfilesResponse(revision=self._engine.revision)
        for name in sorted(self._profiles):
            profile = response.profiles.add()
            profile.CopyFrom(self._profiles[name])
            profile.spec.CopyFrom(without_secrets(profile.spec))
        return response

    async def _until(self, agent_id: str, states: Collection[int], wait: float) -> agent_pb2.Agent:
        """The agent once it is in one of the states, or as it is after `wait` seconds."""
        now = asyncio.get_running_loop().time
        until = now() + wait
        agent = await self._reads.get_agent(agent_id)
        while agent.state not in states and (left := until - now()) > 0:
            record = await self._engine.ring.wait_resource(agent_id, agent.revision, min(left, RECHECK))
            if record is None:
                agent = await self._reads.get_agent(agent_id)
            else:
                assert isinstance(record.resource, agent_pb2.Agent)
                agent = record.resource
        return agent


def _still_ending(agent: agent_pb2.Agent, waited: float) -> KapellError:
    return KapellError(
        ERROR_REASON_DEADLINE_EXCEEDED,
        f"Agent {agent.agent_id} has not ended within {waited:.1f} s; it is still being terminated."
        " Watch it, or terminate it with mode FORCE.",
        metadata={"agent_id": agent.agent_id},
    )
