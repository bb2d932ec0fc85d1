"""Dependencies and children of tasks"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_COLUMNS = ("parent_id", "root_id")


def upgrade() -> None:
    op.create_table(
        "task_edges",
        sa.Column("dependency_id", sa.String(length=64), nullable=False),
        sa.Column("dependant_id", sa.String(length=64), nullable=False),
        sa.Column("condition", sa.SmallInteger(), nullable=False),
        sa.Column("on_failure", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dependency_id", "dependant_id", name=op.f("pk_task_edges")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        for column in _COLUMNS:
            batch_op.add_column(sa.Column(column, sa.String(length=64), nullable=True))
        for column in _COLUMNS:
            batch_op.create_index(
                f"ix_tasks_{column}",
                [column, "create_revision"],
                unique=False,
                sqlite_where=sa.text(f"{column} IS NOT NULL"),
                postgresql_where=sa.text(f"{column} IS NOT NULL"),
            )


def downgrade() -> None:
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        for column in _COLUMNS:
            batch_op.drop_index(
                f"ix_tasks_{column}",
                sqlite_where=sa.text(f"{column} IS NOT NULL"),
                postgresql_where=sa.text(f"{column} IS NOT NULL"),
            )
        for column in _COLUMNS:
            batch_op.drop_column(column)

    op.drop_table("task_edges")
