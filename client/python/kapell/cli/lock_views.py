"""How locks, those who wait for them and sessions are shown: their columns and cards, and who it is in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column, Line

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from kapell.v1.lock_pb2 import Lock, LockBlocker, LockItem, LockOwner, LockSession, LockTicket

_SHARED = 2
_STATES = {1: ("held", "green"), 2: ("released", "dim"), 3: ("expired", "yellow"), 4: ("revoked", "red")}
_TICKETS = {1: ("waiting", "yellow"), 2: ("granted", "green"), 3: ("cancelled", "dim"), 4: ("expired", "yellow")}
_TICKETS |= {5: ("refused", "red")}
_SESSIONS = {1: ("open", "green"), 2: ("closed", "dim"), 3: ("expired", "yellow")}
_MOST = 3


def mode_word(mode: int) -> str:
    """ "exclusive" or "shared"."""
    return "shared" if mode == _SHARED else "exclusive"


def holder(owner: LockOwner) -> str:
    """Who it is, in words: "task_1, attempt 2, by agent_3", "session_4 of admin", "admin"."""
    if owner.task_id:
        parts = [owner.task_id]
        parts += [f"attempt {owner.attempt}"] if owner.attempt else []
        parts += [f"by {owner.agent_id}"] if owner.agent_id else []
        who = ", ".join(parts)
    elif owner.session_id:
        who = f"{owner.session_id} of {owner.actor.id}" if owner.actor.id else owner.session_id
    else:
        who = owner.actor.id or owner.grant_id or "somebody"
    return f"{who} ({owner.note})" if owner.note else who


def lock_words(lock: Lock) -> str:
    """Who holds what since when: "web/src by task_1, attempt 1, exclusive, for 3m"."""
    return f"{lock.path} by {holder(lock.owner)}, {mode_word(lock.mode)}, for {times.age(lock.grant_time)}"


def item_words(items: Iterable[LockItem]) -> str:
    """What is wanted: "web/src, docs shared"."""
    return ", ".join(item.path + (" shared" if item.mode == _SHARED else "") for item in items)


def blocker_words(blocker: LockBlocker) -> str:
    """What a wait waits for: "web/src, held by task_1, for 3m"."""
    how = "held by" if blocker.kind == 1 else "asked for before by"
    return f"{blocker.path}, {how} {holder(blocker.owner)}, for {times.age(blocker.since_time)}"


def touches(one: str, other: str) -> bool:
    """Whether one of the paths is the other or lies below it."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _expires(lock: Lock) -> str:
    """When it ends unless it is renewed."""
    if lock.HasField("ttl_remaining"):
        return f"in {times.short(_seconds(lock.ttl_remaining))}"
    return "with its attempt" if lock.owner.task_id else "-"


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _state(lock: Lock) -> Cell:
    return Cell(*_STATES.get(lock.state, ("-", "dim")))


def _lock_card(lock: Lock) -> list[Line]:
    return [
        Line("Lock", lock.lock_id),
        Line("Path", lock.path),
        Line("Mode", mode_word(lock.mode)),
        Line("Fencing token", str(lock.fencing_token)),
        Line("Holder", holder(lock.owner)),
        Line("State", _state(lock)),
        Line("Why", lock.state_reason),
        Line("Since", times.local(lock.grant_time)),
        Line("Expires", _expires(lock)),
    ]


def locks_view(waiters: Iterable[LockTicket] = ()) -> View:
    """Of locks; how many wait is counted among `waiters`."""
    wanted = [[item.path for item in ticket.items] for ticket in waiters]

    def waiting(lock: Lock) -> str:
        return str(sum(any(touches(path, lock.path) for path in paths) for paths in wanted))

    return View(
        columns=(
            Column("PATH", lambda lock: Cell(lock.path), flexible=True),
            Column("MODE", lambda lock: mode_word(lock.mode)),
            Column("HOLDER", lambda lock: holder(lock.owner), flexible=True),
            Column("SINCE", lambda lock: times.age(lock.grant_time), right=True),
            Column("EXPIRES", _expires),
            Column("WAITERS", waiting, right=True),
            Column("TOKEN", lambda lock: str(lock.fencing_token), wide=True, right=True),
            Column("LOCK", lambda lock: lock.lock_id, wide=True),
        ),
        id=lambda lock: lock.lock_id,
        card=_lock_card,
        brief=(
            Column("LOCK", lambda lock: Cell(lock.lock_id)),
            Column("PATH", lambda lock: lock.path, flexible=True),
            Column("MODE", lambda lock: mode_word(lock.mode)),
            Column("TOKEN", lambda lock: f"token {lock.fencing_token}"),
            Column("EXPIRES", lambda lock: f"expires {_expires(lock)}" if lock.state == 1 else _state(lock)),
        ),
    )


LOCKS = locks_view()


def _ticket_state(ticket: LockTicket) -> Cell:
    return Cell(*_TICKETS.get(ticket.state, ("-", "dim")))


def _behind(ticket: LockTicket) -> str:
    first, more = list(ticket.blockers[:_MOST]), len(ticket.blockers) - _MOST
    return "; ".join([*map(blocker_words, first), *([f"{more} more"] if more > 0 else [])]) or "-"


def _ticket_card(ticket: LockTicket) -> list[Line]:
    return [
        Line("Ticket", ticket.ticket_id),
        Line("Wants", item_words(ticket.items)),
        Line("Who", holder(ticket.owner)),
        Line("State", _ticket_state(ticket)),
        Line("Why", ticket.state_reason),
        Line("Position", str(ticket.position or "")),
        Line("Behind", "\n".join(map(blocker_words, ticket.blockers))),
        Line("Since", times.local(ticket.create_time)),
    ]


WAITERS = View(
    columns=(
        Column("WANTS", lambda ticket: Cell(item_words(ticket.items)), flexible=True),
        Column("WHO", lambda ticket: holder(ticket.owner), flexible=True),
        Column("SINCE", lambda ticket: times.age(ticket.create_time), right=True),
        Column("PLACE", lambda ticket: str(ticket.position or "-"), right=True),
        Column("BEHIND", _behind, flexible=True),
        Column("PRIORITY", lambda ticket: str(ticket.priority), wide=True, right=True),
        Column("TICKET", lambda ticket: ticket.ticket_id or "-", wide=True),
    ),
    id=lambda ticket: ticket.ticket_id,
    card=_ticket_card,
    brief=(
        Column("STATE", _ticket_state),
        Column("TICKET", lambda ticket: Cell(ticket.ticket_id)),
        Column("WANTS", lambda ticket: item_words(ticket.items), flexible=True),
    ),
)
"""Of LockTicket."""

SESSIONS = View(
    columns=(
        Column("SESSION", lambda session: Cell(session.session_id)),
        Column("NAME", lambda session: session.display_name or "-", flexible=True),
        Column("BY", lambda session: session.actor.id or "-"),
        Column("LOCKS", lambda session: str(session.lock_count), right=True),
        Column("EXPIRES", lambda session: f"in {times.short(_seconds(session.ttl_remaining))}"),
        Column("AGE", lambda session: times.age(session.create_time), right=True),
    ),
    id=lambda session: session.session_id,
)
"""Of LockSession."""


def lock_state(lock: Lock) -> Cell:
    """How a lock stands after an event."""
    return _state(lock)


def lock_event(lock: Lock) -> str:
    """A lock of an event, in words."""
    return "  ".join(part for part in (lock.path, mode_word(lock.mode), holder(lock.owner), lock.state_reason) if part)


def ticket_state(ticket: LockTicket) -> Cell:
    """How a ticket stands after an event."""
    return _ticket_state(ticket)


def ticket_event(ticket: LockTicket) -> str:
    """A ticket of an event, in words."""
    return "  ".join(part for part in (item_words(ticket.items), holder(ticket.owner), ticket.state_reason) if part)


def session_state(session: LockSession) -> Cell:
    """How a session stands after an event."""
    return Cell(*_SESSIONS.get(session.state, ("-", "dim")))
