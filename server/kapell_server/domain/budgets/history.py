"""What tasks of a template have used so far: the estimate of those that declare none.

Of each template the latest attempts that succeeded, in memory. What was before the start is read from the database
when a template is first asked about; of a task that was tried more than once that is what all its attempts have used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapell_server.domain.budgets.amounts import Measure, milliseconds
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.usage.entry import usage_id_of_task

if TYPE_CHECKING:
    from kapell_server.domain.state import State

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

    def __init__(self, state: State) -> None:
        self._state = state
        self._used: dict[str, deque[Used]] = {}
        self._habits: dict[str, Habits] = {}
        self._news: dict[str, int] = {}
        """How many attempts a template's habits do not know yet."""

    def of(self, template_id: str) -> Habits | None:
        """What is known of a template."""
        if not template_id:
            return None
        latest = self._known(template_id)
        news = self._news[template_id]
        if news and (news >= _REFRESH or template_id not in self._habits) and len(latest) >= ENOUGH:
            self._habits[template_id] = _habits(latest)
            self._news[template_id] = 0
        return self._habits.get(template_id)

    def note(self, template_id: str, used: Used) -> None:
        """An attempt at a task of the template has succeeded."""
        if template_id:
            self._known(template_id).append(used)
            self._news[template_id] += 1

    def _known(self, template_id: str) -> deque[Used]:
        """The latest attempts of a template; the first time as the database has them."""
        latest = self._used.get(template_id)
        if latest is None:
            if len(self._used) >= _TEMPLATES:
                forgotten = next(iter(self._used))
                del self._used[forgotten], self._news[forgotten]
                self._habits.pop(forgotten, None)
            latest = self._used[template_id] = deque(self._load(template_id), maxlen=_LOOKED_BACK)
            self._news[template_id] = len(latest)
        return latest

    def _load(self, template_id: str) -> Iterator[Used]:
        state = self._state
        attempts = state.loader.load_succeeded(template_id, _LOOKED_BACK)
        state.usage.prefetch_totals(usage_id_of_task(attempt.task_id) for attempt in attempts)
        for attempt in reversed(attempts):
            own = state.usage.total(usage_id_of_task(attempt.task_id)).own
            took = milliseconds(timestamp_ns(attempt.end_time) - timestamp_ns(attempt.start_time))
            tokens = own.figures().input + own.figures().output
            yield Used(own.cost, tokens, took) if own.records else Used(None, None, took)


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
