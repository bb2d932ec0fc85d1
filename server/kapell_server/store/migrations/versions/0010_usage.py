"""The ledger of usage"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_SUMS = (
    *("records", "uncached", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"),
    *("cost", "unpriced", "estimated"),
)


def _sums() -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS]


def upgrade() -> None:
    _create_records()
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        *_sums(),
        sa.PrimaryKeyConstraint("day", "key_id", name=op.f("pk_usage_days")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_slots",
        sa.Column("slot", sa.SmallInteger(), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        *_sums(),
        sa.PrimaryKeyConstraint("slot", "day", "key_id", name=op.f("pk_usage_slots")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_series",
        sa.Column("series", sa.String(length=150), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("series", name=op.f("pk_usage_series")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_totals",
        sa.Column("usage_id", sa.String(length=64), nullable=False),
        sa.Column("create_revision", sa.BigInteger(), nullable=True),
        sa.Column("own", sa.LargeBinary(), nullable=False),
        sa.Column("tree", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("usage_id", name=op.f("pk_usage_totals")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("usage_totals", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_totals_create_revision"), ["create_revision"], unique=False)
    op.create_table(
        "usage_untold",
        sa.Column("usage_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("usage_id", name=op.f("pk_usage_untold")),
        sqlite_with_rowid=False,
    )


def _create_records() -> None:
    op.create_table(
        "usage_records",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("record_id", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("superseded_by", sa.Integer(), nullable=False),
        sa.Column("event_ns", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=True),
        sa.Column("root_id", sa.String(length=64), nullable=True),
        *_sums(),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_usage_records")),
    )
    with op.batch_alter_table("usage_records", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_records_record_id_version"), ["record_id", "version"], unique=True)
        batch_op.create_index(batch_op.f("ix_usage_records_event_ns"), ["event_ns"], unique=False)
        batch_op.create_index(batch_op.f("ix_usage_records_task_id_number"), ["task_id", "number"], unique=False)
        batch_op.create_index(batch_op.f("ix_usage_records_root_id_number"), ["root_id", "number"], unique=False)
    op.create_table(
        "usage_labels",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("value", sa.String(length=256), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", "value", "number", name=op.f("pk_usage_labels")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("usage_labels", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_labels_number_name"), ["number", "name"], unique=False)
    op.create_table(
        "usage_keys",
        sa.Column("key_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("agent_id", sa.String(length=64), nullable=False),
        sa.Column("agent_type", sa.String(length=63), nullable=False),
        sa.Column("template_id", sa.String(length=64), nullable=False),
        sa.Column("provider", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_usage_keys")),
    )
    with op.batch_alter_table("usage_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_usage_keys_digest"), ["digest"], unique=True)


def downgrade() -> None:
    names = ("untold", "totals", "series", "slots", "days", "keys", "labels", "records")
    for name in names:
        op.drop_table(f"usage_{name}")
