"""The sign of life: names every lease every few seconds and does what the answer says.

A server that does not answer kills nobody's work: leases are lost only when a server says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from kapell._worker.leases import LeaseTable
from kapell._worker.session import Session
from kapell.messages import seconds
from kapell.v1.worker_pb2 import (
    AGENT_DIRECTIVE_REREGISTER,
    AgentDirective,
    HeartbeatRequest,
    HeartbeatResponse,
)

_log = logging.getLogger("kapell.worker")

# The server takes an offer back that it hears nothing of for 10 s; the beat must come well before.
CONFIRM_WITHIN = 4.0
_SHORTEST = 0.05

Obey = Callable[[AgentDirective.ValueType], None]


class Heartbeat:
    """Keeps the leases of `table`. `obey` is told each directive for the agent."""

    def __init__(self, session: Session, table: LeaseTable, obey: Obey) -> None:
        self._session = session
        self._table = table
        self._obey = obey
        self._due = asyncio.Event()

    def note_offer(self) -> None:
        """An offer came that the server wants to hear of; beats now where that would take too long."""
        if self._session.heartbeat_interval > CONFIRM_WITHIN:
            self._due.set()

    def beat_now(self) -> None:
        """There is something to hear that must not wait."""
        self._due.set()

    async def run(self) -> None:
        """Beats until cancelled. Raises KapellError when the server refuses to know this worker."""
        while True:
            answer = await self._session.insist(
                self._session.stub.Heartbeat,
                self._request,
                timeout=max(1.0, self._session.heartbeat_interval),
                bears_defects=True,
            )
            await self._apply(answer)
            await self._rest()

    def _request(self) -> HeartbeatRequest:
        request = HeartbeatRequest(agent_id=self._session.agent_id)
        for lease in self._table:
            if not lease.lost.is_set():
                request.leases.add(lease_token=lease.token, waiting=lease.waiting, program_ended=lease.program_ended)
        return request

    async def _apply(self, answer: HeartbeatResponse) -> None:
        self._session.heartbeat_interval = max(_SHORTEST, seconds(answer.heartbeat_interval))
        for status in answer.leases:
            lease = self._table.find(status.lease_token)
            if lease is not None:
                lease.follow(status.directive, status.pause, answer.revision)
                if lease.lost.is_set():
                    _log.warning("lost the lease of %s, attempt %d: its work is ended", lease.task_id, lease.attempt)
        if answer.directive == AGENT_DIRECTIVE_REREGISTER:
            await self._session.register()
            self._due.set()
        else:
            self._obey(answer.directive)

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._session.heartbeat_interval):
                await self._due.wait()
        self._due.clear()
