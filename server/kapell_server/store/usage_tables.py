"""The tables of the ledger: records in columns that can be summed, and their sums.

`usage_days` and `usage_slots` are the sums of `usage_records` that count, by UTC day and by quarter of an hour, and
`usage_values` those by day and task, tree or label, all written in the same transaction. All zones of today begin
their days on a quarter of an hour, so a day of any zone is a UTC day, less a few quarters, and more of the next.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, SmallInteger, String, Table, text

from kapell_server.domain.usage.figures import Sums
from kapell_server.store.schema import metadata

SUMS = Sums._fields
"""The columns that hold sums, in the order of Sums."""
_Number = BigInteger().with_variant(Integer(), "sqlite")


def _sums() -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in SUMS]


usage_records = Table(
    "usage_records",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=False),
    Column("record_id", String(200), nullable=False),
    Column("version", Integer, nullable=False),
    Column("superseded_by", Integer, nullable=False),
    Column("event_ns", BigInteger, nullable=False),
    Column("key_id", Integer, nullable=False),
    Column("task_id", String(64)),
    Column("root_id", String(64)),
    *_sums(),
    Column("data", LargeBinary, nullable=False),
    Column("raw", LargeBinary),
    # Recording: whether it is known, and with which figures.
    Index(None, "record_id", "version", unique=True),
    # Sums by task, root or label, and of the ends of a range; lists by time.
    Index(None, "event_ns"),
    # What has no price.
    Index(
        "ix_usage_records_unpriced",
        "event_ns",
        sqlite_where=text("unpriced > 0"),
        postgresql_where=text("unpriced > 0"),
    ),
    # What a task has used.
    Index(None, "task_id", "number"),
    # What a tree has used.
    Index(None, "root_id", "number"),
)
"""Every version of every record. What was recorded is never altered; `superseded_by` alone is set once."""

usage_labels = Table(
    "usage_labels",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("value", String(256), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    # Sums by label: the value of a record.
    Index(None, "number", "name"),
    sqlite_with_rowid=False,
)

usage_keys = Table(
    "usage_keys",
    metadata,
    Column("key_id", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(32), nullable=False),
    Column("agent_id", String(64), nullable=False),
    Column("agent_type", String(63), nullable=False),
    Column("template_id", String(64), nullable=False),
    Column("provider", String(63), nullable=False),
    Column("model", String(200), nullable=False),
    # Recording: the line of these values.
    Index(None, "digest", unique=True),
)
"""The lines of the sums: what is summed by, once for all rows that share it."""

usage_days = Table(
    "usage_days",
    metadata,
    Column("day", Integer, primary_key=True),
    Column("key_id", Integer, primary_key=True),
    *_sums(),
    sqlite_with_rowid=False,
)
"""Sums by days since 1970, UTC."""

usage_slots = Table(
    "usage_slots",
    metadata,
    Column("slot", SmallInteger, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("key_id", Integer, primary_key=True),
    *_sums(),
    sqlite_with_rowid=False,
)
"""Sums by quarter of an hour, 0 to 95 of each day. The quarter comes first, since what is asked of this table is
the same hours of many days: those between a zone's midnight and that of UTC."""

usage_values = Table(
    "usage_values",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("value", String(256), primary_key=True),
    Column("key_id", Integer, primary_key=True),
    *_sums(),
    sqlite_with_rowid=False,
)
"""Sums by days since 1970, UTC, and one further value of the records: "task", "root_task" or "label:NAME", as
QueryUsage names them. Records without the value are in no row: they are what is left of `usage_days`."""

usage_series = Table(
    "usage_series",
    metadata,
    Column("series", String(150), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)
"""The largest running totals of each series: a UsageRecord, `version` the number of its records; with a cost once
one was told."""

usage_totals = Table(
    "usage_totals",
    metadata,
    Column("usage_id", String(64), primary_key=True),
    Column("create_revision", BigInteger),
    Column("own", LargeBinary, nullable=False),
    Column("tree", LargeBinary, nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Snapshots of a watch, in order of creation.
    Index(None, "create_revision"),
    sqlite_with_rowid=False,
)
"""What each task and agent has used, as UsageTotals; `data` is the UsageUpdate that was told last."""

usage_untold = Table(
    "usage_untold",
    metadata,
    Column("usage_id", String(64), primary_key=True),
    sqlite_with_rowid=False,
)
"""Totals that have grown since their last event: a start tells of them."""
