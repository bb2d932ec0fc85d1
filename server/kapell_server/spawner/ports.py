"""What the spawner needs of the rest of the server, and nothing more; tests stand in for these."""

from __future__ import annotations

from typing import Protocol

from kapell.v1.agent_pb2 import Agent, AgentSpec, ListAgentsRequest, ListAgentsResponse, TerminateAgentRequest

from kapell_server.domain.access import Caller
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted, AgentStartFailed, Termination
from kapell_server.store.record import Record
from kapell_server.watch.ring import Ring

Submission = AgentProcessStarted | AgentProcessExited | AgentStartFailed | TerminateAgentRequest


class Engine(Protocol):
    """Takes facts, and says what is wanted of whom."""

    @property
    def log_id(self) -> str: ...
    @property
    def ring(self) -> Ring: ...
    async def submit(self, request: Submission, caller: Caller) -> bytes: ...
    def termination(self, agent_id: str) -> Termination | None: ...


class Reads(Protocol):
    """The records."""

    async def get_agent(self, agent_id: str) -> Agent: ...
    async def agent_spec(self, agent_id: str) -> AgentSpec: ...
    async def list_agents(self, request: ListAgentsRequest) -> ListAgentsResponse: ...
    async def events_after(self, revision: int, limit: int) -> list[Record]: ...
