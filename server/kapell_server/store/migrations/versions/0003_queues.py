"""Queues and limits"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "standing",
        sa.Column(
            "create_revision", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("create_revision", name=op.f("pk_standing")),
    )
    with op.batch_alter_table("standing", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_standing_kind_resource_id"), ["kind", "resource_id"], unique=True)
    op.create_table(
        "starts",
        sa.Column("limit_id", sa.String(length=66), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("limit_id", "start_ns", name=op.f("pk_starts")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.add_column(sa.Column("queue_rank", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("fairness_key", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("concurrency_keys", sa.String(length=520), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_column("concurrency_keys")
        batch_op.drop_column("fairness_key")
        batch_op.drop_column("queue_rank")

    op.drop_table("starts")
    with op.batch_alter_table("standing", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_standing_kind_resource_id"))

    op.drop_table("standing")
