"""A database to write and read with plain functions of a connection, the same for both kinds.

SQLite: one connection writes, others read, each in a thread of a small pool; a commit is an
fsync (synchronous=FULL) in a thread of its own, checkpoints of the WAL run beside it. PostgreSQL: asyncpg
under `run_sync`. Exactly one server may use a database; a second is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from kapell.v1.error_pb2 import ERROR_REASON_STORAGE_BUSY, ERROR_REASON_STORAGE_FULL
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool, QueuePool

from kapell_server.domain.errors import KapellError
from kapell_server.store.migrate import UnknownSchemaError, prepare

__all__ = ["Connection", "Database", "StorageError", "open_database"]

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")

_READERS = 4
_LONG_WAL = 8192
"""Pages (32 MiB) from which on the WAL is to begin anew."""
_LOCK_KEY = 0x6B6170656C6C
"""The advisory lock of PostgreSQL that one server holds: "kapell"."""


class StorageError(Exception):
    """The database cannot be opened; the text says what to do."""


class Database(ABC):
    """One open database. `kind` is "sqlite" or "postgresql"."""

    kind: str

    @abstractmethod
    async def write(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction and commits it; rolls back and raises if it raises.

        One at a time. Durable when it returns. KapellError STORAGE_FULL or STORAGE_BUSY where the
        database could not.
        """

    @abstractmethod
    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on a connection of its own that sees one committed state. KapellError STORAGE_BUSY as above."""

    @abstractmethod
    async def close(self) -> None:
        """Closes all connections."""

    @abstractmethod
    async def maintain(self) -> None:
        """Housekeeping between commits, called now and then; delays one by moments only. KapellError as `write`."""


async def open_database(url: str, data_dir: Path) -> Database:
    """Opens and, where needed, creates or migrates the database.

    An empty `url` means SQLite in `data_dir`. Raises StorageError.
    """
    if not url:
        return await SqliteDatabase.open(data_dir / "kapell.db")
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        return await PostgresDatabase.open(parsed)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return await SqliteDatabase.open(Path(parsed.database))
    raise StorageError(
        f"database_url names {parsed.get_backend_name()!r}, which is not supported. "
        "Use postgresql://user@host/name, or leave it out for SQLite."
    )


class SqliteDatabase(Database):
    """SQLite in WAL mode. All methods of one event loop.

    A batch's statements run on the loop, where they contend with nobody for the interpreter; its
    commit, which is the fsync, runs in a thread, while the loop takes in the next batch.
    """

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="reader")
        self._write_engine = self._make_engine(NullPool)
        self._read_engine = self._make_engine(QueuePool, pool_size=_READERS, max_overflow=0)
        self._write_lock = asyncio.Lock()
        self._connection: Connection | None = None

    def _make_engine(self, pool: type[sa.Pool], **options: Any) -> Engine:
        engine = sa.create_engine(
            f"sqlite:///{self._path}",
            poolclass=pool,
            hide_parameters=True,
            connect_args={"check_same_thread": False, "cached_statements": 256},
            **options,
        )
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        return engine

    @classmethod
    async def open(cls, path: Path) -> SqliteDatabase:
        """Opens the file, creating it and its tables where it is not there. Raises StorageError."""
        database = cls(path)
        try:
            database._connect()
        except UnknownSchemaError as error:
            await database.close()
            raise StorageError(f"The database {path} cannot be used: {error}") from error
        except (sqlite3.Error, sa.exc.DBAPIError) as error:
            await database.close()
            raise StorageError(
                f"The database {path} cannot be opened: {_cause(error)}. Check the disk and the file's permissions."
            ) from error
        return database

    def _connect(self) -> None:
        # For its owner alone, as then are the files beside it: SQLite gives them the mode of this one.
        with contextlib.suppress(OSError):  # What cannot be made cannot be opened, which says why.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = self._write_engine.connect()
        prepare(self._connection)
        self._connection.exec_driver_sql("PRAGMA wal_autocheckpoint=0")
        self._connection.rollback()

    async def write(self, work: Callable[[Connection], T]) -> T:
        connection = self._connection
        assert connection is not None, "the database is open"
        async with self._write_lock:
            try:
                result = work(connection)
                if connection.in_transaction():
                    await self._in_thread(self._committer, connection.commit)
            except BaseException as error:
                connection.rollback()
                _raise_refusal(error)
                raise
        return result

    async def _in_thread(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """Runs `work` to its end however often the caller is cancelled: a commit is never left half way."""
        running = asyncio.get_running_loop().run_in_executor(pool, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            raise

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._read_engine.connect() as connection:
                return work(connection)
        except Exception as error:
            _raise_refusal(error)
            raise

    async def maintain(self) -> None:
        """Moves the WAL into the database. A WAL begins anew only where a commit finds all of it moved.

        Under a steady load there is always more in it by then, and it would grow for ever. So a long
        one gets a second look between two commits, which has only the latest pages left to move.
        """
        frames = await asyncio.get_running_loop().run_in_executor(self._readers, self._checkpoint)
        if frames > _LONG_WAL:
            async with self._write_lock:
                await self._in_thread(self._committer, self._checkpoint)

    def _checkpoint(self) -> int:
        """Moves what no reader holds back; how many pages the WAL has."""
        try:
            with self._read_engine.connect() as connection:
                raw = connection.connection.driver_connection
                assert raw is not None
                [(_, frames, _)] = raw.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                return int(frames)
        except Exception as error:
            _raise_refusal(error)
            raise

    async def close(self) -> None:
        async with self._write_lock:
            self._committer.shutdown()
            self._readers.shutdown()
            self._read_engine.dispose()
            if self._connection is not None:
                self._connection.close()
            self._write_engine.dispose()


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    """Durable at each commit; transactions begin where SQLAlchemy says so, reads included."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=1000", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("PRAGMA cache_size=-32768")


class PostgresDatabase(Database):
    """PostgreSQL through asyncpg. The writer's own connection holds a lock that keeps a second server out.

    So the lock lives exactly as long as the connection that writes: whoever has lost it must get
    it again before the next batch.
    """

    kind = "postgresql"

    def __init__(self, url: sa.URL) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        options: dict[str, Any] = {"hide_parameters": True}
        address = url.set(drivername="postgresql+asyncpg")
        # Whatever the cluster's default is, an answer is given after the sync (D1).
        durable = {"server_settings": {"synchronous_commit": "on"}}
        self._write_engine = create_async_engine(address, poolclass=NullPool, connect_args=durable, **options)
        options |= {"pool_size": _READERS, "max_overflow": 0, "pool_timeout": 10, "isolation_level": "REPEATABLE READ"}
        self._read_engine = create_async_engine(address, **options)
        self._write_lock = asyncio.Lock()
        self._writer: AsyncConnection | None = None

    @classmethod
    async def open(cls, url: sa.URL) -> PostgresDatabase:
        """Connects, takes the server's lock, creates or migrates the tables. Raises StorageError."""
        database = cls(url)
        shown = url.render_as_string(hide_password=True)
        try:
            await (await database._connected()).run_sync(prepare)
        except KapellError as error:
            await database.close()
            raise StorageError(error.message) from error
        except UnknownSchemaError as error:
            await database.close()
            raise StorageError(f"The database {shown} cannot be used: {error}") from error
        except (TimeoutError, OSError, sa.exc.SQLAlchemyError) as error:
            await database.close()
            raise StorageError(
                f"The database {shown} cannot be opened: {_cause(error)}. Check that PostgreSQL runs and the address."
            ) from error
        return database

    async def _connected(self) -> AsyncConnection:
        """The writer's connection with its lock; a broken one is replaced."""
        writer = self._writer
        if writer is not None and not writer.invalidated:
            return writer
        self._writer = None
        if writer is not None:
            await writer.close()
        writer = await self._write_engine.connect()
        got = await writer.scalar(sa.text(f"SELECT pg_try_advisory_lock({_LOCK_KEY})"))
        await writer.commit()
        if not got:
            await writer.close()
            raise KapellError(
                ERROR_REASON_STORAGE_BUSY,
                "Another Kapell server uses this database. Stop it first, or give this one a database of its own.",
                retry_after=1.0,
            )
        self._writer = writer
        return writer

    async def write(self, work: Callable[[Connection], T]) -> T:
        async with self._write_lock:
            try:
                writer = await self._connected()
                async with writer.begin():
                    return await writer.run_sync(work)
            except Exception as error:
                _raise_refusal(error)
                raise

    async def read(self, work: Callable[[Connection], T]) -> T:
        try:
            async with self._read_engine.connect() as connection:
                return await connection.run_sync(work)
        except Exception as error:
            _raise_refusal(error)
            raise

    async def maintain(self) -> None:
        """PostgreSQL keeps house by itself."""

    async def close(self) -> None:
        if self._writer is not None:
            await self._writer.close()
        await self._write_engine.dispose()
        await self._read_engine.dispose()


_FULL = ("disk is full", "No space left", "could not extend file")


def _raise_refusal(error: BaseException) -> None:
    """Raises what a client is told of a database that could not; returns where it is a defect of ours."""
    if not _is_of_the_database(error):
        return
    if any(words in _cause(error) for words in _FULL):
        raise KapellError(
            ERROR_REASON_STORAGE_FULL,
            "Nothing was changed: the disk of the database is full. Free some space and try again.",
        ) from error
    raise KapellError(
        ERROR_REASON_STORAGE_BUSY,
        "Nothing was changed: the database did not answer. Try again, and see the server's log if it persists.",
        retry_after=1.0,
    ) from error


_PASSING_STATES = ("08", "25P03", "40", "53", "55P03", "57", "58")
"""PostgreSQL's codes of what is not the statement's fault: lost connections, rollbacks, resources, shutdown, I/O."""


def _is_of_the_database(error: BaseException) -> bool:
    if isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated:
        return True
    if str(getattr(getattr(error, "orig", None), "sqlstate", None) or "").startswith(_PASSING_STATES):
        return True
    kinds = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError, sqlite3.OperationalError, OSError)
    return isinstance(error, kinds)


def _cause(error: BaseException) -> str:
    """The driver's own words, without SQL and parameters."""
    original = getattr(error, "orig", None) or error
    return str(original).splitlines()[0] if str(original) else type(original).__name__
