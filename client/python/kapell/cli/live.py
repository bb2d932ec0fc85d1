"""One line at the bottom of the terminal that is redrawn in place, below what scrolls by.

It is written to stderr, and only where stderr is a terminal that can be redrawn; elsewhere
nothing is written. Whoever prints while a line stands goes through `above`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kapell.cli.terminal import Terminal, cells, cut, visible

_ERASE = "\r\x1b[2K"
_BAR = 20


class LiveLine:
    """The line. `set` draws it anew, `clear` takes it away."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._drawn = ""

    def set(self, mark: str, colour: str, text: str) -> None:
        """Draws `mark` in its colour and then `text`, cut to the width of the terminal."""
        if not self._terminal.live:
            return
        mark = mark if self._terminal.marks else "*"
        room = self._terminal.width - cells(mark) - 2
        line = f"{self._terminal.err(mark, colour)} {cut(visible(text), room)}"
        if line != self._drawn:
            sys.stderr.write(_ERASE + line)
            sys.stderr.flush()
            self._drawn = line

    def fit(self, terminal: Terminal) -> None:
        """Goes by a terminal whose size has changed."""
        self._terminal = terminal
        self._drawn = ""

    def clear(self) -> None:
        """Takes the line away."""
        if self._drawn:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
            self._drawn = ""

    @contextmanager
    def above(self) -> Iterator[None]:
        """What is written meanwhile scrolls by above the line."""
        drawn, self._drawn = self._drawn, ""
        if drawn:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
        yield
        if drawn:
            sys.stdout.flush()
            sys.stderr.write(drawn)
            sys.stderr.flush()
            self._drawn = drawn


def bar(fraction: float, terminal: Terminal) -> str:
    """A progress bar of fixed width; empty where the fraction is not known (negative)."""
    if fraction < 0:
        return ""
    full, empty = ("━", "╌") if terminal.marks else ("#", ".")
    done = round(min(1.0, fraction) * _BAR)
    return full * done + empty * (_BAR - done)
