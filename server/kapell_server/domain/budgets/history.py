"""What tasks of a template have used so far: the estimate of those that declare none.

Of each template the latest attempts that succeeded, in memory: after a restart it is learnt anew, and until then
the default of each budget is reserved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from kapell_server.domain.budgets.amounts import Measure

ENOUGH = 5
"""Fewer attempts say nothing."""
_LOOKED_BACK = 100
_REFRESH = 10
"""After so many attempts the figures are reckoned anew."""
_TEMPLATES = 2_000


@dataclass(frozen=True, slots=True)
class Habits:
    """The 95th percentile of what attempts have used; None where nothing is known."""

    cost: int | None = None
    tokens: int | None = None
    wall_time: int | None = None

    def of(self, measure: Measure) -> int | None:
        """That of one measure."""
        match measure:
            case "cost":
                return self.cost
            case "tokens":
                return self.tokens
            case "wall_time":
                return self.wall_time
            case "tasks":
                return 1


@dataclass(frozen=True, slots=True)
class Used:
    """What one attempt has used; cost and tokens are None where it has recorded no usage."""

    cost: int | None
    tokens: int | None
    wall_time: int


class History:
    """The latest attempts of each template. A guess that a failed batch has spoilt is still a guess: not undone."""

    def __init__(self) -> None:
        self._used: dict[str, deque[Used]] = {}
        self._habits: dict[str, Habits] = {}
        self._news: dict[str, int] = {}
        """How many attempts a template's habits do not know yet."""

    def of(self, template_id: str) -> Habits | None:
        """What is known of a template."""
        if not template_id:
            return None
        news = self._news.get(template_id, 0)
        if news and (news >= _REFRESH or template_id not in self._habits):
            latest = self._used[template_id]
            if len(latest) >= ENOUGH:
                self._habits[template_id] = _habits(latest)
                self._news[template_id] = 0
        return self._habits.get(template_id)

    def note(self, template_id: str, used: Used) -> None:
        """An attempt at a task of the template has succeeded."""
        if not template_id:
            return
        if template_id not in self._used and len(self._used) >= _TEMPLATES:
            forgotten = next(iter(self._used))
            del self._used[forgotten]
            self._habits.pop(forgotten, None)
            self._news.pop(forgotten, None)
        latest = self._used.setdefault(template_id, deque(maxlen=_LOOKED_BACK))
        latest.append(used)
        self._news[template_id] = self._news.get(template_id, 0) + 1


def _habits(latest: Iterable[Used]) -> Habits:
    every = list(latest)
    return Habits(
        _percentile([one.cost for one in every]),
        _percentile([one.tokens for one in every]),
        _percentile([one.wall_time for one in every]),
    )


def _percentile(values: list[int | None]) -> int | None:
    known = sorted(value for value in values if value is not None)
    return known[min(len(known) - 1, len(known) * 95 // 100)] if len(known) >= ENOUGH else None
