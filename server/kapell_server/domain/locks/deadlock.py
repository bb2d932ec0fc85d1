"""Who waits for whom, and whether that goes round in a circle (L5).

The nodes are owners: tasks, sessions and plain acquisitions. The edges: a wait waits for those who hold
what is in its way; an attempt that waits for its children waits for each that has not ended; a task that has
not begun waits for its dependencies, and will wait for those who hold the locks that it declares. These
are the edges that last, and a circle of them is a deadlock. A place in the queue is an edge that gives
way: who holds something, or is waited for as a task, does not wait behind one who waits for him, which is what
`waits_for` is asked for. In every other circle, two edges that last follow one another at each holder, so
all of it lasts.

A circle can only be closed when somebody begins to wait, or is granted something while he waits
elsewhere. It goes through him, so one search from him finds it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from kapell.v1.error_pb2 import ERROR_REASON_DEADLOCK
from kapell.v1.lock_pb2 import (
    LOCK_MODE_SHARED,
    LOCK_WAIT_KIND_BEFORE,
    LOCK_WAIT_KIND_CHILD,
    LOCK_WAIT_KIND_DEPENDENCY,
    LOCK_WAIT_KIND_HELD,
    LockWaitKind,
)

from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks.entries import Item
from kapell_server.domain.locks.paths import touch
from kapell_server.domain.tasks.family import root_of
from kapell_server.domain.transitions import TASK_FINAL, TASK_LEASED

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_TASK = "task_"
_MOST_TEXT_HOPS = 8


class Hop(NamedTuple):
    """One waits for another. `item` is what is wanted and `path` what is in the way, for waits for locks."""

    source: str
    target: str
    kind: LockWaitKind.ValueType
    item: Item | None = None
    path: str = ""
    exclusive: bool = False

    def text(self) -> str:
        """The hop in words."""
        if self.kind == LOCK_WAIT_KIND_CHILD:
            return f"{self.source} waits for its child {self.target}"
        if self.kind == LOCK_WAIT_KIND_DEPENDENCY:
            return f"{self.source} depends on {self.target}"
        assert self.item is not None, "a wait for a lock wants a path"
        of = "" if self.path == self.item.path else f" (it has {self.path})"
        return f"{self.source} waits for {self.item.path} of {self.target}{of}"


def lasting_hops(state: State, owner_id: str) -> Iterator[Hop]:
    """For whom the owner waits, whatever the queue does; one may come up several times."""
    table = state.locks
    owner = table.owners.get(owner_id)
    if owner is not None:
        for wait in owner.waits.values():
            yield from _hops_to_holders(state, owner_id, wait.items)
    if owner_id.startswith(_TASK):
        yield from _hops_of_task(state, owner_id, parked=owner is not None and owner_id in owner.waits)


def all_hops(state: State, owner_id: str) -> Iterator[Hop]:
    """The same, and behind whom it stands in the queue."""
    yield from lasting_hops(state, owner_id)
    owner = state.locks.owners.get(owner_id)
    for wait in owner.waits.values() if owner is not None else ():
        for item, other in state.locks.nearest_before(wait):
            theirs = next((its for its in other.items if touch(its.path, item.path)), item)
            yield Hop(owner_id, other.owner, LOCK_WAIT_KIND_BEFORE, item, theirs.path, theirs.exclusive)


def _hops_to_holders(state: State, owner_id: str, items: tuple[Item, ...]) -> Iterator[Hop]:
    for item in items:
        for held in state.locks.held_against_item(item, owner_id):
            yield Hop(owner_id, held.owner, LOCK_WAIT_KIND_HELD, item, held.path, held.exclusive)


def _hops_of_task(state: State, task_id: str, *, parked: bool) -> Iterator[Hop]:
    task = state.find_task(task_id)
    if task is None or task.state in TASK_FINAL:
        return
    if task.state in TASK_LEASED:
        if state.locks.child_waits.get(task_id):
            for child_id, parent_id in list(state.families.of(root_of(task)).items()):
                child = state.find_task(child_id) if parent_id == task_id else None
                if child is not None and child.state not in TASK_FINAL:
                    yield Hop(task_id, child_id, LOCK_WAIT_KIND_CHILD)
        return
    for dependency_id in list(state.edges.unmet.get(task_id, ())):
        yield Hop(task_id, dependency_id, LOCK_WAIT_KIND_DEPENDENCY)
    if not parked and task.locks:
        items = tuple(Item(lock.path, lock.mode != LOCK_MODE_SHARED) for lock in task.locks)
        yield from _hops_to_holders(state, task_id, items)


def waits_for(state: State, owner_id: str, goal_id: str) -> bool:
    """Whether the one waits, directly or by any detour, for the other, who holds something or is a task waited for.

    Places in the queue count as waits; who only stands in one himself, and has nothing, gives way to nobody.
    """
    if not _is_waited_for(state, goal_id):
        return False
    seen = {owner_id}
    pending = [owner_id]
    while pending:
        for hop in all_hops(state, pending.pop()):
            if hop.target == goal_id:
                return True
            if hop.target not in seen:
                seen.add(hop.target)
                pending.append(hop.target)
    return False


def reached_from(state: State, owner_id: str) -> set[str]:
    """All for whom the owner waits, directly or by any detour."""
    seen: set[str] = set()
    pending = [owner_id]
    while pending:
        for hop in all_hops(state, pending.pop()):
            if hop.target not in seen:
                seen.add(hop.target)
                pending.append(hop.target)
    return seen


def check(state: State, owner_id: str) -> None:
    """Called when the owner has begun to wait, or got something while it may be waiting. Raises DEADLOCK."""
    if _is_waited_for(state, owner_id):
        cycle = find_cycle(state, owner_id)
        if cycle:
            raise deadlock(cycle)
    notice(state, owner_id)


def notice(state: State, owner_id: str) -> None:
    """Has those looked at again whose place in the queue is part of a circle through the owner: it gives way now."""
    table = state.locks
    if not _is_waited_for(state, owner_id) and not table.anyone_behind(owner_id):
        return
    reached = reached_from(state, owner_id)
    if owner_id not in reached:
        return
    for key in reached:
        owner = table.owners.get(key)
        if owner is not None:
            table.stir([wait for wait in owner.waits.values() if wait.wait_id not in table.offered])


def find_cycle(state: State, owner_id: str) -> list[Hop]:
    """A circle through the owner of hops that last; empty where there is none."""
    came_by: dict[str, Hop] = {}
    pending = [owner_id]
    while pending:
        for hop in lasting_hops(state, pending.pop()):
            if hop.target in came_by:
                continue
            came_by[hop.target] = hop
            if hop.target == owner_id:
                return _trail(came_by, hop)
            pending.append(hop.target)
    return []


def _trail(came_by: dict[str, Hop], last: Hop) -> list[Hop]:
    trail = [last]
    while trail[-1].source != last.target:
        trail.append(came_by[trail[-1].source])
    return trail[::-1]


def _is_waited_for(state: State, owner_id: str) -> bool:
    """Whether anybody could wait for the owner for other reasons than its place in a queue. Cheap, and often False."""
    owner = state.locks.owners.get(owner_id)
    if owner is not None and owner.held:
        return True
    if not owner_id.startswith(_TASK):
        return False
    task = state.find_task(owner_id)
    parent_id = task.parent_task_id if task is not None else ""
    return parent_id in state.locks.child_waits or owner_id in state.edges.dependants


def deadlock(cycle: list[Hop]) -> KapellError:
    """The refusal of the request that would close the circle."""
    hops = [hop.text() for hop in cycle]
    if len(hops) > _MOST_TEXT_HOPS:
        left_out = len(hops) - _MOST_TEXT_HOPS
        hops[_MOST_TEXT_HOPS // 2 : -_MOST_TEXT_HOPS // 2] = [f"and {left_out} more"]
    names = " → ".join([cycle[0].source, *(hop.target for hop in cycle)])
    return KapellError(
        ERROR_REASON_DEADLOCK,
        f"This wait would never end: {'; '.join(hops)}."
        " Release what is held before asking for this, or ask for all of it in one call.",
        metadata={"cycle": names},
    )
