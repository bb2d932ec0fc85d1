"""The QUEUED tasks: those that could run right now, best first, and those that a limit holds back.

A cache of the database, held in memory. A task that a limit holds back is parked under that limit
and woken by it, so a flood of such tasks costs dispatch nothing. Heaps are hints: `_places` alone
says where a task stands, so nothing is ever removed from the middle of a heap.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kapell.v1.task_pb2 import Task

from kapell_server.domain.times import timestamp_ns

_SLACK = 64
Journal = Callable[..., None]
"""Takes a function and its arguments: how to undo what was just done."""


class ReadyEntry(NamedTuple):
    """A place in the queue; sorts by priority (higher first), rank, time of queueing, id."""

    negative_priority: int
    rank: int
    queue_ns: int
    task_id: str
    agent_type: str
    keys: tuple[str, ...] = ()
    arrival_ns: int = 0
    """When it first joined; 0 for `queue_ns`."""
    locked: bool = False
    """Whether it declares locks."""


_Place = tuple[ReadyEntry, str]
"""An entry, and the concurrency key it is parked under; empty where it could run."""


def entry_of(task: Task) -> ReadyEntry:
    """The place of a QUEUED task."""
    queue_ns = timestamp_ns(task.queue_time)
    keys = tuple(task.concurrency_keys)
    first_ns = timestamp_ns(task.first_queue_time) if keys else 0
    place = -task.priority, task.queue_rank, queue_ns
    return ReadyEntry(*place, task.task_id, task.agent_type, keys, first_ns, bool(task.locks))


class _Line:
    """The tasks of one agent type that could run: a heap for each priority."""

    __slots__ = ("heaps", "order", "size")

    def __init__(self) -> None:
        self.heaps: dict[int, list[ReadyEntry]] = {}
        self.order: list[int] = []
        """The priorities, negative, so that the first is the highest."""
        self.size = 0
        """Entries in all heaps, those that mean nothing any more included."""

    def push(self, entry: ReadyEntry) -> None:
        heap = self.heaps.get(entry.negative_priority)
        if heap is None:
            heap = self.heaps[entry.negative_priority] = []
            bisect.insort(self.order, entry.negative_priority)
        heapq.heappush(heap, entry)
        self.size += 1

    def entries(self) -> Iterator[ReadyEntry]:
        return itertools.chain.from_iterable(self.heaps.values())

    def rebuild(self, entries: Iterable[ReadyEntry]) -> None:
        self.heaps.clear()
        self.order.clear()
        self.size = 0
        for entry in entries:
            self.push(entry)


class ReadyIndex:
    """Where every QUEUED task stands. All changes are journaled."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._places: dict[str, _Place] = {}
        self._lines: dict[str, _Line] = {}
        self._parked: dict[str, dict[str, list[ReadyEntry]]] = {}
        self._depths: dict[str, int] = {}
        self._blocked: dict[str, int] = {}
        self._ages: dict[str, list[tuple[int, str]]] = {}
        """Of each type its tasks by time of queueing, as a heap; for figures, so that they look at few."""

    # -- changes -----------------------------------------------------------------------------

    def add(self, entry: ReadyEntry, gate: str = "") -> None:
        """Puts a task in its place: among those that could run, or parked under a key."""
        task_id = entry.task_id
        self._journal(self._set, task_id, self._places.get(task_id))
        self._set(task_id, (entry, gate))

    def remove(self, task_id: str) -> _Place | None:
        """Takes a task out; tells where it stood."""
        place = self._places.get(task_id)
        if place is not None:
            self._journal(self._set, task_id, place)
            self._set(task_id, None)
        return place

    def wake(self, key: str, agent_type: str, count: int) -> int:
        """Moves the best tasks of a type that are parked under a key to where they could run."""
        heap = self._parked.get(key, {}).get(agent_type)
        woken = 0
        while heap and woken < count:
            entry = heapq.heappop(heap)
            if self._is_at(entry, key):
                self.add(entry)
                woken += 1
        return woken

    def heads(self, key: str) -> Iterator[ReadyEntry]:
        """Of each type the best task that is parked under a key."""
        for heap in self._parked.get(key, {}).values():
            while heap and not self._is_at(heap[0], key):
                heapq.heappop(heap)
            if heap:
                yield heap[0]

    def unpark(self, task_id: str) -> str:
        """Moves a task that is parked to where it could run, whatever it is parked under. Its type, if it was."""
        place = self._places.get(task_id)
        if place is None or not place[1]:
            return ""
        self.add(place[0])
        return place[0].agent_type

    def _set(self, task_id: str, place: _Place | None) -> None:
        """The one change of a place; its own inverse with the place before."""
        old = self._places.pop(task_id, None)
        if old is not None:
            agent_type = old[0].agent_type
            self._depths[agent_type] -= 1
            if old[1]:
                self._blocked[agent_type] -= 1
        if place is None:
            return
        entry, gate = place
        self._places[task_id] = place
        agent_type = entry.agent_type
        depth = self._depths[agent_type] = self._depths.get(agent_type, 0) + 1
        if old is None or old[0].queue_ns != entry.queue_ns:
            self._note_age(entry, depth)
        if gate:
            self._blocked[agent_type] = self._blocked.get(agent_type, 0) + 1
            self._park(entry, gate)
            return
        line = self._lines.get(agent_type)
        if line is None:
            line = self._lines[agent_type] = _Line()
        line.push(entry)
        if line.size > 2 * depth + _SLACK:
            line.rebuild({one for one in line.entries() if self._is_at(one, "")})

    def _park(self, entry: ReadyEntry, gate: str) -> None:
        heap = self._parked.setdefault(gate, {}).setdefault(entry.agent_type, [])
        heapq.heappush(heap, entry)
        if len(heap) > 2 * self._blocked[entry.agent_type] + _SLACK:
            heap[:] = {one for one in heap if self._is_at(one, gate)}
            heapq.heapify(heap)

    def _note_age(self, entry: ReadyEntry, depth: int) -> None:
        ages = self._ages.setdefault(entry.agent_type, [])
        heapq.heappush(ages, (entry.queue_ns, entry.task_id))
        if len(ages) > 2 * depth + _SLACK:
            ages[:] = {one for one in ages if self._is_queued_since(*one)}
            heapq.heapify(ages)

    def _is_queued_since(self, queue_ns: int, task_id: str) -> bool:
        place = self._places.get(task_id)
        return place is not None and place[0].queue_ns == queue_ns

    def _is_at(self, entry: ReadyEntry, gate: str) -> bool:
        """Whether an entry of a heap still means something."""
        place = self._places.get(entry.task_id)
        return place is not None and place[1] == gate and place[0] == entry

    def load(self, entries: Iterable[tuple[ReadyEntry, str]]) -> None:
        """Takes over everything at the start, each with the key it is parked under."""
        for entry, gate in entries:
            self._set(entry.task_id, (entry, gate))

    # -- questions ---------------------------------------------------------------------------

    def first(self, agent_type: str) -> ReadyEntry | None:
        """The next of a type by priority and rank."""
        return next(self._heads(agent_type), None)

    def oldest(self, agent_type: str) -> ReadyEntry | None:
        """Of the next ones of every priority, the one that has waited longest."""
        return min(self._heads(agent_type), key=lambda entry: entry.queue_ns, default=None)

    def _heads(self, agent_type: str) -> Iterator[ReadyEntry]:
        """The next task of each priority, the highest first; drops what means nothing any more."""
        line = self._lines.get(agent_type)
        if line is None:
            return
        places = self._places
        for priority in tuple(line.order):
            heap = line.heaps[priority]
            while heap:
                entry = heap[0]
                place = places.get(entry.task_id)
                if place is not None and (place[0] is entry or place[0] == entry) and not place[1]:
                    yield entry
                    break
                heapq.heappop(heap)
                line.size -= 1
            else:
                del line.heaps[priority]
                line.order.remove(priority)

    def in_order(self, agent_type: str, most: int) -> list[ReadyEntry]:
        """The first of a type by priority and rank, for whoever cannot take the very first; looks at `most` places."""
        found: dict[str, ReadyEntry] = {}
        line = self._lines.get(agent_type)
        for priority in tuple(line.order) if line is not None else ():
            heap = line.heaps[priority]  # type: ignore[union-attr]
            places = [(heap[0], 0)] if heap else []
            while places and most:
                most -= 1
                entry, place = heapq.heappop(places)
                if self._is_at(entry, ""):
                    found[entry.task_id] = entry
                for below in (2 * place + 1, 2 * place + 2):
                    if below < len(heap):
                        heapq.heappush(places, (heap[below], below))
        return list(found.values())

    def about_first(self, agent_type: str, count: int) -> list[ReadyEntry]:
        """About the first `count` entries; for prefetching, not for decisions."""
        line = self._lines.get(agent_type)
        if line is None or not line.order:
            return []
        return heapq.nsmallest(count, line.heaps[line.order[0]][: 4 * count])

    def place_of(self, task_id: str) -> tuple[ReadyEntry, str] | None:
        """Where a QUEUED task stands, and under which key it is parked."""
        return self._places.get(task_id)

    def before(
        self, entry: ReadyEntry, is_open: Callable[[str], bool], most: int
    ) -> tuple[dict[str, ReadyEntry], bool]:
        """The tasks of its type that come before `entry`, by id: those that could run, and those parked under
        a name that is open. Looks at `most` places and names at most; the second value tells whether these are all.
        """
        found: dict[str, ReadyEntry] = {}
        room = most
        for heap, gate in self._heaps_before(entry, is_open, most):
            if heap is None:
                return found, False
            places = [0]
            while places:
                place = places.pop()
                if place >= len(heap) or not heap[place] < entry:
                    continue  # Nor does what is below it in the heap come before the entry.
                if not room:
                    return found, False
                room -= 1
                one = heap[place]
                if self._is_at(one, gate):
                    found[one.task_id] = one
                places += (2 * place + 1, 2 * place + 2)
        return found, True

    def _heaps_before(
        self, entry: ReadyEntry, is_open: Callable[[str], bool], most: int
    ) -> Iterator[tuple[list[ReadyEntry] | None, str]]:
        """The heaps in which tasks may come before an entry, each with its gate; None where there are too many."""
        line = self._lines.get(entry.agent_type)
        for priority in line.order if line is not None else ():
            if priority <= entry.negative_priority:
                yield line.heaps[priority], ""  # type: ignore[union-attr]
        for number, (name, heaps) in enumerate(self._parked.items()):
            if number == most:
                yield None, ""
                return
            heap = heaps.get(entry.agent_type)
            if heap and heap[0] < entry and is_open(name):
                yield heap, name

    def oldest_ns(self, agent_type: str) -> int:
        """Since when the QUEUED task of a type that has waited longest is waiting; 0 where none does."""
        ages = self._ages.get(agent_type)
        while ages:
            if self._is_queued_since(*ages[0]):
                return ages[0][0]
            heapq.heappop(ages)
        return 0

    def is_parked_under(self, key: str) -> bool:
        """Whether any task waits under a key."""
        return any(self._is_at(entry, key) for heap in self._parked.get(key, {}).values() for entry in heap)

    def types_parked_under(self, key: str) -> list[str]:
        """The agent types that have, or had, tasks parked under a key."""
        return list(self._parked.get(key, ()))

    def depths(self) -> dict[str, int]:
        """QUEUED tasks by agent type, without the types that have none."""
        return {agent_type: depth for agent_type, depth in self._depths.items() if depth}

    def depth(self, agent_type: str) -> int:
        """QUEUED tasks of a type."""
        return self._depths.get(agent_type, 0)

    def blocked(self, agent_type: str) -> int:
        """Those of them that are parked."""
        return self._blocked.get(agent_type, 0)

    def types(self) -> int:
        """How many agent types have a place here, with or without tasks."""
        return len(self._lines)

    def trim(self) -> None:
        """Forgets empty heaps, and types without tasks; between batches only."""
        for key in [key for key, heaps in self._parked.items() if not any(heaps.values())]:
            del self._parked[key]
        for agent_type in [agent_type for agent_type, depth in self._depths.items() if not depth]:
            for table in (self._lines, self._depths, self._blocked, self._ages):
                table.pop(agent_type, None)
