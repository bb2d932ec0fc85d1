"""WatchDirectives: hints for agents, picked from the ring by one reader for all of them.

If every agent's stream read the ring itself, a commit would cost as much as there are agents.
So one task reads each record once and puts what concerns an agent on its board; the stream is
woken and sends it. A board holds the latest directive and a set of task ids, never a queue.
All of it is only a hint: Heartbeat says the same again, so what a gap loses costs latency only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kapell.v1 import agent_pb2, approval_pb2, task_pb2, worker_pb2
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING
from kapell.v1.error_pb2 import (
    ERROR_REASON_AGENT_NOT_FOUND,
    ERROR_REASON_SERVER_DRAINING,
    ERROR_REASON_TASK_NOT_FOUND,
    ERROR_REASON_TOKEN_INVALID,
)
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_CANCELLING, EVENT_KIND_TASK_CONTINUED, EVENT_KIND_TASK_PAUSED

from kapell_server.domain.access import Caller, CallerKind
from kapell_server.domain.errors import KapellError
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.domain.workers import speaking
from kapell_server.store.record import Record
from kapell_server.supervise import Supervisor
from kapell_server.watch.ring import Ring

if TYPE_CHECKING:
    from kapell_server.store.reads import Reads

READ_LIMIT = 512
IDLE = 60.0

_DIRECTIVES: dict[int, worker_pb2.AgentDirective.ValueType] = {
    agent_pb2.AGENT_STATE_DRAINING: worker_pb2.AGENT_DIRECTIVE_DRAIN,
    agent_pb2.AGENT_STATE_TERMINATING: worker_pb2.AGENT_DIRECTIVE_STOP,
}


class _Board:
    """What one stream has yet to send."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.agent: agent_pb2.Agent | None = None
        self.cancel_task_ids: set[str] = set()
        self.pauses: dict[str, bool] = {}
        """Tasks that were paused (true) or continued, as they are by now."""
        self.decided_approval_ids: set[str] = set()
        self.error: KapellError | None = None

    @property
    def has_news(self) -> bool:
        """Whether there is anything to send about tasks or approvals."""
        return bool(self.cancel_task_ids or self.pauses or self.decided_approval_ids)

    def take(self, directive: worker_pb2.AgentDirective.ValueType) -> worker_pb2.WatchDirectivesResponse:
        """A message with all of it, which is off the board then."""
        message = worker_pb2.WatchDirectivesResponse(
            directive=directive,
            cancel_task_ids=sorted(self.cancel_task_ids),
            decided_approval_ids=sorted(self.decided_approval_ids),
            paused_task_ids=sorted(task_id for task_id, paused in self.pauses.items() if paused),
            continued_task_ids=sorted(task_id for task_id, paused in self.pauses.items() if not paused),
        )
        self.cancel_task_ids.clear()
        self.decided_approval_ids.clear()
        self.pauses.clear()
        return message


class Directives:
    """Follows the ring while there are streams. Belongs to the loop thread."""

    def __init__(self, ring: Ring, reads: Reads, supervisor: Supervisor) -> None:
        self._ring = ring
        self._reads = reads
        self._supervisor = supervisor
        self._boards: dict[str, set[_Board]] = {}
        self._reader: asyncio.Task[None] | None = None

    async def follow(self, agent_id: str, caller: Caller) -> AsyncGenerator[worker_pb2.WatchDirectivesResponse, None]:
        """What the agent is to do, at once and whenever it changes, until the agent has ended.

        Raises KapellError AGENT_NOT_FOUND, NOT_OWNER, TOKEN_INVALID for a superseded instance.
        """
        if caller.kind is CallerKind.AGENT and caller.agent_id != agent_id:
            raise speaking.not_spoken_for(None, agent_id, caller)
        with self._board(agent_id) as board:
            agent = await self._agent(agent_id, caller)
            speaking.check(agent, agent_id, caller)
            sent = _directive(agent)
            yield await self._first(agent)
            while agent.state not in AGENT_FINAL:
                await board.changed.wait()
                board.changed.clear()
                if board.error is not None:
                    raise board.error
                if board.agent is not None and board.agent.revision > agent.revision:
                    agent = board.agent
                if caller.kind is CallerKind.AGENT and agent.instance > caller.instance:
                    yield worker_pb2.WatchDirectivesResponse(directive=worker_pb2.AGENT_DIRECTIVE_REREGISTER)
                    return
                directive = _directive(agent)
                if board.has_news or directive != sent:
                    sent = directive
                    yield board.take(directive)

    async def _agent(self, agent_id: str, caller: Caller) -> agent_pb2.Agent:
        """The agent, if the caller's token still speaks for it."""
        try:
            agent = await self._reads.get_agent(agent_id)
        except KapellError as error:
            if caller.kind is CallerKind.AGENT and error.reason == ERROR_REASON_AGENT_NOT_FOUND:
                raise _superseded(agent_id, caller) from None
            raise
        if caller.kind is CallerKind.AGENT and (agent.instance != caller.instance or agent.state in AGENT_FINAL):
            raise _superseded(agent_id, caller)
        return agent

    @contextmanager
    def _board(self, agent_id: str) -> Iterator[_Board]:
        """A board that is written to from now on; entered before the state is read, so nothing is missed."""
        board = _Board()
        self._boards.setdefault(agent_id, set()).add(board)
        if self._reader is None or self._reader.done():
            self._reader = self._supervisor.spawn(self._read_ring(self._ring.head), name="directives")
        try:
            yield board
        finally:
            boards = self._boards[agent_id]
            boards.discard(board)
            if not boards:
                del self._boards[agent_id]

    async def _read_ring(self, cursor: int) -> None:
        try:
            while self._boards:
                await self._ring.wait_beyond(cursor, IDLE)
                records = self._ring.after(cursor, READ_LIMIT)
                if records is None:
                    cursor = self._ring.head
                    continue
                for record in records:
                    self._post(record)
                if records:
                    cursor = records[-1].revision
        except KapellError as error:
            assert error.reason == ERROR_REASON_SERVER_DRAINING
            self._end_all(error)

    def _post(self, record: Record) -> None:
        resource = record.resource
        if record.kind == EVENT_KIND_TASK_CANCELLING:
            assert isinstance(resource, task_pb2.Task)
            for board in self._boards.get(resource.lease.agent_id, ()):
                board.cancel_task_ids.add(record.resource_id)
                board.changed.set()
        elif record.kind in (EVENT_KIND_TASK_PAUSED, EVENT_KIND_TASK_CONTINUED):
            assert isinstance(resource, task_pb2.Task)
            for board in self._boards.get(resource.lease.agent_id, ()):
                board.pauses[record.resource_id] = record.kind == EVENT_KIND_TASK_PAUSED
                board.changed.set()
        elif isinstance(resource, approval_pb2.Approval):
            if resource.state != APPROVAL_STATE_PENDING:
                for board in self._boards.get(resource.agent_id, ()):
                    board.decided_approval_ids.add(record.resource_id)
                    board.changed.set()
        elif isinstance(resource, agent_pb2.Agent):
            for board in self._boards.get(record.resource_id, ()):
                board.agent = resource
                board.changed.set()

    def _end_all(self, error: KapellError) -> None:
        for boards in self._boards.values():
            for board in boards:
                board.error = error
                board.changed.set()

    async def _first(self, agent: agent_pb2.Agent) -> worker_pb2.WatchDirectivesResponse:
        """The message that is sent at once: tasks of the agent that are being cancelled already, or are paused."""
        board = _Board()
        for task_id in agent.current_task_ids:
            try:
                task = await self._reads.task(task_id)
            except KapellError as error:
                if error.reason != ERROR_REASON_TASK_NOT_FOUND:
                    raise
                continue
            if task.lease.agent_id != agent.agent_id:
                continue
            if task.state == task_pb2.TASK_STATE_CANCELLING:
                board.cancel_task_ids.add(task_id)
            elif task.HasField("pause"):
                board.pauses[task_id] = True
        return board.take(_directive(agent))


def _directive(agent: agent_pb2.Agent) -> worker_pb2.AgentDirective.ValueType:
    if agent.state in AGENT_FINAL:
        return worker_pb2.AGENT_DIRECTIVE_STOP
    return _DIRECTIVES.get(agent.state, worker_pb2.AGENT_DIRECTIVE_NONE)


def _superseded(agent_id: str, caller: Caller) -> KapellError:
    return KapellError(
        ERROR_REASON_TOKEN_INVALID,
        f"The token is of instance {caller.instance} of {agent_id}, which has ended or was superseded."
        " Stop its work and register again.",
        metadata={"agent_id": agent_id},
    )
