"""What the terminal can do, and text made safe for it.

Text that comes from tasks and agents may hold escape sequences; nothing of it reaches a
terminal unseen: `visible` replaces what would move the cursor or turn the writing direction.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

CODES = {
    "plain": "",
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}

# C0 and C1 controls, DEL, and the characters that override the direction of writing.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_COLOUR_SEQUENCE = re.compile("\x1b\\[[0-9;:]*m")


@dataclass(frozen=True, kw_only=True)
class Terminal:
    """The two output streams as they were found at the start.

    `is_tty`: stdout is a terminal, so tables are for people; `colour_*`: colour may be written;
    `live`: stderr may be redrawn in place; `marks`: stdout can show more than ASCII.
    """

    is_tty: bool
    colour_out: bool
    colour_err: bool
    live: bool
    marks: bool
    width: int

    def out(self, text: str, colour: str) -> str:
        """`text` in a colour, where stdout takes colour."""
        return paint(text, colour) if self.colour_out else text

    def err(self, text: str, colour: str) -> str:
        """`text` in a colour, where stderr takes colour."""
        return paint(text, colour) if self.colour_err else text


def detect(environ: Mapping[str, str] = os.environ, out: TextIO | None = None, err: TextIO | None = None) -> Terminal:
    """Looks at the streams and at NO_COLOR, FORCE_COLOR, TERM and COLUMNS. NO_COLOR beats FORCE_COLOR."""
    out, err = out or sys.stdout, err or sys.stderr
    dumb = environ.get("TERM", "") == "dumb"
    return Terminal(
        is_tty=out.isatty(),
        colour_out=_colour(environ, out, dumb),
        colour_err=_colour(environ, err, dumb),
        live=err.isatty() and not dumb,
        marks=(out.encoding or "").lower().replace("-", "") == "utf8",
        width=max(40, shutil.get_terminal_size((80, 24)).columns),
    )


def _colour(environ: Mapping[str, str], stream: TextIO, dumb: bool) -> bool:
    if environ.get("NO_COLOR"):
        return False
    forced = environ.get("FORCE_COLOR", "")
    if forced:
        return forced != "0"
    return stream.isatty() and not dumb


def paint(text: str, colour: str) -> str:
    """`text` between the codes of a colour of `CODES`."""
    code = CODES[colour]
    return f"\x1b[{code}m{text}\x1b[0m" if code and text else text


def visible(text: str) -> str:
    """`text` on one line, with every control and direction character written out (ESC as \\x1b)."""
    return _UNSAFE.sub(_written_out, text)


def escaped(text: str) -> str:
    """`text` on one line from which it can be had back: \\n, \\r, \\t and \\\\, other controls as in `visible`."""
    return "".join(_ESCAPES.get(letter) or visible(letter) for letter in text) if _ESCAPED.search(text) else text


_ESCAPED = re.compile(rf"{_UNSAFE.pattern}|\\")
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def _written_out(match: re.Match[str]) -> str:
    character = match.group()
    if character in "\n\t\r":
        return " "
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def log_line(text: str, *, colour: bool) -> str:
    """A line of a program's output for a terminal: its colours stay where wanted, other controls are shown."""
    parts: list[str] = []
    start = 0
    for match in _COLOUR_SEQUENCE.finditer(text):
        parts += [_log_text(text[start : match.start()]), match.group() if colour else ""]
        start = match.end()
    parts.append(_log_text(text[start:]))
    return "".join(parts) + ("\x1b[0m" if colour and len(parts) > 1 else "")


def _log_text(text: str) -> str:
    return "\t".join(visible(part) for part in text.split("\t"))


def cells(text: str) -> int:
    """How many columns `text` takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(character) for character in text)


def _cells_of(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int, *, ellipsis: str = "…") -> str:
    """`text` shortened to `width` columns, the last of them an ellipsis where something is missing."""
    if cells(text) <= width:
        return text
    room = max(0, width - cells(ellipsis))
    taken: list[str] = []
    for character in text:
        room -= _cells_of(character)
        if room < 0:
            break
        taken.append(character)
    return "".join(taken).rstrip() + ellipsis[:width]


def can_ask() -> bool:
    """Whether somebody sits there: keys can be read, and questions seen."""
    return sys.stdin.isatty() and sys.stderr.isatty()
