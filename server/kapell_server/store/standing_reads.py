"""Reads of standing resources, past the writer: lists of one kind, page by page."""

from __future__ import annotations

from typing import TypeVar

import sqlalchemy as sa
from google.protobuf.message import Message
from kapell.v1.alert_pb2 import Alert, ListAlertsRequest, ListAlertsResponse
from kapell.v1.budget_pb2 import Budget, ListBudgetsRequest, ListBudgetsResponse
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.queue_pb2 import ConcurrencyLimit, ListConcurrencyLimitsRequest, ListConcurrencyLimitsResponse
from kapell.v1.secret_pb2 import ListSecretsRequest, ListSecretsResponse, Secret
from kapell.v1.webhook_pb2 import ListWebhooksRequest, ListWebhooksResponse, Webhook
from sqlalchemy.engine import Connection

from kapell_server.domain.standing import KINDS
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, Rows, page_of
from kapell_server.store.loads import head
from kapell_server.store.pages import Page
from kapell_server.store.schema import standing

_T = TypeVar("_T", ConcurrencyLimit, Budget, Webhook, Secret)
_Paged = ListConcurrencyLimitsRequest | ListBudgetsRequest | ListWebhooksRequest | ListSecretsRequest


class StandingReads:
    """Answers from committed state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_limits(self, request: ListConcurrencyLimitsRequest) -> ListConcurrencyLimitsResponse:
        """A page of limits, newest first, without their counts. Raises PAGE_TOKEN_INVALID."""
        found, token, revision = await self._list(ConcurrencyLimit, request, ListConcurrencyLimitsRequest())
        return ListConcurrencyLimitsResponse(limits=found, next_page_token=token, revision=revision)

    async def list_budgets(self, request: ListBudgetsRequest) -> ListBudgetsResponse:
        """A page of budgets, newest first, as their latest events have them. Raises PAGE_TOKEN_INVALID."""
        found, token, revision = await self._list(Budget, request, ListBudgetsRequest())
        return ListBudgetsResponse(budgets=found, next_page_token=token, revision=revision)

    async def list_webhooks(self, request: ListWebhooksRequest) -> ListWebhooksResponse:
        """A page of webhooks, newest first. Raises PAGE_TOKEN_INVALID."""
        found, token, revision = await self._list(Webhook, request, ListWebhooksRequest())
        return ListWebhooksResponse(webhooks=found, next_page_token=token, revision=revision)

    async def list_secrets(self, request: ListSecretsRequest) -> ListSecretsResponse:
        """A page of secrets without their values, newest first. Raises PAGE_TOKEN_INVALID."""
        found, token, revision = await self._list(Secret, request, ListSecretsRequest())
        return ListSecretsResponse(secrets=found, next_page_token=token, revision=revision)

    async def list_alerts(self, request: ListAlertsRequest) -> ListAlertsResponse:
        """A page of alerts, those that fire first: few, so all of them are read. Raises PAGE_TOKEN_INVALID."""
        bound_to = ListAlertsRequest(filter=request.filter)
        page = Page(size=request.page_size, token=request.page_token, order=LIST_ORDER_NEWEST_FIRST, bound_to=bound_to)
        rows = sa.select(standing.c.data).where(standing.c.kind == KINDS[Alert].number)

        def work(connection: Connection) -> tuple[list[Alert], int]:
            return [Alert.FromString(data) for data in connection.scalars(rows)], head(connection)

        alerts, revision = await self._database.read(work)
        wanted = request.filter
        found = [
            alert
            for alert in alerts
            if (not wanted.states or alert.state in wanted.states)
            and (not wanted.kinds or alert.kind in wanted.kinds)
            and (not wanted.subjects or alert.subject in wanted.subjects)
        ]
        found.sort(key=lambda alert: (alert.state, -alert.fire_time.ToNanoseconds(), alert.alert_id))
        begin = page.cursor or 0
        end = begin + page.size
        token = page.token(end) if end < len(found) else ""
        return ListAlertsResponse(alerts=found[begin:end], next_page_token=token, revision=revision)

    async def _list(self, kind: type[_T], request: _Paged, bound_to: Message) -> tuple[list[_T], str, int]:
        """A page of one kind, the token of the next, and the revision it was read at."""
        page = Page(size=request.page_size, token=request.page_token, order=LIST_ORDER_NEWEST_FIRST, bound_to=bound_to)
        of_kind = [standing.c.kind == KINDS[kind].number]
        listing = Listing(key=standing.c.create_revision, data=standing.c.data, parts=(of_kind,))

        def work(connection: Connection) -> tuple[Rows, int]:
            return page_of(connection, listing, page), head(connection)

        rows, revision = await self._database.read(work)
        token = "" if rows.next_cursor is None else page.token(rows.next_cursor)
        return [kind.FromString(data) for data in rows.data], token, revision
