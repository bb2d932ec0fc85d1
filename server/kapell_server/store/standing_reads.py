"""Reads of standing resources, past the writer: lists of one kind, page by page."""

from __future__ import annotations

from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.queue_pb2 import ConcurrencyLimit, ListConcurrencyLimitsRequest, ListConcurrencyLimitsResponse
from kapell.v1.secret_pb2 import ListSecretsRequest, ListSecretsResponse, Secret
from sqlalchemy.engine import Connection

from kapell_server.domain.standing import KINDS
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, page_of
from kapell_server.store.loads import head
from kapell_server.store.pages import Page
from kapell_server.store.schema import standing

_limits = Listing(
    key=standing.c.create_revision,
    data=standing.c.data,
    parts=([standing.c.kind == KINDS[ConcurrencyLimit].number],),
)
_secrets = Listing(
    key=standing.c.create_revision,
    data=standing.c.data,
    parts=([standing.c.kind == KINDS[Secret].number],),
)


class StandingReads:
    """Answers from committed state."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_limits(self, request: ListConcurrencyLimitsRequest) -> ListConcurrencyLimitsResponse:
        """A page of limits, newest first, without their counts. Raises PAGE_TOKEN_INVALID."""
        page = Page(
            size=request.page_size,
            token=request.page_token,
            order=LIST_ORDER_NEWEST_FIRST,
            bound_to=ListConcurrencyLimitsRequest(),
        )

        def work(connection: Connection) -> ListConcurrencyLimitsResponse:
            rows = page_of(connection, _limits, page)
            return ListConcurrencyLimitsResponse(
                limits=[ConcurrencyLimit.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)

    async def list_secrets(self, request: ListSecretsRequest) -> ListSecretsResponse:
        """A page of secrets without their values, newest first. Raises PAGE_TOKEN_INVALID."""
        page = Page(
            size=request.page_size,
            token=request.page_token,
            order=LIST_ORDER_NEWEST_FIRST,
            bound_to=ListSecretsRequest(),
        )

        def work(connection: Connection) -> ListSecretsResponse:
            rows = page_of(connection, _secrets, page)
            return ListSecretsResponse(
                secrets=[Secret.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)
