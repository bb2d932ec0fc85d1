"""What clients may do to a webhook: create and delete. Its secret is derived, and stands nowhere."""

from __future__ import annotations

from kapell.v1.error_pb2 import ERROR_REASON_ID_TAKEN, ERROR_REASON_REQUEST_INVALID, ERROR_REASON_WEBHOOK_NOT_FOUND
from kapell.v1.watch_pb2 import (
    EVENT_KIND_ALERT_FIRED,
    EVENT_KIND_ALERT_RESOLVED,
    EVENT_KIND_WEBHOOK_CREATED,
    EVENT_KIND_WEBHOOK_DELETED,
)
from kapell.v1.webhook_pb2 import CreateWebhookRequest, DeleteWebhookRequest, DeleteWebhookResponse, Webhook

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.times import stamp

MOST_WEBHOOKS = 100


def create_webhook(state: State, request: CreateWebhookRequest) -> Webhook:
    """Creates a webhook, which gets what happens from now on."""
    if state.standing.count(Webhook) >= MOST_WEBHOOKS:
        what = f"would be webhook number {MOST_WEBHOOKS + 1}; {MOST_WEBHOOKS} are allowed, so delete one"
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"The request is invalid: spec {what}. Delete one that is not used any more.",
            violations=(("spec", what),),
        )
    webhook_id = request.webhook_id or state.new_id("webhook")
    if state.standing.find(Webhook, webhook_id) is not None:
        raise KapellError(
            ERROR_REASON_ID_TAKEN,
            f"Webhook {webhook_id} exists already. Choose another webhook_id, or delete this one first.",
            metadata={"webhook_id": webhook_id},
        )
    webhook = Webhook(webhook_id=webhook_id, spec=request.spec, creator=state.caller.actor())
    if not webhook.spec.kinds:
        webhook.spec.kinds.extend((EVENT_KIND_ALERT_FIRED, EVENT_KIND_ALERT_RESOLVED))
    state.assign(state.pending.webhook_urls, webhook_id, webhook.spec.url)
    webhook.spec.url = shown(webhook.spec.url)
    stamp(webhook.create_time, state.tick_ns())
    return state.standing.put(webhook, EVENT_KIND_WEBHOOK_CREATED, ())


def delete_webhook(state: State, request: DeleteWebhookRequest) -> DeleteWebhookResponse:
    """Deletes a webhook; what was not sent to it is not sent any more."""
    webhook = state.standing.find(Webhook, request.webhook_id)
    if webhook is None:
        raise webhook_not_found(request.webhook_id)
    state.assign(state.pending.webhook_urls, request.webhook_id, None)
    gone = state.standing.put(copied(webhook), EVENT_KIND_WEBHOOK_DELETED, (), deleted=True)
    return DeleteWebhookResponse(revision=gone.revision)


def shown(url: str) -> str:
    """The URL as others may see it: what comes after the host may be a secret."""
    scheme, _, rest = url.partition("://")
    cut = min([at for at in (rest.find("/"), rest.find("?")) if at >= 0], default=len(rest))
    return f"{scheme}://{rest[:cut]}{'/…' if rest[cut:] not in ('', '/') else rest[cut:]}"


def webhook_not_found(webhook_id: str, delivery_id: str = "") -> KapellError:
    """No webhook has this id, or it has no such delivery."""
    if delivery_id:
        what = f"Webhook {webhook_id} has no delivery {delivery_id}, or no more. List its deliveries to find its id."
    else:
        what = f"Webhook {webhook_id} was not found: it never existed or was deleted. List the webhooks to find its id."
    metadata = {"webhook_id": webhook_id} | ({"delivery_id": delivery_id} if delivery_id else {})
    return KapellError(ERROR_REASON_WEBHOOK_NOT_FOUND, what, metadata=metadata)
