"""Tokens: made, revoked, and forgotten when there are too many that have ended.

A token's secret is its id and a keyed hash of it, so a repeat of the request that made it is
answered alike and no answer that is kept has it. What proves a token is the SHA-256 that is stored:
the secret has 256 bits that nobody can guess, so a slow hash would only cost time.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from kapell.v1.common_pb2 import SCOPE_ADMIN
from kapell.v1.error_pb2 import ERROR_REASON_TOKEN_EXPIRED, ERROR_REASON_TOKEN_LIMIT, ERROR_REASON_TOKEN_NOT_FOUND
from kapell.v1.token_pb2 import CreateTokenRequest, CreateTokenResponse, RevokeTokenRequest, Token
from kapell.v1.watch_pb2 import EVENT_KIND_TOKEN_CREATED, EVENT_KIND_TOKEN_DELETED, EVENT_KIND_TOKEN_REVOKED

from kapell_server.domain.access import ALL_SCOPES, Caller, CallerKind
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import duration_ns, stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

MOST_TOKENS = 1000
"""All are in memory."""


def create_token(state: State, request: CreateTokenRequest) -> CreateTokenResponse:
    """Makes a token; its secret is for the servicer to add, since this answer is stored."""
    _make_room(state)
    token = Token(
        token_id=state.new_id("token"),
        principal=request.principal,
        display_name=request.display_name,
        scopes=sorted(request.scopes),
        creator=state.caller.actor(),
    )
    stamp(token.create_time, state.tick_ns())
    if request.HasField("ttl"):
        stamp(token.expire_time, state.now_ns + duration_ns(request.ttl))
    digest = digest_of(state.keyring.token_secret(token.token_id))
    state.assign(state.token_digests, token.token_id, digest)
    state.assign(state.pending.token_digests, token.token_id, digest)
    put = state.standing.put(token, EVENT_KIND_TOKEN_CREATED, ())
    return CreateTokenResponse(token=put, revision=put.revision)


def revoke_token(state: State, request: RevokeTokenRequest) -> Token:
    """Ends a token; one that was revoked before stays as it is."""
    current = state.standing.find(Token, request.token_id)
    if current is None:
        raise KapellError(
            ERROR_REASON_TOKEN_NOT_FOUND,
            f"There is no token {request.token_id}. `kapell auth token list --all` shows those there are.",
            metadata={"token_id": request.token_id},
        )
    if current.HasField("revoke_time"):
        return current
    token = copied(current)
    stamp(token.revoke_time, state.tick_ns())
    token.revoke_reason = request.reason
    return state.standing.put(token, EVENT_KIND_TOKEN_REVOKED, ("revoke_time", "revoke_reason"))


def digest_of(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def proves(secret: str, digest: bytes) -> bool:
    """Whether the secret is the one of this digest; takes the same time whatever differs."""
    return hmac.compare_digest(digest_of(secret), digest)


def is_good(token: Token, now_ns: int) -> bool:
    """Whether it has neither been revoked nor expired."""
    return not token.HasField("revoke_time") and not has_expired(token, now_ns)


def has_expired(token: Token, now_ns: int) -> bool:
    """Whether its time is over."""
    return token.HasField("expire_time") and timestamp_ns(token.expire_time) <= now_ns


def caller_of(token: Token) -> Caller:
    """Who calls with the token."""
    scopes = frozenset(token.scopes)
    return Caller(
        kind=CallerKind.USER,
        name=token.principal,
        scopes=ALL_SCOPES if SCOPE_ADMIN in scopes else scopes,
        token_id=token.token_id,
        expire_ns=timestamp_ns(token.expire_time) if token.HasField("expire_time") else 0,
    )


def expired(token: Token) -> KapellError:
    """The refusal of a token whose time is over."""
    until = token.expire_time.ToJsonString()
    return KapellError(
        ERROR_REASON_TOKEN_EXPIRED,
        f"The token {token.token_id} was good until {until}. Ask for a new one. `kapell auth token create` makes it.",
        metadata={"token_id": token.token_id, "expire_time": until},
    )


def _make_room(state: State) -> None:
    """Forgets the oldest token that has ended, where there are as many as there may be. Raises TOKEN_LIMIT."""
    if state.standing.count(Token) < MOST_TOKENS:
        return
    for token in state.standing.all(Token):
        if not is_good(token, state.now_ns):
            state.remove(state.token_digests, token.token_id)
            state.assign(state.pending.token_digests, token.token_id, None)
            state.standing.put(copied(token), EVENT_KIND_TOKEN_DELETED, (), deleted=True)
            return
    raise KapellError(
        ERROR_REASON_TOKEN_LIMIT,
        f"There are {MOST_TOKENS} tokens that are good, as many as there may be. Revoke those that nobody uses.",
        metadata={"limit": str(MOST_TOKENS)},
    )
