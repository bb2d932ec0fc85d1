"""How a path is written: one form for each thing that can be locked, else two could hold "the same".

What is changed without a word is in `canonical` and in lock.proto: NFC, and one slash at the end.
All else that has a second spelling is refused.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

MOST_BYTES = 1024
MOST_SEGMENTS = 32
MOST_SEGMENT_BYTES = 255

_REFUSED = {
    "\\": 'a backslash; segments are parted by "/"',
    "*": "a pattern; lock the directory instead, which covers all that is in it",
    "?": "a pattern; lock the directory instead, which covers all that is in it",
}
_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible formatting character",
    "Cs": "half a surrogate pair",
    "Co": "a private character",
    "Cn": "a character that Unicode does not know",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}


class PathError(ValueError):
    """The text is no path; the message says why, as the end of a sentence that begins with the path."""


@lru_cache(maxsize=8192)
def canonical(text: str) -> str:
    """The path in the form in which paths are compared. Raises PathError."""
    path = text if text.isascii() else unicodedata.normalize("NFC", text)
    path = path.removesuffix("/")
    size = len(path) if path.isascii() else len(path.encode(errors="surrogatepass"))
    if size > MOST_BYTES:
        raise PathError(f"has {size} bytes; at most {MOST_BYTES} are allowed")
    _check_characters(path)
    segments = path.split("/")
    if len(segments) > MOST_SEGMENTS:
        raise PathError(f"has {len(segments)} segments; at most {MOST_SEGMENTS} are allowed")
    for segment in segments:
        _check_segment(segment)
    return path


def covers(above: str, below: str) -> bool:
    """Whether a lock of the one path, canonical, covers the other: it is the same, or an ancestor."""
    return below == above or below.startswith(above + "/")


def touch(one: str, other: str) -> bool:
    """Whether one of two canonical paths covers the other."""
    return covers(one, other) or covers(other, one)


def _check_characters(path: str) -> None:
    plain = path.isascii() and path.isprintable()
    for character in _REFUSED if plain else path:
        if plain and character not in path:
            continue
        why = _REFUSED.get(character) or _CATEGORIES.get(unicodedata.category(character))
        if why is not None:
            raise PathError(f"contains U+{ord(character):04X}, {why}")


def _check_segment(segment: str) -> None:
    if not segment:
        raise PathError("has an empty segment; write it without a slash at the beginning, and single ones between")
    if segment in (".", ".."):
        raise PathError(f'has the segment "{segment}"; write it out from the root of the tree')
    if segment[0] == " " or segment[-1] == " ":
        raise PathError("has a segment that begins or ends with a space")
    if len(segment) > MOST_SEGMENT_BYTES or len(segment.encode()) > MOST_SEGMENT_BYTES:
        raise PathError(f"has a segment of more than {MOST_SEGMENT_BYTES} bytes")
