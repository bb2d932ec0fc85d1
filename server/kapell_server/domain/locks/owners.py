"""Whose locks they are to be, and who may speak for them.

Each speaks for the sessions and acquisitions it made itself, and an agent for its own attempts. A user also speaks for
those of the agents that it has registered, an administrator for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.common_pb2 import SCOPE_ADMIN
from kapell.v1.error_pb2 import ERROR_REASON_NOT_OWNER
from kapell.v1.lock_pb2 import AcquireLocksRequest, LockOwner, LockSession
from kapell.v1.watch_pb2 import ACTOR_KIND_AGENT, ACTOR_KIND_SYSTEM, Actor

from kapell_server.domain import access
from kapell_server.domain.access import AGENT_SCOPES, Caller, CallerKind
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.entries import Owner
from kapell_server.domain.locks.grants import lock_lost
from kapell_server.domain.times import SECOND, duration_ns
from kapell_server.domain.workers import attempt, speaking

if TYPE_CHECKING:
    from kapell_server.domain.state import State

DEFAULT_TTL = 60 * SECOND


def claim(state: State, request: AcquireLocksRequest) -> tuple[LockOwner, int]:
    """Whose the locks of a request are to be, and the ttl of a plain acquisition, else 0.

    Raises LEASE_LOST, NOT_OWNER, LOCK_LOST.
    """
    said = LockOwner(actor=state.caller.actor(), note=request.note)
    which = request.WhichOneof("owner")
    if which == "lease_token":
        lease, _ = attempt.held(state, request.lease_token)
        said.task_id, said.attempt, said.agent_id = lease.task_id, lease.attempt, lease.agent_id
        return said, 0
    if which == "session_id":
        live_session(state, request.session_id)
        said.session_id = request.session_id
        return said, 0
    said.grant_id = state.new_id("grant")
    return said, duration_ns(request.ttl) or DEFAULT_TTL


def live_session(state: State, session_id: str) -> tuple[LockSession, Owner]:
    """An open session that the caller may use, and its owner. Raises LOCK_LOST or NOT_OWNER."""
    session = state.standing.find(LockSession, session_id)
    owner = state.locks.owners.get(session_id)
    if session is None or owner is None or owner.expire_ns <= state.now_ns:
        raise lock_lost("session_id", session_id, "it has expired, was closed, or never was")
    check_may_use(state, LockOwner(session_id=session_id, actor=session.actor))
    return session, owner


def is_own(owner: LockOwner, caller: Caller) -> bool:
    """Whether locks of this owner are those of an agent, or of the attempt that a program works on."""
    if caller.lease is not None:
        return (owner.task_id, owner.attempt) == (caller.lease.task_id, caller.lease.attempt)
    return caller.agent_id == owner.agent_id or caller.actor() == owner.actor


def check_may_use(state: State, owner: LockOwner) -> None:
    """Refuses callers what is not theirs, with NOT_OWNER."""
    caller = state.caller
    if caller.kind is CallerKind.SYSTEM or SCOPE_ADMIN in caller.scopes or caller.actor() == owner.actor:
        return
    whose = owner.agent_id or owner.actor.id
    if speaking.speaks(state.find_agent(whose), caller):
        return
    raise KapellError(
        ERROR_REASON_NOT_OWNER,
        f"The lock or session belongs to {whose}, not to {caller.name}. Use the token that it was made with;"
        " an administrator can take locks away with ForceReleaseLocks.",
        metadata={"agent_id": whose},
    )


def caller_of(actor: Actor) -> Caller:
    """Somebody who asked before a restart, as far as events and request_ids are concerned."""
    if actor.kind == ACTOR_KIND_AGENT:
        return Caller(kind=CallerKind.AGENT, name=actor.id, scopes=AGENT_SCOPES, agent_id=actor.id)
    return access.system(actor.id) if actor.kind == ACTOR_KIND_SYSTEM else access.user(actor.id)
