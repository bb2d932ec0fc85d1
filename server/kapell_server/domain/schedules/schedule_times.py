"""When a schedule runs: the times of a cron expression or an interval, as functions of their arguments alone.

cronsim reads expressions and knows which days match; how a day's local times become times is decided
here, since that is where clocks are set forward and back. Times are integer nanoseconds, those of
cron whole seconds; 0 stands for no time at all. The surprise: two kinds of expression cross a
change of the clocks in two ways, see proto/kapell/v1/schedule.proto.
"""

from __future__ import annotations

from bisect import bisect_right
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import chain, takewhile
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from kapell.v1.schedule_pb2 import PreviewScheduleRequest, ScheduleSpec

from kapell_server.domain.times import SECOND, duration_ns, timestamp_ns

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = ("minute", "hour", "day-of-month", "month", "day-of-week")
_DAY = 86_400
_EPOCH = date(1970, 1, 1)
_LOOK_AHEAD_DAYS = 50 * 366


class CalendarError(ValueError):
    """A calendar that cannot be. `field` is that of ScheduleSpec; the text reads on from its name."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class Rule(Protocol):
    """Endless times in order."""

    def after(self, ns: int) -> int:
        """The first time strictly after `ns`; 0 where there is none."""
        ...

    def count(self, first_ns: int, until_ns: int, limit: int) -> int:
        """How many times there are from `first_ns`, which is one, through `until_ns`; counting ends at `limit`."""
        ...

    def latest(self, first_ns: int, until_ns: int) -> int:
        """The last time not after `until_ns`, where `first_ns` is one that is not."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """Every multiple of a length, counted from a start, which is the first time."""

    length_ns: int
    start_ns: int

    def after(self, ns: int) -> int:
        if ns < self.start_ns:
            return self.start_ns
        return self.start_ns + ((ns - self.start_ns) // self.length_ns + 1) * self.length_ns

    def count(self, first_ns: int, until_ns: int, limit: int) -> int:
        return min(limit, (until_ns - first_ns) // self.length_ns + 1)

    def latest(self, first_ns: int, until_ns: int) -> int:
        return first_ns + (until_ns - first_ns) // self.length_ns * self.length_ns


@dataclass(frozen=True, slots=True)
class Cron:
    """The times of a cron expression in a zone."""

    expression: str
    """Five fields."""
    zone: ZoneInfo

    def after(self, ns: int) -> int:
        return next(self._moments(ns // SECOND), 0) * SECOND

    def count(self, first_ns: int, until_ns: int, limit: int) -> int:
        return sum(1 for _, _ in zip(range(limit), self._through(first_ns, until_ns), strict=False))

    def latest(self, first_ns: int, until_ns: int) -> int:
        # Looking back in growing steps: a gap may hold very many times, of which only the last is wanted.
        back = 3600 * SECOND
        while until_ns - back > first_ns:
            found = self.after(until_ns - back)
            if found and found <= until_ns:
                first_ns = found
                break
            back *= 8
        for found in self._through(first_ns, until_ns):
            first_ns = found
        return first_ns

    def _through(self, first_ns: int, until_ns: int) -> Iterator[int]:
        """The times from `first_ns`, which is one, through `until_ns`."""
        rest = (moment * SECOND for moment in self._moments(first_ns // SECOND))
        return takewhile(lambda at: at <= until_ns, chain((first_ns,), rest))

    def _moments(self, after: int) -> Iterator[int]:
        """The times strictly after `after`, in seconds."""
        return self._fixed_moments(after) if self._is_fixed else self._passing_moments(after)

    @property
    def _is_fixed(self) -> bool:
        """Whether the expression names times of the day, and not a rhythm."""
        minute, hour, *_ = self.expression.split()
        return not minute.startswith("*") and not hour.startswith("*")

    def _walls(self, after: int) -> Iterator[int]:
        """Local times that match, in seconds as if of UTC, strictly after `after`; ends after 50 years without one."""
        cron, times = _parsed(self.expression)
        day, since = divmod(after, _DAY)
        todays = times[bisect_right(times, since) :]
        last = day + _LOOK_AHEAD_DAYS
        while day <= last:
            here = _EPOCH + timedelta(days=day)
            if here.month not in cron.months:
                day += monthrange(here.year, here.month)[1] - here.day
            elif cron.match_day(here):
                begin = day * _DAY
                yield from [begin + time for time in todays]
                last = day + _LOOK_AHEAD_DAYS
            todays = times
            day += 1

    def _fixed_moments(self, after: int) -> Iterator[int]:
        """A local time stands for the first moment the clocks show it, or would have: the end of the gap."""
        for wall in self._walls(after + _offset(after, self.zone)):
            found = self._first_moment(wall)
            if found > after:
                yield found
                after = found

    def _passing_moments(self, after: int) -> Iterator[int]:
        """A local time stands for every moment the clocks show it: none in a gap, two in a repeated hour."""
        change: int | None = after + 1
        while change is not None:
            begin, change = change, None
            offset = _offset(begin, self.zone)
            for wall in self._walls(begin - 1 + offset):
                change = _change(begin, wall - offset, self.zone)
                if change is not None:
                    break
                begin = wall - offset
                yield begin

    def _first_moment(self, wall: int) -> int:
        naive = _naive(wall)
        before = wall - _seconds(naive.replace(tzinfo=self.zone))
        if before + _offset(before, self.zone) == wall:
            return before
        after = wall - _seconds(naive.replace(tzinfo=self.zone, fold=1))
        change = _change(after, before, self.zone)
        assert change is not None, f"{wall} is skipped in {self.zone}, so there is a change of offset around it"
        return change


@dataclass(frozen=True, slots=True)
class Calendar:
    """The times of a rule between a start and an end, which is not among them; 0 for no end."""

    rule: Rule
    start_ns: int
    end_ns: int

    def after(self, ns: int) -> int:
        """The first time strictly after `ns`; 0 where there is none."""
        found = self.rule.after(max(ns, self.start_ns - 1))
        return 0 if self.end_ns and found >= self.end_ns else found

    def count(self, first_ns: int, until_ns: int, limit: int) -> int:
        """How many times there are from `first_ns`, which is one, through `until_ns`; counting ends at `limit`."""
        until_ns = self._bounded(until_ns)
        return self.rule.count(first_ns, until_ns, limit) if until_ns >= first_ns else 0

    def latest(self, first_ns: int, until_ns: int) -> int:
        """The last time not after `until_ns`, where `first_ns` is one that is not."""
        return self.rule.latest(first_ns, self._bounded(until_ns))

    def preview(self, after_ns: int, count: int, horizon_ns: int) -> list[int]:
        """Up to `count` times after `after_ns`, none beyond `horizon_ns`."""

        def times() -> Iterator[int]:
            at = after_ns
            while at := self.after(at):
                yield at

        return [at for at, _ in zip(takewhile(lambda at: at <= horizon_ns, times()), range(count), strict=False)]

    def _bounded(self, ns: int) -> int:
        return min(ns, self.end_ns - 1) if self.end_ns else ns


def calendar_of(spec: ScheduleSpec | PreviewScheduleRequest, default_start_ns: int) -> Calendar:
    """The times a spec names. `default_start_ns` is the start where it says none. Raises CalendarError."""
    start_ns = timestamp_ns(spec.start_time) if spec.HasField("start_time") else default_start_ns
    end_ns = timestamp_ns(spec.end_time)
    if end_ns and end_ns <= start_ns:
        raise CalendarError("end_time", "must be later than the start")
    zone = zone_of(spec.time_zone)
    match spec.WhichOneof("calendar"):
        case "cron":
            return Calendar(Cron(checked(spec.cron, zone), zone), start_ns, end_ns)
        case "interval":
            return Calendar(Interval(duration_ns(spec.interval), start_ns), start_ns, end_ns)
        case _:
            raise CalendarError("cron", "or interval is required: say when it runs")


@lru_cache(maxsize=1024)
def _parsed(expression: str) -> tuple[CronSim, tuple[int, ...]]:
    """What matches days, and the times of a day that match, in seconds."""
    cron = CronSim(expression, datetime(2000, 1, 1))
    return cron, tuple(sorted(hour * 3600 + minute * 60 for hour in cron.hours for minute in cron.minutes))


def zone_of(name: str) -> ZoneInfo:
    """The zone of an IANA name; UTC for an empty one. Raises CalendarError."""
    try:
        return ZoneInfo(name or "UTC")
    except (ValueError, OSError, KeyError):  # a path that leaves the database, a folder of it, or no such zone
        raise CalendarError(
            "time_zone", f"is no time zone: {name!r}; use a name of the IANA database, as in 'Europe/Berlin'"
        ) from None


def checked(cron: str, zone: ZoneInfo) -> str:
    """The expression in five fields, aliases resolved. Raises CalendarError."""
    text = cron.strip()
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            raise CalendarError("cron", f"has no alias {text!r}; there are: {', '.join(ALIASES)}")
        text = ALIASES[text.lower()]
    parts = text.split()
    if len(parts) != len(_FIELDS):
        raise CalendarError(
            "cron", f"has {len(parts)} fields, not five: minute, hour, day of month, month and day of week"
        )
    try:
        _parsed(text)
    except (CronSimError, AssertionError) as error:
        field = str(error).removeprefix("Bad ")
        part = parts[_FIELDS.index(field)] if field in _FIELDS else text
        raise CalendarError("cron", f"has a {field or 'field'} that cannot be: {part!r}") from None
    return text


def _naive(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _offset(seconds: int, zone: ZoneInfo) -> int:
    """By how much local time is ahead of UTC at a moment, seconds."""
    return _seconds(datetime.fromtimestamp(seconds, zone))


def _seconds(local: datetime) -> int:
    offset = local.utcoffset()
    assert offset is not None, "a time in a zone has an offset"
    return offset.days * _DAY + offset.seconds


def _change(first: int, last: int, zone: ZoneInfo) -> int | None:
    """The first moment in (first, last] whose offset is not that of `first`. No zone changes twice in a day."""
    offset = _offset(first, zone)
    low = first
    while low < last:
        high = min(low + _DAY, last)
        if _offset(high, zone) != offset:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
            return high
        low = high
    return None
