"""Changes of many tasks, and edits"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "task_edits",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "revision", name=op.f("pk_task_edits")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "bulk_jobs",
        sa.Column("job_key", sa.String(length=160), nullable=False),
        sa.Column("method", sa.String(length=64), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("caller", sa.LargeBinary(), nullable=False),
        sa.Column("task_ids", sa.LargeBinary(), nullable=False),
        sa.Column("matched", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("job_key", name=op.f("pk_bulk_jobs")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "bulk_steps",
        sa.Column("job_key", sa.String(length=160), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job_key", "first", name=op.f("pk_bulk_steps")),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    op.drop_table("bulk_steps")
    op.drop_table("bulk_jobs")
    op.drop_table("task_edits")
