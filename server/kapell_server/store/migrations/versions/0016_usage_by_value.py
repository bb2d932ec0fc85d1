"""Sums of usage by task, tree and label"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0014"
branch_labels = None
depends_on = None

_SUMS = (
    *("records", "uncached", "cache_read", "cache_write_5m", "cache_write_1h", "output", "reasoning"),
    *("cost", "unpriced", "estimated"),
)
_DAY_NS = 86_400_000_000_000


def upgrade() -> None:
    op.create_table(
        "usage_values",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("value", sa.String(length=256), nullable=False),
        sa.Column("key_id", sa.Integer(), nullable=False),
        *[sa.Column(name, sa.BigInteger(), nullable=False) for name in _SUMS],
        sa.PrimaryKeyConstraint("name", "day", "value", "key_id", name=op.f("pk_usage_values")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("usage_records", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_usage_records_unpriced"),
            ["event_ns"],
            unique=False,
            sqlite_where=sa.text("unpriced > 0"),
            postgresql_where=sa.text("unpriced > 0"),
        )
    _fill("'task'", "r.task_id", "usage_records r WHERE r.task_id IS NOT NULL AND")
    _fill("'root_task'", "r.root_id", "usage_records r WHERE r.root_id IS NOT NULL AND")
    _fill("'label:' || l.name", "l.value", "usage_records r JOIN usage_labels l ON l.number = r.number WHERE")


def _fill(name: str, value: str, source: str) -> None:
    sums = ", ".join(f"SUM(r.{one})" for one in _SUMS)
    op.execute(
        f"INSERT INTO usage_values (name, day, value, key_id, {', '.join(_SUMS)}) "
        f"SELECT {name}, r.event_ns / {_DAY_NS}, {value}, r.key_id, {sums} FROM {source} r.superseded_by = 0 "
        "GROUP BY 1, 2, 3, 4"
    )


def downgrade() -> None:
    with op.batch_alter_table("usage_records", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_usage_records_unpriced"))
    op.drop_table("usage_values")
