"""EventService: the log, read in pages or followed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kapell.v1 import event_pb2

from kapell_server.domain.access import Caller
from kapell_server.watch.filters import for_events
from kapell_server.watch.follow import Watches

if TYPE_CHECKING:
    from kapell_server.store.reads import Reads


class EventServicer:
    """The methods of EventService."""

    def __init__(self, reads: Reads, *, watches: Watches) -> None:
        self._reads = reads
        self._watches = watches

    def Watch(self, request: event_pb2.WatchRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        return self._watches.follow(for_events(request.filter), request.options)

    async def ListEvents(self, request: event_pb2.ListEventsRequest, caller: Caller) -> bytes:
        return await self._reads.list_events(request)

    async def GetLogInfo(self, request: event_pb2.GetLogInfoRequest, caller: Caller) -> event_pb2.GetLogInfoResponse:
        return await self._reads.log_info()
