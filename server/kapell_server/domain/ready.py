"""The tasks that could run right now, best first, by agent type.

A cache of the database, held in memory: only QUEUED tasks are in it, so a flood of waiting
tasks costs dispatch nothing. Entries are hints. Whoever takes one checks it against the task,
so a changed priority or a cancelled task needs no removal.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from kapell.v1.task_pb2 import TASK_STATE_QUEUED, Task

from kapell_server.domain.times import timestamp_ns


class ReadyEntry(NamedTuple):
    """A place in the queue; sorts by priority (higher first), then by time of queueing, then by id."""

    negative_priority: int
    queue_ns: int
    task_id: str

    def still_means(self, task: Task | None) -> bool:
        """Whether the task still stands at this place."""
        return (
            task is not None
            and task.state == TASK_STATE_QUEUED
            and task.priority == -self.negative_priority
            and timestamp_ns(task.queue_time) == self.queue_ns
        )


def entry_of(task: Task) -> ReadyEntry:
    """The place of a QUEUED task."""
    return ReadyEntry(-task.priority, timestamp_ns(task.queue_time), task.task_id)


class ReadyIndex:
    """A heap of entries an agent type. Counts are kept by the caller's puts: see `depth`."""

    def __init__(self) -> None:
        self._heaps: dict[str, list[ReadyEntry]] = {}
        self._depths: dict[str, int] = {}

    def push(self, agent_type: str, entry: ReadyEntry) -> None:
        """Adds an entry, or gives one back that was taken."""
        heapq.heappush(self._heaps.setdefault(agent_type, []), entry)

    def load(self, agent_type: str, entries: list[ReadyEntry]) -> None:
        """Replaces everything of one type, for the start."""
        heapq.heapify(entries)
        self._heaps[agent_type] = entries
        self._depths[agent_type] = len(entries)

    def peek(self, agent_type: str) -> ReadyEntry | None:
        """The best entry of a type."""
        heap = self._heaps.get(agent_type)
        return heap[0] if heap else None

    def pop(self, agent_type: str) -> ReadyEntry:
        """Takes the best entry of a type that has one."""
        return heapq.heappop(self._heaps[agent_type])

    def first(self, agent_type: str, count: int) -> list[ReadyEntry]:
        """About the first `count` entries, best first; for prefetching, not for decisions."""
        return heapq.nsmallest(count, self._heaps.get(agent_type, ())[: 4 * count])

    def best_type(self, agent_types: list[str]) -> str | None:
        """The type among these whose first entry comes first of all."""
        best: ReadyEntry | None = None
        chosen = None
        for agent_type in agent_types:
            entry = self.peek(agent_type)
            if entry is not None and (best is None or entry < best):
                best, chosen = entry, agent_type
        return chosen

    def adjust_depth(self, agent_type: str, by: int) -> None:
        """Keeps count of QUEUED tasks as they come and go."""
        self._depths[agent_type] = self._depths.get(agent_type, 0) + by

    def depths(self) -> dict[str, int]:
        """QUEUED tasks by agent type, without the types that have none."""
        return {agent_type: depth for agent_type, depth in self._depths.items() if depth}
