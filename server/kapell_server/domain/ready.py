"""The QUEUED tasks: those that could run right now, best first, and those that a limit holds back.

A cache of the database, held in memory. A task that a limit holds back is parked under that limit
and woken by it, so a flood of such tasks costs dispatch nothing. Heaps are hints: `_places` alone
says where a task stands, so nothing is ever removed from the middle of a heap.
"""

from __future__ import annotations

import heapq
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


class _Place(NamedTuple):
    entry: ReadyEntry
    gate: str
    """The concurrency key it is parked under; empty where it could run."""


def entry_of(task: Task) -> ReadyEntry:
    """The place of a QUEUED task."""
    keys = tuple(task.concurrency_keys) if task.concurrency_keys else ()
    queue_ns = timestamp_ns(task.queue_time)
    return ReadyEntry(-task.priority, task.queue_rank, queue_ns, task.task_id, task.agent_type, keys)


class _Line:
    """Two orders over the same entries: by rank, for dispatch, and by age, so that nothing starves."""

    __slots__ = ("by_age", "by_rank")

    def __init__(self) -> None:
        self.by_rank: list[ReadyEntry] = []
        self.by_age: list[tuple[int, ReadyEntry]] = []


class ReadyIndex:
    """Where every QUEUED task stands. All changes are journaled."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._places: dict[str, _Place] = {}
        self._lines: dict[str, _Line] = {}
        self._parked: dict[str, dict[str, list[ReadyEntry]]] = {}
        self._depths: dict[str, int] = {}
        self._blocked: dict[str, int] = {}

    # -- changes -----------------------------------------------------------------------------

    def add(self, entry: ReadyEntry, gate: str = "") -> None:
        """Puts a task in its place: among those that could run, or parked under a key."""
        self._move(entry.task_id, _Place(entry, gate))

    def remove(self, task_id: str) -> tuple[ReadyEntry, str] | None:
        """Takes a task out; tells where it stood."""
        place = self._places.get(task_id)
        if place is not None:
            self._move(task_id, None)
        return place

    def wake(self, key: str, agent_type: str, count: int) -> int:
        """Moves the best tasks of a type that are parked under a key to where they could run."""
        heap = self._parked.get(key, {}).get(agent_type)
        woken = 0
        while heap and woken < count:
            entry = heapq.heappop(heap)
            if self._is_at(entry, key):
                self._move(entry.task_id, _Place(entry, ""))
                woken += 1
        return woken

    def _move(self, task_id: str, to: _Place | None) -> None:
        """The one change of a place; its own inverse with the place before."""
        self._journal(self._set, task_id, self._places.get(task_id))
        self._set(task_id, to)

    def _set(self, task_id: str, place: _Place | None) -> None:
        old = self._places.pop(task_id, None)
        if old is not None:
            self._count(old, -1)
        if place is None:
            return
        self._places[task_id] = place
        self._count(place, 1)
        self._push(place)

    def _push(self, place: _Place) -> None:
        entry, gate = place
        if gate:
            heap = self._parked.setdefault(gate, {}).setdefault(entry.agent_type, [])
            heapq.heappush(heap, entry)
            if len(heap) > 2 * self._blocked.get(entry.agent_type, 0) + _SLACK:
                heap[:] = {one for one in heap if self._is_at(one, gate)}
                heapq.heapify(heap)
            return
        line = self._lines.get(entry.agent_type)
        if line is None:
            line = self._lines[entry.agent_type] = _Line()
        heapq.heappush(line.by_rank, entry)
        heapq.heappush(line.by_age, (entry.queue_ns, entry))
        if max(len(line.by_rank), len(line.by_age)) > 2 * self._depths[entry.agent_type] + _SLACK:
            fresh = {one for one in line.by_rank if self._is_at(one, "")}
            line.by_rank[:] = fresh
            line.by_age[:] = [(one.queue_ns, one) for one in fresh]
            heapq.heapify(line.by_rank)
            heapq.heapify(line.by_age)

    def _is_at(self, entry: ReadyEntry, gate: str) -> bool:
        """Whether an entry of a heap still means something."""
        place = self._places.get(entry.task_id)
        return place is not None and place.gate == gate and place.entry == entry

    def _count(self, place: _Place, by: int) -> None:
        agent_type = place.entry.agent_type
        self._depths[agent_type] = self._depths.get(agent_type, 0) + by
        if place.gate:
            self._blocked[agent_type] = self._blocked.get(agent_type, 0) + by

    def load(self, entries: Iterable[tuple[ReadyEntry, str]]) -> None:
        """Takes over everything at the start, each with the key it is parked under."""
        for entry, gate in entries:
            self._set(entry.task_id, _Place(entry, gate))

    # -- questions ---------------------------------------------------------------------------

    def first(self, agent_type: str) -> ReadyEntry | None:
        """The next of a type by priority and rank."""
        line = self._lines.get(agent_type)
        if line is None:
            return None
        heap = line.by_rank
        while heap and not self._is_at(heap[0], ""):
            heapq.heappop(heap)
        return heap[0] if heap else None

    def oldest(self, agent_type: str) -> ReadyEntry | None:
        """The one of a type that could run and has waited longest."""
        line = self._lines.get(agent_type)
        if line is None:
            return None
        heap = line.by_age
        while heap and not self._is_at(heap[0][1], ""):
            heapq.heappop(heap)
        return heap[0][1] if heap else None

    def about_first(self, agent_type: str, count: int) -> list[ReadyEntry]:
        """About the first `count` entries; for prefetching, not for decisions."""
        line = self._lines.get(agent_type)
        return heapq.nsmallest(count, line.by_rank[: 4 * count]) if line is not None else []

    def place_of(self, task_id: str) -> tuple[ReadyEntry, str] | None:
        """Where a QUEUED task stands, and under which key it is parked."""
        return self._places.get(task_id)

    def ahead_of(self, entry: ReadyEntry) -> int:
        """How many tasks of its type could run and come before it. Looks at all of them."""
        line = self._lines.get(entry.agent_type)
        heap: list[ReadyEntry] = line.by_rank if line is not None else []
        return len({one.task_id for one in heap if one < entry and self._is_at(one, "")})

    def entries(self, agent_type: str) -> Iterator[ReadyEntry]:
        """Every QUEUED task of a type, in no order. Looks at all tasks."""
        return (place.entry for place in self._places.values() if place.entry.agent_type == agent_type)

    def types_parked_under(self, key: str) -> list[str]:
        """The agent types that have, or had, tasks parked under a key."""
        return list(self._parked.get(key, ()))

    def depths(self) -> dict[str, int]:
        """QUEUED tasks by agent type, without the types that have none."""
        return {agent_type: depth for agent_type, depth in self._depths.items() if depth}

    def blocked(self, agent_type: str) -> int:
        """Those of them that are parked."""
        return self._blocked.get(agent_type, 0)

    def trim(self) -> None:
        """Forgets empty heaps; between batches only."""
        for key in [key for key, heaps in self._parked.items() if not any(heaps.values())]:
            del self._parked[key]
