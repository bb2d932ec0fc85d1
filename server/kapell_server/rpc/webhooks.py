"""WebhookService: webhooks are the engine's, what they are sent is the service's that sends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1 import webhook_pb2

from kapell_server.domain.access import Caller

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.reads import Reads
    from kapell_server.store.webhook_deliveries import WebhookDeliveries
    from kapell_server.webhooks.service import Webhooks


class WebhookServicer:
    """The methods of WebhookService."""

    def __init__(self, engine: Engine, reads: Reads, webhooks: Webhooks, deliveries: WebhookDeliveries) -> None:
        self._engine = engine
        self._reads = reads
        self._webhooks = webhooks
        self._deliveries = deliveries

    async def CreateWebhook(
        self, request: webhook_pb2.CreateWebhookRequest, caller: Caller
    ) -> webhook_pb2.CreateWebhookResponse:
        """The secret is added here, so that the answer which is kept for a repeat does not hold it."""
        answer = webhook_pb2.CreateWebhookResponse.FromString(await self._engine.submit(request, caller))
        await self._webhooks.changed()
        answer.secret = self._webhooks.secret(answer.webhook)
        return answer

    async def ListWebhooks(
        self, request: webhook_pb2.ListWebhooksRequest, caller: Caller
    ) -> webhook_pb2.ListWebhooksResponse:
        return await self._reads.standing.list_webhooks(request)

    async def DeleteWebhook(self, request: webhook_pb2.DeleteWebhookRequest, caller: Caller) -> bytes:
        answer = await self._engine.submit(request, caller)
        await self._webhooks.changed()
        return answer

    async def TestWebhook(
        self, request: webhook_pb2.TestWebhookRequest, caller: Caller
    ) -> webhook_pb2.TestWebhookResponse:
        return webhook_pb2.TestWebhookResponse(delivery=await self._webhooks.test(request.webhook_id))

    async def ListWebhookDeliveries(
        self, request: webhook_pb2.ListWebhookDeliveriesRequest, caller: Caller
    ) -> webhook_pb2.ListWebhookDeliveriesResponse:
        return await self._deliveries.list(request)

    async def ResendWebhookDelivery(
        self, request: webhook_pb2.ResendWebhookDeliveryRequest, caller: Caller
    ) -> webhook_pb2.ResendWebhookDeliveryResponse:
        sent = await self._webhooks.resend(request.webhook_id, request.delivery_id)
        return webhook_pb2.ResendWebhookDeliveryResponse(delivery=sent)
