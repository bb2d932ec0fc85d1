"""JSON values as YAML 1.2 text in block style: enough for `-o yaml`, without a dependency."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# Strings that stay themselves without quotes: nothing YAML could read as another type.
_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_/.@+-]*(?: [A-Za-z0-9_/.@+-]+)*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def dump(value: Any) -> str:
    """`value` (dicts, lists, strings, numbers, booleans, None) as YAML, ending with a newline."""
    return "\n".join(_block(value)) + "\n"


def _block(value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for key, item in value.items() for line in _entry(f"{_scalar(str(key))}:", item)]
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [line for item in value for line in _item(item)]
    return [_scalar(value)]


def _entry(head: str, value: Any) -> list[str]:
    if isinstance(value, str) and "\n" in value and _fits_literal(value):
        body = value[:-1] if value.endswith("\n") else value
        mark = "|" if value.endswith("\n") else "|-"
        return [f"{head} {mark}", *(f"  {line}" if line else "" for line in body.split("\n"))]
    if _is_nested(value):
        return [head, *(f"  {line}" for line in _block(value))]
    return [f"{head} {_scalar(value)}"]


def _item(value: Any) -> list[str]:
    if _is_nested(value):
        first, *rest = _block(value)
        return [f"- {first}", *(f"  {line}" for line in rest)]
    return _entry("-", value)


def _is_nested(value: Any) -> bool:
    return isinstance(value, (Mapping, Sequence)) and not isinstance(value, str) and bool(value)


def _fits_literal(text: str) -> bool:
    """Whether a literal block gives the text back: printable, no odd indent, at most one newline at the end."""
    return (
        not text.startswith((" ", "\n"))
        and not text.endswith("\n\n")
        and all(line.isprintable() and line == line.rstrip() for line in text.split("\n"))
    )


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        bare = _BARE.fullmatch(value) and value.lower() not in _WORDS
        return value if bare else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, Sequence):
        return "[]"
    return json.dumps(value)
