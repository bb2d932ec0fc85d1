"""UsageService and PriceService: records in small steps through the engine, sums and lists past it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kapell.v1 import usage_pb2

from kapell_server.clock import Clock
from kapell_server.domain.access import Caller
from kapell_server.domain.usage.estimate import history_of, put_runs
from kapell_server.domain.usage.figures import money, nanos
from kapell_server.domain.usage.reprice import MOST_CHANGED, Comparison, RepriceCommand
from kapell_server.engine.facts import UsageChunk
from kapell_server.watch.filters import for_usage

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads
    from kapell_server.watch.follow import Watches

CHUNK = 100
"""Records the writer takes at a time: a few milliseconds, between which it serves everybody else."""
_AT_ONCE = 1
"""Chunks that may wait for the writer, whoever sends them: a flood of records queues here, not before dispatch."""
_PREVIEWED = 20_000
_LOOKED_AT = 100_000
"""Records that one call looks at: some seconds, past the writer."""
_LOOK = 500
"""Records that are looked at in one go, to cost them anew."""


class UsageServicer:
    """The methods of UsageService."""

    def __init__(self, engine: Engine, reads: Reads, *, watches: Watches, clock: Clock) -> None:
        self._engine = engine
        self._reads = reads
        self._watches = watches
        self._clock = clock
        self._line = asyncio.Semaphore(_AT_ONCE)

    async def RecordUsage(self, request: usage_pb2.RecordUsageRequest, caller: Caller) -> usage_pb2.RecordUsageResponse:
        """Chunk by chunk. A repeat of the request_id finds the answers of chunks, and does those that are missing."""
        response = usage_pb2.RecordUsageResponse(replayed=bool(request.request_id))
        # The first answer belongs to all records of the request, so each chunk tells which those were.
        digest = _digest(request) if request.request_id and len(request.records) > CHUNK else ""
        for start in range(0, len(request.records), CHUNK):
            part = usage_pb2.RecordUsageRequest(records=request.records[start : start + CHUNK], request_id=digest)
            request_id = request.request_id and (f"{request.request_id}/{start}" if start else request.request_id)
            async with self._line:
                answer = await self._engine.submit_aside(UsageChunk(part, request_id), caller)
            done = usage_pb2.RecordUsageResponse.FromString(answer)
            response.outcomes.extend(done.outcomes)
            response.revision = done.revision
            response.replayed = response.replayed and done.replayed
        return response

    async def QueryUsage(self, request: usage_pb2.QueryUsageRequest, caller: Caller) -> usage_pb2.QueryUsageResponse:
        return await self._reads.usage.query(request, self._clock.now_ns())

    async def ListUsageRecords(
        self, request: usage_pb2.ListUsageRecordsRequest, caller: Caller
    ) -> usage_pb2.ListUsageRecordsResponse:
        return await self._reads.usage.list_records(request)

    def WatchUsage(self, request: usage_pb2.WatchUsageRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        return self._watches.follow(for_usage(request.filter), request.options)

    async def RepriceUsage(self, request: usage_pb2.RepriceUsageRequest, caller: Caller) -> bytes:
        """Finds what differs past the writer, then has the writer look again and change it, all in one step."""
        comparison = Comparison({})
        record_ids: list[str] = []
        looked_at = following = 0
        while True:
            records, following = await self._reads.usage.to_reprice(request, following, _LOOK)
            looked_at += len(records)
            for before, after in self._engine.costed_anew(request, records):
                comparison.add(before, after)
                record_ids.append(before.record_id)
            most = _PREVIEWED if request.preview else _LOOKED_AT
            if looked_at >= most or not following or (len(record_ids) >= MOST_CHANGED and not request.preview):
                break
        more = following > 0 or (not request.preview and len(record_ids) > MOST_CHANGED)
        if request.preview:
            response = comparison.response()
            response.more, response.revision = more, self._engine.revision
            return response.SerializeToString()
        async with self._line:
            return await self._engine.submit(RepriceCommand(request, tuple(record_ids[:MOST_CHANGED]), more), caller)

    async def EstimateCost(
        self, request: usage_pb2.EstimateCostRequest, caller: Caller
    ) -> bytes | usage_pb2.EstimateCostResponse:
        if not request.template_id:
            return await self._engine.submit(request, caller)
        revision = self._engine.revision
        await self._reads.templates.get(request.template_id, "latest")
        history = history_of(await self._reads.usage.history(request.template_id))
        response = usage_pb2.EstimateCostResponse(history=history, revision=revision)
        if history.tasks:
            put_runs(response, nanos(history.p50), request.runs)
            response.cost_p95.CopyFrom(money(nanos(history.p95) * (request.runs or 1)))
            if history.unpriced_tasks:
                response.note = f"{history.unpriced_tasks} of {history.tasks} tasks have unpriced usage"
        else:
            response.note = "no task of the template has ended with recorded usage yet"
        return response


class PriceServicer:
    """The methods of PriceService. Prices are in memory, so the engine answers."""

    def __init__(self, engine: Engine) -> None:
        self.ListPrices = engine.submit
        self.GetPrice = engine.submit
        self.SetPrice = engine.submit
        self.DeletePrice = engine.submit


def _digest(request: usage_pb2.RecordUsageRequest) -> str:
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=12).hexdigest()
