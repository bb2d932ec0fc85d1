"""Which session of its program each task has left, so that its next attempt can go on with it.

Kept in the agent's directory, a small file for each task that has not succeeded.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from kapell.v1.task_pb2 import Task

_MOST = 1000


@dataclass(frozen=True, slots=True)
class KnownSession:
    """A session, and the directory it was begun in: in another one its program would look for files in vain."""

    session_id: str
    directory: str


class Sessions:
    """The sessions of one agent's tasks. What cannot be written or read is forgotten: the task begins anew."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            by_age = sorted(directory.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
            for file in by_age[_MOST:]:
                file.unlink()

    def find(self, task: Task) -> KnownSession | None:
        """The session that an attempt before has left."""
        try:
            found = json.loads(self._file(task).read_text(encoding="utf-8"))
            return KnownSession(str(found["session"]), str(found["directory"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, task: Task, session: KnownSession) -> None:
        """Remembers the session for the next attempt."""
        text = json.dumps({"session": session.session_id, "directory": session.directory})
        with contextlib.suppress(OSError):
            self._file(task).write_text(text, encoding="utf-8")

    def forget(self, task: Task) -> None:
        """The next attempt, if there is one, begins anew."""
        with contextlib.suppress(OSError):
            self._file(task).unlink()

    def _file(self, task: Task) -> Path:
        # A task that is made again under its id is another one.
        return self._directory / f"{task.task_id}.{task.create_time.ToNanoseconds()}"
