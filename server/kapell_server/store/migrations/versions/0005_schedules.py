"""Schedules"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "schedule_tasks",
        sa.Column("schedule_id", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name=op.f("pk_schedule_tasks")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("schedule_tasks")
