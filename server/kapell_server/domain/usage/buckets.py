"""Stretches of time that usage is summed over: minutes and hours, and days, weeks and months of a zone.

Pure. A day begins at midnight of its zone, so it has 23 or 25 hours where the clocks are changed; where a change
skips midnight, it begins with the first moment there is.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID, ERROR_REASON_USAGE_QUERY_TOO_LARGE
from kapell.v1.usage_pb2 import (
    USAGE_BUCKET_DAY,
    USAGE_BUCKET_HOUR,
    USAGE_BUCKET_MINUTE,
    USAGE_BUCKET_MONTH,
    USAGE_BUCKET_WEEK,
    UsageBucket,
)

from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND

MOST_BUCKETS = 1_500
"""Stretches one answer may have: four years of days, two months of hours, a day of minutes."""
_SHORTEST = {
    USAGE_BUCKET_MINUTE: 60,
    USAGE_BUCKET_HOUR: 3_600,
    USAGE_BUCKET_DAY: 23 * 3_600,
    USAGE_BUCKET_WEEK: 167 * 3_600,
    USAGE_BUCKET_MONTH: 28 * 86_400 - 3_600,
}
_DAY = datetime.timedelta(days=1)


def zone_of(name: str) -> ZoneInfo:
    """The zone of this name, UTC where it is empty. REQUEST_INVALID where there is none."""
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"time_zone {name!r} is no time zone. Name one as in the IANA database, for example Europe/Berlin.",
            violations=(("time_zone", "is no time zone of the IANA database"),),
        ) from error


def bounds(start_ns: int, end_ns: int, bucket: UsageBucket.ValueType, zone: ZoneInfo) -> list[int]:
    """Where the stretches that touch the range begin, and, last, where the last one ends.

    The first may begin before `start_ns`. USAGE_QUERY_TOO_LARGE where there would be too many.
    """
    if bucket not in _SHORTEST:
        return [start_ns, end_ns]
    shortest = _SHORTEST[bucket] * SECOND
    # Months and weeks are counted by their shortest: an estimate that is never too low.
    if (end_ns - start_ns) // shortest > MOST_BUCKETS + MOST_BUCKETS // 8:
        raise _too_many()
    if bucket in (USAGE_BUCKET_MINUTE, USAGE_BUCKET_HOUR):
        found = _even(start_ns, end_ns, bucket, zone)
    else:
        found = _by_calendar(start_ns, end_ns, _STEPS[bucket], zone)
    if len(found) - 1 > MOST_BUCKETS:
        raise _too_many()
    return found


def _too_many() -> KapellError:
    return KapellError(
        ERROR_REASON_USAGE_QUERY_TOO_LARGE,
        f"The range has more than {MOST_BUCKETS} stretches of this length. Ask for longer ones, or a shorter range.",
        metadata={"limit": str(MOST_BUCKETS)},
    )


def _even(start_ns: int, end_ns: int, bucket: UsageBucket.ValueType, zone: ZoneInfo) -> list[int]:
    """Minutes, and hours of the zone: some zones are half an hour off, and stay so through a change of clocks."""
    step = _SHORTEST[bucket] * SECOND
    offset = _offset_ns(start_ns, zone) % step
    first = (start_ns + offset) // step * step - offset
    found = list(range(first, end_ns, step))
    return [*found, found[-1] + step]


def _offset_ns(at_ns: int, zone: ZoneInfo) -> int:
    offset = datetime.datetime.fromtimestamp(at_ns // SECOND, zone).utcoffset()
    assert offset is not None, "a zone has an offset"
    return int(offset.total_seconds()) * SECOND


def _next_day(day: datetime.date) -> datetime.date:
    return day + _DAY


def _next_week(day: datetime.date) -> datetime.date:
    return day + 7 * _DAY


def _next_month(day: datetime.date) -> datetime.date:
    return (day.replace(day=28) + 4 * _DAY).replace(day=1)


_STEPS: dict[UsageBucket.ValueType, tuple[Callable[[datetime.date], datetime.date], ...]] = {
    USAGE_BUCKET_DAY: (lambda day: day, _next_day),
    USAGE_BUCKET_WEEK: (lambda day: day - day.weekday() * _DAY, _next_week),
    USAGE_BUCKET_MONTH: (lambda day: day.replace(day=1), _next_month),
}
"""For each: the day that its stretch begins with, and the day that the next one begins with."""


def _by_calendar(
    start_ns: int, end_ns: int, steps: tuple[Callable[[datetime.date], datetime.date], ...], zone: ZoneInfo
) -> list[int]:
    first, following = steps
    day = first(datetime.datetime.fromtimestamp(start_ns // SECOND, zone).date())
    found = [_midnight_ns(day, zone)]
    while found[-1] < end_ns:
        day = following(day)
        at = _midnight_ns(day, zone)
        if at > found[-1]:  # A zone may skip a whole day, as Samoa did.
            found.append(at)
    return found


def _midnight_ns(day: datetime.date, zone: ZoneInfo) -> int:
    """When the day begins: the earlier one of two midnights, and after a gap the moment at which it ends."""
    midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=zone)
    at = int(midnight.timestamp())
    # In a gap `timestamp` reckons with the offset from before it, which lies inside the new day already.
    back = datetime.datetime.fromtimestamp(at, zone)
    if back.date() == day and back.replace(tzinfo=None) != midnight.replace(tzinfo=None):
        at = _end_of_gap(at, zone)
    return at * SECOND


def _end_of_gap(at: int, zone: ZoneInfo) -> int:
    """The moment of the change just before `at`: the latest before which the zone had another offset."""
    late = at
    offset = datetime.datetime.fromtimestamp(late, zone).utcoffset()
    early = at - 86_400
    while late - early > 1:
        middle = (early + late) // 2
        if datetime.datetime.fromtimestamp(middle, zone).utcoffset() == offset:
            late = middle
        else:
            early = middle
    return late
