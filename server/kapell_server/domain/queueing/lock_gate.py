"""The locks that tasks declare, as a gate: a task starts when all of them are free and nobody is due before it.

Who waits stands in the queue of the table of locks (`domain/locks/table`), beside calls and tickets, and holds
nothing there. Of the tasks of one type that want the same locks, at least one of them EXCLUSIVE, only the first
stands in it: the others are behind it here, and cost nothing until it starts or goes. So a lock that is given back
moves one task of a thousand. The table offers a task its locks; then it is ready, and keeps its place for its *turn*:

- as long as dispatch looks for an agent,
- for a second more where an agent of its type has a free slot and is just about to ask,
- and, once it has waited longer than `starving_after`, for a quarter of its waiting beyond that, where agents of its
  type are there at all. So it gets its locks in the end, even if its agents are busy whenever these are free.

After that it gives way, so that a type that nobody serves blocks nobody: it stays ready, and takes its old place again
when an agent asks for it and finds its locks taken.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE
from kapell.v1.lock_pb2 import LOCK_BLOCKER_KIND_HELD, LOCK_MODE_SHARED, LockBlocker
from kapell.v1.task_pb2 import WAIT_KIND_LOCK, Blocker, Task

from kapell_server.domain.locks import task_locks
from kapell_server.domain.locks.entries import Order, Wait, order_of
from kapell_server.domain.locks.grants import name_of
from kapell_server.domain.locks.paths import touch
from kapell_server.domain.queueing.ready import ReadyEntry
from kapell_server.domain.queueing.wording import NAMED
from kapell_server.domain.times import SECOND, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_PARKED = "lock/"
"""The one name of this gate: whom it lets go, it says itself."""
_ABOUT_TO_ASK = SECOND
_SHARE = 4
_MANY_LINES = 4096
_SLACK = 64

_Like = tuple[str, tuple[tuple[str, bool], ...], str]
"""What tasks of one line have in common: their type and their locks. Readers, who do not exclude each other, have
lines of their own: the id is theirs."""


class LockGate:
    """Who waits for locks, and in which line. All changes are journaled."""

    kind = "lock"

    def __init__(self, state: State, let_try: Callable[[str], None]) -> None:
        self._state = state
        self._let_try = let_try
        self._lines: dict[str, _Like] = {}
        """The line of each task that is in one."""
        self._heads: dict[_Like, str] = {}
        """Who stands, or may stand, in the queue for its line."""
        self._behind: dict[_Like, dict[str, Order]] = {}
        self._heaps: dict[_Like, list[Order]] = {}
        """Those behind, the first one first. Hints: some may have gone."""
        self._many = _MANY_LINES
        self._turns: dict[str, int] = {}
        """Tasks that were offered their locks, each with the end of its turn."""

    # -- as a gate ---------------------------------------------------------------------------

    def join(self, entry: ReadyEntry) -> None:
        pass

    def leave(self, entry: ReadyEntry) -> None:
        if entry.locked:
            self._go(entry.task_id)

    def closed(self, entry: ReadyEntry) -> str:
        if not entry.locked or task_locks.may_take(self._state, self._state.task(entry.task_id)):
            return ""
        return _PARKED

    def parked(self, entry: ReadyEntry, name: str) -> None:
        """The task takes its place in its line, and the first of the line in the queue."""
        state = self._state
        task = state.task(entry.task_id)
        like = _like(task)
        state.remove(self._turns, task.task_id)
        head = self._heads.get(like, "")
        if head == task.task_id:
            task_locks.unpark(state, head)  # It was offered them, and they were taken all the same.
            task_locks.park(state, task)
            return
        state.assign(self._lines, task.task_id, like)
        waiting = state.locks.waits.get(head)
        order = _order(task)
        if waiting is not None and (waiting.order < order or head in state.locks.offered):
            self._stand_behind(like, task.task_id, order)
            return
        if waiting is not None:
            task_locks.unpark(state, head)
            self._stand_behind(like, head, waiting.order)
        elif head:
            state.remove(self._lines, head)  # It is ready, and on its own from now on.
        state.assign(self._heads, like, task.task_id)
        task_locks.park(state, task)

    def forgo(self, entry: ReadyEntry, name: str) -> None:
        if entry.locked and name and name != _PARKED:
            self._go(entry.task_id)

    def take(self, task: Task) -> None:
        """Taken in `attempt.grant`, since the task is put with its tokens."""

    def give_back(self, task: Task) -> None:
        """Locks end with the lease."""

    def room(self, name: str) -> int:
        return 0

    def blockers(self, task: Task) -> Iterator[Blocker]:
        found = task_locks.blockers(self._state, task, NAMED)
        yield from map(_told, found)
        like = self._lines.get(task.task_id)
        head = self._heads.get(like, "") if like is not None else ""
        if not found and head != task.task_id and head:
            text = f"It needs {task.locks[0].path}: {head} wants the same and comes first."
            yield Blocker(kind=WAIT_KIND_LOCK, message=text, blocked_by=[head])

    # -- lines ---------------------------------------------------------------------------------

    def _stand_behind(self, like: _Like, task_id: str, order: Order) -> None:
        state = self._state
        behind = self._behind.get(like)
        if behind is None:
            behind = {}
            state.assign(self._behind, like, behind)
        state.assign(behind, task_id, order)
        heap = self._heaps.setdefault(like, [])
        heapq.heappush(heap, order)
        if len(heap) > 2 * len(behind) + _SLACK:
            heap[:] = behind.values()
            heapq.heapify(heap)

    def _go(self, task_id: str) -> None:
        """The task is in no line any more; where it was the first one, the next one takes its place."""
        state = self._state
        like = self._lines.get(task_id)
        state.remove(self._turns, task_id)
        if like is None:
            return
        state.remove(self._lines, task_id)
        if self._heads.get(like) == task_id:
            task_locks.unpark(state, task_id)
            self._advance(like)
        else:
            # The heap is not journaled, so what comes back gets its hint anew.
            state.on_rollback(heapq.heappush, self._heaps[like], self._behind[like][task_id])
            state.remove(self._behind[like], task_id)

    def _advance(self, like: _Like) -> None:
        state = self._state
        behind = self._behind.get(like, {})
        heap = self._heaps.get(like, [])
        while heap:
            order = heapq.heappop(heap)
            state.on_rollback(heapq.heappush, heap, order)
            task_id = order[1]
            if behind.get(task_id) == order:
                state.remove(behind, task_id)
                state.assign(self._heads, like, task_id)
                task_locks.park(state, state.task(task_id))
                return
        state.remove(self._heads, like)

    def trim(self) -> None:
        """Forgets lines without tasks, once they are many; between batches only."""
        if len(self._heaps) <= self._many:
            return
        for like in [like for like in self._heaps if not self._behind.get(like)]:
            del self._heaps[like]
            self._behind.pop(like, None)
        self._many = max(_MANY_LINES, 2 * len(self._heaps))

    def behind(self) -> Iterator[str]:
        """The tasks that wait for locks without a place in the queue of the table."""
        for tasks in self._behind.values():
            yield from tasks

    def first_behind(self, path: str, most: int) -> list[tuple[Wait, int]]:
        """The first of those behind whose locks touch the path, in order; each with how many of its line precede."""
        places = ((order, like) for like in self._lines_at(path) for order in self._behind[like].values())
        counts: dict[_Like, int] = {}
        found: list[tuple[Wait, int]] = []
        for (_, task_id), like in heapq.nsmallest(most, places):
            wait = task_locks.wait_of(self._state, self._state.task(task_id))
            found.append((wait, counts.setdefault(like, 0)))
            counts[like] += 1
        return found

    def count_behind(self, path: str) -> int:
        """How many there are of these."""
        return sum(len(self._behind[like]) for like in self._lines_at(path))

    def _lines_at(self, path: str) -> list[_Like]:
        """The lines of locks that touch the path; all where it is empty."""
        return [like for like in self._behind if not path or any(touch(path, its) for its, _ in like[1])]

    # -- turns -----------------------------------------------------------------------------------

    def let_offered_try(self) -> None:
        """Those that the table has offered their locks are ready now."""
        state = self._state
        least: dict[str, int | None] = {}
        for task_id, wait in list(state.locks.offered.items()):
            if task_id in self._turns:
                continue
            agent_type = self._lines[task_id][0]
            if agent_type not in least:
                least[agent_type] = self._least_turn_ns(agent_type)
            until_ns = state.now_ns
            if (least_ns := least[agent_type]) is not None:
                waited_ns = state.now_ns - wait.arrival_ns
                starved_ns = waited_ns - int(state.settings.starving_after * SECOND)
                until_ns += max(starved_ns // _SHARE, least_ns)
            state.assign(self._turns, task_id, until_ns)
            self._let_try(task_id)

    def _least_turn_ns(self, agent_type: str) -> int | None:
        """How long every task of a type keeps its place without an agent; None where nobody serves it."""
        state = self._state
        agents = (one for one in state.agents.values() if one.state == AGENT_STATE_ACTIVE)
        serving = [one for one in agents if agent_type in one.agent_types]
        if not serving:
            return None
        free = any(state.leases.used(one.agent_id) < one.slots_total for one in serving)
        return _ABOUT_TO_ASK if free else 0

    def end_turns(self) -> bool:
        """After dispatch: those whose turn is over give way. Tells whether the table has to look at anybody again."""
        state = self._state
        for task_id, wait in list(state.locks.offered.items()):
            until_ns = self._turns.get(task_id, 0)
            if until_ns > state.now_ns:
                state.schedule(until_ns, "turn/locks")
            else:
                state.remove(self._turns, task_id)
                state.locks.leave(wait)
        return state.locks.is_stirred


def _like(task: Task) -> _Like:
    items = tuple((lock.path, lock.mode != LOCK_MODE_SHARED) for lock in task.locks)
    return task.agent_type, items, "" if any(exclusive for _, exclusive in items) else task.task_id


def _order(task: Task) -> Order:
    return order_of(timestamp_ns(task.queue_time), task.priority, task.task_id)


def _told(found: LockBlocker) -> Blocker:
    """A blocker of a lock in words: path, mode, whose, since when, until when."""
    who = name_of(found.owner)
    if found.kind != LOCK_BLOCKER_KIND_HELD:
        does = f"asked for {found.path} before"
    elif found.mode == LOCK_MODE_SHARED:
        does = f"holds {found.path} to share it with readers"
    else:
        does = f"holds {found.path}"
    text = f"It needs {found.wanted_path}: {who} {does}."
    owner = found.owner
    named = owner.task_id or owner.session_id or owner.grant_id
    blocker = Blocker(kind=WAIT_KIND_LOCK, message=text, blocked_by=[named])
    blocker.since_time.CopyFrom(found.since_time)
    if found.HasField("expire_time"):
        blocker.until_time.CopyFrom(found.expire_time)
    return blocker
