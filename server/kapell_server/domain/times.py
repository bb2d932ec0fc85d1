"""Between protobuf times and integer nanoseconds, in which all rules reckon."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

SECOND = 1_000_000_000


def stamp(target: Timestamp, ns: int) -> None:
    """Sets `target` to `ns` nanoseconds since 1970."""
    target.seconds, target.nanos = divmod(ns, SECOND)


def timestamp_ns(value: Timestamp) -> int:
    """Nanoseconds since 1970; 0 for an unset timestamp."""
    return value.seconds * SECOND + value.nanos


def duration_ns(value: Duration) -> int:
    """The length in nanoseconds; 0 for an unset duration."""
    return value.seconds * SECOND + value.nanos


def set_duration(target: Duration, ns: int) -> None:
    """Sets `target` to a length of `ns` nanoseconds, not negative."""
    target.seconds, target.nanos = divmod(ns, SECOND)
