"""The table of locks: who holds what, who waits, in which order, and under what.

Who waits stands in a queue. A wait may go when no lock of another owner is in its way and no wait that
conflicts comes before it, unless that one waits itself, by whatever detour, for what the owner of this one
holds: else both would wait for ever. Whatever is in its way, one such thing is enough: the wait is parked under it and
looked at again when that is gone. So a lock that is given back wakes those that may profit, and a look costs
as much as the depth of its paths.

Part of State and undone with it. The surprise: a task that is parked for its declared locks is never given
them here. It is offered them: `settle` keeps its place for as long as dispatch looks for an agent.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kapell_server.domain.locks import deadlock
from kapell_server.domain.locks.entries import Held, Item, Order, Owner, Wait
from kapell_server.domain.locks.tree import PathTree
from kapell_server.domain.times import SECOND

if TYPE_CHECKING:
    from kapell_server.domain.locks import grants
    from kapell_server.domain.state import State

_BOTH = (True, False)
_EXCLUSIVE_ONLY = (True,)
_MOST_OFFERS = 500
"""To so many tasks one batch offers their locks: a flood of them must not keep everybody else waiting."""
_SOON = SECOND // 1000


class LockTable:
    """Locks, waits and owners. Messages and events are for `grants`; this knows who is in whose way."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.held: dict[str, Held] = {}
        self.by_token: dict[int, Held] = {}
        self.owners: dict[str, Owner] = {}
        self.waits: dict[str, Wait] = {}
        self.by_key: dict[str, Wait] = {}
        """Waits by what a repeat of their call finds them."""
        self.child_waits: dict[str, int] = {}
        """Tasks whose attempts wait for their children, each with how many such calls are open. Not undone."""
        self.offered: dict[str, Wait] = {}
        """Parked tasks that could have their locks now."""
        self.tickets_by_key: dict[str, str] = {}
        """Tickets, ended ones too, by what a repeat of their call finds them."""
        self.keys_of_tickets: dict[str, str] = {}
        self.served: list[grants.Served] = []
        """The calls that this batch answers."""
        self._held_trees: dict[bool, PathTree[Held]] = {mode: PathTree() for mode in _BOTH}
        self._wait_trees: dict[bool, PathTree[Wait]] = {mode: PathTree() for mode in _BOTH}
        self._parked: dict[str, dict[str, Wait]] = {}
        self._under: dict[str, str] = {}
        self._stirred: dict[str, Wait] = {}
        self._late: dict[str, Wait] = {}
        """Tasks that the next batch looks at: this one has offered enough."""
        self._offers = 0
        self._last_arrival: dict[None, int] = {}

    def begin(self) -> None:
        """A batch begins."""
        self.served.clear()
        self._offers = 0

    # -- locks -------------------------------------------------------------------------------

    def hold(self, held: Held, *, ttl_ns: int = 0, expire_ns: int = 0) -> None:
        """The lock is in force from now on. With a ttl its owner has that long, or until `expire_ns`."""
        owner = self._owner(held.owner)
        if ttl_ns:
            owner.ttl_ns = ttl_ns
            owner.expire_ns = expire_ns or self._state.now_ns + ttl_ns
            self._state.schedule(owner.expire_ns, owner.key)
        assign = self._state.assign
        assign(self.held, held.lock_id, held)
        assign(self.by_token, held.lock.fencing_token, held)
        assign(owner.held, held.lock_id, held)
        assign(owner.by_path, held.path, held)
        self._plant(self._held_trees[held.exclusive], held.path, held.lock_id, held)

    def let_go(self, held: Held) -> None:
        """The lock is in force no more, in this form at least. Whoever was parked under it is looked at again."""
        owner = self.owners[held.owner]
        remove = self._state.remove
        remove(self.held, held.lock_id)
        remove(self.by_token, held.lock.fencing_token)
        remove(owner.held, held.lock_id)
        remove(owner.by_path, held.path)
        self._uproot(self._held_trees[held.exclusive], held.path, held.lock_id, held)
        self._forget(owner)
        self.wake(held.lock_id)

    def in_force(self, path: str) -> Iterator[Held]:
        """Every lock on this path, above or below it."""
        for tree in self._held_trees.values():
            for entries in tree.touching(path):
                yield from (held for _, held in entries)

    def walk(self, after: tuple[str, str] | None, path: str = "") -> Iterator[Held]:
        """Every lock that touches the path in the order of paths, beyond this path and lock id."""
        trees = (tree.walk(after, path) for tree in self._held_trees.values())
        return heapq.merge(*trees, key=lambda held: (held.path.split("/"), held.lock_id))

    # -- owners ------------------------------------------------------------------------------

    def open_owner(self, owner: Owner) -> None:
        """A session begins; it is there even when it holds nothing."""
        self._state.assign(self.owners, owner.key, owner)

    def close_owner(self, key: str) -> None:
        """A session has ended, and let go of everything before."""
        self._state.remove(self.owners, key)
        self._state.forget_due(key)

    def _owner(self, key: str) -> Owner:
        owner = self.owners.get(key)
        if owner is None:
            owner = Owner(key)
            self._state.assign(self.owners, key, owner)
        return owner

    def _forget(self, owner: Owner) -> None:
        if not owner.held and not owner.waits and not owner.key.startswith("session_"):
            self._state.remove(self.owners, owner.key)
            if owner.expire_ns:
                self._state.forget_due(owner.key)

    # -- the queue ---------------------------------------------------------------------------

    def arrival_ns(self) -> int:
        """The time of the next arrival; it never stands still or goes back, whatever the clock does."""
        arrival = max(self._state.tick_ns(), self._last_arrival.get(None, 0) + 1)
        self._state.assign(self._last_arrival, None, arrival)
        return arrival

    def note_arrival(self, arrival_ns: int) -> None:
        """Somebody arrived at this time, before the server started: whoever comes now comes later."""
        self._last_arrival[None] = max(arrival_ns, self._last_arrival.get(None, 0))

    def join(self, wait: Wait) -> None:
        """The wait takes its place, and is looked at by the next `settle`."""
        assign = self._state.assign
        assign(self.waits, wait.wait_id, wait)
        assign(self._owner(wait.owner).waits, wait.wait_id, wait)
        if wait.key:
            assign(self.by_key, wait.key, wait)
        for item in wait.items:
            self._plant(self._wait_trees[item.exclusive], item.path, wait.order, wait)
        assign(self._stirred, wait.wait_id, wait)

    def remember_ticket(self, key: str, ticket_id: str) -> None:
        """A repeat of the call finds the ticket, for as long as there is one."""
        self._state.assign(self.tickets_by_key, key, ticket_id)
        self._state.assign(self.keys_of_tickets, ticket_id, key)

    def forget_ticket(self, ticket_id: str) -> None:
        """The ticket is no more."""
        key = self.keys_of_tickets.get(ticket_id, "")
        self._state.remove(self.keys_of_tickets, ticket_id)
        self._state.remove(self.tickets_by_key, key)

    def leave(self, wait: Wait) -> None:
        """The wait gives its place up. Whoever was parked under it is looked at again."""
        remove = self._state.remove
        owner = self.owners[wait.owner]
        remove(self.waits, wait.wait_id)
        remove(owner.waits, wait.wait_id)
        remove(self.by_key, wait.key)
        remove(self.offered, wait.wait_id)
        remove(self._stirred, wait.wait_id)
        remove(self._late, wait.wait_id)
        for item in wait.items:
            self._uproot(self._wait_trees[item.exclusive], item.path, wait.order, wait)
        self._unpark(wait)
        self._forget(owner)
        self.wake(wait.wait_id)

    def settle(self, grant: Callable[[Wait], None]) -> None:
        """Grants, in order, what can be granted, until nothing can. A task is offered its locks instead.

        Only so many tasks a batch: the others keep their places, and are looked at in a moment.
        """
        line: list[tuple[Order, Wait]] = []
        self._stir_late()
        while True:
            for wait in list(self._stirred.values()):
                self._state.remove(self._stirred, wait.wait_id)
                heapq.heappush(line, (wait.order, wait))
            if not line:
                break
            _, wait = heapq.heappop(line)
            if wait.wait_id not in self.waits or wait.wait_id in self.offered or wait.wait_id in self._under:
                continue
            if wait.is_task and self._offers >= _MOST_OFFERS:
                self._state.assign(self._late, wait.wait_id, wait)
                continue
            obstacle = self._obstacle(wait)
            if obstacle is not None:
                self._park(wait, obstacle)
            elif wait.is_task:
                self._offer(wait)
            else:
                grant(wait)
        if self._late:
            self._state.schedule(self._state.now_ns + _SOON, "turn/late")

    def _offer(self, wait: Wait) -> None:
        self._count_offer(1)
        self._state.on_rollback(self._count_offer, -1)
        self._state.assign(self.offered, wait.wait_id, wait)

    def _count_offer(self, by: int) -> None:
        self._offers += by

    def _stir_late(self) -> None:
        """Has as many looked at as may still be offered something, the first ones first."""
        room = _MOST_OFFERS - self._offers
        if self._late and room > 0:
            for wait in heapq.nsmallest(room, self._late.values(), key=lambda wait: wait.order):
                self._state.remove(self._late, wait.wait_id)
                self._state.assign(self._stirred, wait.wait_id, wait)

    def obstacle(self, wait: Wait) -> Held | Wait | None:
        """What keeps the wait from its locks: a lock where there is one, else who comes before; None for nothing."""
        return next(self.held_against(wait), None) or next(self._before(wait), None)

    def held_against(self, wait: Wait) -> Iterator[Held]:
        """The locks of others that conflict, each item's after the other's."""
        for item in wait.items:
            yield from self.held_against_item(item, wait.owner)

    def held_against_item(self, item: Item, owner: str) -> Iterator[Held]:
        """The locks of others that conflict with one item."""
        for mode in _BOTH if item.exclusive else _EXCLUSIVE_ONLY:
            for entries in self._held_trees[mode].touching(item.path):
                yield from (held for _, held in entries if held.owner != owner)

    def before(self, wait: Wait) -> Iterator[tuple[Item, Wait]]:
        """The waits of others that conflict and come before, each with the item; one may come up several times."""
        for item in wait.items:
            for mode in _BOTH if item.exclusive else _EXCLUSIVE_ONLY:
                for entries in self._wait_trees[mode].touching(item.path):
                    for order, other in entries:
                        if order >= wait.order:
                            break
                        if other.owner != wait.owner:
                            yield item, other

    def nearest_before(self, wait: Wait) -> Iterator[tuple[Item, Wait]]:
        """As `before`, but of EXCLUSIVE waits at one path the last only: it waits for those before it itself."""
        for item in wait.items:
            for mode in _BOTH if item.exclusive else _EXCLUSIVE_ONLY:
                for entries in self._wait_trees[mode].touching(item.path):
                    for place in range(_place(entries, wait.order) - 1, -1, -1):
                        other = entries[place][1]
                        if other.owner != wait.owner:
                            yield item, other
                            if mode:
                                break

    def anyone_behind(self, owner_id: str) -> bool:
        """Whether a wait of another owner that conflicts comes after one of this owner's."""
        owner = self.owners.get(owner_id)
        for wait in owner.waits.values() if owner is not None else ():
            for item in wait.items:
                for mode in _BOTH if item.exclusive else _EXCLUSIVE_ONLY:
                    for entries in self._wait_trees[mode].touching(item.path):
                        order, last = entries[-1]
                        if order > wait.order and last.owner != owner_id:
                            return True
        return False

    def waiting_at(self, path: str) -> Iterator[Wait]:
        """The waits that touch a path; one may come up several times."""
        for tree in self._wait_trees.values():
            for entries in tree.touching(path):
                yield from (wait for _, wait in entries)

    def stir(self, waits: Iterable[Wait]) -> None:
        """Has these looked at again: what they are parked under may be in their way no more."""
        for wait in waits:
            self._unpark(wait)
            self._state.assign(self._stirred, wait.wait_id, wait)

    def wake(self, blocker_id: str) -> None:
        """What these were parked under is gone."""
        self.stir(list(self._parked.get(blocker_id, {}).values()))

    @property
    def is_stirred(self) -> bool:
        """Whether there is anything for `settle` to look at."""
        return bool(self._stirred)

    def _before(self, wait: Wait) -> Iterator[Wait]:
        """Those before this one that it really waits for."""
        for _, other in self.before(wait):
            if not deadlock.waits_for(self._state, other.owner, wait.owner):
                yield other

    def _obstacle(self, wait: Wait) -> Held | Wait | None:
        """As `obstacle`, but first of all the last one before it at the same path, where there is one.

        So of a thousand that wait for one path each is parked under the one before it, and woken once.
        """
        for item in wait.items:
            for mode in _BOTH if item.exclusive else _EXCLUSIVE_ONLY:
                entries = self._wait_trees[mode].at(item.path)
                place = _place(entries, wait.order)
                other = entries[place - 1][1] if place else None
                if other is None or other.owner == wait.owner:
                    continue
                if not deadlock.waits_for(self._state, other.owner, wait.owner):
                    return other
        return self.obstacle(wait)

    def _park(self, wait: Wait, obstacle: Held | Wait) -> None:
        blocker_id = obstacle.lock_id if isinstance(obstacle, Held) else obstacle.wait_id
        parked = self._parked.get(blocker_id)
        if parked is None:
            parked = {}
            self._state.assign(self._parked, blocker_id, parked)
        self._state.assign(parked, wait.wait_id, wait)
        self._state.assign(self._under, wait.wait_id, blocker_id)

    def _unpark(self, wait: Wait) -> None:
        blocker_id = self._under.get(wait.wait_id)
        if blocker_id is None:
            return
        parked = self._parked[blocker_id]
        self._state.remove(self._under, wait.wait_id)
        self._state.remove(parked, wait.wait_id)
        if not parked:
            self._state.remove(self._parked, blocker_id)

    @contextmanager
    def awaiting_children(self, task_id: str) -> Iterator[None]:
        """While a call of the task's attempt waits for its children."""
        waits = self.child_waits
        waits[task_id] = waits.get(task_id, 0) + 1
        try:
            yield
        finally:
            waits[task_id] -= 1
            if not waits[task_id]:
                del waits[task_id]

    # -- the trees ---------------------------------------------------------------------------

    def _plant(self, tree: PathTree, path: str, key: str | Order, thing: Held | Wait) -> None:  # type: ignore[type-arg]
        tree.add(path, key, thing)
        self._state.on_rollback(tree.remove, path, key)

    def _uproot(self, tree: PathTree, path: str, key: str | Order, thing: Held | Wait) -> None:  # type: ignore[type-arg]
        tree.remove(path, key)
        self._state.on_rollback(tree.add, path, key, thing)


def _place(entries: list[tuple[Order, Wait]], order: Order) -> int:
    """How many of these come before the place `order`."""
    return bisect_left(entries, order, key=lambda entry: entry[0])
