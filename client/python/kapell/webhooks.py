"""The face for webhooks: events that the server sends to an address of yours, signed. For administrators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

from kapell.connection import Connection
from kapell.messages import by_word, event_kind, new_request_id, words_of
from kapell.v1 import webhook_pb2 as pb
from kapell.v1.watch_pb2 import EventKind
from kapell.v1.webhook_pb2_grpc import WebhookServiceStub

if TYPE_CHECKING:
    from kapell.v1.webhook_pb2_grpc import WebhookServiceAsyncStub


class Webhooks:
    """`client.webhooks`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> WebhookServiceAsyncStub:
        return self._connection.stub(WebhookServiceStub)

    async def create(
        self,
        url: str,
        *,
        webhook_id: str = "",
        kinds: Iterable[EventKind.ValueType | str] = (),
        description: str = "",
        request_id: str = "",
    ) -> pb.CreateWebhookResponse:
        """Creates a webhook for events of these kinds, alerts unless said. The answer alone has its `secret`."""
        spec = pb.WebhookSpec(url=url, kinds=[event_kind(kind) for kind in kinds], description=description)
        request = pb.CreateWebhookRequest(webhook_id=webhook_id, spec=spec, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.CreateWebhook, request)

    async def list(self, *, page_size: int = 0, page_token: str = "") -> pb.ListWebhooksResponse:
        """One page of webhooks, newest first."""
        request = pb.ListWebhooksRequest(page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListWebhooks, request)

    async def iterate(self, *, page_size: int = 200) -> AsyncIterator[pb.Webhook]:
        """All webhooks, page by page."""
        page_token = ""
        while True:
            page = await self.list(page_size=page_size, page_token=page_token)
            for webhook in page.webhooks:
                yield webhook
            page_token = page.next_page_token
            if not page_token:
                return

    async def delete(self, webhook_id: str, *, request_id: str = "") -> pb.DeleteWebhookResponse:
        """Deletes a webhook; what was not sent is not sent any more."""
        request = pb.DeleteWebhookRequest(webhook_id=webhook_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteWebhook, request)

    async def test(self, webhook_id: str) -> pb.WebhookDelivery:
        """Sends one event "webhook.test" now; the answer tells what became of it."""
        request = pb.TestWebhookRequest(webhook_id=webhook_id)
        return (await self._connection.call(self._stub.TestWebhook, request)).delivery

    async def deliveries(
        self,
        webhook_id: str,
        *,
        states: Iterable[pb.WebhookDeliveryState.ValueType | str] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListWebhookDeliveriesResponse:
        """One page of what was sent and is to be sent, newest first."""
        known = words_of(pb.WebhookDeliveryState.items(), "WEBHOOK_DELIVERY_STATE_")
        request = pb.ListWebhookDeliveriesRequest(
            webhook_id=webhook_id,
            states=[by_word(state, known, "a state of deliveries") for state in states],
            page_size=page_size,
            page_token=page_token,
        )
        return await self._connection.call(self._stub.ListWebhookDeliveries, request)

    async def resend(self, webhook_id: str, delivery_id: str) -> pb.WebhookDelivery:
        """Sends a delivery again, whatever became of it."""
        request = pb.ResendWebhookDeliveryRequest(webhook_id=webhook_id, delivery_id=delivery_id)
        return (await self._connection.call(self._stub.ResendWebhookDelivery, request)).delivery
