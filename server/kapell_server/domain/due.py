"""Who is to be looked at, and when: one entry a subject, of which memory holds those that are due before a horizon.

An entry is a hint: the look decides what is due, and asks for the next one. So an entry that comes too
early costs a look, and only one that is missing is a defect. Owned by the writer, as State is.
"""

from __future__ import annotations

import heapq

_SLACK = 1024


class DueTable:
    """Tasks, agents and whatever else the time may change, by their ids. Times in nanoseconds."""

    def __init__(self) -> None:
        self.horizon_ns = 0
        """From here on the database knows more tasks that are due; 0 where memory knows all of them."""
        self.at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def schedule(self, due_ns: int, subject_id: str) -> None:
        """Asks for a look at `due_ns`, or earlier where that was asked for; 0 asks for none."""
        if not due_ns:
            return
        scheduled = self.at.get(subject_id)
        if scheduled is None or due_ns < scheduled:
            self.at[subject_id] = due_ns
            heapq.heappush(self._heap, (due_ns, subject_id))

    def forget(self, subject_id: str) -> int:
        """When the subject was to be looked at; 0 for never. It will not be."""
        return self.at.pop(subject_id, 0)

    def is_within_horizon(self, due_ns: int) -> bool:
        """Whether memory has to know of a task that is due then; 0 is never due."""
        return bool(due_ns) and (not self.horizon_ns or due_ns < self.horizon_ns)

    def next_ns(self) -> int:
        """When to look next; 0 for never. At the horizon the database is to be asked."""
        first = self._heap[0][0] if self._heap else 0
        horizon = self.horizon_ns
        return min(first, horizon) if first and horizon else first or horizon

    def has(self, now_ns: int) -> bool:
        """Whether there is anything in memory to look at now."""
        return bool(self._heap) and self._heap[0][0] <= now_ns

    def take(self, now_ns: int, limit: int) -> list[str]:
        """Up to `limit` subjects whose time has come, earliest first."""
        subjects: list[str] = []
        while self._heap and self._heap[0][0] <= now_ns and len(subjects) < limit:
            due_ns, subject_id = heapq.heappop(self._heap)
            if self.at.get(subject_id) == due_ns:
                del self.at[subject_id]
                subjects.append(subject_id)
        return subjects

    def trim(self) -> None:
        """Drops what is in the heap only because something earlier, or nothing any more, took its place."""
        if len(self._heap) > 2 * len(self.at) + _SLACK:
            self._heap = [(due_ns, subject_id) for subject_id, due_ns in self.at.items()]
            heapq.heapify(self._heap)
