"""The time over which a budget adds up, as functions of their arguments alone.

What is spent is put into slices, each known by the time it begins: all of a calendar window is one slice,
as is all of time; a rolling window has sixty and a part. A slice counts as a whole until its last
moment has left the window, so what is counted is never less than what was spent. Times are integer
nanoseconds; 0 stands for never.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kapell.v1.budget_pb2 import CALENDAR_UNIT_DAY, CALENDAR_UNIT_WEEK, BudgetWindow, CalendarUnit

from kapell_server.domain.times import SECOND, duration_ns

SLICES = 60
"""Slices in a rolling window."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class ZoneError(ValueError):
    """There is no such time zone."""


@dataclass(frozen=True, slots=True)
class Span:
    """From a time to another, which is no part of it. An `end_ns` of 0: for ever."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Forever:
    """Nothing comes back."""

    def span(self, at_ns: int) -> Span:
        return Span(0, 0)

    def slice_of(self, at_ns: int) -> int:
        return 0

    def leaves_ns(self, slice_ns: int) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Rolling:
    """The last so long."""

    length_ns: int

    def span(self, at_ns: int) -> Span:
        """The window as it is at a moment. It has no end: it moves on."""
        return Span(at_ns - self.length_ns, 0)

    def slice_of(self, at_ns: int) -> int:
        return at_ns - at_ns % self._slice_ns

    def leaves_ns(self, slice_ns: int) -> int:
        return slice_ns + self._slice_ns + self.length_ns

    @property
    def _slice_ns(self) -> int:
        return -(-self.length_ns // SLICES)


@dataclass(frozen=True, slots=True)
class Calendar:
    """Days, weeks or months of a zone."""

    unit: CalendarUnit.ValueType
    zone: ZoneInfo

    def span(self, at_ns: int) -> Span:
        """The day, week or month of a moment. Where clocks go back over midnight, the new day has begun."""
        day = _first_day(self.unit, datetime.fromtimestamp(at_ns // SECOND, self.zone).date())
        following = _next_first_day(self.unit, day)
        while (end_ns := first_instant_ns(following, self.zone)) <= at_ns:
            day, following = following, _next_first_day(self.unit, following)
        return Span(first_instant_ns(day, self.zone), end_ns)

    def slice_of(self, at_ns: int) -> int:
        return self.span(at_ns).start_ns

    def leaves_ns(self, slice_ns: int) -> int:
        return self.span(slice_ns).end_ns


Window = Forever | Rolling | Calendar


def window_of(said: BudgetWindow) -> Window:
    """The window that a budget says. Raises ZoneError."""
    match said.WhichOneof("window"):
        case "rolling":
            return Rolling(duration_ns(said.rolling))
        case "calendar":
            return Calendar(said.calendar.unit, _zone(said.calendar.time_zone or "UTC"))
        case _:
            return Forever()


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ZoneError(f"is no time zone that is known here: {name}") from None


def _first_day(unit: CalendarUnit.ValueType, day: date) -> date:
    if unit == CALENDAR_UNIT_DAY:
        return day
    if unit == CALENDAR_UNIT_WEEK:
        return day - timedelta(days=day.weekday())
    return day.replace(day=1)


def _next_first_day(unit: CalendarUnit.ValueType, day: date) -> date:
    if unit == CALENDAR_UNIT_DAY:
        return day + timedelta(days=1)
    if unit == CALENDAR_UNIT_WEEK:
        return day + timedelta(days=7)
    return (day.replace(day=1) + timedelta(days=31)).replace(day=1)


@lru_cache(maxsize=1024)
def first_instant_ns(day: date, zone: ZoneInfo) -> int:
    """The first moment at which it is this day, or a later one, in the zone.

    That is midnight, its first where there are two; where clocks are set forward over midnight, it is the
    moment at which they are.
    """
    midnight = _seconds(datetime(day.year, day.month, day.day, tzinfo=zone))
    if datetime.fromtimestamp(midnight - 1, zone).date() < day:
        return midnight * SECOND
    before, since = midnight - 86_400, midnight  # The change is at most a day back: a whole day may be left out.
    while since - before > 1:
        middle = (before + since) // 2
        if datetime.fromtimestamp(middle, zone).date() < day:
            before = middle
        else:
            since = middle
    return since * SECOND


def _seconds(moment: datetime) -> int:
    delta = moment.astimezone(UTC) - _EPOCH
    return delta.days * 86_400 + delta.seconds
