"""Times and durations as people write and read them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Seconds of "90", "1.5s", "500ms", "2m", "1h30m" or "2d". ValueError otherwise."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


class DurationType(click.ParamType[float]):
    """A duration on the command line; the command gets seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return parse_duration(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a duration; write for example 30s, 5m or 1h30m", param, ctx)


class MomentType(click.ParamType[float]):
    """A point in time: an RFC 3339 time or a duration from now. The command gets seconds since 1970."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value)
        try:
            return time.time() + parse_duration(text.removeprefix("+"))
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is not a time; write for example 10m, or 2030-01-31T08:00:00Z", param, ctx)
        return (moment if moment.tzinfo else moment.astimezone()).timestamp()


class MomentOrAge(click.ParamType[datetime]):
    """A time, or how long ago. The command gets a datetime."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        text = str(value)
        try:
            return datetime.fromtimestamp(datetime.now(UTC).timestamp() - parse_duration(text), UTC)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{value!r} is no time; write for example 7d, 2030-01-31 or 2030-01-31T08:00:00Z", param, ctx)
        return moment if moment.tzinfo else moment.astimezone()


DURATION = DurationType()
MOMENT = MomentType()
MOMENT_OR_AGE = MomentOrAge()


def short(seconds: float) -> str:
    """A duration in at most two units: "0.4s", "12s", "3m 05s", "2h 10m", "5d 3h"."""
    if seconds < 0:
        seconds = 0.0
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def age(moment: Timestamp, now: float | None = None) -> str:
    """How long ago, in one unit: "4s", "3m", "2h", "5d"; "-" for a time that is not set."""
    if not moment.seconds:
        return "-"
    seconds = max(0, int((time.time() if now is None else now) - moment.seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def until(moment: Timestamp, now: float | None = None) -> str:
    """How long until then: "in 3h 12m"; "now" for what has passed."""
    seconds = moment.seconds + moment.nanos / 1e9 - (time.time() if now is None else now)
    return f"in {short(seconds)}" if seconds >= 1 else "now"


def seconds_between(start: Timestamp, end: Timestamp) -> float:
    """The seconds from `start` to `end`."""
    return (end.seconds - start.seconds) + (end.nanos - start.nanos) / 1e9


def clock(moment: Timestamp) -> str:
    """The time of day where the reader is: "14:03:09"."""
    return datetime.fromtimestamp(moment.seconds).strftime("%H:%M:%S")


def local(moment: Timestamp) -> str:
    """Date and time where the reader is; empty for a time that is not set."""
    return datetime.fromtimestamp(moment.seconds).strftime("%Y-%m-%d %H:%M:%S") if moment.seconds else ""


def iso(moment: Timestamp) -> str:
    """RFC 3339 in UTC, to the millisecond; empty for a time that is not set."""
    if not moment.seconds:
        return ""
    text = datetime.fromtimestamp(moment.seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment.nanos // 1_000_000:03}Z"
