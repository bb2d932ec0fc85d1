"""What is asked of locks: acquire, renew, release, take away, check.

All or nothing: a request is decided whole, and whatever it is refused for leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kapell.v1.error_pb2 import (
    ERROR_REASON_FENCING_TOKEN_STALE,
    ERROR_REASON_LOCK_LIMIT,
    ERROR_REASON_REQUEST_INVALID,
)
from kapell.v1.lock_pb2 import (
    LOCK_MODE_SHARED,
    LOCK_STATE_RELEASED,
    LOCK_STATE_REVOKED,
    LOCK_TICKET_STATE_CANCELLED,
    LOCK_TICKET_STATE_GRANTED,
    AcquireLocksRequest,
    AcquireLocksResponse,
    CheckFenceRequest,
    CheckFenceResponse,
    ForceReleaseLocksRequest,
    ForceReleaseLocksResponse,
    Lock,
    LockItem,
    LockTicket,
    ReleaseLocksRequest,
    ReleaseLocksResponse,
    RenewLocksRequest,
    RenewLocksResponse,
)

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import deadlock, grants
from kapell_server.domain.locks.entries import Held, Item, Wait, order_of, owner_key
from kapell_server.domain.locks.owners import check_may_use, claim, is_own
from kapell_server.domain.locks.paths import PathError, canonical, covers
from kapell_server.domain.locks.views import shown_ticket
from kapell_server.domain.times import duration_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

DEFAULT_PRIORITY = 500
_MOST_FORCED = 1_000


def acquire(
    state: State, request: AcquireLocksRequest, *, handle: Any = None, key: str = "", fingerprint: bytes = b""
) -> AcquireLocksResponse | Wait:
    """Takes all of the locks; a Wait where the call is to wait, with `handle` among those it answers.

    Raises LOCK_HELD, DEADLOCK, LOCK_LOST, LEASE_LOST, NOT_OWNER, LOCK_LIMIT, REQUEST_INVALID.
    """
    grants.settle(state)
    repeated = _repeated(state, request, handle, key)
    if repeated is not None:
        return repeated
    wait = _wait_of(state, request)
    wait.key, wait.fingerprint = key, fingerprint
    owner = state.locks.owners.get(wait.owner)
    own = len(owner.held) if owner is not None else 0
    _check_limit(state, "max_locks_of_owner", own + len(wait.items) - 1, state.settings.max_locks_of_owner)
    obstacle = state.locks.obstacle(wait)
    if obstacle is None:
        return _take(state, wait)
    waits = duration_ns(request.wait) > 0
    if not waits and not request.keep_queued:
        raise grants.lock_held(state, wait, obstacle)
    _check_limit(state, "max_lock_waits", len(state.locks.waits), state.settings.max_lock_waits)
    if waits:
        wait.handles.append(handle)
    if request.keep_queued:
        _check_limit(state, "max_lock_tickets", state.standing.count(LockTicket), state.settings.max_lock_tickets)
        wait.durable = True
        grants.queue_ticket(state, wait, request.request_id)
        if key:
            state.locks.remember_ticket(key, wait.wait_id)
    state.locks.join(wait)
    deadlock.check(state, wait.owner)
    grants.settle(state)
    return wait if waits else _ticket_answer(state, wait.wait_id)


def _take(state: State, wait: Wait) -> AcquireLocksResponse:
    held = state.locks.held
    _check_limit(state, "max_locks", len(held) + len(wait.items) - 1, state.settings.max_locks)
    granted = grants.grant(state, wait)
    deadlock.check(state, wait.owner)
    return AcquireLocksResponse(locks=[grants.shown(state, one) for one in granted], revision=state.revision)


def _repeated(state: State, request: AcquireLocksRequest, handle: Any, key: str) -> AcquireLocksResponse | Wait | None:
    """The wait or the ticket that an earlier call with this request_id has left; None for a new request."""
    table = state.locks
    wait = table.by_key.get(key) if key else None
    if wait is None:
        ticket_id = table.tickets_by_key.get(key) if key else None
        return _ticket_answer(state, ticket_id, replayed=True) if ticket_id else None
    if duration_ns(request.wait) > 0:
        wait.handles.append(handle)
        state.on_rollback(wait.handles.remove, handle)
        return wait
    if wait.durable:
        return _ticket_answer(state, wait.wait_id, replayed=True)
    obstacle = table.obstacle(wait)
    assert obstacle is not None, "what could go has gone"
    raise grants.lock_held(state, wait, obstacle)


def _ticket_answer(state: State, ticket_id: str, *, replayed: bool = False) -> AcquireLocksResponse:
    """What a durable place in the queue has come to."""
    ticket = shown_ticket(state, ticket_id)
    if ticket.state == LOCK_TICKET_STATE_GRANTED:
        return AcquireLocksResponse(locks=ticket.locks, revision=state.revision, replayed=replayed)
    return AcquireLocksResponse(ticket=ticket, revision=state.revision, replayed=replayed)


def wait_is_over(
    state: State, wait: Wait, handle: Any, *, abandoned: bool
) -> AcquireLocksResponse | KapellError | None:
    """A call has waited enough, or, `abandoned`, its caller is gone. None where it is answered, or nobody listens.

    A grant that came first stands. Without a ticket, and with no other call that waits for the same, the place
    in the queue goes with the call.
    """
    grants.settle(state)
    if wait.wait_id not in state.locks.waits or handle not in wait.handles:
        return None
    place = wait.handles.index(handle)
    del wait.handles[place]
    state.on_rollback(wait.handles.insert, place, handle)
    answer: AcquireLocksResponse | KapellError | None = None
    if not abandoned and wait.durable:
        answer = _ticket_answer(state, wait.wait_id)
    elif not abandoned:
        obstacle = state.locks.obstacle(wait)
        assert obstacle is not None, "what could go has gone"
        answer = grants.lock_held(state, wait, obstacle)
    if not wait.durable and not wait.handles:
        grants.give_up(state, wait, LOCK_TICKET_STATE_CANCELLED, "")
    return answer


def renew(state: State, request: RenewLocksRequest) -> RenewLocksResponse:
    """Renews plain acquisitions, in memory: a restart gives each one full ttl."""
    locks = [_mine(state, lock_id) for lock_id in request.lock_ids]
    for held in locks:
        owner = state.locks.owners[held.owner]
        if not held.lock.owner.grant_id:
            of = "a session: renew that" if held.lock.owner.session_id else "an attempt: its heartbeats renew it"
            raise invalid("lock_ids", f"lock {held.lock_id} is of {of}")
        owner.expire_ns = max(owner.expire_ns, state.now_ns + owner.ttl_ns)
    return RenewLocksResponse(locks=[grants.shown(state, held) for held in locks], revision=state.revision)


def release(state: State, request: ReleaseLocksRequest) -> ReleaseLocksResponse:
    """Gives back, or weakens; what has ended already is named and no error."""
    response = ReleaseLocksResponse()
    for lock_id in dict.fromkeys(request.lock_ids):
        held = state.locks.held.get(lock_id)
        if held is None:
            response.lost_lock_ids.append(lock_id)
            continue
        check_may_use(state, held.lock.owner)
        if request.keep_shared:
            response.locks.append(grants.shown(state, grants.weaken(state, held)))
        else:
            response.locks.append(grants.end(state, held, LOCK_STATE_RELEASED))
    response.revision = state.revision
    return response


def force_release(state: State, request: ForceReleaseLocksRequest) -> ForceReleaseLocksResponse:
    """Takes locks away from whoever has them. Every later fencing token is larger than the one in the answer."""
    if request.WhichOneof("which") == "lock_id":
        held = state.locks.held.get(request.lock_id)
        found = [held] if held is not None else []
    else:
        path = path_of(request.path, "path")
        found = [held for held in state.locks.in_force(path) if covers(path, held.path)][:_MOST_FORCED]
        found.sort(key=lambda held: held.path)
    locks = [grants.end(state, held, LOCK_STATE_REVOKED, request.reason) for held in found]
    return ForceReleaseLocksResponse(locks=locks, revision=state.revision, fencing_token=state.revision)


def check_fence(state: State, request: CheckFenceRequest, caller: Caller, now_ns: int) -> CheckFenceResponse:
    """The lock that covers the path with this token. Raises FENCING_TOKEN_STALE. Reads memory only.

    For agents and programs it must be their own: another's token proves nothing, wherever they have it from.
    """
    path = path_of(request.path, "path")
    held = state.locks.by_token.get(request.fencing_token)
    why = ""
    if held is None:
        why = "no lock with this token is held any more"
    elif not covers(held.path, path):
        why = f"the token is that of {held.path}, which does not cover it"
    elif caller.is_fenced and not is_own(held.lock.owner, caller):
        why = f"the token is of another, {grants.name_of(held.lock.owner)}"
    elif not held.exclusive and request.mode != LOCK_MODE_SHARED:
        why = "the lock is SHARED, which does for reading only"
    elif _is_over(state, held, now_ns):
        why = "its owner was not renewed in time"
    if held is not None and not why:
        return CheckFenceResponse(lock=grants.shown(state, held), revision=state.revision)
    current = next((one for one in state.locks.in_force(path) if covers(one.path, path)), None)
    token = str(current.lock.fencing_token) if current is not None and current is not held else ""
    holder = f" Now {grants.name_of(current.lock.owner)} holds {current.path}." if token and current is not None else ""
    raise KapellError(
        ERROR_REASON_FENCING_TOKEN_STALE,
        f"Fencing token {request.fencing_token} is no good for {path}: {why}.{holder}"
        " Do not touch it; acquire the lock first.",
        metadata={"path": path, "fencing_token": str(request.fencing_token), "current": token},
    )


def _is_over(state: State, held: Held, now_ns: int) -> bool:
    """Whether the owner's time is over, though nobody has looked yet."""
    expire_ns = state.locks.owners[held.owner].expire_ns
    return bool(expire_ns) and expire_ns <= now_ns


def _mine(state: State, lock_id: str) -> Held:
    held = state.locks.held.get(lock_id)
    if held is None or _is_over(state, held, state.now_ns):
        raise grants.lock_lost("lock_id", lock_id, "it has expired, was released or taken away, or never was")
    check_may_use(state, held.lock.owner)
    return held


def _wait_of(state: State, request: AcquireLocksRequest) -> Wait:
    """The request as something that could stand in the queue."""
    items = items_of(request.items)
    said, ttl_ns = claim(state, request)
    arrival_ns = state.locks.arrival_ns()
    priority = request.priority if request.HasField("priority") else DEFAULT_PRIORITY
    wait_id = state.new_id("ticket" if request.keep_queued else "wait")
    return Wait(
        wait_id=wait_id,
        owner=owner_key(said),
        items=items,
        order=order_of(arrival_ns, priority, wait_id),
        said=said,
        caller=state.caller,
        arrival_ns=arrival_ns,
        priority=priority,
        ttl_ns=ttl_ns,
    )


def items_of(wanted: Iterable[LockItem | Lock], field: str = "items") -> tuple[Item, ...]:
    """The items with canonical paths. Raises REQUEST_INVALID for a path that is none, or is there twice."""
    items = tuple(
        Item(path_of(item.path, f"{field}[{index}].path"), item.mode != LOCK_MODE_SHARED)
        for index, item in enumerate(wanted)
    )
    seen: set[str] = set()
    for index, item in enumerate(items):
        if item.path in seen:
            raise invalid(f"{field}[{index}].path", f"{item.path} is there twice; name each path once")
        seen.add(item.path)
    return items


def path_of(text: str, field: str) -> str:
    """The canonical path. Raises REQUEST_INVALID."""
    try:
        return canonical(text)
    except PathError as error:
        raise invalid(field, f"the path {text[:80]!r} {error}") from None


def invalid(field: str, why: str) -> KapellError:
    """A request that breaks a rule that its message cannot state."""
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {field}: {why}. Correct it and send it again.",
        violations=((field, why),),
    )


def _check_limit(state: State, setting: str, count: int, limit: int) -> None:
    if count >= limit:
        raise limit_reached(setting, limit)


def limit_reached(setting: str, limit: int) -> KapellError:
    """There are as many as there may be."""
    return KapellError(
        ERROR_REASON_LOCK_LIMIT,
        f"Nothing was acquired: {setting} is {limit}, and it is reached. Release or cancel what is not needed.",
        metadata={"setting": setting, "limit": str(limit)},
    )
