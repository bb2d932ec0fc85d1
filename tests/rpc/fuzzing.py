"""Requests made from the descriptors: valid, nearly valid, senseless, and bytes that are no message at all.

Everything comes from one seeded Random, so a failure is repeated by its seed and number.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

_DEPTH = 4
_NUMBERS = (0, 1, -1, 2, 50, 1000, 1001, 2**31 - 1, -(2**31), 2**53, 2**63 - 1, -(2**63))
_TEXTS = (
    *("", "a", "x" * 63, "x" * 64, "x" * 65, "x" * 513, "No Spaces", "*", "..", "../../etc/passwd", "\x00", "a\x00b"),
    *("task_", "agent_", "{{ x }}", "{% for %}", "'; DROP TABLE tasks; --", "‮txt.exe", "\U0001f600" * 20, "é", "\n"),
    *("* * * * *", "@daily", "-1", "1e999", "NaN", "true", "/", "a/b/c", "kapell.v1", "%s%n", "${HOME}", "task_1.1.0"),
)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e300, -1e300, float("nan"), float("inf"), float("-inf"))
_INTEGERS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


class Fuzz:
    """Makes requests. `words` are ids and names that mean something to the server."""

    def __init__(self, seed: int, words: Sequence[str]) -> None:
        self.random = Random(seed)
        self._words = words

    def request(self, kind: type[Message], like: Message | None = None) -> bytes:
        """Bytes to send to a method that takes `kind`; `like` is a request that works."""
        chance = self.random.random()
        if like is not None and chance < 0.4:
            altered = kind()
            altered.CopyFrom(like)
            for _ in range(self.random.choice((1, 1, 2, 5))):
                self._alter(altered, 0)
            return altered.SerializeToString()
        if chance < 0.85:
            return self.message(kind()).SerializeToString()
        data = bytearray((like or self.message(kind())).SerializeToString())
        return self._damaged(data) if chance < 0.95 else self.random.randbytes(self.random.randint(0, 200))

    def message(self, message: Any, depth: int = 0) -> Any:
        """Fills some of the fields."""
        for field in message.DESCRIPTOR.fields:
            if self.random.random() < (0.5 if depth < 2 else 0.25):
                self._set(message, field, depth)
        return message

    def _alter(self, message: Any, depth: int) -> None:
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field = self.random.choice(list(fields))
        inner = field.message_type is not None and not field.is_repeated and message.HasField(field.name)
        if inner and depth < _DEPTH and self.random.random() < 0.7:
            self._alter(getattr(message, field.name), depth + 1)
        elif self.random.random() < 0.2:
            message.ClearField(field.name)
        else:
            self._set(message, field, depth)

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        if field.message_type is not None and depth >= _DEPTH:
            return
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(getattr(message, field.name), field, depth)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(self.random.choice((0, 1, 1, 2, 3, 101))):
                if field.message_type is not None:
                    self.message(values.add(), depth + 1)
                else:
                    values.append(self._scalar(field))
                if len(values) > 3 and field.message_type is not None:
                    break
        elif field.message_type is not None:
            getattr(message, field.name).SetInParent()
            self.message(getattr(message, field.name), depth + 1)
        else:
            setattr(message, field.name, self._scalar(field))

    def _fill_map(self, values: Any, field: FieldDescriptor, depth: int) -> None:
        entry = field.message_type
        assert entry is not None
        for _ in range(self.random.choice((1, 2, 17))):
            key = self._scalar(entry.fields_by_name["key"])
            value = entry.fields_by_name["value"]
            if value.message_type is not None:
                self.message(values[key], depth + 1)
            else:
                values[key] = self._scalar(value)

    def _scalar(self, field: FieldDescriptor) -> Any:
        random = self.random
        match field.type:
            case FieldDescriptor.TYPE_STRING:
                return self._text()
            case FieldDescriptor.TYPE_BYTES:
                return random.choice((b"", b"\x00", random.randbytes(30), b"x" * 5000))
            case FieldDescriptor.TYPE_BOOL:
                return random.random() < 0.5
            case FieldDescriptor.TYPE_ENUM:
                assert field.enum_type is not None
                return random.choice([*(value.number for value in field.enum_type.values), 99])
            case FieldDescriptor.TYPE_DOUBLE:
                return random.choice(_FLOATS)
            case FieldDescriptor.TYPE_FLOAT:
                return random.choice((0.0, 0.5, float("nan")))
            case kind:
                low, high = _INTEGERS[kind]
                number = random.choice(_NUMBERS) if random.random() < 0.7 else random.randint(-5, 100)
                return min(max(number, low), high)

    def _text(self) -> str:
        chance = self.random.random()
        if chance < 0.5:
            return self.random.choice(self._words)
        if chance < 0.9:
            return self.random.choice(_TEXTS)
        return "".join(chr(self.random.choice((0x41, 0x20, 0x7F, 0x80, 0x2028, 0xFFFD))) for _ in range(20))

    def _damaged(self, data: bytearray) -> bytes:
        if not data:
            return b"\xff"
        match self.random.randrange(3):
            case 0:
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            case 1:
                del data[self.random.randrange(len(data)) :]
            case _:
                data += self.random.randbytes(8)
        return bytes(data)
