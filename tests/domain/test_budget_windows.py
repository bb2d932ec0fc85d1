"""The windows of budgets: every day begins when it does in its zone, and nothing is counted too short."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import example, given
from hypothesis import strategies as st
from kapell.v1.budget_pb2 import (
    CALENDAR_UNIT_DAY,
    CALENDAR_UNIT_MONTH,
    CALENDAR_UNIT_WEEK,
    BudgetWindow,
    CalendarWindow,
    ReserveBudgetRequest,
    SettleReservationRequest,
)
from kapell_server.domain.budgets.windows import Calendar, Forever, Rolling, ZoneError, window_of
from kapell_server.domain.times import SECOND

from tests.domain.spending import CENT, Purse, cents

_MINUTE = 60
# Clocks change at 2:00, at midnight forward and back, over midnight, by half an hour, by a whole day.
_ZONES = [
    *("UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Africa/Cairo", "Asia/Beirut"),
    *("Australia/Lord_Howe", "Pacific/Apia", "America/Scoresbysund", "Asia/Kathmandu", "America/Havana"),
]


def _is_first(unit: int, day: date) -> bool:
    return unit == CALENDAR_UNIT_DAY or (day.weekday() == 0 if unit == CALENDAR_UNIT_WEEK else day.day == 1)


def _oracle(unit: int, zone: ZoneInfo, at: int) -> tuple[int, int]:
    """The window of a minute, found by walking minutes: one begins whenever a first day is there as never before."""
    minute = (
        at - at % _MINUTE - (3 + {CALENDAR_UNIT_DAY: 2, CALENDAR_UNIT_WEEK: 9, CALENDAR_UNIT_MONTH: 33}[unit]) * 86_400
    )
    newest = datetime.fromtimestamp(minute, zone).date()
    starts = []
    while not starts or starts[-1] <= at:
        minute += _MINUTE
        day = datetime.fromtimestamp(minute, zone).date()
        if day > newest:
            passed = [newest + timedelta(days=n) for n in range(1, (day - newest).days + 1)]
            starts += [minute] if any(_is_first(unit, one) for one in passed) else []
            newest = day
    return starts[-2], starts[-1]


_DAYS = st.dates(date(1996, 1, 1), date(2037, 12, 1))
_CHANGES = st.sampled_from(
    [date(2026, 3, 29), date(2026, 10, 25), date(2018, 11, 4), date(2018, 2, 18), date(2011, 12, 30), date(2024, 3, 31)]
)


@given(
    zone=st.sampled_from(_ZONES),
    day=_DAYS | _CHANGES,
    minute=st.integers(-1500, 1500),
    unit=st.sampled_from([CALENDAR_UNIT_DAY, CALENDAR_UNIT_WEEK]),
)
@example(zone="Pacific/Apia", day=date(2011, 12, 31), minute=0, unit=CALENDAR_UNIT_DAY)
@example(zone="America/Sao_Paulo", day=date(2018, 11, 4), minute=180, unit=CALENDAR_UNIT_DAY)
@example(zone="America/Havana", day=date(2026, 11, 1), minute=290, unit=CALENDAR_UNIT_DAY)
def test_a_calendar_window_is_the_one_that_walking_minutes_finds(zone: str, day: date, minute: int, unit: int) -> None:
    at = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) + minute * _MINUTE
    calendar = Calendar(unit, ZoneInfo(zone))  # type: ignore[arg-type]

    span = calendar.span(at * SECOND)

    assert (span.start_ns // SECOND, span.end_ns // SECOND) == _oracle(unit, ZoneInfo(zone), at)
    assert calendar.slice_of(at * SECOND) == span.start_ns
    assert calendar.leaves_ns(span.start_ns) == span.end_ns


@pytest.mark.parametrize(("month", "hours"), [(3, 743), (10, 745), (2, 672)])
def test_a_month_has_the_hours_its_clocks_show(month: int, hours: int) -> None:
    calendar = Calendar(CALENDAR_UNIT_MONTH, ZoneInfo("Europe/Berlin"))

    span = calendar.span(int(datetime(2026, month, 14, tzinfo=UTC).timestamp()) * SECOND)

    assert span.end_ns - span.start_ns == hours * 3600 * SECOND


@given(length=st.integers(60, 366 * 86_400), spent=st.integers(0, 4_000_000_000), later=st.integers(0, 400 * 86_400))
def test_a_rolling_window_counts_for_its_length_and_at_most_a_sixtieth_more(
    length: int, spent: int, later: int
) -> None:
    window = Rolling(length * SECOND)

    leaves_ns = window.leaves_ns(window.slice_of(spent * SECOND))

    if later < length:
        assert leaves_ns > (spent + later) * SECOND
    assert leaves_ns <= (spent + length) * SECOND + -(-length * SECOND // 60)


def test_a_budget_says_its_window() -> None:
    daily = BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_DAY, time_zone="Asia/Kathmandu"))

    assert window_of(BudgetWindow()) == Forever()
    assert window_of(BudgetWindow(rolling={"seconds": 60})) == Rolling(60 * SECOND)  # type: ignore[arg-type]
    assert window_of(daily) == Calendar(CALENDAR_UNIT_DAY, ZoneInfo("Asia/Kathmandu"))
    with pytest.raises(ZoneError, match="Mars/Base"):
        window_of(BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_DAY, time_zone="Mars/Base")))


def test_what_is_recorded_after_the_end_of_a_window_counts_in_the_next_however_late_the_timer_is() -> None:
    world = Purse()
    window = BudgetWindow(calendar=CalendarWindow(unit=CALENDAR_UNIT_DAY))
    world.budget(cents(100), window=window)
    world.use(cost=90)
    world.now_ns += 86_400 * SECOND
    world.state.due.forget("budget_b")

    world.use(cost=30)

    assert world.figures() == (30, 0)
    assert world.percents() == []
    assert list(world.rows.budgets.spend.values()) == [30 * CENT]


def test_what_is_reserved_and_settled_after_the_end_of_a_window_counts_in_the_next() -> None:
    world = Purse()
    world.budget(cents(100), window=BudgetWindow(rolling=Duration(seconds=3600)))
    world.use(cost=90)
    world.now_ns += 3_700 * SECOND
    world.state.due.forget("budget_b")

    found = world.do(ReserveBudgetRequest(budget_id="budget_b", amount=cents(50))).reservation
    world.do(SettleReservationRequest(reservation_id=found.reservation_id, amount=cents(40)))

    assert world.figures() == (40, 0)
