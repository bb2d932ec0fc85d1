"""Outcomes on their way to the server: repeated until it answered, so that none is lost.

Results that are ready at the same time travel together; while one batch is on its way the next
one gathers. A result the server refuses becomes a failure that says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.struct_pb2 import Value

from kapell._worker.leases import Lease
from kapell._worker.outcome import RateLimited, TaskFailed
from kapell._worker.session import Session
from kapell.errors import KapellError, LeaseLost
from kapell.messages import duration
from kapell.v1.worker_pb2 import (
    BatchCompleteTasksRequest,
    CompleteTaskRequest,
    FailTaskRequest,
    ProviderRateLimit,
    ReleaseTaskRequest,
)

_log = logging.getLogger("kapell.worker")

BATCH = 100
BATCH_BYTES = 512 * 1024


@dataclass(eq=False)
class _Completion:
    """One result that waits for its answer."""

    lease: Lease
    request: CompleteTaskRequest
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Outbox:
    """Ends attempts. `run` must be running for `complete` to get anywhere."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._waiting: deque[_Completion] = deque()
        self._filled = asyncio.Event()

    async def complete(self, lease: Lease, result: Value) -> None:
        """Ends the attempt with a result; returns when the server took it or the lease was lost.

        Raises KapellError when the server refuses the result.
        """
        completion = _Completion(
            lease, CompleteTaskRequest(lease_token=lease.token, result=lease.redactor.message(result))
        )
        self._waiting.append(completion)
        self._filled.set()
        await completion.done

    async def fail(self, lease: Lease, failure: TaskFailed) -> None:
        """Ends the attempt with a failure; returns when the server took it or the lease was lost."""
        request = FailTaskRequest(
            lease_token=lease.token,
            failure=lease.redactor.message(failure.to_message()),
            retry_delay=duration(failure.retry_delay or None),
        )
        if isinstance(failure, RateLimited):
            limit = ProviderRateLimit(provider=failure.provider, reset_after=duration(failure.reset_after))
            request.rate_limited.CopyFrom(limit)
        try:
            await self._session.insist(self._session.stub.FailTask, lambda: request)
        except LeaseLost:
            lease.lose()

    async def release(self, lease: Lease) -> None:
        """Hands the task back; returns when the server took it or the lease was lost."""
        request = ReleaseTaskRequest(lease_token=lease.token)
        try:
            await self._session.insist(self._session.stub.ReleaseTask, lambda: request)
        except LeaseLost:
            lease.lose()

    async def run(self) -> None:
        """Sends results until cancelled."""
        while True:
            await self._filled.wait()
            batch = self._next_batch()
            if len(batch) == 1 or not await self._send_together(batch):
                for completion in batch:
                    await self._send(completion)

    def _next_batch(self) -> list[_Completion]:
        batch: list[_Completion] = []
        tasks: set[str] = set()
        size = 0
        while self._waiting and len(batch) < BATCH:
            completion = self._waiting[0]
            size += completion.request.ByteSize()
            if batch and (size > BATCH_BYTES or completion.lease.task_id in tasks):
                break
            tasks.add(completion.lease.task_id)
            batch.append(self._waiting.popleft())
        if not self._waiting:
            self._filled.clear()
        return batch

    async def _send_together(self, batch: list[_Completion]) -> bool:
        """False when the batch was refused as a whole: one of its results is at fault."""
        request = BatchCompleteTasksRequest(completions=[completion.request for completion in batch])
        try:
            answer = await self._session.insist(self._session.stub.BatchCompleteTasks, lambda: request)
        except KapellError as error:
            _log.debug("a batch of results was refused: %s", error)
            return False
        for completion, outcome in zip(batch, answer.outcomes, strict=True):
            if outcome.lease_lost:
                completion.lease.lose()
            _resolve(completion.done)
        return True

    async def _send(self, completion: _Completion) -> None:
        try:
            await self._session.insist(self._session.stub.CompleteTask, _same(completion.request))
        except LeaseLost:
            completion.lease.lose()
        except KapellError as error:
            if not completion.done.done():
                completion.done.set_exception(error)
        _resolve(completion.done)


def _same(request: CompleteTaskRequest) -> Callable[[], CompleteTaskRequest]:
    return lambda: request


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
