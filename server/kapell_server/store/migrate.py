"""Brings a database to the newest schema: creates an empty one at once, migrates an older one.

Alembic is imported only where there is something to migrate; a fresh database is made from the
tables and stamped. A test proves that both ways lead to the same schema.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from kapell_server.store.schema import VERSION, meta, metadata, specialise

_version = sa.table("alembic_version", sa.column("version_num"))


class UnknownSchemaError(Exception):
    """The database has a schema that this version does not know; the text says what to do."""


def prepare(connection: Connection) -> None:
    """Creates, migrates or leaves alone; commits. Gives a new database its log_id. Raises UnknownSchemaError."""
    specialise(connection.dialect.name)
    inspector = sa.inspect(connection)
    if not inspector.has_table("alembic_version"):
        metadata.create_all(connection)
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        connection.execute(sa.insert(_version).values(version_num=VERSION))
        connection.execute(sa.insert(meta).values(name="log_id", value=f"log_{secrets.token_hex(10)}"))
    elif connection.scalar(sa.select(_version.c.version_num)) != VERSION:
        upgrade(connection)
    connection.commit()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Runs the migrations that the database lacks, up to `revision`."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        found = connection.scalar(sa.select(_version.c.version_num))
        raise UnknownSchemaError(
            f"its schema {found} is not known to this version of Kapell, which has {VERSION}. "
            "Start the version that made it, or a newer one."
        ) from error
