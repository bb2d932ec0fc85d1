"""The face for the event log: its history, its bounds, and the watch of everything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Unpack

from kapell.connection import Connection
from kapell.filters import EventQuery, event_filter
from kapell.v1 import event_pb2 as pb
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.v1.event_pb2_grpc import EventServiceStub
from kapell.watch import Watch, WatchKeywords, split_start

if TYPE_CHECKING:
    from kapell.v1.event_pb2_grpc import EventServiceAsyncStub


class EventWatchKeywords(EventQuery, WatchKeywords, total=False):
    """Which events to watch, and how."""


class Events:
    """`client.events`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> EventServiceAsyncStub:
        return self._connection.stub(EventServiceStub)

    async def list(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[EventQuery],
    ) -> pb.ListEventsResponse:
        """One page of recorded events, newest first unless ordered otherwise."""
        request = pb.ListEventsRequest(
            filter=event_filter(**query), order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListEvents, request)

    async def iterate(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
        **query: Unpack[EventQuery],
    ) -> AsyncIterator[pb.Event]:
        """All recorded events that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(order=order, page_size=page_size, page_token=page_token, **query)
            for event in page.events:
                yield event
            page_token = page.next_page_token
            if not page_token:
                return

    async def log_info(self) -> pb.GetLogInfoResponse:
        """Which log this is and which revisions it holds."""
        return await self._connection.call(self._stub.GetLogInfo, pb.GetLogInfoRequest())

    def watch(self, **keywords: Unpack[EventWatchKeywords]) -> Watch[pb.Event]:
        """Every matching change, once and in order; see `Client.watch`."""
        start, query = split_start(keywords)
        wanted = event_filter(**query)
        return Watch(
            lambda options: self._connection.stream(self._stub.Watch, pb.WatchRequest(filter=wanted, options=options)),
            start,
        )
