"""Values of kapell.toml, read strictly: the wrong kind, an unknown key or word is a ConfigError that names it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B)", re.IGNORECASE)
_SIZES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key, what is wrong and what to do."""


def refuse_unknown(keys: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raises ConfigError for the first key that is not known, with the spelling that was likely meant."""
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(sorted(known))}."
            raise ConfigError(f"{where}: there is no key `{key}`; {hint}")


def expect(value: Any, kind: type | tuple[type, ...], name: str, what: str) -> Any:
    """The value, if it is of the kind; ConfigError naming `what` was expected otherwise."""
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise ConfigError(f"{name} must be {what}, not {_kind(value)}.")
    return value


def texts(table: Any, where: str) -> dict[str, str]:
    """A table of texts."""
    expect(table, dict, where, "a table of texts")
    for key, value in table.items():
        expect(value, str, f"{where}.{key}", "text")
    return dict(table)


def strings(value: Any, name: str) -> list[str]:
    """A list of texts."""
    expect(value, list, name, "a list of texts")
    for position, item in enumerate(value):
        expect(item, str, f"{name}[{position}]", "text")
    return list(value)


def text_of(table: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key; empty where there is none."""
    text: str = expect(table.get(key, ""), str, f"{where}.{key}", "text")
    return text


def word_of(table: Mapping[str, Any], key: str, words: Mapping[str, int], where: str) -> Any:
    """One of some words as a value of its enum; the first is the default."""
    word = expect(table.get(key, next(iter(words))), str, f"{where}.{key}", "text")
    if word not in words:
        raise ConfigError(f"{where}.{key} must be one of {', '.join(words)}, not {word!r}.")
    return words[word]


def path_of(value: Any, where: str) -> str:
    """A path, `~` made into the home directory; empty stays so."""
    path = expect(value, str, where, "text")
    return str(Path(path).expanduser()) if path else ""


def duration(value: Any, name: str) -> Duration:
    """A length of time; see `read_seconds`."""
    found = Duration()
    found.FromNanoseconds(int(read_seconds(value, name) * 1e9))
    return found


def read_seconds(value: Any, name: str) -> float:
    """Seconds from a number, or from a text such as "500ms", "5s", "2m" or "7d". Raises ConfigError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    return float(expect(value, (int, float), name, 'a number of seconds or a text like "5s"'))


def size(value: Any, name: str) -> int:
    """Bytes from a number, or from a text such as "512 MiB" or "2GB"."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _SIZES[match[2].upper()])
    return int(expect(value, int, name, 'a number of bytes or a text like "512MiB"'))


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    named = kinds.get(type(value), "a table" if isinstance(value, dict) else type(value).__name__)
    return f"{named} ({value!r})" if isinstance(value, str | int | float) else named
