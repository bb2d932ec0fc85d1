"""Which runs of each schedule still live: a run does until its task and all below it have ended.

A part of State: kept up to date by the puts of tasks, undone through its journal, and a copy of the
table `schedule_runs`. The counts are not stored: a start takes them from the tasks themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.task_pb2 import Task

from kapell_server.domain.transitions import TASK_FINAL

if TYPE_CHECKING:
    from kapell_server.domain.state import State


class ScheduleLives:
    """The live runs of schedules, by the task that each of them began with."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._runs: dict[str, dict[str, int]] = {}
        """By schedule, and then by run, the eldest first: how many of its tasks have not ended."""
        self._schedule_of: dict[str, str] = {}

    def load(self, rows: Iterable[tuple[str, str, int]]) -> None:
        """Takes over (schedule, run, live tasks) from the database, for the start."""
        for schedule_id, run_id, live in rows:
            if live:
                self._runs.setdefault(schedule_id, {})[run_id] = live
                self._schedule_of[run_id] = schedule_id

    def of(self, schedule_id: str) -> list[str]:
        """The runs that live, by the task that each began with."""
        return list(self._runs.get(schedule_id, ()))

    def forget(self, schedule_id: str) -> None:
        """The schedule is deleted; its tasks go on."""
        for run_id in self.of(schedule_id):
            self._drop(schedule_id, run_id)

    def notice(self, task: Task, previous: Task | None) -> None:
        """Called with each put that gives a task another state, its creation among them."""
        lives = task.state not in TASK_FINAL
        if lives == (previous is not None and previous.state not in TASK_FINAL):
            return
        run_id = task.root_task_id or task.task_id
        schedule_id = self._schedule_of.get(run_id)
        if schedule_id is not None:
            self._count(schedule_id, run_id, 1 if lives else -1)
        elif lives:
            self._begin(task, run_id, retried=previous is not None)

    def _begin(self, task: Task, run_id: str, *, retried: bool) -> None:
        """A first task of a run, or one of a run that was over."""
        schedule_id = task.schedule_id
        if not schedule_id and retried and run_id != task.task_id:
            top = self._state.find_task(run_id)
            schedule_id = top.schedule_id if top is not None else ""
        if not schedule_id or self._state.standing.find(Schedule, schedule_id) is None:
            return
        state = self._state
        if schedule_id not in self._runs:
            state.assign(self._runs, schedule_id, {})
        state.assign(self._runs[schedule_id], run_id, 1)
        state.assign(self._schedule_of, run_id, schedule_id)
        state.assign(state.pending.schedule_runs, run_id, schedule_id)

    def _count(self, schedule_id: str, run_id: str, by: int) -> None:
        runs = self._runs[schedule_id]
        if runs[run_id] + by:
            self._state.assign(runs, run_id, runs[run_id] + by)
            return
        self._drop(schedule_id, run_id)
        if not runs:
            self._state.schedule(self._state.now_ns, schedule_id)  # A run may wait for this end.

    def _drop(self, schedule_id: str, run_id: str) -> None:
        state = self._state
        runs = self._runs[schedule_id]
        state.remove(runs, run_id)
        if not runs:
            state.remove(self._runs, schedule_id)
        state.remove(self._schedule_of, run_id)
        state.assign(state.pending.schedule_runs, run_id, "")
