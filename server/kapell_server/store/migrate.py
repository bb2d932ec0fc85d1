"""Brings a database to the newest schema: creates an empty one at once, migrates an older one.

Alembic is imported only where there is something to migrate; a fresh database is made from the
tables and stamped. A test proves that both ways lead to the same schema. It also names the log.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from kapell_server.store import usage_tables
from kapell_server.store.schema import VERSION, meta, metadata, specialise

_ELSEWHERE = (usage_tables,)
"""Where the tables are that schema.py does not have: imported, they are in `metadata`."""
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
        connection.execute(sa.insert(meta).values(name="log_id", value=_new_log_id()))
    elif connection.scalar(sa.select(_version.c.version_num)) != VERSION:
        upgrade(connection)
    connection.commit()


def begin_new_log(connection: Connection) -> str:
    """Gives a prepared database, one that was copied, a log_id of its own, and returns it. Does not commit.

    Events and records stay as they are; cursors and marks that carry the old log_id are void. No
    engine may run on the database.
    """
    log_id = _new_log_id()
    connection.execute(sa.update(meta).where(meta.c.name == "log_id").values(value=log_id))
    return log_id


def _new_log_id() -> str:
    return f"log_{secrets.token_hex(10)}"


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
