"""How locks, tickets and waits look from outside: lists, positions, blockers, the graph. Changes nothing."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from kapell.v1.error_pb2 import ERROR_REASON_LOCK_TICKET_NOT_FOUND
from kapell.v1.lock_pb2 import (
    LOCK_BLOCKER_KIND_BEFORE,
    LOCK_BLOCKER_KIND_HELD,
    LOCK_TICKET_STATE_WAITING,
    GetLockGraphResponse,
    GetLockTicketRequest,
    GetLockTicketResponse,
    ListLocksResponse,
    ListSessionsResponse,
    LockBlocker,
    LockFilter,
    LockOwner,
    LockSession,
    LockTicket,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import deadlock, grants
from kapell_server.domain.locks.entries import Held, Wait
from kapell_server.domain.locks.paths import touch
from kapell_server.domain.times import set_duration, stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MOST_BLOCKERS = 10
_MOST_WAITERS = 200
_MOST_LOOKED_THROUGH = 5_000
_MOST_BEFORE = 1_000
_MOST_NODES = 1_000
_MOST_EDGES = 5_000


@dataclass(frozen=True, slots=True)
class LocksQuestion:
    """A page of the locks that match a filter with a canonical path, beyond `after`: a path and a lock id."""

    filter: LockFilter
    size: int
    after: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class GraphQuestion:
    """Who waits for whom; the filter's path is canonical."""

    filter: LockFilter


@dataclass(frozen=True, slots=True)
class SessionsQuestion:
    """A page of the open sessions, beyond the one with the id `after`."""

    size: int
    after: str


def list_locks(state: State, question: LocksQuestion) -> ListLocksResponse:
    """A page of locks by path, and with the first one who waits. One lock more than asked for if there are more."""
    table = state.locks
    wanted = question.filter
    if wanted.session_id or wanted.agent_id or wanted.task_id:
        matching = iter(_held_by(state, question))
    else:
        matching = table.walk(question.after, wanted.path)
    response = ListLocksResponse(revision=state.revision)
    response.locks.extend(grants.shown(state, held) for held in islice(matching, question.size + 1))
    if question.after is None:
        waits = _waits(state, wanted)
        behind, response.waiter_count = _behind(state, wanted)
        response.waiter_count += len(waits)
        merged = heapq.merge(((wait, 0) for wait in waits), behind, key=lambda one: one[0].order)
        for wait, ahead in islice(merged, _MOST_WAITERS):
            ticket = ticket_of(state, wait)
            ticket.position += ahead
            response.waiters.append(ticket)
    return response


def _held_by(state: State, question: LocksQuestion) -> list[Held]:
    """The page of the locks of certain owners. Those of one session or task are at hand; else all are looked at."""
    table, wanted = state.locks, question.filter
    held = table.held
    if owner_id := wanted.task_id or wanted.session_id:
        owner = table.owners.get(owner_id)
        held = owner.held if owner is not None else {}
    found = (one for one in held.values() if owner_matches(wanted, one.lock.owner))
    if wanted.path:
        found = (one for one in found if touch(wanted.path, one.path))
    if question.after is not None:
        beyond = _page_key(*question.after)
        found = (one for one in found if _page_key(one.path, one.lock_id) > beyond)
    return heapq.nsmallest(question.size + 1, found, key=lambda one: _page_key(one.path, one.lock_id))


def _page_key(path: str, lock_id: str) -> tuple[list[str], str]:
    return path.split("/"), lock_id


def list_sessions(state: State, question: SessionsQuestion) -> ListSessionsResponse:
    """A page of sessions in order of creation; one more than asked for if there are more."""
    ids = (known.session_id for known in state.standing.all(LockSession) if known.session_id > question.after)
    response = ListSessionsResponse(revision=state.revision)
    for session_id in heapq.nsmallest(question.size + 1, ids):
        known = state.standing.find(LockSession, session_id)
        assert known is not None, "what was listed is there"
        response.sessions.append(shown_session(state, known))
    return response


def get_ticket(state: State, request: GetLockTicketRequest) -> GetLockTicketResponse:
    """The ticket as it is now. Raises LOCK_TICKET_NOT_FOUND."""
    return GetLockTicketResponse(ticket=shown_ticket(state, request.ticket_id), revision=state.revision)


def find_ticket(state: State, ticket_id: str) -> LockTicket:
    """The ticket as it is stored. Raises LOCK_TICKET_NOT_FOUND."""
    ticket = state.standing.find(LockTicket, ticket_id)
    if ticket is None:
        raise KapellError(
            ERROR_REASON_LOCK_TICKET_NOT_FOUND,
            f"Ticket {ticket_id} was not found: it never existed, or ended more than an hour ago. Acquire anew.",
            metadata={"ticket_id": ticket_id},
        )
    return ticket


def shown_ticket(state: State, ticket_id: str) -> LockTicket:
    """A copy of the ticket with its position and blockers, or with the times of its locks that still live."""
    ticket = copied(find_ticket(state, ticket_id))
    wait = state.locks.waits.get(ticket_id)
    if wait is not None:
        _add_place(state, wait, ticket)
    for lock in ticket.locks:
        held = state.locks.held.get(lock.lock_id)
        if held is not None:
            lock.CopyFrom(grants.shown(state, held))
    return ticket


def ticket_of(state: State, wait: Wait) -> LockTicket:
    """A wait as a ticket, durable or not."""
    if wait.durable:
        return shown_ticket(state, wait.wait_id)
    ticket = LockTicket(owner=wait.said, priority=wait.priority, state=LOCK_TICKET_STATE_WAITING)
    ticket.items.extend(item.message() for item in wait.items)
    stamp(ticket.create_time, wait.arrival_ns)
    _add_place(state, wait, ticket)
    return ticket


def _add_place(state: State, wait: Wait, ticket: LockTicket) -> None:
    """Position and blockers. Only so many that come before it are counted: this is asked of the writer."""
    before = islice(state.locks.before(wait), _MOST_BEFORE)
    ticket.position = 1 + len({other.wait_id for _, other in before})
    ticket.blockers.extend(blockers_of(state, wait))


def blockers_of(state: State, wait: Wait, most: int = _MOST_BLOCKERS) -> list[LockBlocker]:
    """What the wait waits for: locks first, then those before it."""
    blockers: dict[str, LockBlocker] = {}
    for item in wait.items:
        for held in state.locks.held_against_item(item, wait.owner):
            if len(blockers) == most:
                return list(blockers.values())
            if held.lock_id not in blockers:
                blockers[held.lock_id] = _blocker_of_lock(state, held, item.path)
    for item, other in state.locks.before(wait):
        if len(blockers) == most:
            break
        if other.wait_id not in blockers:
            blockers[other.wait_id] = _blocker_before(other, item.path)
    return list(blockers.values())


def _blocker_of_lock(state: State, held: Held, wanted: str) -> LockBlocker:
    lock = held.lock
    blocker = LockBlocker(kind=LOCK_BLOCKER_KIND_HELD, id=lock.lock_id, path=lock.path, mode=lock.mode)
    blocker.owner.CopyFrom(lock.owner)
    blocker.since_time.CopyFrom(lock.grant_time)
    blocker.wanted_path = wanted
    expire_ns = state.locks.owners[held.owner].expire_ns
    if expire_ns:
        stamp(blocker.expire_time, expire_ns)
    return blocker


def _blocker_before(other: Wait, wanted: str) -> LockBlocker:
    item = next(its for its in other.items if touch(its.path, wanted))
    blocker = LockBlocker(kind=LOCK_BLOCKER_KIND_BEFORE, path=item.path, mode=item.mode, wanted_path=wanted)
    blocker.id = other.wait_id if other.durable else ""
    blocker.owner.CopyFrom(other.said)
    stamp(blocker.since_time, other.arrival_ns)
    return blocker


def shown_session(state: State, session: LockSession) -> LockSession:
    """A copy of the session with what only memory knows."""
    shown = copied(session)
    owner = state.locks.owners[session.session_id]
    shown.lock_count = len(owner.held)
    stamp(shown.expire_time, owner.expire_ns)
    set_duration(shown.ttl_remaining, max(0, owner.expire_ns - state.now_ns))
    return shown


def graph(state: State, question: GraphQuestion) -> GetLockGraphResponse:
    """Who waits for whom, from all waits that match on to those they wait for."""
    wanted = question.filter
    response = GetLockGraphResponse(revision=state.revision)
    behind = (wait for wait, _ in _behind(state, wanted)[0])
    pending = list(dict.fromkeys(wait.owner for wait in (*_waits(state, wanted), *behind)))
    if not wanted.path:
        pending += [task_id for task_id in state.locks.child_waits if _task_matches(wanted, task_id)]
    nodes = dict.fromkeys(pending)
    while pending:
        source = pending.pop(0)
        for hop in dict.fromkeys(deadlock.all_hops(state, source)):
            if hop.target not in nodes:
                nodes[hop.target] = None
                pending.append(hop.target)
            if len(nodes) > _MOST_NODES or len(response.edges) == _MOST_EDGES:
                response.truncated = True
                pending.clear()
                break
            _add_edge(response, hop)
    for node_id in islice(nodes, _MOST_NODES):
        _add_node(state, response, node_id)
    return response


def _add_edge(response: GetLockGraphResponse, hop: deadlock.Hop) -> None:
    edge = response.edges.add(from_node_id=hop.source, to_node_id=hop.target, kind=hop.kind)
    if hop.item is not None:
        edge.wanted_path, edge.wanted_mode = hop.item.path, hop.item.mode
        edge.path, edge.mode = hop.path, hop.item._replace(exclusive=hop.exclusive).mode


def _add_node(state: State, response: GetLockGraphResponse, node_id: str) -> None:
    node = response.nodes.add(node_id=node_id)
    owner = state.locks.owners.get(node_id)
    if owner is None or not (owner.waits or owner.held):
        node.owner.task_id = node_id if node_id.startswith("task_") else ""
        return
    if owner.waits:
        first = min(owner.waits.values(), key=lambda wait: wait.arrival_ns)
        stamp(node.wait_time, first.arrival_ns)
        node.owner.CopyFrom(first.said)
    if owner.held:
        node.owner.CopyFrom(next(iter(owner.held.values())).lock.owner)


def _waits(state: State, wanted: LockFilter) -> list[Wait]:
    """Who waits and matches, in the order of the queue."""
    table = state.locks
    waits = {wait.wait_id: wait for wait in table.waiting_at(wanted.path)} if wanted.path else table.waits
    return sorted((wait for wait in waits.values() if owner_matches(wanted, wait.said)), key=lambda wait: wait.order)


def _behind(state: State, wanted: LockFilter) -> tuple[list[tuple[Wait, int]], int]:
    """Tasks that wait behind one that wants the same (`queueing/lock_gate`), each with how many of them come before.

    The first ones only, and how many there are and match.
    """
    gate = state.queues.locks
    all_match = not (wanted.session_id or wanted.agent_id or wanted.task_id)
    most = _MOST_WAITERS if all_match else _MOST_LOOKED_THROUGH
    found = gate.first_behind(wanted.path, most)
    matching = [(wait, ahead) for wait, ahead in found if owner_matches(wanted, wait.said)]
    return matching, gate.count_behind(wanted.path) if all_match else len(matching)


def owner_matches(wanted: LockFilter, owner: LockOwner) -> bool:
    """Whether the filter, its path aside, wants what is this owner's."""
    if wanted.session_id and wanted.session_id != owner.session_id:
        return False
    if wanted.agent_id and wanted.agent_id not in (owner.agent_id, owner.actor.id):
        return False
    return not wanted.task_id or wanted.task_id == owner.task_id


def _task_matches(wanted: LockFilter, task_id: str) -> bool:
    return not wanted.session_id and not wanted.agent_id and wanted.task_id in ("", task_id)


def filter_test(wanted: LockFilter, paths: list[str], owner: LockOwner) -> bool:
    """Whether a lock or ticket on these paths matches the filter, whose path is canonical."""
    if wanted.path and not any(touch(wanted.path, path) for path in paths):
        return False
    return owner_matches(wanted, owner)
