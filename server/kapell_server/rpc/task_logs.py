"""StreamTaskLogs: the log of one attempt, or of one after the other, as it grows.

The order of looking is what makes it complete: first the task, then its log. An attempt that
had ended before the log was read has written all it ever will, so an empty read is its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from kapell.v1 import task_pb2
from kapell.v1.error_pb2 import ERROR_REASON_ATTEMPT_NOT_FOUND

from kapell_server.domain.errors import KapellError
from kapell_server.domain.transitions import TASK_FINAL, TASK_LEASED
from kapell_server.store.record import Record
from kapell_server.supervise import Supervisor
from kapell_server.watch.ring import Ring

if TYPE_CHECKING:
    from kapell_server.store.logs import LogStore
    from kapell_server.store.reads import Reads

T = TypeVar("T")

# A hint may be lost, so waiting looks again after this long, seconds.
RECHECK = 5.0


class TaskLogs:
    """Streams logs of attempts. `supervisor` owns the waits of streams that follow."""

    def __init__(self, reads: Reads, logs: LogStore, ring: Ring, supervisor: Supervisor) -> None:
        self._reads = reads
        self._logs = logs
        self._ring = ring
        self._supervisor = supervisor

    async def stream(
        self, request: task_pb2.StreamTaskLogsRequest
    ) -> AsyncGenerator[task_pb2.StreamTaskLogsResponse, None]:
        """Messages with entries in order, the first one at once, even when empty.

        Raises KapellError TASK_NOT_FOUND, ATTEMPT_NOT_FOUND, LOG_OFFSET_GAP.
        """
        task = await self._reads.task(request.task_id)
        attempt, offset = request.attempt or task.attempt, request.offset
        if attempt > task.attempt:
            raise _no_attempt(task, attempt)
        said_anything = False
        while True:
            entries = await self._logs.read(task.task_id, attempt, offset) if attempt else []
            if entries or not said_anything:
                yield task_pb2.StreamTaskLogsResponse(attempt=attempt, offset=offset, entries=entries)
                said_anything = True
                offset += len(entries)
            if entries:
                continue
            if not request.follow:
                return
            if task.attempt > attempt and not request.attempt:
                attempt, offset = attempt + 1, 0
            elif task.state in TASK_FINAL or (request.attempt and _ended(task, attempt)):
                return
            else:
                task = await self._news(task, attempt, offset)

    async def _news(self, task: task_pb2.Task, attempt: int, offset: int) -> task_pb2.Task:
        """Waits until the task has changed or its attempt has an entry at `offset`; the task by then."""
        changed = self._ring.wait_resource(task.task_id, task.revision, RECHECK)
        change = self._supervisor.spawn(_outcome(changed), name=f"follow {task.task_id}")
        waiting: list[asyncio.Task[Any]] = [change]
        if not _ended(task, attempt):
            grown = self._logs.wait(task.task_id, attempt, offset, RECHECK)
            waiting.append(self._supervisor.spawn(_outcome(grown), name=f"log of {task.task_id}"))
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waiting:
                wait.cancel()
        for wait in done:
            if isinstance(error := wait.result(), Exception):
                raise error
        if change not in done:
            return task
        record = change.result()
        if record is None:
            return await self._reads.task(task.task_id)
        assert isinstance(record, Record)
        assert isinstance(record.resource, task_pb2.Task)
        return record.resource


def _ended(task: task_pb2.Task, attempt: int) -> bool:
    return attempt < task.attempt or task.state not in TASK_LEASED


async def _outcome(wait: Awaitable[T]) -> T | Exception:
    """A failure as a value: it ends this stream, and is no death of a part of the server."""
    try:
        return await wait
    except Exception as error:
        return error


def _no_attempt(task: task_pb2.Task, attempt: int) -> KapellError:
    had = f"its latest attempt is {task.attempt}" if task.attempt else "it has not been started yet"
    return KapellError(
        ERROR_REASON_ATTEMPT_NOT_FOUND,
        f"Task {task.task_id} has no attempt {attempt}: {had}. Leave the attempt out for the latest.",
        metadata={"task_id": task.task_id, "attempt": str(attempt)},
    )
