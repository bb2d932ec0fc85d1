"""Times of schedules, across every change of the clocks, against an oracle that steps minute by minute."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st
from kapell.v1.schedule_pb2 import ScheduleSpec
from kapell_server.domain.schedules.schedule_times import Calendar, CalendarError, Cron, Interval, calendar_of, checked
from kapell_server.domain.times import SECOND

# A day on which the clocks of the zone are set, and what is odd there.
CHANGES = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("America/New_York", "2026-03-08"),
    ("America/New_York", "2026-11-01"),
    ("America/Havana", "2026-03-08"),  # midnight is skipped
    ("America/Havana", "2026-11-01"),  # the hour before 1:00 comes twice
    ("America/Santiago", "2026-04-05"),  # the last hour of the day before comes twice
    ("Australia/Lord_Howe", "2026-04-05"),  # by half an hour
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Pacific/Apia", "2011-12-30"),  # a whole day is skipped
    ("Asia/Kathmandu", "2026-05-05"),  # never
    ("UTC", "2026-03-29"),
]


@dataclass(frozen=True)
class Field:
    """One field of an expression: how it is written, and which numbers it means."""

    text: str
    values: frozenset[int]


def fields(low: int, high: int, *, sizes: int = 4) -> st.SearchStrategy[Field]:
    """Stars, steps, ranges and lists of numbers."""
    everything = Field("*", frozenset(range(low, high + 1)))
    steps = st.integers(1, high).map(lambda n: Field(f"*/{n}", frozenset(range(low, high + 1, n))))
    bounds = st.tuples(st.integers(low, high), st.integers(low, high)).map(sorted)
    ranges = bounds.map(lambda b: Field(f"{b[0]}-{b[1]}", frozenset(range(b[0], b[1] + 1))))
    numbers = st.sets(st.integers(low, high), min_size=1, max_size=sizes)
    lists = numbers.map(lambda n: Field(",".join(map(str, sorted(n))), frozenset(n)))
    return st.just(everything) | steps | ranges | lists


@dataclass(frozen=True)
class Expression:
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field

    def __str__(self) -> str:
        return " ".join(field.text for field in (self.minute, self.hour, self.day, self.month, self.weekday))

    @property
    def is_fixed(self) -> bool:
        return not self.minute.text.startswith("*") and not self.hour.text.startswith("*")

    def matches(self, wall: datetime) -> bool:
        by_day, by_weekday = wall.day in self.day.values, wall.isoweekday() % 7 in self.weekday.values
        either = not self.day.text.startswith("*") and not self.weekday.text.startswith("*")
        return (
            wall.minute in self.minute.values
            and wall.hour in self.hour.values
            and wall.month in self.month.values
            and (by_day or by_weekday if either else by_day and by_weekday)
        )


every_day = st.just(Field("*", frozenset(range(32))))
expressions = st.builds(
    Expression,
    fields(0, 59),
    fields(0, 23) | st.sets(st.integers(0, 3), min_size=1).map(lambda h: Field(",".join(map(str, h)), frozenset(h))),
    every_day | fields(1, 31, sizes=12),
    every_day | fields(1, 12, sizes=9),
    every_day | fields(0, 6),
)


def oracle(expression: Expression, zone: ZoneInfo, first: datetime, last: datetime) -> list[datetime]:
    """The runs in (first, last], by looking at every minute of three days before and all between.

    What the clocks have shown once is remembered: a fixed time counts the first time it is shown,
    and where minutes are left out, at the first minute after them.
    """
    found = []
    at = first - timedelta(days=3)
    shown = at.astimezone(zone).replace(tzinfo=None)
    while at < last:
        at += timedelta(minutes=1)
        wall = at.astimezone(zone).replace(tzinfo=None)
        if not expression.is_fixed:
            runs = expression.matches(wall)
        else:
            runs = False
            while shown < wall:
                shown += timedelta(minutes=1)
                runs = runs or expression.matches(shown)
        if runs and at > first:
            found.append(at)
    return found


def ns(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND


def moments(*times_ns: int) -> list[datetime]:
    return [datetime.fromtimestamp(at // SECOND, UTC) for at in times_ns]


def through(rule: Cron, first: datetime, last: datetime) -> list[datetime]:
    found, at = [], ns(first)
    while (at := rule.after(at)) and at <= ns(last):
        found.append(at)
    return moments(*found)


TENS = Field("*/10", frozenset(range(0, 60, 10)))
LIST = Field("0,30", frozenset({0, 30}))
STAR = Field("*", frozenset(range(32)))


@given(
    expression=expressions,
    change=st.sampled_from(CHANGES),
    offset=st.integers(-1500, 1500),
)
@example(Expression(LIST, Field("2", frozenset({2})), STAR, STAR, STAR), CHANGES[0], -200)
@example(
    Expression(Field("*/10", frozenset(range(0, 60, 10))), Field("2", frozenset({2})), STAR, STAR, STAR), CHANGES[7], 0
)
@example(Expression(LIST, Field("0-23", frozenset(range(24))), STAR, STAR, STAR), CHANGES[9], -1000)
def test_cron_agrees_with_a_walk_over_every_minute(
    expression: Expression, change: tuple[str, str], offset: int
) -> None:
    zone = ZoneInfo(change[0])
    first = datetime.fromisoformat(change[1]).replace(tzinfo=UTC) + timedelta(minutes=offset)
    last = first + timedelta(days=2)
    try:
        rule = Cron(checked(str(expression), zone), zone)
    except CalendarError:  # 31 * 2: a day that no month of it has
        return

    assert through(rule, first, last) == oracle(expression, zone, first, last)


def cron(text: str, zone: str = "UTC", **fields: Timestamp) -> Calendar:
    return calendar_of(ScheduleSpec(cron=text, time_zone=zone, **fields), 0)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "after", "expected"),
    [
        ("0 3 * * *", "Europe/Berlin", "2026-01-01T00:00", ["2026-01-01T02:00", "2026-01-02T02:00"]),
        # 2:30 is skipped: once, at 3:00, which is 1:00 in UTC; the day after as always.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        # 2:30 comes twice: only the first.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("*/30 2 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-30T00:00", "2026-03-30T00:30"]),
        ("@hourly", "Europe/Berlin", "2026-10-24T23:59", ["2026-10-25T00:00", "2026-10-25T01:00"]),
        ("@daily", "Asia/Kathmandu", "2026-05-05T00:00", ["2026-05-05T18:15", "2026-05-06T18:15"]),
        ("@weekly", "UTC", "2026-05-05T00:00", ["2026-05-10T00:00", "2026-05-17T00:00"]),
        ("@monthly", "UTC", "2026-05-05T00:00", ["2026-06-01T00:00", "2026-07-01T00:00"]),
        ("@Yearly", "UTC", "2026-05-05T00:00", ["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("0 9 * * mon-FRI", "UTC", "2026-05-08T10:00", ["2026-05-11T09:00", "2026-05-12T09:00"]),
        ("0 0 L * *", "UTC", "2026-05-08T10:00", ["2026-05-31T00:00", "2026-06-30T00:00"]),
        ("0 0 * * MON#2", "UTC", "2026-05-08T10:00", ["2026-05-11T00:00", "2026-06-08T00:00"]),
        ("0 0 29 2 *", "UTC", "2026-05-08T10:00", ["2028-02-29T00:00", "2032-02-29T00:00"]),
    ],
)  # fmt: skip
def test_the_next_times(text: str, zone: str, after: str, expected: list[str]) -> None:
    assert moments(*cron(text, zone).preview(ns(utc(after)), 2, 1 << 62)) == [utc(time) for time in expected]


@pytest.mark.parametrize(
    ("spec", "field", "what"),
    [
        ({"cron": "0 3 * *"}, "cron", "has 4 fields"),
        ({"cron": "0 0 3 * * *"}, "cron", "has 6 fields"),
        ({"cron": "61 3 * * *"}, "cron", "minute that cannot be: '61'"),
        ({"cron": "0 3 * FOO *"}, "cron", "month that cannot be: 'FOO'"),
        ({"cron": "0 3 31 2 *"}, "cron", "day-of-month that cannot be: '31'"),
        ({"cron": "@reboot"}, "cron", "no alias '@reboot'"),
        ({"cron": "0 3 * * *", "time_zone": "Europe/Berlim"}, "time_zone", "no time zone"),
        ({"cron": "0 3 * * *", "time_zone": "Europe"}, "time_zone", "no time zone"),
        ({"cron": "0 3 * * *", "time_zone": "../../etc/passwd"}, "time_zone", "no time zone"),
        ({"time_zone": "UTC"}, "cron", "or interval is required"),
        ({"cron": "@daily", "end_time": Timestamp(seconds=5)}, "end_time", "later than the start"),
    ],
)
def test_a_calendar_that_cannot_be_is_refused(spec: dict[str, object], field: str, what: str) -> None:
    with pytest.raises(CalendarError, match=what) as caught:
        calendar_of(ScheduleSpec(**spec), 10 * SECOND)  # type: ignore[arg-type]

    assert caught.value.field == field


@given(st.text("0123456789*,-/#LWMONJAN @", max_size=30))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        calendar = cron(text)
    except CalendarError:
        return

    at = calendar.after(0)
    assert at == 0 or at % (60 * SECOND) == 0


@given(st.integers(SECOND, 10**15), st.integers(0, 10**18), st.integers(0, 10**18))
def test_an_interval_is_counted_from_its_start(length: int, start: int, now: int) -> None:
    rule = Interval(length, start)

    at = rule.after(now)

    assert at > now
    assert (at - start) % length == 0
    assert at == start or at - length <= now


def test_an_interval_may_be_no_whole_number_of_seconds() -> None:
    spec = ScheduleSpec(interval=Duration(seconds=1, nanos=500_000_000), start_time=Timestamp(seconds=10))

    assert calendar_of(spec, 0).preview(0, 3, 1 << 62) == [10 * SECOND, 11_500_000_000, 13 * SECOND]


def test_nothing_runs_before_the_start_nor_at_the_end() -> None:
    bounds = {"start_time": Timestamp(seconds=7200), "end_time": Timestamp(seconds=14400)}

    assert cron("@hourly", **bounds).preview(0, 9, 1 << 62) == [7200 * SECOND, 10800 * SECOND]


def test_a_preview_ends_at_its_horizon() -> None:
    assert len(cron("0 0 29 2 *").preview(0, 100, ns(utc("1990-01-01T00:00")))) == 5


@given(
    expression=expressions,
    change=st.sampled_from(CHANGES),
    minutes=st.integers(0, 4000),
)
def test_counting_and_the_latest_agree_with_going_on(
    expression: Expression, change: tuple[str, str], minutes: int
) -> None:
    zone = ZoneInfo(change[0])
    start = datetime.fromisoformat(change[1]).replace(tzinfo=UTC) - timedelta(days=1)
    try:
        rule = Cron(checked(str(expression), zone), zone)
    except CalendarError:
        return
    first = rule.after(ns(start))
    until = first + minutes * 60 * SECOND

    expected = [first, *map(ns, through(rule, *moments(first, until)))]

    assert rule.count(first, until, 10_000) == len(expected)
    assert rule.count(first, until, 3) == min(3, len(expected))
    assert rule.latest(first, until) == expected[-1]


def test_the_calendars_end_bounds_counting() -> None:
    calendar = cron("@hourly", end_time=Timestamp(seconds=4 * 3600))

    assert calendar.count(3600 * SECOND, 100 * 3600 * SECOND, 1000) == 3
    assert calendar.latest(3600 * SECOND, 100 * 3600 * SECOND) == 3 * 3600 * SECOND
