"""Time as an argument: what the engine reads once a batch, and tests set by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. Nothing else in the server reads a clock for a decision."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may jump."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now_ns(self) -> int:
        return time.time_ns()


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self, now_ns: int = 1_800_000_000_000_000_000) -> None:
        self._now = now_ns

    def now_ns(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves the clock; negative jumps back."""
        self._now += int(seconds * 1_000_000_000)
