"""Servers with a large table: rows are written into the database file while the server is down.

One task of each sort is made by the API; its row, content and event are the mould of all others, so
the rows are what the server itself writes. Filling by the API would take most of the benchmark's time.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kapell.v1.event_pb2 import Event
from kapell.v1.queue_pb2 import ConcurrencyLimit, SetConcurrencyLimitRequest
from kapell.v1.task_pb2 import CancelTaskRequest, CreateTaskRequest, CreateTaskResponse, Task

from tests.bench import messages
from tests.bench.load import RawClient
from tests.bench.place import SERVER_CORE, Target, pinned
from tests.support.server_process import ServerProcess

QUEUES = "/kapell.v1.QueueService/"
_CHUNK = 10_000
_TASK_COLUMNS = (
    *("create_revision", "task_id", "state", "agent_type", "priority", "create_ns", "queue_ns", "due_ns"),
    *("template_id", "queue_rank", "fairness_key", "concurrency_keys", "data"),
)
_PLACES = ", ".join("?" * len(_TASK_COLUMNS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sort:
    """So many tasks that are alike."""

    count: int
    agent_type: str
    priority: int = 500
    key: str = ""
    """A concurrency key, which is closed: none of its tasks may run."""
    has_ended: bool = False


@asynccontextmanager
async def stocked(data_dir: Path, *sorts: Sort) -> AsyncIterator[Target]:
    """A server whose table holds these tasks."""
    shutil.rmtree(data_dir, ignore_errors=True)
    with ServerProcess(data_dir, prefix=pinned(SERVER_CORE)) as server:
        async with RawClient(server.address, server.admin_token) as client:
            moulds = [(sort, await _mould(client, sort)) for sort in sorts]
        server.stop()
        _multiply(data_dir / "kapell.db", moulds)
        server.start()
        yield Target(address=server.address, pid=server.pid, token=server.admin_token)


async def _mould(client: RawClient, sort: Sort) -> str:
    """The id of the one task that is made as all tasks are."""
    if sort.key:
        limit = ConcurrencyLimit(key=sort.key, max_running=0)
        request = SetConcurrencyLimitRequest(limit=limit)
        await client.unary(QUEUES + "SetConcurrencyLimit")(request.SerializeToString())
    spec = messages.spec(sort.agent_type)
    spec.priority = sort.priority
    if sort.key:
        spec.concurrency_keys.append(sort.key)
    answer = await client.unary(messages.TASKS + "CreateTask")(CreateTaskRequest(task=spec).SerializeToString())
    task_id = CreateTaskResponse.FromString(answer).task.task_id
    if sort.has_ended:
        cancel = CancelTaskRequest(task_id=task_id)
        await client.unary(messages.TASKS + "CancelTask")(cancel.SerializeToString())
    return task_id


def _multiply(database: Path, moulds: Sequence[tuple[Sort, str]]) -> None:
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA synchronous=OFF")
    for sort, task_id in moulds:
        for start in range(1, sort.count, _CHUNK):
            _insert(connection, task_id, min(_CHUNK, sort.count - start))
            connection.commit()
    connection.close()


def _insert(connection: sqlite3.Connection, mould_id: str, count: int) -> None:
    [revision] = connection.execute("SELECT max(revision) FROM events").fetchone()
    mould = connection.execute(
        f"SELECT {', '.join(_TASK_COLUMNS)} FROM tasks WHERE task_id = ?", (mould_id,)
    ).fetchone()
    row = dict(zip(_TASK_COLUMNS, mould, strict=True))
    [content] = connection.execute("SELECT data FROM task_contents WHERE task_id = ?", (mould_id,)).fetchone()
    kind, event_data = connection.execute(
        "SELECT kind, data FROM events WHERE resource_id = ? ORDER BY revision DESC LIMIT 1", (mould_id,)
    ).fetchone()
    task, event = Task.FromString(row["data"]), Event.FromString(event_data)
    copies = list(_copies(task, event, revision, count))
    rows = [
        tuple({**row, "create_revision": new, "task_id": new_id, "queue_rank": rank, "data": data}.values())
        for new, new_id, rank, data, _ in copies
    ]
    connection.executemany(f"INSERT INTO tasks ({', '.join(_TASK_COLUMNS)}) VALUES ({_PLACES})", rows)
    connection.executemany(
        "INSERT INTO task_contents (task_id, data) VALUES (?, ?)", [(new_id, content) for _, new_id, *_ in copies]
    )
    connection.executemany(
        "INSERT INTO events (revision, kind, resource_id, previous_revision, data) VALUES (?, ?, ?, 0, ?)",
        [(new, kind, new_id, event_data) for new, new_id, _, _, event_data in copies],
    )


def _copies(task: Task, event: Event, revision: int, count: int) -> Iterator[tuple[int, str, int, bytes, bytes]]:
    """Revision, id, rank and bytes of copies of a task, and the bytes of their events."""
    for new in range(revision + 1, revision + 1 + count):
        task.task_id = f"task_stock{new:020d}"
        task.revision, task.etag = new, str(new)
        task.queue_rank += 1
        event.revision = new
        event.task.CopyFrom(task)
        yield new, task.task_id, task.queue_rank, task.SerializeToString(), event.SerializeToString()
