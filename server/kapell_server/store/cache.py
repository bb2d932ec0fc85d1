"""The hottest reads without the database: tasks as they were encoded, fed by every commit.

Only commits feed it, so it is never behind the log and never wrong; what is not here is read
from the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED

from kapell_server.store.record import Record

_MAX_BYTES = 32 * 1024 * 1024


class TaskCache:
    """Encoded tasks and contents by id, the longest unchanged dropped first."""

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: dict[str, tuple[Task, bytes | None]] = {}

    def feed(self, records: Sequence[Record], contents: Mapping[str, bytes]) -> None:
        """Takes over what a commit changed."""
        for record in records:
            if isinstance(record.resource, Task):
                old = self._drop(record.resource_id)
                if record.kind != EVENT_KIND_TASK_DELETED:
                    content = contents.get(record.resource_id) or (old[1] if old is not None else None)
                    self._entries[record.resource_id] = (record.resource, content)
                    self._bytes += _cost(content)
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, task_id: str) -> tuple[Task, bytes | None] | None:
        old = self._entries.pop(task_id, None)
        if old is not None:
            self._bytes -= _cost(old[1])
        return old

    def get(self, task_id: str) -> bytes | None:
        """The encoded task with its content, or None where it is not all here."""
        entry = self._entries.get(task_id)
        if entry is None or entry[1] is None:
            return None
        return entry[0].SerializeToString() + entry[1]


def _cost(content: bytes | None) -> int:
    return 1500 + len(content or b"")
