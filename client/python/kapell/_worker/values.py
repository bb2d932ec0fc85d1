"""JSON values to and from the messages that carry them.

Numbers travel as doubles, so integers beyond 2**53 lose digits; whole numbers come back as `int`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value

# A message nests three deep for each level of JSON, and parsers of protobuf stop at a hundred.
MAX_DEPTH = 28
_EXACT = 2**53


def to_value(value: object, *, _depth: int = 0) -> Value:
    """The message for a JSON value (None, bool, int, float, str, list, tuple, dict with str keys).

    A `Value` is taken as it is. Raises ValueError, in words for a person, for anything else: other
    types, NaN and infinity, more than MAX_DEPTH levels.
    """
    if _depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    match value:
        case Value():
            return value
        case None:
            return Value(null_value=NULL_VALUE)
        case bool():
            return Value(bool_value=value)
        case int() | float():
            return Value(number_value=_number(value))
        case str():
            return Value(string_value=value)
        case Struct():
            return Value(struct_value=value)
        case Message():
            raise ValueError(f"a {type(value).__name__} message is not JSON; build a dict from it")
        case Mapping():
            result = Value()
            result.struct_value.SetInParent()
            fields = result.struct_value.fields
            for key, item in value.items():
                if not isinstance(key, str):
                    raise ValueError(f"the key {key!r} is not a string")
                fields[key].CopyFrom(to_value(item, _depth=_depth + 1))
            return result
        case Sequence() if not isinstance(value, (bytes, bytearray, memoryview)):
            result = Value()
            result.list_value.SetInParent()
            result.list_value.values.extend(to_value(item, _depth=_depth + 1) for item in value)
            return result
    raise ValueError(f"a value of type {type(value).__name__} is not JSON")


def printable(text: str) -> str:
    """The text with what UTF-8 cannot carry replaced, so that a message takes it."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def from_value(value: Value) -> object:
    """The JSON value of the message; an unset one is None."""
    match value.WhichOneof("kind"):
        case "bool_value":
            return value.bool_value
        case "number_value":
            return _whole(value.number_value)
        case "string_value":
            return value.string_value
        case "struct_value":
            return from_struct(value.struct_value)
        case "list_value":
            return [from_value(item) for item in value.list_value.values]
    return None


def from_struct(struct: Struct) -> dict[str, object]:
    """The JSON object of the message."""
    return {key: from_value(item) for key, item in struct.fields.items()}


def _number(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("a number is too large for JSON") from None
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a JSON number")
    return number


def _whole(number: float) -> int | float:
    return int(number) if abs(number) <= _EXACT and number == int(number) else number
