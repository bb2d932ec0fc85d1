"""Stretches of time: without gap or overlap, and days as a calendar has them, through every change of clocks."""

from __future__ import annotations

import datetime
import itertools
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell.v1.usage_pb2 import (
    USAGE_BUCKET_DAY,
    USAGE_BUCKET_HOUR,
    USAGE_BUCKET_MINUTE,
    USAGE_BUCKET_MONTH,
    USAGE_BUCKET_UNSPECIFIED,
    USAGE_BUCKET_WEEK,
)
from kapell_server.domain.errors import KapellError
from kapell_server.domain.usage.buckets import bounds, zone_of

SECOND = 10**9
ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "Africa/Cairo", "Asia/Beirut", "Asia/Kathmandu"),
    *("Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "America/St_Johns", "Asia/Tehran", "Africa/Casablanca"),
)
"""Among them zones that skip midnight, half an hour or a whole day."""


def at(text: str, zone: str = "UTC") -> int:
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * SECOND


@given(
    zone=st.sampled_from(ZONES),
    start=st.integers(at("2001-01-01"), at("2029-01-01")),
    length=st.integers(1, 200 * 86_400 * SECOND),
    bucket=st.sampled_from([USAGE_BUCKET_DAY, USAGE_BUCKET_WEEK, USAGE_BUCKET_MONTH]),
)
def test_every_stretch_is_one_of_the_calendar_and_they_cover_the_range(
    zone: str, start: int, length: int, bucket: int
) -> None:
    found = bounds(start, start + length, bucket, ZoneInfo(zone))  # type: ignore[arg-type]

    assert found[0] <= start < found[1]
    assert found[-2] < start + length <= found[-1]
    for begin, end in itertools.pairwise(found):
        first, last = (datetime.datetime.fromtimestamp(ns // SECOND, ZoneInfo(zone)) for ns in (begin, end - SECOND))
        before = datetime.datetime.fromtimestamp(begin // SECOND - 1, ZoneInfo(zone))
        assert begin % (900 * SECOND) == 0, "a quarter of an hour, as the sums have them"
        assert before.date() < first.date(), "a day begins here"
        match bucket:
            case 3:
                assert first.date() == last.date()
            case 4:
                assert first.isocalendar()[:2] == last.isocalendar()[:2]
            case 5:
                assert (first.year, first.month) == (last.year, last.month)


@pytest.mark.parametrize(
    ("day", "zone", "hours"),
    [
        ("2026-03-29", "Europe/Berlin", 23),
        ("2026-10-25", "Europe/Berlin", 25),
        ("2018-11-04", "America/Sao_Paulo", 23),
        ("2026-04-05", "Australia/Lord_Howe", 24.5),
    ],
)
def test_a_day_of_a_change_of_clocks_has_its_own_length(day: str, zone: str, hours: float) -> None:
    noon = at(f"{day}T12:00:00", zone)

    begin, end = bounds(noon, noon + 1, USAGE_BUCKET_DAY, ZoneInfo(zone))

    assert (end - begin) / SECOND / 3600 == hours


def test_hours_and_minutes_are_even_and_those_of_the_zone() -> None:
    start = at("2026-01-01T00:20:30")

    assert bounds(start, start + 1, USAGE_BUCKET_MINUTE, ZoneInfo("UTC"))[0] == at("2026-01-01T00:20:00")
    assert bounds(start, start + 1, USAGE_BUCKET_HOUR, ZoneInfo("UTC"))[0] == at("2026-01-01T00:00:00")
    assert bounds(start, start + 1, USAGE_BUCKET_HOUR, ZoneInfo("Asia/Kathmandu"))[0] == at("2026-01-01T00:15:00")
    assert bounds(start, start + 5, USAGE_BUCKET_UNSPECIFIED, ZoneInfo("UTC")) == [start, start + 5]


@pytest.mark.parametrize(
    ("bucket", "days"), [(USAGE_BUCKET_MINUTE, 2), (USAGE_BUCKET_HOUR, 63), (USAGE_BUCKET_DAY, 1501)]
)
def test_too_many_stretches_are_refused(bucket: int, days: int) -> None:
    with pytest.raises(KapellError, match="more than 1500 stretches"):
        bounds(0, days * 86_400 * SECOND, bucket, ZoneInfo("UTC"))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Europe/Atlantis", "../etc/passwd", "/etc/localtime", "europe", "x" * 64])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(KapellError, match="is no time zone"):
        zone_of(name)
