"""The face for agents: spawn, read, steer, end, follow. Thin; the server decides everything.

Verbs about one agent answer with the agent; lists with the whole response. Every verb raises a
KapellError; which reasons is in the comments of agent.proto.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from kapell.connection import DEFAULT_TIMEOUT, Connection, Stream
from kapell.errors import InvalidRequest
from kapell.filters import AgentQuery, agent_filter
from kapell.logs import LogStream
from kapell.messages import Seconds, duration, new_request_id, seconds
from kapell.reconnect import CONNECT_TIMEOUT
from kapell.v1 import agent_pb2 as pb
from kapell.v1.agent_pb2_grpc import AgentServiceStub
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.watch import Watch, WatchKeywords, split_start

if TYPE_CHECKING:
    from kapell.v1.agent_pb2_grpc import AgentServiceAsyncStub

_DEFAULT_GRACE = 5.0
_KILL_MARGIN = 90.0
"""Seconds beyond the grace period that ending a process tree may take: a program's own kill_grace is up to 60."""


class AgentWatchKeywords(AgentQuery, WatchKeywords, total=False):
    """Which agents to watch, and how."""


class Agents:
    """`client.agents`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> AgentServiceAsyncStub:
        return self._connection.stub(AgentServiceStub)

    async def spawn(
        self,
        profile: str = "",
        *,
        spec: pb.AgentSpec | None = None,
        working_directory: str = "",
        agent_id: str = "",
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        wait: Seconds | None = None,
        request_id: str = "",
    ) -> pb.Agent:
        """Starts an agent from a profile of the server's configuration, or from `spec`.

        With `working_directory`, an absolute path, the profile's program runs there; this needs the scope
        spawn_inline where the profile's `directories` do not name it.
        Returns when it is recorded; with `wait` (at most 60 s) when it is ACTIVE or has failed.
        """
        if bool(profile) == (spec is not None):
            raise InvalidRequest(
                "an agent is spawned from either a profile or a spec - pass exactly one of them",
                reason="ARGUMENT_INVALID",
            )
        request = pb.SpawnAgentRequest(
            agent_id=agent_id,
            display_name=display_name,
            labels=labels or {},
            working_directory=working_directory,
            wait=duration(wait),
            request_id=request_id or new_request_id(),
        )
        if spec is None:
            request.profile = profile
        else:
            request.spec.CopyFrom(spec)
        timeout = DEFAULT_TIMEOUT + (seconds(wait) if wait is not None else 0.0)
        return (await self._connection.call(self._stub.SpawnAgent, request, timeout=timeout)).agent

    async def get(self, agent_id: str) -> pb.Agent:
        """Reads an agent."""
        request = pb.GetAgentRequest(agent_id=agent_id)
        return (await self._connection.call(self._stub.GetAgent, request)).agent

    async def list(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[AgentQuery],
    ) -> pb.ListAgentsResponse:
        """One page of agents, newest first unless ordered otherwise."""
        request = pb.ListAgentsRequest(
            filter=agent_filter(**query), order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListAgents, request)

    async def iterate(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
        **query: Unpack[AgentQuery],
    ) -> AsyncIterator[pb.Agent]:
        """All agents that match, page by page; what changes meanwhile may or may not be seen."""
        page_token = ""
        while True:
            page = await self.list(order=order, page_size=page_size, page_token=page_token, **query)
            for agent in page.agents:
                yield agent
            page_token = page.next_page_token
            if not page_token:
                return

    async def update(
        self,
        agent_id: str,
        *,
        labels: Mapping[str, str] | None = None,
        display_name: str | None = None,
        etag: str = "",
        request_id: str = "",
    ) -> pb.Agent:
        """Sets what is given; `labels` replaces all of them."""
        given = {"labels": labels, "display_name": display_name}
        request = pb.UpdateAgentRequest(
            agent=pb.Agent(agent_id=agent_id, display_name=display_name or "", labels=labels or {}),
            update_mask=FieldMask(paths=[name for name, value in given.items() if value is not None]),
            etag=etag,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.UpdateAgent, request)).agent

    async def terminate(
        self,
        agent_id: str,
        *,
        force: bool = False,
        grace_period: Seconds | None = None,
        reason: str = "",
        request_id: str = "",
    ) -> pb.Agent:
        """Ends an agent; returns when its whole process tree is gone. Its tasks are requeued.

        Its running tasks may go on for `grace_period` (unset: 5 s); `force` kills at once.
        """
        mode = pb.TERMINATE_MODE_FORCE if force else pb.TERMINATE_MODE_GRACEFUL
        request = pb.TerminateAgentRequest(
            agent_id=agent_id,
            mode=mode,
            grace_period=duration(grace_period),
            reason=reason,
            request_id=request_id or new_request_id(),
        )
        grace = _DEFAULT_GRACE if grace_period is None else seconds(grace_period)
        timeout = grace + _KILL_MARGIN
        return (await self._connection.call(self._stub.TerminateAgent, request, timeout=timeout)).agent

    async def drain(self, agent_id: str, *, request_id: str = "") -> pb.Agent:
        """Lets the agent finish what it has and gives it nothing new."""
        request = pb.DrainAgentRequest(agent_id=agent_id, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.DrainAgent, request)).agent

    async def resume(self, agent_id: str, *, request_id: str = "") -> pb.Agent:
        """Lets a draining agent take tasks again."""
        request = pb.ResumeAgentRequest(agent_id=agent_id, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.ResumeAgent, request)).agent

    async def delete(self, agent_id: str, *, request_id: str = "") -> pb.DeleteAgentResponse:
        """Removes an ended agent, with its log."""
        request = pb.DeleteAgentRequest(agent_id=agent_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteAgent, request)

    async def profiles(self) -> pb.ListAgentProfilesResponse:
        """The profiles of the server's configuration."""
        return await self._connection.call(self._stub.ListAgentProfiles, pb.ListAgentProfilesRequest())

    def watch(self, **keywords: Unpack[AgentWatchKeywords]) -> Watch[pb.AgentEvent]:
        """The changes of matching agents; see `Client.watch`. Agents match as they are after each change."""
        start, query = split_start(keywords)
        wanted = agent_filter(**query)
        return Watch(
            lambda options: self._connection.stream(
                self._stub.WatchAgents, pb.WatchAgentsRequest(filter=wanted, options=options)
            ),
            start,
        )

    def logs(
        self,
        agent_id: str,
        *,
        offset: int = 0,
        follow: bool = False,
        connect_timeout: float | None = CONNECT_TIMEOUT,
    ) -> LogStream:
        """The log of the agent's own process from `offset` on; with `follow` until the agent has ended."""

        def open_stream(_attempt: int, place: int) -> Stream[pb.StreamAgentLogsResponse]:
            request = pb.StreamAgentLogsRequest(agent_id=agent_id, offset=place, follow=follow)
            return self._connection.stream(self._stub.StreamAgentLogs, request)

        async def next_attempt(previous: int | None) -> int | None:
            return 0 if previous is None else None

        return LogStream(open_stream, next_attempt, offset=offset, connect_timeout=connect_timeout)
