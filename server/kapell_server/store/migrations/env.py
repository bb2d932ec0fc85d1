"""Alembic's entry: migrates over the connection it is given."""

from __future__ import annotations

from alembic import context
from kapell_server.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
