"""Times and durations that are none: out of range, or with nanoseconds that do not fit their seconds.

protovalidate lets them pass, and whoever prints such a resource as JSON later fails: they must not
come in. Each message type is looked through once for where it may have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_DURATION, _TIMESTAMP = "google.protobuf.Duration", "google.protobuf.Timestamp"
_LONGEST = 315_576_000_000
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
_NANOS = 999_999_999

_Step = tuple[str, str, Any]


def violations(message: Any) -> tuple[tuple[str, str], ...]:
    """(field path, description) of each time or duration of the message that is none."""
    plan = _plan_of(message.DESCRIPTOR)
    return tuple(_walk(message, plan, "")) if plan else ()


def may_be_misshapen(message: type[Any]) -> bool:
    """Whether messages of the type have times or durations at all."""
    return bool(_plan_of(message.DESCRIPTOR))


def _walk(message: Any, plan: tuple[_Step, ...], path: str) -> Iterator[tuple[str, str]]:
    for name, kind, within in plan:
        if kind == "one":
            if message.HasField(name):
                yield from _look(getattr(message, name), within, f"{path}{name}")
        elif kind == "list":
            for index, each in enumerate(getattr(message, name)):
                yield from _look(each, within, f"{path}{name}[{index}]")
        else:
            for key, each in getattr(message, name).items():
                yield from _look(each, within, f"{path}{name}[{key!r}]")


def _look(value: Any, within: Any, path: str) -> Iterator[tuple[str, str]]:
    if within == _DURATION:
        same_sign = value.seconds == 0 or value.nanos == 0 or (value.seconds > 0) == (value.nanos > 0)
        if abs(value.seconds) > _LONGEST or abs(value.nanos) > _NANOS or not same_sign:
            yield path, "is no duration: its nanos must be below a second and have the sign of its seconds"
    elif within == _TIMESTAMP:
        if not (_EARLIEST <= value.seconds <= _LATEST and 0 <= value.nanos <= _NANOS):
            yield path, "is no time: it must be in the years 1 to 9999, with nanos from 0 to 999999999"
    else:
        yield from _walk(value, _plan_of(within), f"{path}.")


@lru_cache(maxsize=1024)
def _plan_of(descriptor: Any) -> tuple[_Step, ...]:
    """The fields of a message type that are times, or have some within."""
    steps: list[_Step] = []
    for field in descriptor.fields:
        kind, inner = "list" if field.is_repeated else "one", field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            kind, inner = "map", inner.fields_by_name["value"].message_type
        if inner is None:
            continue
        if inner.full_name in (_DURATION, _TIMESTAMP):
            steps.append((field.name, kind, inner.full_name))
        elif _has_times(inner, frozenset()):
            steps.append((field.name, kind, inner))
    return tuple(steps)


def _has_times(descriptor: Any, above: frozenset[str]) -> bool:
    if descriptor.full_name in above:
        return False
    inner = [field.message_type for field in descriptor.fields if field.message_type is not None]
    above |= {descriptor.full_name}
    return any(each.full_name in (_DURATION, _TIMESTAMP) or _has_times(each, above) for each in inner)
