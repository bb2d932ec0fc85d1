"""Fair share: tasks of one type and priority run in the order of a virtual time.

Each fairness key gets a virtual time of its own, one step a task; a key that has been idle begins
at the time of what runs now. So keys take turns, however many tasks each of them has (start-time
fair queueing, all tasks of equal cost). With one key alone this is the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kapell_server.domain.queueing.ready import Journal, ReadyEntry


class _Class:
    """One agent type at one priority: the time that has been served, and each key's latest stamp."""

    __slots__ = ("now", "stamps")

    def __init__(self) -> None:
        self.now = 0
        self.stamps: dict[str, tuple[int, int]] = {}
        """By key, the rank of its latest task and how many are queued. A key with none begins at `now`."""


class FairShare:
    """Stamps tasks as they join their queue. All changes are journaled."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._classes: dict[tuple[str, int], _Class] = {}

    def stamp(self, agent_type: str, priority: int, fairness_key: str) -> int:
        """The rank of a task that joins the queue now."""
        found = self._class(agent_type, priority)
        before = found.stamps.get(fairness_key)
        last, queued = before or (0, 0)
        rank = max(found.now, last) + 1
        found.stamps[fairness_key] = rank, queued + 1
        self._journal(_restore, found.stamps, fairness_key, before)
        return rank

    def left(self, entry: ReadyEntry, fairness_key: str, *, served: bool) -> None:
        """A task leaves the queue. Where an agent has it, the time of its class moves up to it.

        A key with nothing queued is forgotten: it has no credit, and owes nothing for what was cancelled.
        """
        found = self._class(entry.agent_type, -entry.negative_priority)
        before = found.stamps[fairness_key]
        last, queued = before
        if queued > 1:
            found.stamps[fairness_key] = last, queued - 1
        else:
            del found.stamps[fairness_key]
        self._journal(_restore, found.stamps, fairness_key, before)
        if served and entry.rank > found.now:
            self._journal(setattr, found, "now", found.now)
            found.now = entry.rank

    def load(self, queued: Iterable[tuple[ReadyEntry, str, str]]) -> None:
        """Takes over the stamps of what is queued, at the start, as (entry, fairness key, key it is parked under).

        Time goes on from the first task that could run: one that has long been parked does not turn it back.
        """
        first: dict[tuple[str, int], tuple[bool, int]] = {}
        for entry, fairness_key, gate in queued:
            of = entry.agent_type, -entry.negative_priority
            stamps = self._class(*of).stamps
            last, count = stamps.get(fairness_key, (0, 0))
            stamps[fairness_key] = max(last, entry.rank), count + 1
            found = bool(gate), entry.rank
            first[of] = min(first.get(of, found), found)
        for of, (_, rank) in first.items():
            self._class(*of).now = max(0, rank - 1)

    def trim(self) -> None:
        """Forgets the times of types and priorities of which nothing is queued; between batches only."""
        for of in [of for of, found in self._classes.items() if not found.stamps]:
            del self._classes[of]

    def _class(self, agent_type: str, priority: int) -> _Class:
        found = self._classes.get((agent_type, priority))
        if found is None:
            found = self._classes[agent_type, priority] = _Class()
        return found


def _restore(mapping: dict[str, Any], key: str, old: Any) -> None:
    if old is None:
        mapping.pop(key, None)
    else:
        mapping[key] = old
