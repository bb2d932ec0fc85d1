"""Giving and taking: each change of the lock table as a change of a resource, with its event.

The one room where locks begin and end. Who may ask for it is decided by `lock`, `session`, `ticket` and
`task_locks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kapell.v1.error_pb2 import ERROR_REASON_LEASE_LOST, ERROR_REASON_LOCK_HELD, ERROR_REASON_LOCK_LOST
from kapell.v1.lock_pb2 import (
    LOCK_MODE_EXCLUSIVE,
    LOCK_MODE_SHARED,
    LOCK_STATE_EXPIRED,
    LOCK_STATE_HELD,
    LOCK_STATE_RELEASED,
    LOCK_STATE_REVOKED,
    LOCK_TICKET_STATE_CANCELLED,
    LOCK_TICKET_STATE_EXPIRED,
    LOCK_TICKET_STATE_GRANTED,
    LOCK_TICKET_STATE_REFUSED,
    LOCK_TICKET_STATE_WAITING,
    AcquireLocksResponse,
    Lock,
    LockOwner,
    LockState,
    LockTicket,
    LockTicketState,
)
from kapell.v1.task_pb2 import ATTEMPT_STATE_LOST, TaskAttempt
from kapell.v1.watch_pb2 import (
    EVENT_KIND_LOCK_EXPIRED,
    EVENT_KIND_LOCK_GRANTED,
    EVENT_KIND_LOCK_RELEASED,
    EVENT_KIND_LOCK_REVOKED,
    EVENT_KIND_LOCK_UPDATED,
    EVENT_KIND_TICKET_DELETED,
    EVENT_KIND_TICKET_ENDED,
    EVENT_KIND_TICKET_QUEUED,
    EventKind,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import deadlock
from kapell_server.domain.locks.entries import Held, Wait
from kapell_server.domain.locks.paths import touch
from kapell_server.domain.times import SECOND, duration_ns, set_duration, stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

KEEP_TICKETS = 3600 * SECOND
"""So long a ticket that has ended can be read."""

_EVENT_OF: dict[LockState.ValueType, EventKind.ValueType] = {
    LOCK_STATE_RELEASED: EVENT_KIND_LOCK_RELEASED,
    LOCK_STATE_EXPIRED: EVENT_KIND_LOCK_EXPIRED,
    LOCK_STATE_REVOKED: EVENT_KIND_LOCK_REVOKED,
}
_TICKET_OF: dict[LockState.ValueType, LockTicketState.ValueType] = {
    LOCK_STATE_RELEASED: LOCK_TICKET_STATE_CANCELLED,
    LOCK_STATE_EXPIRED: LOCK_TICKET_STATE_EXPIRED,
}


@dataclass(frozen=True, slots=True)
class Served:
    """Calls that waited and are answered by this batch: the engine's handles, and what a repeat is known by."""

    handles: tuple[Any, ...]
    answer: AcquireLocksResponse | KapellError
    key: str = ""
    fingerprint: bytes = b""


def settle(state: State) -> None:
    """Grants, in order, all that has become free."""
    state.locks.settle(lambda wait: _grant_waiting(state, wait))


def _grant_waiting(state: State, wait: Wait) -> None:
    """Gives a wait its locks and answers whoever waits for it."""
    mark = state.mark()
    caller = state.caller
    state.locks.leave(wait)
    if not wait.handles and not wait.durable:
        return  # The end of its call could not be written; nobody is there to have it.
    state.caller = wait.caller
    try:
        held = grant(state, wait)
        deadlock.check(state, wait.owner)
    except KapellError as error:
        # Only an owner that waits for two things at once can get here.
        state.rollback(mark)
        state.locks.leave(wait)
        _end_ticket(state, wait, LOCK_TICKET_STATE_REFUSED, error.message)
        serve(state, wait, error)
    else:
        locks = [shown(state, one) for one in held]
        _end_ticket(state, wait, LOCK_TICKET_STATE_GRANTED, "", locks=locks)
        serve(state, wait, AcquireLocksResponse(locks=locks, revision=state.revision))
    state.caller = caller


def serve(state: State, wait: Wait, answer: AcquireLocksResponse | KapellError) -> None:
    """Answers the calls that wait for this, after the commit."""
    granted = isinstance(answer, AcquireLocksResponse) and bool(answer.locks)
    if wait.handles or (granted and wait.fingerprint):
        key = wait.key if granted and wait.fingerprint else ""
        state.locks.served.append(Served(tuple(wait.handles), answer, key, wait.fingerprint))
        state.on_rollback(state.locks.served.pop)


def grant(state: State, wait: Wait) -> list[Held]:
    """Makes the locks of the wait, which has nothing in its way; those the owner has already stay as they are."""
    table = state.locks
    granted: list[Held] = []
    for item in wait.items:
        owner = table.owners.get(wait.owner)
        known = owner.by_path.get(item.path) if owner is not None else None
        if known is not None and (known.exclusive or not item.exclusive):
            granted.append(known)
        elif known is not None:
            granted.append(_change_mode(state, known, exclusive=True))
        else:
            lock = Lock(path=item.path, mode=item.mode, owner=wait.said, state=LOCK_STATE_HELD)
            lock.lock_id = state.new_id("lock")
            lock.fencing_token = state.revision + 1
            stamp(lock.grant_time, state.now_ns)
            if wait.ttl_ns:
                set_duration(lock.ttl, wait.ttl_ns)
            state.standing.put(lock, EVENT_KIND_LOCK_GRANTED, ("state",))
            held = Held(lock)
            table.hold(held, ttl_ns=wait.ttl_ns)
            granted.append(held)
    return granted


def weaken(state: State, held: Held) -> Held:
    """EXCLUSIVE becomes SHARED without a gap; the fencing token stays."""
    return _change_mode(state, held, exclusive=False) if held.exclusive else held


def _change_mode(state: State, held: Held, *, exclusive: bool) -> Held:
    lock = copied(held.lock)
    lock.mode = LOCK_MODE_EXCLUSIVE if exclusive else LOCK_MODE_SHARED
    changed = ("mode", "fencing_token") if exclusive else ("mode",)
    if exclusive:
        lock.fencing_token = state.revision + 1
    expire_ns = state.locks.owners[held.owner].expire_ns
    state.locks.let_go(held)
    state.standing.put(lock, EVENT_KIND_LOCK_UPDATED, changed)
    changed_one = Held(lock)
    state.locks.hold(changed_one, ttl_ns=duration_ns(lock.ttl), expire_ns=expire_ns)
    return changed_one


def end(state: State, held: Held, how: LockState.ValueType, reason: str = "") -> Lock:
    """Takes a lock out of force; the last form of it."""
    lock = copied(held.lock)
    lock.state = how
    lock.state_reason = reason
    state.locks.let_go(held)
    return state.standing.put(lock, _EVENT_OF[how], ("state",), deleted=True)


def end_owner(state: State, owner_id: str, how: LockState.ValueType, reason: str) -> None:
    """The owner has ended: so have all its locks and waits."""
    owner = state.locks.owners.get(owner_id)
    if owner is None:
        return
    for wait in list(owner.waits.values()):
        give_up(state, wait, _TICKET_OF[how], reason)
        serve(state, wait, owner_lost(wait.said, reason))
    for held in list(owner.held.values()):
        end(state, held, how, reason)


def end_attempt(state: State, record: TaskAttempt) -> None:
    """An attempt has ended, and its locks with it; one that was lost has lost them, too."""
    if record.task_id not in state.locks.owners:
        return
    if record.state == ATTEMPT_STATE_LOST:
        end_owner(state, record.task_id, LOCK_STATE_EXPIRED, "its attempt was lost")
    else:
        end_owner(state, record.task_id, LOCK_STATE_RELEASED, "its attempt has ended")


def give_up(state: State, wait: Wait, how: LockTicketState.ValueType, reason: str) -> None:
    """Takes a wait out of the queue without a grant. Whoever waits for it is for the caller to answer."""
    state.locks.leave(wait)
    _end_ticket(state, wait, how, reason)


def queue_ticket(state: State, wait: Wait, request_id: str) -> LockTicket:
    """Makes the place of a wait, which has the ticket's id, durable."""
    ticket = LockTicket(ticket_id=wait.wait_id, owner=wait.said, priority=wait.priority, request_id=request_id)
    ticket.items.extend(item.message() for item in wait.items)
    ticket.state = LOCK_TICKET_STATE_WAITING
    stamp(ticket.create_time, wait.arrival_ns)
    if wait.ttl_ns:
        set_duration(ticket.ttl, wait.ttl_ns)
    return state.standing.put(ticket, EVENT_KIND_TICKET_QUEUED, ("state",))


def _end_ticket(
    state: State, wait: Wait, how: LockTicketState.ValueType, reason: str, *, locks: list[Lock] | None = None
) -> None:
    current = state.standing.find(LockTicket, wait.wait_id) if wait.durable else None
    if current is None:
        return
    ticket = copied(current)
    ticket.state = how
    ticket.state_reason = reason
    ticket.locks.extend(without_times(lock) for lock in locks or ())
    stamp(ticket.end_time, state.now_ns)
    state.standing.put(ticket, EVENT_KIND_TICKET_ENDED, ("state",))
    state.schedule(state.now_ns + KEEP_TICKETS, ticket.ticket_id)


def look_at_ticket(state: State, ticket_id: str) -> None:
    """Forgets a ticket that ended long ago."""
    ticket = state.standing.find(LockTicket, ticket_id)
    if ticket is None or ticket.state == LOCK_TICKET_STATE_WAITING:
        return
    forget_ns = timestamp_ns(ticket.end_time) + KEEP_TICKETS
    if forget_ns > state.now_ns:
        state.schedule(forget_ns, ticket_id)
    else:
        state.locks.forget_ticket(ticket_id)
        state.standing.put(copied(ticket), EVENT_KIND_TICKET_DELETED, (), deleted=True)


def look_at_grant(state: State, grant_id: str) -> None:
    """Ends a plain acquisition that was not renewed in time."""
    owner = state.locks.owners.get(grant_id)
    if owner is None or not owner.expire_ns:
        return
    if owner.expire_ns > state.now_ns:
        state.schedule(owner.expire_ns, grant_id)
    else:
        end_owner(state, grant_id, LOCK_STATE_EXPIRED, "it was not renewed in time")


# -- how it looks ----------------------------------------------------------------------------


def shown(state: State, held: Held) -> Lock:
    """A copy of the lock with the times that only memory knows."""
    lock = copied(held.lock)
    owner = state.locks.owners[held.owner]
    if owner.expire_ns:
        stamp(lock.expire_time, owner.expire_ns)
        set_duration(lock.ttl_remaining, max(0, owner.expire_ns - state.now_ns))
    return lock


def without_times(lock: Lock) -> Lock:
    """As it is stored: renewals are no changes, so what is stored says nothing of them."""
    stored = copied(lock)
    stored.ClearField("expire_time")
    stored.ClearField("ttl_remaining")
    return stored


def lock_held(state: State, wait: Wait, obstacle: Held | Wait) -> KapellError:
    """Somebody else has it, or asked for it before."""
    if isinstance(obstacle, Held):
        who, path, has = name_of(obstacle.lock.owner), obstacle.path, "holds"
        since = obstacle.lock.grant_time
        expire_ns = state.locks.owners[obstacle.owner].expire_ns
        lock_id = obstacle.lock_id
    else:
        path = next((its.path for its in obstacle.items if any(touch(its.path, mine.path) for mine in wait.items)), "")
        who, has = name_of(obstacle.said), "asked before for"
        since = Lock().grant_time
        stamp(since, obstacle.arrival_ns)
        expire_ns = 0
        lock_id = ""
    wanted = next((item.path for item in wait.items if touch(item.path, path)), wait.items[0].path)
    expire = Lock().expire_time
    stamp(expire, expire_ns)
    return KapellError(
        ERROR_REASON_LOCK_HELD,
        f"{wanted} is not free: {who} {has} {path} since {since.ToJsonString()[:19]}Z."
        " Wait for it with `wait` or keep_queued, or do other work first.",
        metadata={
            "path": wanted,
            "held_path": path,
            "holder": who,
            "since": since.ToJsonString(),
            "expire_time": expire.ToJsonString() if expire_ns else "",
            "lock_id": lock_id,
        },
    )


def owner_lost(owner: LockOwner, reason: str) -> KapellError:
    """Who waited, or held, has ended."""
    if owner.task_id:
        return KapellError(
            ERROR_REASON_LEASE_LOST,
            f"The lease is lost: {reason}. Stop working on the task and discard its result.",
            metadata={"task_id": owner.task_id, "attempt": str(owner.attempt)},
        )
    return lock_lost("session_id" if owner.session_id else "lock_id", owner.session_id or owner.grant_id, reason)


def lock_lost(key: str, name: str, why: str) -> KapellError:
    """What is named is no longer there; `key` is session_id or lock_id."""
    what = "session" if key == "session_id" else "lock"
    return KapellError(
        ERROR_REASON_LOCK_LOST,
        f"The {what} {name} is lost: {why}. Stop what it protects, and acquire anew.",
        metadata={key: name},
    )


def name_of(owner: LockOwner) -> str:
    """An owner in a few words."""
    if owner.task_id:
        by = f" ({owner.agent_id})" if owner.agent_id else ""
        return owner.task_id + by
    named = owner.session_id or owner.actor.id or owner.grant_id
    return f"{named} ({owner.note})" if owner.note else named
