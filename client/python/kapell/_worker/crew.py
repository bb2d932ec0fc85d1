"""A worker at work: starts its loops, ends them in order.

Ending in order: take nothing new, let the running attempts finish for as long as allowed, stop
the rest, say goodbye. What was stopped in the middle is left to the server, which requeues it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from kapell._worker.attempts import Attempts, Handler
from kapell._worker.directives import listen
from kapell._worker.heartbeat import Heartbeat
from kapell._worker.leases import Lease, LeaseTable, Phase
from kapell._worker.outbox import Outbox
from kapell._worker.polling import poll
from kapell._worker.session import Session
from kapell.discovery import Endpoint
from kapell.errors import KapellError
from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import (
    AGENT_DIRECTIVE_NONE,
    AGENT_DIRECTIVE_STOP,
    AgentDirective,
    DeregisterRequest,
    RegisterWorkerRequest,
)

_log = logging.getLogger("kapell.worker")

_ANSWERS_WITHIN = 5.0
_GOODBYE_WITHIN = 3.0


class Crew:
    """Everything one worker needs while it runs. Runs once.

    `grace` is how many seconds running attempts may go on after `stop`; None: as long as they take.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        registration: RegisterWorkerRequest,
        find_handler: Callable[[Task], Handler | None],
        *,
        grace: float | None,
    ) -> None:
        self.session = Session(endpoint, registration)
        self._grace = grace
        self._find_handler = find_handler
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reason = "stopped"

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Begins the end. `at_once` leaves running attempts no time to finish."""
        if not self._stopping.is_set():
            self._reason = reason
            _log.info("stopping: %s", reason)
        self._stopping.set()
        if at_once:
            self._hurry.set()

    async def run(self) -> None:
        """Works until it is stopped. Raises KapellError when the server refuses this worker."""
        try:
            if await self._register():
                await self._work()
        finally:
            await self.session.close()

    async def _register(self) -> bool:
        """False when the worker was stopped before a server answered."""
        registering = asyncio.create_task(self.session.register(), name="register")
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait((registering, stopping), return_when=asyncio.FIRST_COMPLETED)
            if registering.done():
                registering.result()
            return registering.done()
        finally:
            registering.cancel()
            stopping.cancel()

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as running:
                await self._direct(running)
        except BaseExceptionGroup as group:
            refusals = group.subgroup(KapellError)
            if refusals is None:
                raise
            raise _first(refusals) from None
        except asyncio.CancelledError:
            await self._goodbye()
            raise

    async def _direct(self, running: asyncio.TaskGroup) -> None:
        session = self.session
        table = LeaseTable(session.slots)
        outbox = Outbox(session)
        attempts = Attempts(session, outbox, self._find_handler)

        async def carry_out(lease: Lease) -> None:
            try:
                await _outlive(table.earlier_than(lease))
                await attempts.carry_out(lease)
            finally:
                table.remove(lease)

        def begin(lease: Lease) -> None:
            name = f"attempt {lease.attempt} of {lease.task_id}"
            lease.carrying_out = running.create_task(carry_out(lease), name=name)
            heartbeat.note_offer()

        def obey(directive: AgentDirective.ValueType) -> None:
            if directive == AGENT_DIRECTIVE_STOP:
                self.stop("the server asked for it")
            else:
                table.accept(directive == AGENT_DIRECTIVE_NONE)

        heartbeat = Heartbeat(session, table, obey)
        loops = [
            running.create_task(heartbeat.run(), name="heartbeat"),
            running.create_task(listen(session, table, obey, heartbeat.beat_now), name="directives"),
            running.create_task(outbox.run(), name="outbox"),
        ]
        polling = running.create_task(poll(session, table, begin), name="polling")
        await self._stopping.wait()
        polling.cancel()
        await asyncio.wait((polling,))
        await self._finish(table)
        await self._goodbye()
        for loop in loops:
            loop.cancel()

    async def _finish(self, table: LeaseTable) -> None:
        """Waits for the attempts at hand, and stops them when their time is up."""
        hurry = asyncio.create_task(self._hurry.wait(), name="hurry")
        empty = asyncio.create_task(table.wait_empty(), name="last attempt")
        try:
            await asyncio.wait((hurry, empty), timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
            for lease in table:
                lease.interrupt()
            for lease in table:
                await lease.worked.wait()
            # Their outcomes and logs get a little time; a server that is away does not keep us.
            await asyncio.wait((empty,), timeout=_ANSWERS_WITHIN)
        finally:
            hurry.cancel()
            empty.cancel()
        for lease in table:
            _log.warning("%s, attempt %d, is left to the server", lease.task_id, lease.attempt)
            if lease.carrying_out is not None:
                lease.carrying_out.cancel()

    async def _goodbye(self) -> None:
        request = DeregisterRequest(agent_id=self.session.agent_id, reason=self._reason[:500])
        with contextlib.suppress(KapellError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_WITHIN):
                await self.session.once(self.session.stub.Deregister, request, timeout=_GOODBYE_WITHIN)


async def _outlive(earlier: list[Lease]) -> None:
    """Waits until nothing of earlier attempts at the same task runs any more.

    A worker that was frozen may get its own task again before any answer has told it that the
    attempt at hand is lost.
    """
    for lease in earlier:
        if lease.phase is Phase.WORKING:
            lease.lose()
        await lease.worked.wait()


def _first(group: BaseExceptionGroup[KapellError]) -> KapellError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KapellError)
    return error
