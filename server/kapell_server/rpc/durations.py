"""Durations of the API as seconds."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration


def seconds(duration: Duration) -> float:
    """The duration in seconds; 0 for an unset one."""
    return duration.seconds + duration.nanos / 1e9
