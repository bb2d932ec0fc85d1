"""What a change of many tasks is, while it is being done: data alone; the rules are in `domain/tasks/bulk.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kapell.v1.task_pb2 import (
    CancelTasksRequest,
    CancelTasksResponse,
    ReprioritizeTasksRequest,
    ReprioritizeTasksResponse,
    RetryTasksRequest,
    RetryTasksResponse,
)

from kapell_server.domain.access import Caller

BulkRequest = CancelTasksRequest | RetryTasksRequest | ReprioritizeTasksRequest
BulkResponse = CancelTasksResponse | RetryTasksResponse | ReprioritizeTasksResponse

RESPONSES: dict[type[BulkRequest], type[BulkResponse]] = {
    CancelTasksRequest: CancelTasksResponse,
    RetryTasksRequest: RetryTasksResponse,
    ReprioritizeTasksRequest: ReprioritizeTasksResponse,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """The tasks that matched when the database was at `revision`; `task_ids` may be cut short, `matched` is not."""

    revision: int
    task_ids: Sequence[str]
    matched: int


@dataclass(slots=True)
class BulkCommand:
    """A change of many tasks, with what a read has found for it. `key` is that of its answer, where there is one."""

    request: BulkRequest
    selection: Selection
    key: str = ""

    @property
    def request_id(self) -> str:
        return self.request.request_id


@dataclass(slots=True, eq=False)
class BulkJob:
    """A change of many tasks that is not done yet. `waiters` are the engine's: whom to answer in the end."""

    key: str
    request: BulkRequest
    caller: Caller
    task_ids: Sequence[str]
    matched: int
    next: int = 0
    """How many of the tasks are done."""
    affected: int = 0
    parts: list[bytes] = field(default_factory=list)
    """What the steps so far have done, each as an encoded response."""
    waiters: list[Any] = field(default_factory=list)
    stalled: bool = False
    """A step failed by a defect: it is tried again by a repeat of the call or by the next start."""

    @property
    def done(self) -> bool:
        return self.next >= len(self.task_ids)

    def response(self, revision: int) -> BulkResponse:
        """The answer for all of it."""
        response = RESPONSES[type(self.request)]()
        for part in self.parts:
            response.MergeFromString(part)
        response.matched = self.matched
        response.affected = self.affected
        response.revision = revision
        return response


@dataclass(frozen=True, slots=True)
class BulkStep:
    """The next step of a job is to be done."""

    job: BulkJob


@dataclass(slots=True)
class BulkWrites:
    """What a batch has to write of jobs; `steps` by job and number of the first task."""

    started: dict[str, BulkJob] = field(default_factory=dict)
    steps: dict[tuple[str, int], bytes] = field(default_factory=dict)
    ended: dict[str, bool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.started or self.steps or self.ended)


def resume_part(job: BulkJob, part: bytes) -> None:
    """Takes in what a step has done before the server was started."""
    done = RESPONSES[type(job.request)].FromString(part)
    job.parts.append(part)
    job.next += len(done.items)
    job.affected += done.affected
