"""What the readers of payloads share: what they give, and how they take a number out of JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from kapell_server.domain.usage.figures import MOST_TOKENS, Figures


class RawUsageError(Exception):
    """A payload cannot be read; the text says why, to follow "raw cannot be read: "."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawUsage:
    """One use of a model, as far as its payload tells. `cost` is in nano-dollars, where the payload says one.

    A `series` says that figures and cost are running totals of it.
    """

    source: str
    record_id: str = ""
    provider: str = ""
    model: str = ""
    figures: Figures = field(default_factory=Figures)
    units: Mapping[str, int] = field(default_factory=dict)
    cost: int | None = None
    service_tier: str = ""
    series: str = ""
    derived: tuple[str, ...] = ()
    estimated: tuple[str, ...] = ()


def plain(payload: Struct) -> dict[str, Any]:
    """A JSON object as Python's own values. Raises RawUsageError for a number that JSON has not."""
    return {name: _plain(value) for name, value in payload.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            if not math.isfinite(value.number_value):
                raise RawUsageError("it has a number that JSON does not know, such as infinity")
            return value.number_value
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [_plain(one) for one in value.list_value.values]
        case _:
            return None


def count(holder: Mapping[str, Any], *names: str) -> int:
    """The first of these counts that is there; 0 where none is. Raises RawUsageError."""
    for name in names:
        value = holder.get(name)
        if value is None:
            continue
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 13:
            value, whole = int(value), True
        if not whole or not 0 <= value <= MOST_TOKENS or value != int(value):
            raise RawUsageError(f"{name} is {str(value)[:40]!r}, which is not a whole number from 0 to 10^12")
        return int(value)
    return 0


def part(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside of another; empty where it is not there."""
    value = holder.get(name)
    return value if isinstance(value, Mapping) else {}


def parts(holder: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """A list of objects inside of another; empty where it is not there."""
    value = holder.get(name)
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def text(holder: Mapping[str, Any], *names: str, most: int = 200) -> str:
    """The first of these that is text; empty where none is. Raises RawUsageError."""
    for name in names:
        value = holder.get(name)
        if isinstance(value, str) and value:
            if len(value) > most or "\0" in value:
                raise RawUsageError(f"{name} is longer than {most} characters, or has a NUL in it")
            return value
    return ""


def without(whole: int, taken: int, what: str) -> int:
    """What is left of a count when a part of it is counted apart. Raises RawUsageError."""
    if taken > whole:
        raise RawUsageError(f"{what}: the part ({taken}) is larger than the whole ({whole})")
    return whole - taken
