"""Masking of secret values in what leaves an attempt: logs, results, failures, progress.

Used by the host on what its programs say, and once more by the server. A value is masked as it is and
in the forms in which programs like to print it: as JSON text, URL-quoted, in hex, in Base64 (also within
a longer text, as in `Authorization: Basic`), and, where it has several lines, line by line, since logs
are cut into lines.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from functools import cached_property
from typing import TypeVar
from urllib.parse import quote

from google.protobuf.message import Message

MASK = "[secret]"
SHORTEST = 4
"""Shorter values are not masked: they would tear holes into every text."""
_LEAST_LINE = 8
_M = TypeVar("_M", bound=Message)


class Redactor:
    """Masks the given values. Without any it leaves everything as it is, at no cost."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._forms = sorted({form for value in values for form in _forms(value)}, key=len, reverse=True)

    def add(self, value: str) -> None:
        """Masks one more value from now on; in streams that begin from now on."""
        self._forms = sorted({*self._forms, *_forms(value)}, key=len, reverse=True)
        for name in ("_pattern", "_bytes"):
            self.__dict__.pop(name, None)

    def __bool__(self) -> bool:
        return bool(self._forms)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._forms)))

    @cached_property
    def _bytes(self) -> re.Pattern[bytes]:
        return re.compile(b"|".join(re.escape(form.encode(errors="surrogatepass")) for form in self._forms))

    def text(self, text: str) -> str:
        """The text with every value masked."""
        return self._pattern.sub(MASK, text) if self._forms else text

    def data(self, data: bytes) -> bytes:
        """Bytes with every value masked."""
        return self._bytes.sub(MASK.encode(), data) if self._forms else data

    def message(self, message: _M) -> _M:
        """A copy of a message with all text in it masked; the message itself where nothing is to be masked."""
        if not self._forms or self._bytes.search(message.SerializeToString()) is None:
            return message
        copy = type(message)()
        copy.CopyFrom(message)
        self._mask(copy)
        return copy

    def _mask(self, message: Message) -> None:
        for field, value in message.ListFields():
            is_text = field.type == field.TYPE_STRING
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._mask_map(value, field.message_type.fields_by_name["value"])
            elif field.message_type is not None:
                for one in value if field.is_repeated else (value,):
                    self._mask(one)
            elif is_text and field.is_repeated:
                value[:] = [self.text(text) for text in value]
            elif is_text:
                setattr(message, field.name, self.text(value))

    def _mask_map(self, entries: object, value_field: object) -> None:
        for key in list(entries):  # type: ignore[call-overload]
            value = entries[key]  # type: ignore[index]
            masked = self.text(key) if isinstance(key, str) else key
            if isinstance(value, Message):
                self._mask(value)
                if masked != key:
                    entries[masked].CopyFrom(value)  # type: ignore[index]
            elif isinstance(value, str):
                entries[masked] = self.text(value)  # type: ignore[index]
            elif masked != key:
                entries[masked] = value  # type: ignore[index]
            if masked != key:
                del entries[key]  # type: ignore[attr-defined]


class StreamRedactor:
    """Masks values in a stream of chunks, also where one is spread over several of them.

    Only what may be the beginning of a value is held back, so that nothing else waits.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._forms = [form.encode(errors="surrogatepass") for form in redactor._forms]
        self._longest = max(map(len, self._forms), default=0)
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """What may go on now."""
        if not self._forms:
            return chunk
        data = self._redactor.data(self._held + chunk)
        cut = len(data) - self._beginning(data)
        self._held = data[cut:]
        return data[:cut]

    def finish(self) -> bytes:
        """The rest, once the stream has ended."""
        rest, self._held = self._held, b""
        return self._redactor.data(rest)

    def _beginning(self, data: bytes) -> int:
        """How many bytes at the end may be the beginning of a value."""
        tail = data[-(self._longest - 1) :] if self._longest > 1 else b""
        for start in range(len(tail)):
            rest = tail[start:]
            if any(form.startswith(rest) for form in self._forms):
                return len(rest)
        return 0


def _forms(value: str) -> Iterable[str]:
    """The value as programs print it."""
    if len(value) < SHORTEST:
        return
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    data = value.encode(errors="surrogatepass")
    yield quote(data, safe="")
    yield base64.b64encode(data).decode()
    if len(data) >= _LEAST_LINE:
        yield data.hex()
        yield data.hex().upper()
        yield from _within_base64(data)
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line.strip()) >= _LEAST_LINE)


def _within_base64(data: bytes) -> Iterable[str]:
    """What a value looks like within the Base64 of a longer text, wherever it begins there.

    The characters at both ends depend on what stands before and after it, and are left out.
    """
    for before in range(3):
        first = (before * 8 + 5) // 6
        last = (before + len(data)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(bytes(before) + data)[first:last].decode()
