"""Budgets, and what webhooks are sent"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budget_spend",
        sa.Column("budget_id", sa.String(64), nullable=False),
        sa.Column("slice_ns", sa.BigInteger(), nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("budget_id", "slice_ns", name=op.f("pk_budget_spend")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "budget_reservations",
        sa.Column("reservation_id", sa.String(64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("reservation_id", name=op.f("pk_budget_reservations")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "webhook_targets",
        sa.Column("webhook_id", sa.String(64), nullable=False),
        sa.Column("url", sa.String(2000), nullable=False),
        sa.PrimaryKeyConstraint("webhook_id", name=op.f("pk_webhook_targets")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("delivery_id", sa.String(64), nullable=False),
        sa.Column("webhook_id", sa.String(64), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_webhook_deliveries")),
    )
    op.create_index(op.f("ix_webhook_deliveries_delivery_id"), "webhook_deliveries", ["delivery_id"], unique=True)
    op.create_index(
        op.f("ix_webhook_deliveries_webhook_id_number"), "webhook_deliveries", ["webhook_id", "number"], unique=False
    )
    op.create_index(op.f("ix_webhook_deliveries_state_number"), "webhook_deliveries", ["state", "number"], unique=False)


def downgrade() -> None:
    for table in ("webhook_deliveries", "webhook_targets", "budget_reservations", "budget_spend"):
        op.drop_table(table)
