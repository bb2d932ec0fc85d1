"""Reads of tokens and of the audit log, past the writer."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from kapell.v1.audit_pb2 import AuditEntry, ListAuditEntriesRequest, ListAuditEntriesResponse
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.token_pb2 import ListTokensRequest, ListTokensResponse, Token
from sqlalchemy.engine import Connection

from kapell_server.domain.standing import KINDS
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.tokens.token import is_good
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, page_of
from kapell_server.store.loads import head
from kapell_server.store.pages import Page
from kapell_server.store.schema import audit, standing
from kapell_server.store.token_rows import load_token_uses, write_token_uses


class TokenReads:
    """Answers from committed state, and notes of when tokens were used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(self, request: ListTokensRequest, now_ns: int) -> ListTokensResponse:
        """A page of tokens, newest first. Raises PAGE_TOKEN_INVALID."""
        bound_to = ListTokensRequest(principals=request.principals, include_ended=request.include_ended)
        page = Page(size=request.page_size, token=request.page_token, order=LIST_ORDER_NEWEST_FIRST, bound_to=bound_to)
        of_kind = standing.c.kind == KINDS[Token].number
        listing = Listing(
            key=standing.c.create_revision,
            data=standing.c.data,
            parts=([of_kind],),
            matches=_matcher(request, now_ns),
        )

        def work(connection: Connection) -> ListTokensResponse:
            rows = page_of(connection, listing, page)
            uses = load_token_uses(connection)
            tokens = [Token.FromString(data) for data in rows.data]
            for token in tokens:
                if token.token_id in uses:
                    token.last_used_time.FromNanoseconds(uses[token.token_id])
            return ListTokensResponse(
                tokens=tokens,
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)

    async def note_uses(self, uses: dict[str, int]) -> None:
        """Writes when tokens were last used, as token id to ns."""
        await self._database.write(lambda connection: write_token_uses(connection, uses))

    async def list_audit(self, request: ListAuditEntriesRequest) -> ListAuditEntriesResponse:
        """A page of the audit log. Raises PAGE_TOKEN_INVALID."""
        wanted = request.filter
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=wanted)
        rest: list[sa.ColumnElement[bool]] = []
        if wanted.principals:
            rest.append(audit.c.principal.in_(wanted.principals))
        if wanted.methods:
            rest.append(audit.c.method.in_(wanted.methods))
        if wanted.HasField("start_time"):
            rest.append(audit.c.audit_ns >= timestamp_ns(wanted.start_time))
        if wanted.HasField("end_time"):
            rest.append(audit.c.audit_ns < timestamp_ns(wanted.end_time))

        def work(connection: Connection) -> ListAuditEntriesResponse:
            rows = page_of(connection, Listing(key=audit.c.number, data=audit.c.data, rest=rest), page)
            return ListAuditEntriesResponse(
                entries=[AuditEntry.FromString(data) for data in rows.data],
                next_page_token="" if rows.next_cursor is None else page.token(rows.next_cursor),
                revision=head(connection),
            )

        return await self._database.read(work)


def _matcher(request: ListTokensRequest, now_ns: int) -> Callable[[bytes], bool] | None:
    if request.include_ended and not request.principals:
        return None
    principals = frozenset(request.principals)

    def matches(data: bytes) -> bool:
        token = Token.FromString(data)
        return (not principals or token.principal in principals) and (request.include_ended or is_good(token, now_ns))

    return matches
