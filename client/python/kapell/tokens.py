"""The faces for access: tokens of users, and the audit log. Thin; the server decides everything.

made = await client.tokens.create("ci", scopes=["read", "write"], ttl=30 * 86400)
print(made.secret)  # it cannot be read again
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from kapell.connection import Connection
from kapell.errors import InvalidRequest
from kapell.messages import Instant, Seconds, duration, new_request_id, timestamp
from kapell.v1 import audit_pb2, token_pb2
from kapell.v1.audit_pb2_grpc import AuditServiceStub
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder, Scope
from kapell.v1.token_pb2_grpc import TokenServiceStub

if TYPE_CHECKING:
    from kapell.v1.audit_pb2_grpc import AuditServiceAsyncStub
    from kapell.v1.token_pb2_grpc import TokenServiceAsyncStub

SCOPES = tuple(name.removeprefix("SCOPE_").lower() for name, value in Scope.items() if value)
"""The scopes by word: "read", "write" and so on."""


class Tokens:
    """`client.tokens`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> TokenServiceAsyncStub:
        return self._connection.stub(TokenServiceStub)

    async def create(
        self,
        principal: str,
        *,
        scopes: Sequence[str | Scope.ValueType],
        ttl: Seconds | None = None,
        display_name: str = "",
        request_id: str = "",
    ) -> token_pb2.CreateTokenResponse:
        """Makes a token of a user; its `secret` is in the answer and nowhere else. Without `ttl` it does not expire."""
        request = token_pb2.CreateTokenRequest(
            principal=principal,
            display_name=display_name,
            scopes=[scope_of(scope) for scope in scopes],
            ttl=duration(ttl),
            request_id=request_id or new_request_id(),
        )
        return await self._connection.call(self._stub.CreateToken, request)

    async def list(
        self,
        *,
        principals: Sequence[str] = (),
        include_ended: bool = False,
        page_size: int = 0,
        page_token: str = "",
    ) -> token_pb2.ListTokensResponse:
        """One page of tokens, newest first; those that were revoked or have expired with `include_ended` only."""
        request = token_pb2.ListTokensRequest(
            principals=principals, include_ended=include_ended, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListTokens, request)

    async def iterate(
        self, *, principals: Sequence[str] = (), include_ended: bool = False, page_size: int = 200
    ) -> AsyncIterator[token_pb2.Token]:
        """All tokens, page by page."""
        page_token = ""
        while True:
            page = await self.list(
                principals=principals, include_ended=include_ended, page_size=page_size, page_token=page_token
            )
            for token in page.tokens:
                yield token
            page_token = page.next_page_token
            if not page_token:
                return

    async def revoke(self, token_id: str, *, reason: str = "", request_id: str = "") -> token_pb2.Token:
        """Ends a token at once and for good; its open streams end within 2 s."""
        request = token_pb2.RevokeTokenRequest(
            token_id=token_id, reason=reason, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.RevokeToken, request)).token

    async def caller(self) -> token_pb2.GetCallerResponse:
        """Whose token this client sends, and what it may do."""
        return await self._connection.call(self._stub.GetCaller, token_pb2.GetCallerRequest())


class Audit:
    """`client.audit`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> AuditServiceAsyncStub:
        return self._connection.stub(AuditServiceStub)

    async def list(
        self,
        *,
        principals: Sequence[str] = (),
        methods: Sequence[str] = (),
        start: Instant | None = None,
        end: Instant | None = None,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
    ) -> audit_pb2.ListAuditEntriesResponse:
        """One page of what administrators did, newest first unless ordered otherwise."""
        wanted = audit_pb2.AuditFilter(
            principals=principals, methods=methods, start_time=timestamp(start), end_time=timestamp(end)
        )
        request = audit_pb2.ListAuditEntriesRequest(
            filter=wanted, order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListAuditEntries, request)

    async def iterate(
        self,
        *,
        principals: Sequence[str] = (),
        methods: Sequence[str] = (),
        start: Instant | None = None,
        end: Instant | None = None,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
    ) -> AsyncIterator[audit_pb2.AuditEntry]:
        """All entries that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(
                principals=principals,
                methods=methods,
                start=start,
                end=end,
                order=order,
                page_size=page_size,
                page_token=page_token,
            )
            for entry in page.entries:
                yield entry
            page_token = page.next_page_token
            if not page_token:
                return


def scope_of(scope: str | Scope.ValueType) -> Scope.ValueType:
    """The value of a scope given by value or word. Raises InvalidRequest."""
    if not isinstance(scope, str):
        return scope
    word = scope.lower().replace("-", "_")
    if word not in SCOPES:
        raise InvalidRequest(f"there is no scope {scope!r} - they are {', '.join(SCOPES)}", reason="ARGUMENT_INVALID")
    return Scope.Value(f"SCOPE_{word.upper()}")
