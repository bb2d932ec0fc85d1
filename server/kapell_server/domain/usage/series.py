"""Running totals made into records: what goes beyond the totals before is recorded, and nothing counts twice.

A report may leave out what another one tells: a cost comes with the third of them, reasoning after its output. What
was reckoned until then is a part of the cost that comes, and what was output is reasoning now. So the records of
before get a new version. Once a cost was told, tokens without one cost nothing of their own: it is in the next
cost. So the sum of a series is the largest that was told of each field, in whatever order and parts it was told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kapell.v1.usage_pb2 import USAGE_BASIS_DERIVED, USAGE_BASIS_REPORTED, UsageRecord

from kapell_server.domain.copied import copied
from kapell_server.domain.state import State
from kapell_server.domain.usage.entry import Entry, Series
from kapell_server.domain.usage.figures import FIELDS, Figures, money, nanos

MOST_AMENDED = 1_000
"""Records of before that one report may change, the latest ones: what is older stays as it is."""
_COSTED = "its cost is in the running cost of its series"
_REASONED = "a later report of its series tells of reasoning"


@dataclass(frozen=True, slots=True)
class Step:
    """What a report adds: the totals after it, whether there is more for a record of its own, what it amends.

    Neither where a first cost is 0: it says that tokens of the series cost nothing of their own.
    """

    series: Series
    is_record: bool
    amended: list[tuple[Entry, UsageRecord]]
    """Versions that count, each with the one that is to take its place."""


def step_of(state: State, record: UsageRecord, *, own: bool) -> Step | None:
    """Makes running totals into what was added to them; None where they say nothing that is not known.

    `own` leaves records of other tasks as they are: an agent says nothing of what others have used.
    """
    known = state.usage.series(record.series)
    total = Figures.of(record.tokens)
    cost = nanos(record.cost) if record.HasField("cost") else None
    added = total.beyond(known.figures)
    units = {name: count - known.units.get(name, 0) for name, count in record.units.items()}
    units = {name: count for name, count in units.items() if count > 0}
    late = max(0, added.reasoning - added.output)
    settles = cost is not None and known.cost is None and known.count > 0
    amended, left = _amended(state, record, known.count, late, settles, own) if late or settles else ([], 0)
    added = added._replace(reasoning=added.reasoning - late)
    is_record = any(added) or bool(units) or (cost or 0) > (known.cost or 0)
    if not is_record and not amended and (cost is None or known.cost is not None):
        return None
    figures = known.figures.joined(total)
    grown = Series(
        known.count + is_record,
        figures._replace(reasoning=figures.reasoning - left),
        {name: max(known.units.get(name, 0), record.units.get(name, 0)) for name in {*known.units, *record.units}},
        known.cost if cost is None else max(known.cost or 0, cost),
    )
    if is_record:
        _cut(record, known, added, units)
    return Step(grown, is_record, amended)


def _cut(record: UsageRecord, known: Series, added: Figures, units: Mapping[str, int]) -> None:
    record.record_id = f"{record.series}#{known.count + 1}"
    added.write_to(record.tokens)
    record.units.clear()
    record.units.update(units)
    if record.HasField("cost"):
        record.cost.CopyFrom(money(max(0, nanos(record.cost) - (known.cost or 0))))
    elif known.cost is not None:
        _settle(record)
    if known.count:
        names = [name for name, count in zip(FIELDS, added, strict=True) if count and name not in record.derived_fields]
        record.derived_fields.extend(names)
        if record.basis == USAGE_BASIS_REPORTED:
            record.basis = USAGE_BASIS_DERIVED


def _amended(
    state: State, record: UsageRecord, count: int, late: int, settles: bool, own: bool
) -> tuple[list[tuple[Entry, UsageRecord]], int]:
    """The latest records with what is known of them now, and the late reasoning that none of them has room for."""
    found = []
    for entry in _latest(state, record.series, count):
        if own and entry.record.task_id != record.task_id:
            continue
        room = min(late, entry.record.tokens.output_tokens - entry.record.tokens.reasoning_tokens)
        costs = settles and entry.record.cost_basis != USAGE_BASIS_REPORTED
        if room > 0 or costs:
            fresh = copied(entry.record)
            late -= room
            fresh.tokens.reasoning_tokens += room
            fresh.note = _REASONED
            if costs:
                _settle(fresh)
            found.append((entry, fresh))
        if not late and not settles:
            break
    return found, late


def _latest(state: State, name: str, count: int) -> Iterator[Entry]:
    """The versions that count of the latest records of a series, the last one first."""
    record_ids = [f"{name}#{number}" for number in range(count, max(0, count - MOST_AMENDED), -1)]
    state.usage.prefetch(record_ids, ())
    return (versions[-1] for record_id in record_ids if (versions := state.usage.versions(record_id)))


def _settle(record: UsageRecord) -> None:
    """Says that it costs nothing of its own, and takes off what the price table says of it."""
    record.cost.CopyFrom(money(0))
    record.cost_basis = USAGE_BASIS_REPORTED
    record.ClearField("price_id")
    record.ClearField("unpriced")
    if "cost" in record.estimated_fields:
        record.estimated_fields.remove("cost")
    record.note = _COSTED
