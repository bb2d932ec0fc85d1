"""Values of secrets, live runs of schedules, and when tasks under keys first joined"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kapell.v1.schedule_pb2 import Schedule

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_SCHEDULE = 3
_ENDED = (5, 6, 7)

_standing = sa.table("standing", sa.column("kind", sa.SmallInteger), sa.column("data", sa.LargeBinary))
_tasks = sa.table("tasks", sa.column("task_id", sa.String), sa.column("state", sa.SmallInteger))
_runs = sa.table("schedule_runs", sa.column("task_id", sa.String), sa.column("schedule_id", sa.String))


def upgrade() -> None:
    op.create_table(
        "schedule_runs",
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("schedule_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_schedule_runs")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "secret_values",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secret_values")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.add_column(sa.Column("arrival_ns", sa.BigInteger(), nullable=True))
    _fill()


def _fill() -> None:
    """The task that each schedule has made last is a live run where it has not ended."""
    connection = op.get_bind()
    rows = connection.scalars(sa.select(_standing.c.data).where(_standing.c.kind == _SCHEDULE)).all()
    for schedule in map(Schedule.FromString, rows):
        live = sa.select(_tasks.c.task_id).where(
            _tasks.c.task_id == schedule.last_task_id, _tasks.c.state.not_in(_ENDED)
        )
        if schedule.last_task_id and connection.scalar(live) is not None:
            connection.execute(
                sa.insert(_runs), {"task_id": schedule.last_task_id, "schedule_id": schedule.schedule_id}
            )


def downgrade() -> None:
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_column("arrival_ns")
    op.drop_table("secret_values")
    op.drop_table("schedule_runs")
