"""What the tasks of schedules are made of: the part of State that keeps prompts and parameters.

They may be large, so they are neither in the schedule's record nor in its events, and only those
in use are in memory. Undone with the rest of State, through its journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.task_pb2 import TaskSpec

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MOST = 200
_LARGE_FIELDS = ("prompt", "input", "parameters")


class ScheduleTasks:
    """The whole task of each schedule, loaded as it is asked for."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._specs: dict[str, TaskSpec] = {}

    def trim(self) -> None:
        """Forgets what is beyond the cap, the oldest first; between batches only."""
        while len(self._specs) > _MOST:
            del self._specs[next(iter(self._specs))]

    def get(self, schedule_id: str) -> TaskSpec:
        """The task of a schedule that there is. Not to be altered."""
        if schedule_id not in self._specs:
            loaded = self._state.loader.load_schedule_task(schedule_id)
            assert loaded is not None, f"{schedule_id} has a task"
            self._specs[schedule_id] = loaded
        return self._specs[schedule_id]

    def put(self, schedule_id: str, spec: TaskSpec) -> None:
        """Records the task of a schedule. Takes ownership of the message."""
        self._state.assign(self._state.pending.schedule_tasks, schedule_id, spec)
        self._state.assign(self._specs, schedule_id, spec)

    def drop(self, schedule_id: str) -> None:
        """Forgets the task of a schedule that is being deleted."""
        self._state.assign(self._state.pending.schedule_tasks, schedule_id, None)
        self._state.remove(self._specs, schedule_id)


def without_content(spec: TaskSpec) -> TaskSpec:
    """A copy as the schedule's record and events carry it."""
    copy = TaskSpec()
    copy.CopyFrom(spec)
    for field in _LARGE_FIELDS:
        copy.ClearField(field)  # type: ignore[arg-type]
    return copy
