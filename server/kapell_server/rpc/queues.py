"""QueueService: hands changes and counts to the engine, lists limits past it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1 import queue_pb2

from kapell_server.domain.access import Caller

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads


class QueueServicer:
    """The methods of QueueService. What waits and what runs is counted by the engine alone."""

    def __init__(self, engine: Engine, reads: Reads) -> None:
        self._engine = engine
        self._reads = reads
        self.GetQueueStats = engine.submit
        self.UpdateQueue = engine.submit
        self.PauseQueue = engine.submit
        self.ResumeQueue = engine.submit
        self.DrainQueue = engine.submit
        self.SetConcurrencyLimit = engine.submit
        self.DeleteConcurrencyLimit = engine.submit

    async def ListConcurrencyLimits(
        self, request: queue_pb2.ListConcurrencyLimitsRequest, caller: Caller
    ) -> queue_pb2.ListConcurrencyLimitsResponse:
        answer = await self._reads.standing.list_limits(request)
        for limit in answer.limits:
            limit.running, limit.queued = self._engine.key_use(limit.key)
        return answer
