"""Text that somebody decides about: nothing of it hides, nothing of it is cut in silence.

Stricter than `terminal.visible`: what takes no room and what looks like a space without being one is written out,
too, so that two texts that differ never look the same by it.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from kapell.cli.terminal import cells

_TAB = 4
# What is invisible though Unicode calls it a letter, a mark or a symbol; variation selectors; Braille's blank.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_HIDING = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
_PLAIN = re.compile(r"[\x20-\x7e]*")
_BLANKS = re.compile(f"[{_BLANK}]")


def hides(character: str) -> bool:
    """Whether it would not be seen as itself. Line ends and spaces are no secret."""
    if " " <= character <= "~":
        return False
    return unicodedata.category(character) in _HIDING or _BLANKS.match(character) is not None


def revealed(text: str) -> tuple[str, int]:
    """One line with every hidden character written out, as \\x1b or \\u202e, and how many there were."""
    if _PLAIN.fullmatch(text):
        return text, 0
    count = 0
    parts = []
    for character in text:
        if hides(character):
            count += 1
            number = ord(character)
            character = f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
        parts.append(character)
    return "".join(parts), count


def escaped(text: str) -> str:
    """The whole text on one line from which it can be had back, hidden characters and all."""
    return "".join(_ESCAPES.get(character) or revealed(character)[0] for character in text)


_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def lines_of(text: str, *, tabs: bool = False) -> tuple[list[str], int]:
    """The lines of a text, revealed, and how many characters were hidden. With `tabs` they are room, not hidden."""
    shown, count = [], 0
    for line in text.removesuffix("\n").split("\n"):
        line, hidden = revealed(line.expandtabs(_TAB) if tabs else line)
        shown.append(line)
        count += hidden
    return shown, count


def wrapped(line: str, width: int) -> Iterator[str]:
    """The line in pieces that are at most `width` columns wide; one empty piece for an empty line."""
    if line.isascii():
        yield from (line[at : at + width] for at in range(0, len(line), width))
    else:
        piece: list[str] = []
        room = width
        for character in line:
            wide = cells(character)
            if wide > room:
                yield "".join(piece)
                piece, room = [], width
            piece.append(character)
            room -= wide
        if piece:
            yield "".join(piece)
    if not line:
        yield ""


def worded(line: str, width: int) -> Iterator[str]:
    """As `wrapped`, but broken between words where there are any; for prose, of which no space matters."""
    rest = line
    while cells(rest) > width:
        piece = next(wrapped(rest, width))
        at = piece.rfind(" ") if rest[len(piece)] != " " else len(piece)
        piece = piece[:at] if at > 0 else piece
        yield piece
        rest = rest[len(piece) :].removeprefix(" ")
    yield rest


@dataclass(frozen=True)
class Row:
    """A row of the screen and the line it is a piece of."""

    text: str
    line: str


def rows_of(lines: list[str], width: int) -> list[Row]:
    """All rows that the lines take."""
    return [Row(piece, line) for line in lines for piece in wrapped(line, width)]


def fitted(rows: list[Row], room: int) -> tuple[list[Row], int, list[Row]]:
    """What of the rows is shown first, how many are left out, and what is shown last: an end never goes unseen."""
    if len(rows) <= room:
        return rows, 0, []
    room = max(room - 1, 2)
    last = max(1, room // 3)
    return rows[: room - last], len(rows) - room, list(itertools.islice(rows, len(rows) - last, None))
