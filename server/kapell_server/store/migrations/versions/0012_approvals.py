"""Approvals, what they show, and their audit"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_REVISION = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "approvals",
        sa.Column("create_revision", _REVISION, autoincrement=False, nullable=False),
        sa.Column("approval_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.String(length=200), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("create_revision", name=op.f("pk_approvals")),
    )
    with op.batch_alter_table("approvals", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_approvals_approval_id"), ["approval_id"], unique=True)
        batch_op.create_index(
            batch_op.f("ix_approvals_state_create_revision"), ["state", "create_revision"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_approvals_task_id_create_revision"), ["task_id", "create_revision"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_approvals_signature_state"), ["signature", "state"], unique=False)
    op.create_table(
        "approval_contents",
        sa.Column("approval_id", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("approval_id", name=op.f("pk_approval_contents")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "approval_audit",
        sa.Column("revision", _REVISION, autoincrement=False, nullable=False),
        sa.Column("approval_id", sa.String(length=64), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("revision", name=op.f("pk_approval_audit")),
    )
    with op.batch_alter_table("approval_audit", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_approval_audit_approval_id_revision"), ["approval_id", "revision"], unique=False
        )


def downgrade() -> None:
    op.drop_table("approval_audit")
    op.drop_table("approval_contents")
    op.drop_table("approvals")
