"""When tasks ended, for retention"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED, Task

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ENDED = (TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED)
_CHUNK = 1000

_tasks = sa.table(
    "tasks",
    sa.column("create_revision", sa.BigInteger),
    sa.column("state", sa.SmallInteger),
    sa.column("data", sa.LargeBinary),
    sa.column("end_ns", sa.BigInteger),
)


def upgrade() -> None:
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.add_column(sa.Column("end_ns", sa.BigInteger(), nullable=True))
    _fill()
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.create_index(
            "ix_tasks_end_ns",
            ["end_ns"],
            unique=False,
            sqlite_where=sa.text("end_ns IS NOT NULL"),
            postgresql_where=sa.text("end_ns IS NOT NULL"),
        )


def _fill() -> None:
    """Takes the time of the tasks that have ended from their messages."""
    connection = op.get_bind()
    update = (
        sa.update(_tasks).where(_tasks.c.create_revision == sa.bindparam("key")).values(end_ns=sa.bindparam("ended"))
    )
    after = 0
    while True:
        rows = connection.execute(
            sa.select(_tasks.c.create_revision, _tasks.c.data)
            .where(_tasks.c.state.in_(_ENDED), _tasks.c.create_revision > after)
            .order_by(_tasks.c.create_revision)
            .limit(_CHUNK)
        ).all()
        if not rows:
            return
        ended = [(key, Task.FromString(data).end_time.ToNanoseconds()) for key, data in rows]
        connection.execute(update, [{"key": key, "ended": end_ns} for key, end_ns in ended])
        after = rows[-1][0]


def downgrade() -> None:
    with op.batch_alter_table("tasks", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_tasks_end_ns",
            sqlite_where=sa.text("end_ns IS NOT NULL"),
            postgresql_where=sa.text("end_ns IS NOT NULL"),
        )
        batch_op.drop_column("end_ns")
