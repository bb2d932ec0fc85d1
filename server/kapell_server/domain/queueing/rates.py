"""How many a second, over the last minute. Figures for people; decisions do not look at them."""

from __future__ import annotations

from collections import deque

from kapell_server.domain.times import SECOND

_WINDOW = 60


class Rate:
    """Counts by second."""

    __slots__ = ("_seconds", "_since")

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()
        self._since = 0

    def note(self, now_ns: int, count: int) -> None:
        """`count` more."""
        second = now_ns // SECOND
        if not self._since:
            self._since = second
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += count
        else:
            self._seconds.append([second, count])
            self._forget(second)

    def per_second(self, now_ns: int) -> float:
        """The mean of the last minute, or of the time since the first note where that is less."""
        second = now_ns // SECOND
        self._forget(second)
        total = sum(count for _, count in self._seconds)
        span = min(_WINDOW, second - self._since + 1)
        return total / span

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - _WINDOW:
            self._seconds.popleft()
