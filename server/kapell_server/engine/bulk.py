"""Has changes of many tasks go on: one step a batch, of the job that came first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.bulk_job import BulkJob, BulkStep


class BulkLine:
    """The jobs in line. `enqueue` puts a step into the mailbox; at most one step is there at a time."""

    def __init__(self, state: State, enqueue: Callable[[BulkStep], None]) -> None:
        self._state = state
        self._enqueue = enqueue
        self._stepping: BulkJob | None = None

    def go_on(self) -> None:
        """Asks for the next step, if there is a job and no step is on its way."""
        if self._stepping is None:
            job = next((job for job in self._state.bulk_jobs.values() if not job.stalled), None)
            if job is not None:
                self._stepping = job
                self._enqueue(BulkStep(job))

    def stepped(self) -> None:
        """The step is committed."""
        self._stepping = None

    def failed(self, job: BulkJob, error: Exception) -> list[Any]:
        """The step was not done; whom to tell. Where a defect is the cause, nobody tries again unasked."""
        self._stepping = None
        job.stalled = not isinstance(error, KapellError)
        waiters, job.waiters = job.waiters, []
        return waiters
