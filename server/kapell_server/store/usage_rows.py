"""Rows of the ledger: what the writer loads of it, and what a batch adds, sums included."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Collection, Iterator, Mapping

import sqlalchemy as sa
from kapell.v1.usage_pb2 import USAGE_BASIS_REPORTED, UsageRecord, UsageTotals, UsageUpdate
from sqlalchemy import bindparam
from sqlalchemy.engine import Connection

from kapell_server.domain.usage.entry import Dims, Entry, Series, Total, UsageWrites, sums_of
from kapell_server.domain.usage.figures import Figures, Sums, money, nanos
from kapell_server.store.bulk import Bulk, Lookup
from kapell_server.store.usage_tables import (
    SUMS,
    usage_days,
    usage_keys,
    usage_labels,
    usage_records,
    usage_series,
    usage_slots,
    usage_totals,
    usage_untold,
    usage_values,
)

DAY_NS = 86_400_000_000_000
SLOT_NS = 900_000_000_000
"""A quarter of an hour."""

_versions = Lookup(
    sa.select(usage_records.c.number, usage_records.c.key_id, usage_records.c.superseded_by, usage_records.c.data),
    usage_records.c.record_id,
)
_series = Lookup(sa.select(usage_series.c.series, usage_series.c.data), usage_series.c.series)
_totals = Lookup(
    sa.select(
        *(usage_totals.c.usage_id, usage_totals.c.create_revision, usage_totals.c.own, usage_totals.c.tree),
        usage_totals.c.data,
        usage_untold.c.usage_id.is_not(None),
    ).join(usage_untold, usage_untold.c.usage_id == usage_totals.c.usage_id, isouter=True),
    usage_totals.c.usage_id,
)
_key = sa.select(usage_keys.c.key_id).where(usage_keys.c.digest == bindparam("digest"))

_insert_records = Bulk(
    sa.insert(usage_records),
    *("number", "record_id", "version", "superseded_by", "event_ns", "key_id", "task_id", "root_id"),
    *SUMS,
    *("data", "raw"),
)
_supersede = Bulk(
    sa.update(usage_records)
    .where(usage_records.c.number == bindparam("of_number"))
    .values(superseded_by=bindparam("by_version")),
    *("by_version", "of_number"),
)
_insert_labels = Bulk(sa.insert(usage_labels), "name", "value", "number")
_insert_keys = Bulk(sa.insert(usage_keys), "key_id", "digest", *Dims._fields)


def _adding(table: sa.Table, *keys: str) -> Bulk:
    """Adds to a line of sums, or begins it. Core would have to be told twice what both databases know alike."""
    names = (*keys, *SUMS)
    values = ", ".join(f":{name}" for name in names)
    added = ", ".join(f"{name} = {table.name}.{name} + excluded.{name}" for name in SUMS)
    statement = (
        f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values}) "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {added}"
    )
    return Bulk(sa.text(statement), *names)


def _setting(table: sa.Table, key: str, *others: str) -> Bulk:
    """Puts a row in the place of the one with its key."""
    names = (key, *others)
    values = ", ".join(f":{name}" for name in names)
    new = ", ".join(f"{name} = excluded.{name}" for name in others)
    statement = (
        f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET {new}"
    )
    return Bulk(sa.text(statement), *names)


_add_days = _adding(usage_days, "day", "key_id")
_add_slots = _adding(usage_slots, "slot", "day", "key_id")
_add_values = _adding(usage_values, "name", "day", "value", "key_id")
_set_series = _setting(usage_series, "series", "data")
_set_totals = _setting(usage_totals, "usage_id", "create_revision", "own", "tree", "data")
_delete_untold = Bulk(sa.delete(usage_untold).where(usage_untold.c.usage_id == bindparam("key")), "key")
_insert_untold = Bulk(sa.insert(usage_untold), "usage_id")


# -- loading ---------------------------------------------------------------------------------


def load_versions(connection: Connection, record_ids: Collection[str]) -> list[Entry]:
    """All versions of these records, the first ones first."""
    found = []
    for number, key_id, superseded_by, data in _versions.rows(connection, record_ids):
        record = UsageRecord.FromString(data)
        found.append(Entry(number, key_id, record, sums_of(record), superseded_by=superseded_by))
    found.sort(key=lambda entry: entry.number)
    return found


def load_series(connection: Connection, names: Collection[str]) -> dict[str, Series]:
    """The running totals of those of these series that exist."""
    return {name: _series_of(UsageRecord.FromString(data)) for name, data in _series.rows(connection, names)}


def _series_of(record: UsageRecord) -> Series:
    # Before a cost was told, older rows have one of nothing without a basis.
    told = record.cost_basis == USAGE_BASIS_REPORTED or nanos(record.cost) > 0
    cost = nanos(record.cost) if told else None
    return Series(record.version, Figures.of(record.tokens), dict(record.units), cost)


def load_key(connection: Connection, dims: Dims) -> int | None:
    """The line of the sums for these values, or None."""
    return connection.scalar(_key, {"digest": _digest(dims)})


def _digest(dims: Dims) -> str:
    return hashlib.blake2b("\0".join(dims).encode(), digest_size=16).hexdigest()


def load_totals(connection: Connection, usage_ids: Collection[str]) -> dict[str, Total]:
    """The totals of those of these that have any."""
    found: dict[str, Total] = {}
    for usage_id, create_revision, own, tree, data, untold in _totals.rows(connection, usage_ids):
        sums = [Sums.of(UsageTotals.FromString(one)) for one in (own, tree)]
        told = UsageUpdate.FromString(data) if data else None
        found[usage_id] = Total(sums[0], sums[1], told, create_revision or 0, bool(untold))
    return found


def load_last_numbers(connection: Connection) -> tuple[int, int]:
    """The highest number of a record, and of a line of the sums."""
    numbers = connection.scalar(sa.select(sa.func.max(usage_records.c.number)))
    keys = connection.scalar(sa.select(sa.func.max(usage_keys.c.key_id)))
    return numbers or 0, keys or 0


def load_whole(connection: Connection) -> tuple[int, int]:
    """What all records that count cost, and their tokens, input and output."""
    tokens = functools.reduce(operator.add, (usage_days.c[name] for name in SUMS[1:6]))
    row = connection.execute(sa.select(sa.func.sum(usage_days.c.cost), sa.func.sum(tokens))).one()
    return int(row[0] or 0), int(row[1] or 0)


def load_untold(connection: Connection) -> list[str]:
    """The totals that have grown since their last event."""
    return list(connection.scalars(sa.select(usage_untold.c.usage_id)))


# -- writing ---------------------------------------------------------------------------------


def write_usage(connection: Connection, writes: UsageWrites) -> None:
    """Adds what a batch has recorded, and to all sums of it."""
    _insert_keys.execute(connection, [(key_id, _digest(dims), *dims) for dims, key_id in writes.keys.items()])
    _insert_records.execute(connection, [_row(entry) for entry in writes.entries])
    _supersede.execute(connection, [(version, entry.number) for entry, version in writes.superseded])
    labels = [(name, value, entry.number) for entry in writes.entries for name, value in entry.record.labels.items()]
    _insert_labels.execute(connection, labels)
    _write_sums(connection, writes)
    _set_series.execute(connection, [(name, _series_bytes(series)) for name, series in writes.series.items()])
    _write_totals(connection, writes.totals)


def _row(entry: Entry) -> tuple[object, ...]:
    record = entry.record
    place = (record.record_id, record.version, 0, entry.event_ns, entry.key)
    kin = (record.task_id or None, record.root_task_id or None)
    return (entry.number, *place, *kin, *entry.sums, record.SerializeToString(), entry.raw or None)


def _write_sums(connection: Connection, writes: UsageWrites) -> None:
    """Adds to all sums, each line once. Sorted, so that neighbouring rows are written one after the other."""
    days: dict[tuple[int, int], Sums] = {}
    slots: dict[tuple[int, int, int], Sums] = {}
    values: dict[tuple[str, int, str, int], Sums] = {}
    nothing = Sums()
    changes = [(entry, entry.sums) for entry in writes.entries]
    changes += [(entry, nothing.minus(entry.sums)) for entry, _ in writes.superseded]
    for entry, sums in changes:
        day, rest = divmod(entry.event_ns, DAY_NS)
        line = (day, entry.key)
        days[line] = days[line].plus(sums) if line in days else sums
        part = (rest // SLOT_NS, *line)
        slots[part] = slots[part].plus(sums) if part in slots else sums
        for name, value in _values(entry.record):
            of_value = (name, day, value, entry.key)
            values[of_value] = values[of_value].plus(sums) if of_value in values else sums
    _add_days.execute(connection, [(*line, *sums) for line, sums in sorted(days.items())])
    _add_slots.execute(connection, [(*part, *sums) for part, sums in sorted(slots.items())])
    _add_values.execute(connection, [(*of_value, *sums) for of_value, sums in sorted(values.items())])


def _values(record: UsageRecord) -> Iterator[tuple[str, str]]:
    """What else than its line a record is summed by, named as QueryUsage does."""
    if record.task_id:
        yield "task", record.task_id
    if record.root_task_id:
        yield "root_task", record.root_task_id
    for name, value in record.labels.items():
        yield f"label:{name}", value


def _series_bytes(series: Series) -> bytes:
    record = UsageRecord(version=series.count, units=series.units)
    series.figures.write_to(record.tokens)
    if series.cost is not None:
        record.cost.CopyFrom(money(series.cost))
        record.cost_basis = USAGE_BASIS_REPORTED
    return record.SerializeToString()


def _write_totals(connection: Connection, totals: Mapping[str, Total]) -> None:
    rows = []
    for usage_id, total in totals.items():
        sums = (total.own.message().SerializeToString(), total.tree.message().SerializeToString())
        told = total.told.SerializeToString() if total.told is not None else b""
        rows.append((usage_id, total.create_revision or None, *sums, told))
    _set_totals.execute(connection, rows)
    _delete_untold.execute(connection, [(usage_id,) for usage_id in totals])
    _insert_untold.execute(connection, [(usage_id,) for usage_id, total in totals.items() if total.untold])
