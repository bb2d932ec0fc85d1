"""One attempt from its offer to its end: runs the handler, ships what it says, sends the outcome.

The outcome goes last, because nothing can be said under a lease that has ended. Cancelling the
handler is how Python stops it; a runtime that ends programs by itself has no `cancel_grace` and is
left alone to do so.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.struct_pb2 import Value

from kapell._worker import logs, progress, usage
from kapell._worker.approvals import Parked
from kapell._worker.context import TaskContext
from kapell._worker.leases import Lease, Phase
from kapell._worker.outbox import Outbox
from kapell._worker.outcome import TaskFailed
from kapell._worker.session import Session
from kapell._worker.values import to_value
from kapell.errors import KapellError
from kapell.v1.common_pb2 import LOG_STREAM_STDERR
from kapell.v1.task_pb2 import Task

_log = logging.getLogger("kapell.worker")

MAX_RESULT_BYTES = 256 * 1024

Run = Callable[[TaskContext, Task], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Handler:
    """The code for one type of task."""

    run: Run
    cancel_grace: float | None
    """Seconds between `ctx.cancelled` and cancelling the coroutine; None: it stops by itself."""


class Attempts:
    """Carries out the attempts of one worker."""

    def __init__(self, session: Session, outbox: Outbox, find_handler: Callable[[Task], Handler | None]) -> None:
        self._session = session
        self._outbox = outbox
        self._find_handler = find_handler

    async def carry_out(self, lease: Lease) -> None:
        """From the offer to the answered outcome. Leaves nothing running, also when cancelled."""
        handler = self._find_handler(lease.task)
        if handler is None or lease.interrupted:
            lease.worked.set()
            await self._end(lease, self._outbox.release(lease))
            return
        lease.phase = Phase.WORKING
        if lease.missing_secrets:
            lease.worked.set()
            await self._send(lease, _without(lease.missing_secrets))
            return
        async with asyncio.TaskGroup() as reporting:
            # Most short tasks say nothing, so the senders are started by the first word.
            lease.log.on_first(lambda: _start(reporting, logs.ship(self._session, lease), f"log of {lease.task_id}"))
            lease.progress.on_first(
                lambda: _start(reporting, progress.report(self._session, lease), f"progress of {lease.task_id}")
            )
            lease.usage.on_first(
                lambda: _start(reporting, usage.ship(self._session, lease), f"usage of {lease.task_id}")
            )
            try:
                ending = await self._outcome(handler, lease)
            finally:
                lease.worked.set()
                lease.log.close()
                lease.progress.close()
                lease.usage.close()
            await _until_reported(lease)
        if not lease.lost.is_set() and not lease.interrupted:
            await self._send(lease, ending)

    async def _outcome(self, handler: Handler, lease: Lease) -> Value | TaskFailed:
        context = TaskContext(lease, self._session)
        work = asyncio.ensure_future(handler.run(context, lease.task))
        lease.on_stop(partial(_stop, work, handler, lease))
        try:
            return _checked(await work)
        except TaskFailed as failure:
            return failure
        except (Parked, BaseExceptionGroup) as error:
            if lease.is_parked:
                return TaskFailed("PARKED", "the task waits for an approval")
            if not isinstance(error, Exception):
                raise
            return _crash(error, lease)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not lease.cancelled.is_set() or (current is not None and current.cancelling()):
                raise
            return TaskFailed("CANCELLED", "the work was stopped because the task was cancelled")
        except Exception as error:
            return _crash(error, lease)

    async def _send(self, lease: Lease, ending: Value | TaskFailed) -> None:
        lease.phase = Phase.ENDING
        if isinstance(ending, Value):
            try:
                await self._outbox.complete(lease, ending)
                return
            except KapellError as error:
                ending = TaskFailed("RESULT_INVALID", f"the server refused the result: {error}")
        await self._end(lease, self._outbox.fail(lease, ending))

    async def _end(self, lease: Lease, sending: Awaitable[None]) -> None:
        try:
            await sending
        except KapellError as error:
            # Nobody renews the lease any more, so the server takes the task back by itself.
            _log.error("the end of %s, attempt %d, was refused: %s", lease.task_id, lease.attempt, error)


def _without(missing: list[str]) -> TaskFailed:
    names = ", ".join(sorted(set(missing)))
    return TaskFailed(
        "SECRET_MISSING",
        f"there is no value for {names} - set it with `kapell secret set`, then retry",
        retryable=False,
    )


def _stop(work: asyncio.Future[object], handler: Handler, lease: Lease) -> None:
    """Stops the handler now or after its grace. Called at each new reason to stop."""
    if handler.cancel_grace is None:
        return
    if lease.lost.is_set() or not handler.cancel_grace:
        work.cancel()
    else:
        asyncio.get_running_loop().call_later(handler.cancel_grace, work.cancel)


def _start(group: asyncio.TaskGroup, sending: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return group.create_task(sending, name=name)


async def _until_reported(lease: Lease) -> None:
    """Waits until usage is out, and log and progress are, but not once nobody takes these any more."""
    usage_sender = lease.usage.sender
    senders = [sender for sender in (lease.log.sender, lease.progress.sender) if sender is not None]
    if not senders and usage_sender is None:
        return
    lost = asyncio.create_task(lease.lost.wait(), name=f"lease of {lease.task_id}")
    try:
        for sender in senders:
            await asyncio.wait((sender, lost), return_when=asyncio.FIRST_COMPLETED)
        if usage_sender is not None:
            await asyncio.wait((usage_sender,))
    finally:
        lost.cancel()
        for sender in (*senders, *([usage_sender] if usage_sender is not None else [])):
            sender.cancel()


def _checked(returned: object) -> Value | TaskFailed:
    try:
        result = to_value(returned)
        size = result.ByteSize()
    except ValueError as error:
        return TaskFailed("RESULT_INVALID", f"the handler's result is not JSON: {error}", retryable=False)
    if size > MAX_RESULT_BYTES:
        return TaskFailed(
            "RESULT_INVALID",
            f"the result has {size} bytes, {MAX_RESULT_BYTES} are allowed - return less, or log it",
            retryable=False,
        )
    return result


def _crash(error: Exception, lease: Lease) -> TaskFailed:
    for line in traceback.format_exception(error):
        lease.log.append(line.rstrip("\n"), LOG_STREAM_STDERR)
    return TaskFailed("EXCEPTION", f"{type(error).__name__}: {error}", details={"exception": type(error).__qualname__})
