"""Which lock path a file has, and which paths cover it. Pure; the rules of writing are in lock.proto.

A name that no lock path can have, such as one with a backslash or a line break, is protected by the
lock of the nearest directory above it that can: a lock covers everything below its path.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

MAX_SEGMENTS = 32
MAX_SEGMENT_BYTES = 255
MAX_PATH_BYTES = 1024

_REFUSED = frozenset("\\*?")
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def canonical(path: str) -> str:
    """The path as the server writes it. Raises ValueError where it is none."""
    segments = unicodedata.normalize("NFC", path.removesuffix("/")).split("/")
    if not all(map(_is_segment, segments)):
        raise ValueError(f"{path!r} is not a lock path: write it like repo/src/a.py")
    if len(segments) > MAX_SEGMENTS or len("/".join(segments).encode()) > MAX_PATH_BYTES:
        raise ValueError(f"{path[:60]!r}… is not a lock path: at most {MAX_SEGMENTS} names and {MAX_PATH_BYTES} bytes")
    return "/".join(segments)


def nearest(prefix: str, names: list[str]) -> str:
    """The lock path of a file: `prefix` and its names below it, as many of them as a lock path can have."""
    found = [*prefix.split("/")]
    size = len(prefix.encode())
    for name in names:
        segment = unicodedata.normalize("NFC", name)
        if not _is_segment(segment):
            break
        size += 1 + len(segment.encode())
        if len(found) == MAX_SEGMENTS or size > MAX_PATH_BYTES:
            break
        found.append(segment)
    return "/".join(found)


def ancestors(path: str) -> Iterator[str]:
    """The path and those above it, the nearest first."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def covers(lock: str, path: str) -> bool:
    """Whether a lock on `lock` protects `path`."""
    return path == lock or path.startswith(lock + "/")


def _is_segment(name: str) -> bool:
    if name in ("", ".", "..") or name[0] == " " or name[-1] == " ":
        return False
    if any(c in _REFUSED or unicodedata.category(c) in _REFUSED_CATEGORIES for c in name):
        return False
    return len(name.encode()) <= MAX_SEGMENT_BYTES
