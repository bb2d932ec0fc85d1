"""Starts in a period: exact sliding windows of queues and concurrency keys.

A limit is named "queue/TYPE" or "key/KEY". Starts are rows as well, since a restart must not forget
them. When a rate is used up, the time it frees a start is looked at.
"""

from __future__ import annotations

import bisect
from collections import deque
from typing import TYPE_CHECKING

from kapell.v1.queue_pb2 import StartRate

from kapell_server.domain.times import duration_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State


class Starts:
    """When tasks under a start rate began, as far back as the rate looks."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._starts: dict[str, deque[int]] = {}

    def next_ns(self, limit_id: str, rate: StartRate) -> int:
        """When the rate allows another start; 0 for now."""
        starts = self._starts.get(limit_id, ())
        if len(starts) < rate.count:
            return 0
        free_ns = starts[-rate.count] + duration_ns(rate.period)
        return free_ns if free_ns > self._state.now_ns else 0

    def left(self, limit_id: str, rate: StartRate) -> int:
        """How many more starts the rate allows now."""
        starts = self._starts.get(limit_id, ())
        over = bisect.bisect_right(starts, self._state.now_ns - duration_ns(rate.period))
        return rate.count - (len(starts) - over)

    def note(self, limit_id: str, rate: StartRate) -> None:
        """A task starts."""
        state = self._state
        starts = self._starts.setdefault(limit_id, deque())
        now = max(state.tick_ns(), starts[-1] + 1 if starts else 0)
        starts.append(now)
        state.on_rollback(starts.pop)
        state.assign(state.pending.starts, (limit_id, now), now - duration_ns(rate.period))

    def watch(self, limit_id: str, rate: StartRate) -> bool:
        """Whether the rate is used up; if so, the time it frees a start is looked at."""
        free_ns = self.next_ns(limit_id, rate)
        self._state.schedule(free_ns, limit_id)
        return bool(free_ns)

    def forget(self, limit_id: str) -> None:
        """The rate of a limit is no more."""
        state = self._state
        state.remove(self._starts, limit_id)
        for key in [key for key in state.pending.starts if key[0] == limit_id]:
            state.remove(state.pending.starts, key)
        state.assign(state.pending.forgotten_starts, limit_id, True)

    def load(self, limit_id: str, start_ns: int) -> None:
        """Takes over a start of the database; in order of time."""
        self._starts.setdefault(limit_id, deque()).append(start_ns)

    def trim(self) -> None:
        """Forgets what the batch's starts have made too old, as the database does; between batches only."""
        for (limit_id, _), floor_ns in self._state.pending.starts.items():
            starts = self._starts.get(limit_id)
            while starts and starts[0] <= floor_ns:
                starts.popleft()
