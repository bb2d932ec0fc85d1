"""A start: the table of locks is built again from what the database has.

Every session and plain acquisition gets one full ttl from now, as leases do: the death of a server takes
nobody's lock away, and a dead owner's lives one ttl longer at most. Calls that waited are gone, and repeat themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kapell.v1.lock_pb2 import (
    LOCK_STATE_EXPIRED,
    LOCK_TICKET_STATE_EXPIRED,
    LOCK_TICKET_STATE_WAITING,
    Lock,
    LockOwner,
    LockSession,
    LockTicket,
)

from kapell_server.domain.access import Caller
from kapell_server.domain.locks import grants
from kapell_server.domain.locks.entries import Held, Owner, Wait, order_of, owner_key
from kapell_server.domain.locks.lock import items_of
from kapell_server.domain.locks.owners import caller_of
from kapell_server.domain.times import duration_ns, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def load(state: State, key_of: Callable[[Caller, str], str]) -> None:
    """Fills the table, after leases and standing resources; `key_of` tells by what calls are repeated."""
    table = state.locks
    for session in state.standing.all(LockSession):
        ttl_ns = duration_ns(session.ttl)
        table.open_owner(Owner(session.session_id, ttl_ns=ttl_ns, expire_ns=state.now_ns + ttl_ns))
        state.schedule(state.now_ns + ttl_ns, session.session_id)
    for lock in state.standing.all(Lock):
        table.hold(Held(lock), ttl_ns=duration_ns(lock.ttl))
        if not _has_owner(state, lock.owner):
            state.schedule(state.now_ns, lock.lock_id)
    for ticket in state.standing.all(LockTicket):
        caller = caller_of(ticket.owner.actor)
        key = key_of(caller, ticket.request_id) if ticket.request_id else ""
        if key:
            table.remember_ticket(key, ticket.ticket_id)
        if ticket.state == LOCK_TICKET_STATE_WAITING:
            table.join(_wait_of(ticket, caller, key))
            table.note_arrival(timestamp_ns(ticket.create_time))
        # Those that wait too: what stood before them may have been a call that is gone.
        state.schedule(state.now_ns, ticket.ticket_id)


def _wait_of(ticket: LockTicket, caller: Caller, key: str) -> Wait:
    arrival_ns = timestamp_ns(ticket.create_time)
    return Wait(
        wait_id=ticket.ticket_id,
        owner=owner_key(ticket.owner),
        items=items_of(ticket.items),
        order=order_of(arrival_ns, ticket.priority, ticket.ticket_id),
        said=ticket.owner,
        caller=caller,
        arrival_ns=arrival_ns,
        priority=ticket.priority,
        ttl_ns=duration_ns(ticket.ttl),
        key=key,
        durable=True,
    )


def _has_owner(state: State, owner: LockOwner) -> bool:
    """Whether the owner lives; a plain acquisition does by its own ttl."""
    if owner.task_id:
        lease = state.leases.by_task.get(owner.task_id)
        return lease is not None and lease.attempt == owner.attempt
    return not owner.session_id or owner.session_id in state.locks.owners


def look_at_lock(state: State, lock_id: str) -> None:
    """Ends a lock that a start has found without its owner."""
    held = state.locks.held.get(lock_id)
    if held is not None and not _has_owner(state, held.lock.owner):
        grants.end(state, held, LOCK_STATE_EXPIRED, "its owner has ended")


def look_at_ticket(state: State, ticket_id: str) -> None:
    """Ends a ticket whose owner is gone, or forgets one that ended long ago."""
    wait = state.locks.waits.get(ticket_id)
    if wait is not None and not _has_owner(state, wait.said):
        grants.give_up(state, wait, LOCK_TICKET_STATE_EXPIRED, "its owner has ended")
    grants.look_at_ticket(state, ticket_id)
