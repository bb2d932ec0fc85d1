"""The faces for queues and for the limits that tasks share. Thin; the server decides everything.

Every agent type has a queue, which needs not be created. Where a verb takes an `agent_type`, None
and "*" are all types together. Verbs about one queue or limit answer with it.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from google.protobuf.field_mask_pb2 import FieldMask

from kapell.connection import Connection
from kapell.messages import Seconds, concurrency_strategy, duration, new_request_id
from kapell.v1 import queue_pb2 as pb
from kapell.v1.queue_pb2_grpc import QueueServiceStub

if TYPE_CHECKING:
    from kapell.v1.queue_pb2_grpc import QueueServiceAsyncStub

Rate = tuple[int, Seconds] | pb.StartRate
"""How many tasks may start in a period: (10, 60) is ten a minute."""


class Keep(enum.Enum):
    """What says that a field is to stay as it is, where None says that it is to be cleared."""

    KEEP = "keep"


KEEP: Final = Keep.KEEP


def _start_rate(rate: Rate) -> pb.StartRate:
    return pb.StartRate(count=rate[0], period=duration(rate[1])) if isinstance(rate, tuple) else rate


class Queues:
    """`client.queues`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> QueueServiceAsyncStub:
        return self._connection.stub(QueueServiceStub)

    async def stats(self, *agent_types: str) -> pb.GetQueueStatsResponse:
        """What waits and what runs, by agent type: of these, or of all that have tasks, agents or settings."""
        request = pb.GetQueueStatsRequest(agent_types=agent_types)
        return await self._connection.call(self._stub.GetQueueStats, request)

    async def pause(self, agent_type: str | None = None, *, reason: str = "", request_id: str = "") -> pb.Queue:
        """Stops giving out tasks. They may still be created, and what runs goes on."""
        request = pb.PauseQueueRequest(
            agent_type=agent_type or "", reason=reason, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.PauseQueue, request)).queue

    async def resume(self, agent_type: str | None = None, *, request_id: str = "") -> pb.Queue:
        """Opens a paused or draining queue. One that was paused by itself stays so when all are resumed."""
        request = pb.ResumeQueueRequest(agent_type=agent_type or "", request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.ResumeQueue, request)).queue

    async def drain(self, agent_type: str | None = None, *, reason: str = "", request_id: str = "") -> pb.Queue:
        """Refuses new tasks with QUEUE_DRAINING; what is in the queue runs to its end."""
        request = pb.DrainQueueRequest(
            agent_type=agent_type or "", reason=reason, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.DrainQueue, request)).queue

    async def update(
        self,
        agent_type: str | None = None,
        *,
        max_running: int | Keep | None = KEEP,
        start_rate: Rate | Keep | None = KEEP,
        etag: str = "",
        request_id: str = "",
    ) -> pb.Queue:
        """Sets what is given: how many tasks may run at a time, how many may start in a period. None lifts a limit."""
        queue = pb.Queue(agent_type=agent_type or "*")
        paths = []
        if not isinstance(max_running, Keep):
            paths.append("max_running")
            if max_running is not None:
                queue.max_running = max_running
        if not isinstance(start_rate, Keep):
            paths.append("start_rate")
            if start_rate is not None:
                queue.start_rate.CopyFrom(_start_rate(start_rate))
        request = pb.UpdateQueueRequest(
            queue=queue, update_mask=FieldMask(paths=paths), etag=etag, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.UpdateQueue, request)).queue


class Limits:
    """`client.limits`: how many tasks of a concurrency key run at a time. A key without a limit lets one run."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> QueueServiceAsyncStub:
        return self._connection.stub(QueueServiceStub)

    async def set(
        self,
        key: str,
        *,
        max_running: int | None = None,
        strategy: pb.ConcurrencyStrategy.ValueType | str = pb.CONCURRENCY_STRATEGY_UNSPECIFIED,
        start_rate: Rate | None = None,
        description: str = "",
        etag: str = "",
        request_id: str = "",
    ) -> pb.ConcurrencyLimit:
        """Creates or replaces the limit of a key; what is left out is as if it had never been set.

        `strategy` says what to do with tasks beyond it, by value or word: "wait", "cancel-in-progress",
        "cancel-newest", "skip".
        """
        limit = pb.ConcurrencyLimit(
            key=key,
            max_running=max_running,
            strategy=concurrency_strategy(strategy),
            start_rate=None if start_rate is None else _start_rate(start_rate),
            description=description,
        )
        request = pb.SetConcurrencyLimitRequest(limit=limit, etag=etag, request_id=request_id or new_request_id())
        return (await self._connection.call(self._stub.SetConcurrencyLimit, request)).limit

    async def list(self, *, page_size: int = 0, page_token: str = "") -> pb.ListConcurrencyLimitsResponse:
        """One page of limits, newest first, with how many tasks of each key run and wait."""
        request = pb.ListConcurrencyLimitsRequest(page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListConcurrencyLimits, request)

    async def iterate(self, *, page_size: int = 200) -> AsyncIterator[pb.ConcurrencyLimit]:
        """All limits, page by page."""
        page_token = ""
        while True:
            page = await self.list(page_size=page_size, page_token=page_token)
            for limit in page.limits:
                yield limit
            page_token = page.next_page_token
            if not page_token:
                return

    async def delete(self, key: str, *, request_id: str = "") -> pb.DeleteConcurrencyLimitResponse:
        """Forgets the limit of a key, which then lets one task run at a time."""
        request = pb.DeleteConcurrencyLimitRequest(key=key, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteConcurrencyLimit, request)
