"""Sums of usage: which rows a question needs, so that a year of a million records takes milliseconds.

A range is taken apart into whole UTC days, quarters of an hour where a stretch begins inside of a day, and, at its
two ends, records. A day that one stretch begins in is read as its sum and the shorter side of the cut: the longer
side is what is left. Tasks, trees and labels have sums by UTC days of their own, one of them at a time. What no sum
has (minutes, two labels at once, the ends of other zones' days by label) is summed from the records.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from kapell_server.domain.usage.entry import Dims
from kapell_server.store.usage_rows import SLOT_NS
from kapell_server.store.usage_tables import SUMS, usage_days, usage_records, usage_slots, usage_values

SLOTS = 96
_MINUTE_NS = 60_000_000_000
_FEW_RUNS = 64
"""Stretches that are summed by the database one by one; more of them are summed here, from one read."""
_KEYS_IN_SQL = 500

Line = tuple[int, int, tuple[str, ...], Sequence[int]]
"""A stretch, a line of the sums, further values it is grouped by, and the sums."""
Others = Callable[[int, int], Iterator[Line]]
"""The lines of the records from a moment on until another."""


@dataclass(frozen=True, slots=True)
class Range:
    """From when until when, and where its stretches begin; `bounds` ends with the end of the last."""

    start_ns: int
    end_ns: int
    bounds: Sequence[int]

    def index(self, at_ns: int) -> int:
        """The stretch of a moment."""
        return bisect_right(self.bounds, at_ns) - 1


# -- from the sums ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Plan:
    """What is read of the sums: whole days, days with one cut, single quarters, and stretches of records."""

    days: list[tuple[int, int]]
    cuts: list[tuple[int, int, int]]
    """(day, quarter of the cut, stretch before it); the stretch after it is the next one."""
    slots: list[tuple[int, int, int]]
    """(day, first quarter, quarter after the last)."""
    records: list[tuple[int, int]]


def _plan(wanted: Range) -> _Plan:
    plan = _Plan([], [], [], [])
    first = -(-wanted.start_ns // SLOT_NS)
    last = wanted.end_ns // SLOT_NS
    if first > last:
        plan.records.append((wanted.start_ns, wanted.end_ns))
        return plan
    plan.records += [(wanted.start_ns, first * SLOT_NS), (last * SLOT_NS, wanted.end_ns)]
    position = 0
    for day in range(first // SLOTS, -(-last // SLOTS)):
        begin, end = max(first, day * SLOTS), min(last, (day + 1) * SLOTS)
        if begin >= end:
            continue
        while wanted.bounds[position + 1] <= begin * SLOT_NS:
            position += 1
        cuts = 0
        while wanted.bounds[position + 1 + cuts] < end * SLOT_NS:
            cuts += 1
        whole = end - begin == SLOTS
        if whole and not cuts:
            plan.days.append((day, position))
        elif whole and cuts == 1:
            plan.cuts.append((day, wanted.bounds[position + 1] // SLOT_NS - day * SLOTS, position))
        else:
            plan.slots.append((day, begin - day * SLOTS, end - day * SLOTS))
    return plan


def from_sums(connection: Connection, wanted: Range, keys: set[int] | None) -> Iterator[Line]:
    """The lines of the range, of these lines of the sums only where some are given. Bounds lie on quarters."""
    plan = _plan(wanted)
    yield from _days(connection, plan, keys)
    yield from _cut_days(connection, plan, keys)
    for begin_ns, end_ns in plan.records:
        if begin_ns < end_ns:
            inside = usage_records.c.event_ns >= begin_ns, usage_records.c.event_ns < end_ns
            yield from from_records(connection, wanted, (*inside, *_of_keys(usage_records, keys)))
    for (begin, end), group in groupby(sorted(plan.slots, key=lambda slot: slot[1:]), key=lambda slot: slot[1:]):
        for first, last in _runs(day for day, _, _ in group):
            table = usage_slots
            statement = sa.select(table.c.slot, table.c.day, table.c.key_id, *_columns(table)).where(
                table.c.slot.in_(range(begin, end)), table.c.day.between(first, last), *_of_keys(table, keys)
            )
            for slot, day, key_id, *sums in connection.execute(statement):
                yield wanted.index((day * SLOTS + slot) * SLOT_NS), key_id, (), sums


def _days(
    connection: Connection, plan: _Plan, keys: set[int] | None, name: str = "", value: str | None = None
) -> Iterator[Line]:
    """Days that lie in one stretch; with a name by the values of this name, or of one value.

    Summed by the database where there are few stretches.
    """
    table = usage_values if name else usage_days
    conditions = _of_keys(table, keys)
    if name:
        conditions.append(usage_values.c.name == name)
    if value is not None:
        conditions.append(usage_values.c.value == value)
    columns: list[sa.Column[Any]] = [table.c.key_id, *([usage_values.c.value] if name and value is None else [])]
    width = len(columns)
    runs = [
        (stretch, first, last)
        for stretch, group in groupby(plan.days, key=lambda one: one[1])
        for first, last in _runs(day for day, _ in group)
    ]
    if len(runs) > _FEW_RUNS:
        stretch_of = dict(plan.days)
        statement = sa.select(*columns, *_columns(table), table.c.day).where(
            table.c.day.between(plan.days[0][0], plan.days[-1][0]), *conditions
        )
        for row in connection.execute(statement):
            stretch = stretch_of.get(row[-1])
            if stretch is not None:
                yield stretch, row[0], row[1:width], row[width:-1]
        return
    for stretch, first, last in runs:
        statement = (
            sa.select(*columns, *_sums(table)).where(table.c.day.between(first, last), *conditions).group_by(*columns)
        )
        for row in connection.execute(statement):
            yield stretch, row[0], row[1:width], row[width:]


def _cut_days(connection: Connection, plan: _Plan, keys: set[int] | None) -> Iterator[Line]:
    """Days with one cut: the shorter side is read, the longer one is what it leaves of the day's sum."""
    if not plan.cuts:
        return
    stretch_of = {day: (cut, stretch) for day, cut, stretch in plan.cuts}
    table = usage_days
    for first, last in _runs(sorted(stretch_of)):
        whole = sa.select(table.c.day, table.c.key_id, *_columns(table)).where(
            table.c.day.between(first, last), *_of_keys(table, keys)
        )
        for day, key_id, *sums in connection.execute(whole):
            cut, stretch = stretch_of[day]
            yield stretch + (cut <= SLOTS // 2), key_id, (), sums
    table = usage_slots
    for cut, group in groupby(sorted(plan.cuts, key=lambda one: one[1]), key=lambda one: one[1]):
        head = cut <= SLOTS // 2
        side = range(cut) if head else range(cut, SLOTS)
        for first, last in _runs(sorted(day for day, _, _ in group)):
            part = (
                sa.select(table.c.day, table.c.key_id, *_sums(table))
                .where(table.c.slot.in_(side), table.c.day.between(first, last), *_of_keys(table, keys))
                .group_by(table.c.day, table.c.key_id)
            )
            for day, key_id, *sums in connection.execute(part):
                stretch = stretch_of[day][1]
                yield stretch + (not head), key_id, (), sums
                yield stretch + head, key_id, (), [-one for one in sums]


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Rising numbers as runs without gaps: (first, last)."""
    first = last = None
    for number in numbers:
        if first is None or last is None:
            first = last = number
        elif number == last + 1:
            last = number
        else:
            yield first, last
            first = last = number
    if first is not None and last is not None:
        yield first, last


# -- from the sums by a further value --------------------------------------------------------


def from_values(
    connection: Connection, wanted: Range, keys: set[int] | None, name: str, others: Others
) -> Iterator[Line]:
    """The lines of the range by one further value; `others` gives those of the time in which there are no whole days.

    Records without the value are what the values leave of a day. Bounds lie on quarters.
    """
    plan = _plan(wanted)
    rest: dict[tuple[int, int], Sequence[int]] = {}
    for stretch, key_id, values, sums in _days(connection, plan, keys, name):
        yield stretch, key_id, values, sums
        line = stretch, key_id
        rest[line] = list(map(operator.sub, rest[line], sums)) if line in rest else [-one for one in sums]
    for stretch, key_id, _, sums in _days(connection, plan, keys):
        line = stretch, key_id
        rest[line] = list(map(operator.add, rest[line], sums)) if line in rest else sums
    for (stretch, key_id), sums in rest.items():
        if any(sums):
            yield stretch, key_id, ("",), sums
    for begin_ns, end_ns in _besides(wanted, plan):
        yield from others(begin_ns, end_ns)


def with_value(
    connection: Connection, wanted: Range, keys: set[int] | None, name: str, value: str, others: Others
) -> Iterator[Line]:
    """As `from_values`, of the records with one value."""
    plan = _plan(wanted)
    yield from _days(connection, plan, keys, name, value)
    for begin_ns, end_ns in _besides(wanted, plan):
        yield from others(begin_ns, end_ns)


def _besides(wanted: Range, plan: _Plan) -> Iterator[tuple[int, int]]:
    """The time of the range that is in no whole day of one stretch."""
    begin_ns = wanted.start_ns
    for first, last in _runs(day for day, _ in plan.days):
        if begin_ns < first * SLOTS * SLOT_NS:
            yield begin_ns, first * SLOTS * SLOT_NS
        begin_ns = (last + 1) * SLOTS * SLOT_NS
    if begin_ns < wanted.end_ns:
        yield begin_ns, wanted.end_ns


# -- from the records ------------------------------------------------------------------------


def from_records(
    connection: Connection,
    wanted: Range,
    conditions: Sequence[sa.ColumnElement[bool]],
    *,
    group: Sequence[sa.ColumnElement[Any]] = (),
    source: sa.FromClause = usage_records,
) -> Iterator[Line]:
    """The lines of the records that meet the conditions and count; `group` are further values to group by."""
    table = usage_records
    columns: list[Any] = [table.c.key_id, *group]
    one_stretch = len(wanted.bounds) == 2
    if not one_stretch:
        unit = _MINUTE_NS if any(bound % SLOT_NS for bound in wanted.bounds[1:-1]) else SLOT_NS
        columns.append(table.c.event_ns.op("/")(unit).label("unit"))
    statement = (
        sa.select(*columns, *_sums(table))
        .select_from(source)
        .where(*conditions, table.c.superseded_by == 0)
        .group_by(*columns)
    )
    width = 1 + len(group)
    for row in connection.execute(statement):
        values = tuple(value or "" for value in row[1:width])
        if one_stretch:
            yield 0, row[0], values, row[width:]
        else:
            # The first unit may begin before the range, and so before the first stretch.
            stretch = max(0, wanted.index(row[width] * unit))
            yield stretch, row[0], values, row[width + 1 :]


def _columns(table: sa.Table) -> list[sa.Column[int]]:
    return [table.c[name] for name in SUMS]


def _sums(table: sa.Table) -> list[sa.ColumnElement[int]]:
    """PostgreSQL gives the sum of whole numbers as a decimal unless it is told otherwise."""
    return [sa.cast(sa.func.sum(table.c[name]), sa.BigInteger) for name in SUMS]


def _of_keys(table: sa.Table, keys: set[int] | None) -> list[sa.ColumnElement[bool]]:
    """Only these lines; many of them are left for the reader to sort out."""
    if keys is None or len(keys) > _KEYS_IN_SQL:
        return []
    return [table.c.key_id.in_(sorted(keys))]


def fits(dims: Dims, wanted: dict[str, frozenset[str]]) -> bool:
    """Whether a line has one of the wanted values in each of these fields."""
    return all(getattr(dims, name) in values for name, values in wanted.items())
