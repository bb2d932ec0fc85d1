"""The protobuf wire format, as far as it takes to put encoded parts together.

Messages are encoded once; answers, events and stored rows are made by joining the bytes, which
protobuf reads as one message (repeated occurrences of a message field are merged).
"""

from __future__ import annotations

_SMALL = [bytes((value,)) for value in range(0x80)] + [
    bytes((value & 0x7F | 0x80, value >> 7)) for value in range(0x80, 0x4000)
]


def varint(value: int) -> bytes:
    """A non-negative integer."""
    if value < 0x4000:
        return _SMALL[value]
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field: a message, string or bytes."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def int_field(number: int, value: int) -> bytes:
    """A non-negative integer, enum or bool field; nothing for zero."""
    return varint(number << 3) + varint(value) if value else b""
