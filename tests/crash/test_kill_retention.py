"""kill -9 while finished tasks and old events go: what is kept has no gap, and what was begun is finished later."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kapell import Client
from kapell.task_specs import task_spec
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED, EventKind

from tests.support.server_process import ServerProcess

TASKS = 600
KEPT_TASKS = 50
KEPT_EVENTS = 200


@contextmanager
def serving(data_dir: Path, *arguments: str) -> Iterator[ServerProcess]:
    """A server on the directory; killed at the end, if it still runs."""
    server = ServerProcess(data_dir, arguments=(*arguments, "--no-templates"))
    server.start()
    try:
        yield server
    finally:
        server.close()


def client_of(server: ServerProcess) -> Client:
    return Client(server.address, token=server.admin_token)


@pytest.fixture
async def data_dir(tmp_path: Path) -> Path:
    """A directory with many finished tasks, of which nothing has gone yet."""
    directory = tmp_path / "data"
    with serving(directory, "--keep-tasks", "0", "--keep-events", "0") as server:
        async with client_of(server) as client:
            for _ in range(2):
                specs = [task_spec("nobody", "wait") for _ in range(TASKS // 2)]
                created = (await client.tasks.create_batch(specs)).tasks
                await asyncio.gather(*[client.tasks.cancel(task.task_id) for task in created])
        server.stop()
    return directory


def rows(data_dir: Path, statement: str) -> list[tuple[int, ...]]:
    """What the database holds, asked past the server."""
    with sqlite3.connect(data_dir / "kapell.db") as database:
        return database.execute(statement).fetchall()


def check(data_dir: Path, newest: int) -> int:
    """The log has no gap and has lost nothing new; every task is there or its deletion is. The newest revision."""
    [(first, last, count)] = rows(data_dir, "SELECT min(revision), max(revision), count(*) FROM events")
    assert last - first + 1 == count
    assert last >= newest
    [(tasks,)] = rows(data_dir, "SELECT count(*) FROM tasks")
    deleted = f"SELECT count(*) FROM events WHERE kind = {EVENT_KIND_TASK_DELETED}"
    assert first > 1 or rows(data_dir, deleted) == [(TASKS - tasks,)]
    oldest = [int(value) for (value,) in rows(data_dir, "SELECT value FROM meta WHERE name = 'oldest_revision'")]
    assert first <= (oldest[0] if oldest else 0) + 1
    return last


async def test_tasks_that_go_when_the_server_is_killed_are_there_or_deleted(data_dir: Path) -> None:
    limits = ("--keep-tasks", str(KEPT_TASKS), "--keep-events", "0")
    newest = check(data_dir, 0)
    for _ in range(3):
        with serving(data_dir, *limits) as server:
            seen = random.randrange(1, 120)
            async with client_of(server) as client, client.watch(after_revision=newest) as events:
                for _ in range(seen):
                    assert EventKind.Name((await anext(events)).kind) == "EVENT_KIND_TASK_DELETED"
            server.kill()
        newest = check(data_dir, newest + seen)

    with serving(data_dir, *limits) as server:
        async with client_of(server) as client, client.watch(initial_state=True) as events:
            there: set[str] = set()
            async for event in events:
                if event.kind == EVENT_KIND_TASK_DELETED:
                    there.remove(event.task.task_id)
                else:
                    there.add(event.task.task_id)
                if event.revision == 2 * TASKS + TASKS - KEPT_TASKS:
                    break
            assert {task.task_id async for task in client.tasks.iterate()} == there
            assert len(there) == KEPT_TASKS
    assert rows(data_dir, "PRAGMA integrity_check") == [("ok",)]


async def test_a_log_that_is_compacted_when_the_server_is_killed_has_no_gap(data_dir: Path) -> None:
    limits = ("--keep-tasks", "0", "--keep-events", str(KEPT_EVENTS))
    newest, first = check(data_dir, 0), 1
    for _ in range(3):
        with serving(data_dir, *limits) as server:
            before = first
            while first == before and first < newest - KEPT_EVENTS + 1:
                [(first,)] = rows(data_dir, "SELECT min(revision) FROM events")
            server.kill()
        assert check(data_dir, newest) == newest

    with serving(data_dir, *limits) as server:
        while first < newest - KEPT_EVENTS + 1:
            [(first,)] = rows(data_dir, "SELECT min(revision) FROM events")
        async with client_of(server) as client:
            info = await client.events.log_info()
            assert (info.oldest_revision, info.revision) == (newest - KEPT_EVENTS, newest)
            kept = [event.revision async for event in client.events.iterate(order=LIST_ORDER_OLDEST_FIRST)]
    assert kept == list(range(newest - KEPT_EVENTS + 1, newest + 1))
    assert rows(data_dir, "PRAGMA integrity_check") == [("ok",)]
