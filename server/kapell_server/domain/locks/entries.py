"""What the lock table is made of: locks that are held, requests that wait, and their owners."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED, Lock, LockItem, LockMode, LockOwner

from kapell_server.domain.access import Caller
from kapell_server.domain.times import SECOND

PRIORITY_STEP = 60 * SECOND
"""So much waiting one step of priority is worth."""

Order = tuple[int, str]
"""A place in the queue, the first one lowest: the time of arrival less what priority is worth, and the wait's id."""


class Item(NamedTuple):
    """One lock that is wanted: a canonical path, and whether for oneself alone."""

    path: str
    exclusive: bool

    @property
    def mode(self) -> LockMode.ValueType:
        return LOCK_MODE_EXCLUSIVE if self.exclusive else LOCK_MODE_SHARED

    def message(self) -> LockItem:
        return LockItem(path=self.path, mode=self.mode)


class Held:
    """A lock that is held. Not altered: another form of the lock is another one of these."""

    __slots__ = ("exclusive", "lock", "lock_id", "owner", "path")

    def __init__(self, lock: Lock) -> None:
        self.lock = lock
        self.lock_id = lock.lock_id
        self.path = lock.path
        self.exclusive = lock.mode == LOCK_MODE_EXCLUSIVE
        self.owner = owner_key(lock.owner)


@dataclass(slots=True, eq=False)
class Wait:
    """A request that stands in the queue, or is about to.

    `wait_id` is the id of its ticket where it is durable, that of its task for one that is parked (`is_task`),
    and else its own. `handles` are the engine's: whom to answer. `key` is by what a repeat of the call finds it.
    """

    wait_id: str
    owner: str
    items: tuple[Item, ...]
    order: Order
    said: LockOwner
    caller: Caller
    arrival_ns: int
    priority: int
    ttl_ns: int = 0
    key: str = ""
    fingerprint: bytes = b""
    durable: bool = False
    is_task: bool = False
    handles: list[Any] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Owner:
    """Who holds or waits: the attempt of a task, a session, or one plain acquisition.

    `expire_ns` moves with each renewal, which is in memory only; 0 where no time ends the owner.
    """

    key: str
    ttl_ns: int = 0
    expire_ns: int = 0
    held: dict[str, Held] = field(default_factory=dict)
    by_path: dict[str, Held] = field(default_factory=dict)
    waits: dict[str, Wait] = field(default_factory=dict)

    def has(self, item: Item) -> bool:
        """Whether it holds at least this lock, at this very path."""
        held = self.by_path.get(item.path)
        return held is not None and (held.exclusive or not item.exclusive)


def owner_key(owner: LockOwner) -> str:
    """By what an owner is known: the id of its task, its session or its acquisition."""
    return owner.task_id or owner.session_id or owner.grant_id


def order_of(arrival_ns: int, priority: int, wait_id: str) -> Order:
    """The place of a request in the queue. Fixed on arrival, so nobody is overtaken for ever."""
    return arrival_ns - priority * PRIORITY_STEP, wait_id
