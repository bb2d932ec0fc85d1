"""Standing resources: the few, small things that stay until somebody changes them.

Queues, limits, schedules, locks, budgets, alerts, webhooks, prices, rules for approvals. All of them are in memory
from the start on, so decisions find them without a query. Undone with the rest of State, through its journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kapell.v1.alert_pb2 import Alert
from kapell.v1.approval_pb2 import ApprovalRule
from kapell.v1.budget_pb2 import Budget
from kapell.v1.lock_pb2 import Lock, LockSession, LockTicket
from kapell.v1.price_pb2 import Price
from kapell.v1.queue_pb2 import ConcurrencyLimit, Queue
from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.secret_pb2 import Secret
from kapell.v1.token_pb2 import Token
from kapell.v1.watch_pb2 import EventKind
from kapell.v1.webhook_pb2 import Webhook

if TYPE_CHECKING:
    from kapell_server.domain.state import State

Standing = (
    Queue
    | ConcurrencyLimit
    | Schedule
    | Lock
    | LockTicket
    | LockSession
    | Price
    | Budget
    | Alert
    | Webhook
    | ApprovalRule
    | Secret
    | Token
)
_T = TypeVar(
    "_T",
    Queue,
    ConcurrencyLimit,
    Schedule,
    Lock,
    LockTicket,
    LockSession,
    Price,
    Budget,
    Alert,
    Webhook,
    ApprovalRule,
    Secret,
    Token,
)


@dataclass(frozen=True, slots=True)
class StandingKind:
    """One kind of standing resource: its number in the table, its name in events, the field that is its id."""

    number: int
    name: str
    type: type[Standing]
    id_field: str


KINDS: dict[type, StandingKind] = {
    kind.type: kind
    for kind in (
        StandingKind(1, "queue", Queue, "agent_type"),
        StandingKind(2, "limit", ConcurrencyLimit, "key"),
        StandingKind(3, "schedule", Schedule, "schedule_id"),
        StandingKind(9, "budget", Budget, "budget_id"),
        StandingKind(10, "alert", Alert, "alert_id"),
        StandingKind(11, "webhook", Webhook, "webhook_id"),
        StandingKind(7, "price", Price, "price_id"),
        StandingKind(13, "approval_rule", ApprovalRule, "rule_id"),
        StandingKind(4, "lock", Lock, "lock_id"),
        StandingKind(5, "ticket", LockTicket, "ticket_id"),
        StandingKind(6, "session", LockSession, "session_id"),
        StandingKind(15, "secret", Secret, "name"),
        StandingKind(14, "token", Token, "token_id"),
    )
}
"""Numbers are stored: never used again for another kind."""


def standing_id(resource: Standing) -> str:
    """The id of a standing resource, unique within its kind."""
    found: str = getattr(resource, KINDS[type(resource)].id_field)
    return found


class StandingShelf:
    """The standing resources of every kind, by id, in order of creation."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._by_kind: dict[type[Standing], dict[str, Standing]] = {kind: {} for kind in KINDS}

    def load(self, resources: Iterable[Standing]) -> None:
        """Takes over what the database has, at the start."""
        for resource in resources:
            self._by_kind[type(resource)][standing_id(resource)] = resource

    def find(self, kind: type[_T], resource_id: str) -> _T | None:
        """The resource, or None. Not to be altered."""
        return self._by_kind[kind].get(resource_id)  # type: ignore[return-value]

    def any(self, kind: type[Standing]) -> bool:
        """Whether there is one of a kind at all."""
        return bool(self._by_kind[kind])

    def all(self, kind: type[_T]) -> Iterator[_T]:
        """Every resource of a kind. Not to be altered."""
        return iter(self._by_kind[kind].values())  # type: ignore[arg-type]

    def count(self, kind: type[Standing]) -> int:
        """How many resources of a kind there are."""
        return len(self._by_kind[kind])

    def put(self, resource: _T, event: EventKind.ValueType, changed: tuple[str, ...], *, deleted: bool = False) -> _T:
        """Records `resource` as the new form, with one event. Takes ownership of the message."""
        resource_id = standing_id(resource)
        known = self._by_kind[type(resource)]
        previous = known.get(resource_id)
        since = previous.revision if previous is not None else 0
        self._state.record(resource, event, since, changed, created=previous is None, deleted=deleted)
        if deleted:
            self._state.remove(known, resource_id)
        else:
            self._state.assign(known, resource_id, resource)
        return resource
