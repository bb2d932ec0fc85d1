"""What webhooks were sent or are to be sent, and how far the log was taken up for them. Past the writer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.webhook_pb2 import (
    WEBHOOK_DELIVERY_STATE_PENDING,
    ListWebhookDeliveriesRequest,
    ListWebhookDeliveriesResponse,
    Webhook,
    WebhookDelivery,
)
from sqlalchemy.engine import Connection

from kapell_server.domain.standing import KINDS
from kapell_server.domain.webhooks.webhook import webhook_not_found
from kapell_server.store.bulk import Bulk
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, page_of
from kapell_server.store.pages import Page
from kapell_server.store.schema import WEBHOOK_CURSOR, meta, standing, webhook_deliveries
from kapell_server.store.webhook_rows import load_webhook_urls

MOST_KEPT = 500
"""Deliveries that are kept of each webhook."""
_t = webhook_deliveries.c
_insert = Bulk(sa.insert(webhook_deliveries), "number", "delivery_id", "webhook_id", "state", "body", "data")
_update = Bulk(
    sa.update(webhook_deliveries)
    .where(_t.delivery_id == sa.bindparam("key"))
    .values(state=sa.bindparam("state"), data=sa.bindparam("data")),
    *("state", "data", "key"),
)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a start finds."""

    cursor: int
    """Up to which revision events were taken up; 0 where they never were."""
    webhooks: list[Webhook]
    pending: list[WebhookDelivery]
    """What is still to be sent, the oldest first."""


class WebhookDeliveries:
    """The rows of deliveries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resume(self) -> Resumed:
        """What is there."""

        def work(connection: Connection) -> Resumed:
            value = connection.scalar(sa.select(meta.c.value).where(meta.c.name == WEBHOOK_CURSOR))
            open_ones = sa.select(_t.data).where(_t.state == WEBHOOK_DELIVERY_STATE_PENDING).order_by(_t.number)
            pending = [WebhookDelivery.FromString(data) for data in connection.scalars(open_ones)]
            return Resumed(int(value or 0), _webhooks(connection), pending)

        return await self._database.read(work)

    async def webhooks(self) -> list[Webhook]:
        """Those that there are, with their whole URLs."""
        return await self._database.read(_webhooks)

    async def take_up(self, deliveries: Sequence[tuple[WebhookDelivery, bytes]], cursor: int) -> None:
        """Keeps deliveries with their bodies, and, unless it is 0, how far the log was taken up with them."""

        def work(connection: Connection) -> None:
            number = connection.scalar(sa.select(sa.func.max(_t.number))) or 0
            rows = [
                (number + at, one.delivery_id, one.webhook_id, one.state, body, one.SerializeToString())
                for at, (one, body) in enumerate(deliveries, 1)
            ]
            _insert.execute(connection, rows)
            for webhook_id in {one.webhook_id for one, _ in deliveries}:
                _forget_oldest(connection, webhook_id)
            if cursor:
                connection.execute(sa.delete(meta).where(meta.c.name == WEBHOOK_CURSOR))
                connection.execute(sa.insert(meta), {"name": WEBHOOK_CURSOR, "value": str(cursor)})

        await self._database.write(work)

    async def update(self, delivery: WebhookDelivery) -> None:
        """Keeps what became of a try. Nothing where the delivery is gone by now."""
        row = (delivery.state, delivery.SerializeToString(), delivery.delivery_id)
        await self._database.write(lambda connection: _update.execute(connection, [row]))

    async def body(self, delivery_id: str) -> bytes | None:
        """What is sent; None where the delivery is gone."""
        statement = sa.select(_t.body).where(_t.delivery_id == delivery_id)
        found = await self._database.read(lambda connection: connection.scalar(statement))
        return None if found is None else bytes(found)

    async def get(self, webhook_id: str, delivery_id: str) -> WebhookDelivery:
        """One delivery. Raises WEBHOOK_NOT_FOUND."""

        def work(connection: Connection) -> bytes | None:
            _check(connection, webhook_id)
            statement = sa.select(_t.data).where(_t.delivery_id == delivery_id, _t.webhook_id == webhook_id)
            return connection.scalar(statement)

        data = await self._database.read(work)
        if data is None:
            raise webhook_not_found(webhook_id, delivery_id)
        return WebhookDelivery.FromString(bytes(data))

    async def list(self, request: ListWebhookDeliveriesRequest) -> ListWebhookDeliveriesResponse:
        """A page, newest first. Raises WEBHOOK_NOT_FOUND, PAGE_TOKEN_INVALID."""
        bound_to = ListWebhookDeliveriesRequest(webhook_id=request.webhook_id, states=request.states)
        page = Page(size=request.page_size, token=request.page_token, order=LIST_ORDER_NEWEST_FIRST, bound_to=bound_to)
        rest = (_t.state.in_(request.states),) if request.states else ()
        listing = Listing(key=_t.number, data=_t.data, parts=([_t.webhook_id == request.webhook_id],), rest=rest)

        def work(connection: Connection) -> ListWebhookDeliveriesResponse:
            _check(connection, request.webhook_id)
            rows = page_of(connection, listing, page)
            return ListWebhookDeliveriesResponse(
                deliveries=[WebhookDelivery.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
            )

        return await self._database.read(work)

    async def forget(self, webhook_ids: Collection[str]) -> None:
        """Drops what belongs to webhooks that are no more."""
        statement = sa.delete(webhook_deliveries).where(_t.webhook_id.in_(webhook_ids))
        await self._database.write(lambda connection: connection.execute(statement))


def _webhooks(connection: Connection) -> list[Webhook]:
    urls = load_webhook_urls(connection)
    kind = KINDS[Webhook].number
    rows = connection.scalars(
        sa.select(standing.c.data).where(standing.c.kind == kind).order_by(standing.c.create_revision)
    )
    found = [Webhook.FromString(data) for data in rows]
    for webhook in found:
        webhook.spec.url = urls[webhook.webhook_id]
    return found


def _check(connection: Connection, webhook_id: str) -> None:
    kind = KINDS[Webhook].number
    row = sa.select(standing.c.create_revision).where(standing.c.kind == kind, standing.c.resource_id == webhook_id)
    if connection.scalar(row) is None:
        raise webhook_not_found(webhook_id)


def _forget_oldest(connection: Connection, webhook_id: str) -> None:
    """Keeps the latest; what is still to be sent and that old is given up with it."""
    of_webhook = _t.webhook_id == webhook_id
    newest = sa.select(_t.number).where(of_webhook).order_by(_t.number.desc()).offset(MOST_KEPT - 1).limit(1)
    oldest_kept = connection.scalar(newest)
    if oldest_kept is not None:
        connection.execute(sa.delete(webhook_deliveries).where(of_webhook, _t.number < oldest_kept))
