"""The face for alerts: what somebody should know of. To be told of them, watch the events "alert.fired" and others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, TypedDict, Unpack

from kapell.connection import Connection
from kapell.messages import Instant, by_word, new_request_id, timestamp, words_of
from kapell.v1 import alert_pb2 as pb
from kapell.v1.alert_pb2_grpc import AlertServiceStub

if TYPE_CHECKING:
    from kapell.v1.alert_pb2_grpc import AlertServiceAsyncStub


class AlertQuery(TypedDict, total=False):
    """Which alerts are wanted."""

    states: Iterable[pb.AlertState.ValueType | str]
    """By value or word, as in "firing"."""
    kinds: Iterable[pb.AlertKind.ValueType | str]
    """By value or word, as in "budget_threshold"."""
    subjects: Iterable[str]


class Alerts:
    """`client.alerts`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> AlertServiceAsyncStub:
        return self._connection.stub(AlertServiceStub)

    async def list(
        self, *, page_size: int = 0, page_token: str = "", **query: Unpack[AlertQuery]
    ) -> pb.ListAlertsResponse:
        """One page of alerts, those that fire first."""
        states, kinds = words_of(pb.AlertState.items(), "ALERT_STATE_"), words_of(pb.AlertKind.items(), "ALERT_KIND_")
        wanted = pb.AlertFilter(
            states=[by_word(state, states, "a state of alerts") for state in query.get("states", ())],
            kinds=[by_word(kind, kinds, "a kind of alert") for kind in query.get("kinds", ())],
            subjects=query.get("subjects", ()),
        )
        request = pb.ListAlertsRequest(filter=wanted, page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListAlerts, request)

    async def iterate(self, *, page_size: int = 200, **query: Unpack[AlertQuery]) -> AsyncIterator[pb.Alert]:
        """All alerts that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(page_size=page_size, page_token=page_token, **query)
            for alert in page.alerts:
                yield alert
            page_token = page.next_page_token
            if not page_token:
                return

    async def acknowledge(
        self, alert_id: str, *, comment: str = "", expires: Instant | None = None, request_id: str = ""
    ) -> pb.Alert:
        """Says that somebody has taken note; with `expires` it fires again then, if its cause is still there."""
        request = pb.AcknowledgeAlertRequest(
            alert_id=alert_id,
            comment=comment,
            expire_time=timestamp(expires),
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.AcknowledgeAlert, request)).alert
