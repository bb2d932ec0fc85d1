"""Rows of the table: a figure, its floor, their ratio over all repetitions, and the goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.load import median


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line. `figures` and `floors` have one value a repetition, measured one after the other.

    `compared` is what the goal speaks of; empty: figure divided by floor, repetition by repetition.
    """

    name: str
    unit: str
    figures: Sequence[float]
    floors: Sequence[float] = ()
    compared: Sequence[float] = ()
    compared_unit: str = "×"
    goal: float | None = None
    stretch: float | None = None
    higher_is_better: bool = False
    note: str = ""
    values: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        values = tuple(self.compared) or tuple(
            figure / floor for figure, floor in zip(self.figures, self.floors, strict=True) if floor
        )
        object.__setattr__(self, "values", values or tuple(self.figures))

    @property
    def verdict(self) -> str:
        """ "stretch", "goal", "short" or, without a goal, nothing."""
        if self.goal is None:
            return ""
        value, sign = median(self.values), 1 if self.higher_is_better else -1
        if self.stretch is not None and sign * value >= sign * self.stretch:
            return "stretch"
        return "goal" if sign * value >= sign * self.goal else "SHORT"

    def cells(self) -> tuple[str, ...]:
        """The cells of the line, as text."""
        sign = "≥" if self.higher_is_better else "≤"
        return (
            self.name,
            f"{_number(median(self.figures))} {self.unit}",
            f"{_number(median(self.floors))} {self.unit}" if self.floors else "",
            f"{_number(median(self.values))} {self.compared_unit}",
            f"{_number(min(self.values))} – {_number(max(self.values))}",
            "" if self.goal is None else f"{sign} {_number(self.goal)}",
            "" if self.stretch is None else f"{_number(self.stretch)}",
            self.verdict,
            self.note,
        )


HEAD = ("figure", "measured", "floor", "compared", "spread", "goal", "stretch", "", "")


def table(rows: Sequence[Row]) -> str:
    """All rows as Markdown."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
