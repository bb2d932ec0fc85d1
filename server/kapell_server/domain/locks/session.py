"""Sessions: owners of locks that live as long as they are renewed.

Renewals are in memory only. After a restart every session has one full ttl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.lock_pb2 import (
    LOCK_SESSION_STATE_CLOSED,
    LOCK_SESSION_STATE_EXPIRED,
    LOCK_SESSION_STATE_OPEN,
    LOCK_STATE_EXPIRED,
    LOCK_STATE_RELEASED,
    CloseSessionRequest,
    CloseSessionResponse,
    LockSession,
    LockSessionState,
    OpenSessionRequest,
    OpenSessionResponse,
    RenewSessionRequest,
    RenewSessionResponse,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_SESSION_CLOSED,
    EVENT_KIND_SESSION_EXPIRED,
    EVENT_KIND_SESSION_OPENED,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.locks import grants
from kapell_server.domain.locks.entries import Owner
from kapell_server.domain.locks.lock import limit_reached
from kapell_server.domain.locks.owners import live_session
from kapell_server.domain.locks.views import shown_session
from kapell_server.domain.times import SECOND, duration_ns, set_duration, stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State

DEFAULT_TTL = 30 * SECOND


def open_session(state: State, request: OpenSessionRequest) -> OpenSessionResponse:
    """A session begins."""
    if state.standing.count(LockSession) >= state.settings.max_lock_sessions:
        raise limit_reached("max_lock_sessions", state.settings.max_lock_sessions)
    session = LockSession(
        session_id=state.new_id("session"),
        display_name=request.display_name,
        actor=state.caller.actor(),
        state=LOCK_SESSION_STATE_OPEN,
    )
    ttl_ns = duration_ns(request.ttl) or DEFAULT_TTL
    set_duration(session.ttl, ttl_ns)
    stamp(session.create_time, state.now_ns)
    state.standing.put(session, EVENT_KIND_SESSION_OPENED, ("state",))
    owner = Owner(session.session_id, ttl_ns=ttl_ns, expire_ns=state.now_ns + ttl_ns)
    state.locks.open_owner(owner)
    state.schedule(owner.expire_ns, owner.key)
    return OpenSessionResponse(session=shown_session(state, session), revision=session.revision)


def renew_session(state: State, request: RenewSessionRequest) -> RenewSessionResponse:
    """It lives for another ttl, and all its locks with it."""
    session, owner = live_session(state, request.session_id)
    owner.expire_ns = max(owner.expire_ns, state.now_ns + owner.ttl_ns)
    return RenewSessionResponse(session=shown_session(state, session), revision=state.revision)


def close_session(state: State, request: CloseSessionRequest) -> CloseSessionResponse:
    """It ends, and lets go of all it has."""
    session, _ = live_session(state, request.session_id)
    closed = _end(state, session, LOCK_SESSION_STATE_CLOSED)
    return CloseSessionResponse(session=closed, revision=closed.revision)


def look_at_session(state: State, session_id: str) -> None:
    """Ends a session that was not renewed in time."""
    session = state.standing.find(LockSession, session_id)
    owner = state.locks.owners.get(session_id)
    if session is None or owner is None:
        return
    if owner.expire_ns > state.now_ns:
        state.schedule(owner.expire_ns, session_id)
    else:
        _end(state, session, LOCK_SESSION_STATE_EXPIRED)


def _end(state: State, current: LockSession, how: LockSessionState.ValueType) -> LockSession:
    expired = how == LOCK_SESSION_STATE_EXPIRED
    reason = "its session was not renewed in time" if expired else "its session was closed"
    grants.end_owner(state, current.session_id, LOCK_STATE_EXPIRED if expired else LOCK_STATE_RELEASED, reason)
    state.locks.close_owner(current.session_id)
    session = copied(current)
    session.state = how
    kind = EVENT_KIND_SESSION_EXPIRED if expired else EVENT_KIND_SESSION_CLOSED
    return state.standing.put(session, kind, ("state",), deleted=True)
