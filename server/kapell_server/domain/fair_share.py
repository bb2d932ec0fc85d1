"""Fair share: tasks of one type and priority run in the order of a virtual time.

Each fairness key gets a virtual time of its own, one step a task; a key that has been idle begins
at the time of what runs now. So keys take turns, however many tasks each of them has (start-time
fair queueing, all tasks of equal cost). With one key alone this is the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kapell_server.domain.ready import Journal, ReadyEntry


class _Class:
    """One agent type at one priority: the time that has been served, and each key's latest stamp."""

    __slots__ = ("now", "stamps")

    def __init__(self) -> None:
        self.now = 0
        self.stamps: dict[str, int] = {}


class FairShare:
    """Stamps tasks as they join their queue. All changes are journaled."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._classes: dict[tuple[str, int], _Class] = {}
        self._crowded: set[tuple[str, int]] = set()

    def stamp(self, agent_type: str, priority: int, fairness_key: str) -> int:
        """The rank of a task that joins the queue now."""
        found = self._class(agent_type, priority)
        before = found.stamps.get(fairness_key)
        rank = max(found.now, before or 0) + 1
        found.stamps[fairness_key] = rank
        self._journal(_restore, found.stamps, fairness_key, before)
        if len(found.stamps) > _CROWD:
            self._crowded.add((agent_type, priority))
        return rank

    def served(self, entry: ReadyEntry) -> None:
        """A task leaves the queue for an agent: the time of its class moves up to it."""
        found = self._class(entry.agent_type, -entry.negative_priority)
        if entry.rank > found.now:
            self._journal(setattr, found, "now", found.now)
            found.now = entry.rank

    def load(self, queued: Iterable[tuple[ReadyEntry, str]]) -> None:
        """Takes over the stamps of what is queued, at the start. The second value is its fairness key."""
        lowest: dict[tuple[str, int], int] = {}
        for entry, fairness_key in queued:
            of = entry.agent_type, -entry.negative_priority
            stamps = self._class(*of).stamps
            stamps[fairness_key] = max(stamps.get(fairness_key, 0), entry.rank)
            lowest[of] = min(lowest.get(of, entry.rank), entry.rank)
        for of, rank in lowest.items():
            self._class(*of).now = max(0, rank - 1)

    def trim(self) -> None:
        """Forgets the keys whose turn is over; between batches only."""
        for of in self._crowded:
            found = self._classes[of]
            found.stamps = {key: stamp for key, stamp in found.stamps.items() if stamp > found.now}
        self._crowded.clear()

    def _class(self, agent_type: str, priority: int) -> _Class:
        found = self._classes.get((agent_type, priority))
        if found is None:
            found = self._classes[agent_type, priority] = _Class()
        return found


_CROWD = 1024


def _restore(mapping: dict[str, Any], key: str, old: Any) -> None:
    if old is None:
        mapping.pop(key, None)
    else:
        mapping[key] = old
