"""Tables and cards: aligned and fitted on a terminal, tab-separated with full values on a pipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kapell.cli import times
from kapell.cli.terminal import Terminal, cells, cut, escaped, visible

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_GAP = 2
_LEAST = 8


@dataclass(frozen=True)
class Cell:
    """A value as it is shown; on a terminal `mark` stands before it, and `seen`, where given, in its place."""

    text: str
    colour: str = "plain"
    mark: str = ""
    seen: str = ""


def moment(time: Timestamp, unset: str = "-") -> Cell:
    """A point in time: where the reader is on a terminal, in UTC on a pipe."""
    return Cell(times.iso(time), seen=times.local(time)) if time.seconds else Cell(unset)


def peer(address: str) -> Cell:
    """Where a call came from, as gRPC names it; without the kind of address on a terminal."""
    kind, _, where = address.partition(":")
    return Cell(address or "-", seen=where if kind in ("ipv4", "ipv6") else "")


@dataclass(frozen=True)
class Column:
    """A column: how its cell is made, whether only `-o wide` has it, and what happens to it where room is short.

    `flexible` ones are cut, and not below `keep` as long as `spare` ones can be left out, the last of them first.
    """

    title: str
    cell: Callable[[Any], Cell | str]
    wide: bool = False
    flexible: bool = False
    spare: bool = False
    keep: int = _LEAST
    right: bool = False
    least: int = 0  # columns it takes at least; keeps lines aligned that are written one at a time


def _cell(column: Column, item: Any) -> Cell:
    value = column.cell(item)
    return value if isinstance(value, Cell) else Cell(value)


def rows_for_pipe(columns: Sequence[Column], items: Sequence[Any]) -> list[str]:
    """One line an item, all columns, full values, tabs between, no header. Line ends, tabs and backslashes in
    values are written as \\n, \\r, \\t and \\\\, so that a line is an item and nothing is lost."""
    return ["\t".join(escaped(_cell(column, item).text) for column in columns) for item in items]


def rows_for_terminal(
    columns: Sequence[Column], items: Sequence[Any], terminal: Terminal, *, header: bool = True, fit: bool = True
) -> list[str]:
    """A header and one line an item, aligned; with `fit` the flexible columns are cut to the width."""
    columns = list(columns)
    grid = [[_cell(column, item) for column in columns] for item in items]
    texts = [[_shown(cell, terminal) for cell in row] for row in grid]
    widths = [
        max([column.least, cells(column.title) if header else 0, *(cells(row[at]) for row in texts)])
        for at, column in enumerate(columns)
    ]
    if fit:
        if header:  # lines that are written one at a time all have the same columns
            for at in _left_out(widths, columns, terminal.width):
                for row in (columns, widths, *grid, *texts):
                    del row[at]  # type: ignore[attr-defined]
        _fit(widths, columns, terminal.width)
    written = []
    if header:
        titles = [_padded(column.title, width, column.right) for column, width in zip(columns, widths, strict=True)]
        written.append(terminal.out((" " * _GAP).join(titles).rstrip(), "dim"))
    for cell_row, text_row in zip(grid, texts, strict=True):
        parts = []
        for column, cell, text, width in zip(columns, cell_row, text_row, widths, strict=True):
            shown = _padded(cut(text, width, ellipsis="…" if terminal.marks else "..."), width, column.right)
            bare = shown.strip()
            parts.append(shown.replace(bare, terminal.out(bare, cell.colour), 1) if bare else shown)
        written.append((" " * _GAP).join(parts).rstrip())
    return written


def _shown(cell: Cell, terminal: Terminal) -> str:
    text = visible(cell.seen or cell.text)
    return f"{cell.mark} {text}" if cell.mark and terminal.marks else text


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - cells(text))
    return space + text if right else text + space


def _left_out(widths: Sequence[int], columns: Sequence[Column], room: int) -> list[int]:
    """The spare columns there is no room for, the last first."""
    needed = [
        min(width, column.keep) if column.flexible else width for width, column in zip(widths, columns, strict=True)
    ]
    excess = sum(needed) + _GAP * (len(needed) - 1) - room
    out: list[int] = []
    for at in reversed([at for at, column in enumerate(columns) if column.spare]):
        if excess > 0:
            out.append(at)
            excess -= needed[at] + _GAP
    return out


def _fit(widths: list[int], columns: Sequence[Column], room: int) -> None:
    """Narrows the flexible columns, the widest first, until the line fits or all are as narrow as may be."""
    excess = sum(widths) + _GAP * (len(widths) - 1) - room
    while excess > 0:
        wide = [at for at, column in enumerate(columns) if column.flexible and widths[at] > _LEAST]
        if not wide:
            return
        widest = max(wide, key=lambda at: widths[at])
        widths[widest] -= 1
        excess -= 1


@dataclass(frozen=True)
class Line:
    """One line of a card: a label and its value."""

    label: str
    value: Cell | str


def card(lines: Sequence[Line], terminal: Terminal) -> list[str]:
    """One resource: labels and values; values of several lines stand below their label. Empty ones are left out."""
    shown = [(line.label, line.value if isinstance(line.value, Cell) else Cell(line.value)) for line in lines]
    shown = [(label, cell) for label, cell in shown if cell.text]
    if not terminal.is_tty:
        return [f"{label}\t{escaped(cell.text)}" for label, cell in shown]
    width = max((cells(label) for label, _ in shown), default=0)
    written = []
    for label, cell in shown:
        head = terminal.out(_padded(label, width, False), "dim")
        first, *rest = cell.text.split("\n")
        written.append(f"{head}  {terminal.out(_shown(Cell(first, mark=cell.mark), terminal), cell.colour)}")
        written += [f"{'':>{width}}  {terminal.out(visible(more), cell.colour)}" for more in rest]
    return written
