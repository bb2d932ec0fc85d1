"""The face for tasks: create, read, steer, wait, follow. Thin; the server decides everything.

Verbs about one task answer with the task; lists, batches and counts with the whole response.
Every verb raises a KapellError; which reasons is in the comments of task.proto.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct

from kapell.connection import Connection, Stream
from kapell.errors import KapellError, WaitTimeout
from kapell.filters import TaskQuery, task_filter
from kapell.locks import task_locks
from kapell.logs import LogStream
from kapell.messages import (
    FINAL_TASK_STATES,
    Instant,
    Seconds,
    duration,
    new_request_id,
    seconds,
    struct,
    timestamp,
)
from kapell.reconnect import CONNECT_TIMEOUT, Reconnect
from kapell.task_specs import TaskFields, task_spec
from kapell.v1 import task_pb2 as pb
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder
from kapell.v1.lock_pb2 import LockItem, TaskLock
from kapell.v1.task_pb2_grpc import TaskServiceStub
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED
from kapell.v1.workspace_pb2 import WorkspaceMerge
from kapell.watch import Watch, WatchKeywords, split_start

if TYPE_CHECKING:
    from kapell.v1.task_pb2_grpc import TaskServiceAsyncStub

_LONGEST_WAIT = 30.0
_WAIT_MARGIN = 15.0


class BulkKeywords(TaskQuery, total=False):
    """Which tasks to change, and how many of them."""

    everything: bool
    """Needed where nothing else says which tasks are meant."""
    max_affected: int
    """Where more tasks match nothing is done; 1,000 unless said otherwise, 10,000 at most."""
    allow_partial: bool
    """Changes `max_affected` of them, the oldest ones, where more match."""
    preview: bool
    """Only counts, and names the first ones."""
    request_id: str


class TaskWatchKeywords(TaskQuery, WatchKeywords, total=False):
    """Which tasks to watch, and how."""


class Tasks:
    """`client.tasks`. A `request_id` makes a write repeatable by hand; left out, each call gets its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> TaskServiceAsyncStub:
        return self._connection.stub(TaskServiceStub)

    async def create(
        self,
        agent_type: str = "",
        prompt: str = "",
        *,
        request_id: str = "",
        validate_only: bool = False,
        **fields: Unpack[TaskFields],
    ) -> pb.Task:
        """Creates a task; it is durable when this returns. `validate_only` checks and creates nothing.

        Say its type and prompt, or a `template` with `parameters`; the template's type may be overridden.
        """
        request = pb.CreateTaskRequest(
            task=task_spec(agent_type, prompt, **fields),
            request_id=request_id or new_request_id(),
            validate_only=validate_only,
        )
        return (await self._connection.call(self._stub.CreateTask, request)).task

    async def create_batch(self, tasks: Iterable[pb.TaskSpec], *, request_id: str = "") -> pb.BatchCreateTasksResponse:
        """Creates up to 2,500 tasks, all or none; the answer has them in the same order, without prompts.

        They may depend on each other by `client_key`; see `task_spec`.
        """
        request = pb.BatchCreateTasksRequest(tasks=tasks, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.BatchCreateTasks, request)

    async def run(
        self,
        agent_type: str = "",
        prompt: str = "",
        *,
        timeout: Seconds | None = None,
        request_id: str = "",
        **fields: Unpack[TaskFields],
    ) -> pb.Task:
        """Creates a task and waits for its end; look at its state, result and failure. See `wait`."""
        task = await self.create(agent_type, prompt, request_id=request_id, **fields)
        return await self.wait(task.task_id, timeout=timeout)

    async def get(self, task_id: str) -> pb.Task:
        """Reads a task with its prompt, input and result."""
        request = pb.GetTaskRequest(task_id=task_id)
        return (await self._connection.call(self._stub.GetTask, request)).task

    async def list(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
        **query: Unpack[TaskQuery],
    ) -> pb.ListTasksResponse:
        """One page of tasks, newest first unless ordered otherwise. A watch after its revision misses nothing."""
        request = pb.ListTasksRequest(
            filter=task_filter(**query), order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListTasks, request)

    async def iterate(
        self,
        *,
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
        **query: Unpack[TaskQuery],
    ) -> AsyncIterator[pb.Task]:
        """All tasks that match, page by page; what changes meanwhile may or may not be seen."""
        page_token = ""
        while True:
            page = await self.list(order=order, page_size=page_size, page_token=page_token, **query)
            for task in page.tasks:
                yield task
            page_token = page.next_page_token
            if not page_token:
                return

    async def count(self, **query: Unpack[TaskQuery]) -> pb.CountTasksResponse:
        """How many tasks there are in each state. Not by label."""
        request = pb.CountTasksRequest(filter=task_filter(**query))
        return await self._connection.call(self._stub.CountTasks, request)

    async def update(
        self,
        task_id: str,
        *,
        priority: int | None = None,
        labels: Mapping[str, str] | None = None,
        display_name: str | None = None,
        timeouts: pb.TaskTimeouts | None = None,
        retry_policy: pb.RetryPolicy | None = None,
        not_before: Instant | None = None,
        prompt: str | None = None,
        input: Mapping[str, Any] | Struct | None = None,
        locks: Iterable[str | LockItem] | None = None,
        read_locks: Iterable[str | LockItem] | None = None,
        etag: str = "",
        request_id: str = "",
    ) -> pb.Task:
        """Sets what is given, each in the place of the whole.

        `not_before`, where a past time means at once, and locks while no agent has the task; `prompt` and `input`
        before its first start only. `locks` and `read_locks` are one field: what is given replaces both. For
        `timeouts` see `task_timeouts`.
        """
        given: dict[str, Any] = {
            "priority": priority,
            "labels": labels,
            "display_name": display_name,
            "timeouts": timeouts,
            "retry_policy": retry_policy,
            "not_before_time": timestamp(not_before),
            "prompt": prompt,
            "input": struct(input),
        }
        if locks is not None or read_locks is not None:
            items = task_locks(locks or (), read_locks or ())
            given["locks"] = [TaskLock(path=item.path, mode=item.mode) for item in items]
        given = {name: value for name, value in given.items() if value is not None}
        task = pb.Task(task_id=task_id, **given)
        request = pb.UpdateTaskRequest(
            task=task,
            update_mask=FieldMask(paths=list(given)),
            etag=etag,
            request_id=request_id or new_request_id(),
        )
        return (await self._connection.call(self._stub.UpdateTask, request)).task

    async def cancel(
        self, task_id: str, *, reason: str = "", leave_children: bool = False, request_id: str = ""
    ) -> pb.Task:
        """Cancels a task and, unless they are left, all tasks below it; CANCELLING until its agent has let go."""
        request = pb.CancelTaskRequest(
            task_id=task_id, reason=reason, leave_children=leave_children, request_id=request_id or new_request_id()
        )
        return (await self._connection.call(self._stub.CancelTask, request)).task

    async def retry(
        self,
        task_id: str,
        *,
        prompt: str | None = None,
        input: Mapping[str, Any] | Struct | None = None,
        parameters: Mapping[str, Any] | Struct | None = None,
        priority: int | None = None,
        retry_policy: pb.RetryPolicy | None = None,
        timeouts: pb.TaskTimeouts | None = None,
        request_id: str = "",
    ) -> pb.Task:
        """Queues a failed or cancelled task again, with a fresh allowance of attempts; edited by what is given.

        A task that was made from a template takes `parameters` in the place of prompt and input. What was there
        before stays readable: see `edits`.
        """
        request = pb.RetryTaskRequest(
            task_id=task_id,
            request_id=request_id or new_request_id(),
            prompt=prompt,
            input=struct(input),
            parameters=struct(parameters),
            priority=priority,
            retry_policy=retry_policy,
            timeouts=timeouts,
        )
        return (await self._connection.call(self._stub.RetryTask, request)).task

    async def cancel_all(
        self, *, reason: str = "", leave_children: bool = False, **which: Unpack[BulkKeywords]
    ) -> pb.CancelTasksResponse:
        """Cancels all tasks that match, each as `cancel` does; the answer says what became of each."""
        request = pb.CancelTasksRequest(reason=reason, leave_children=leave_children, **_bulk(which))
        return await self._connection.call(self._stub.CancelTasks, request)

    async def retry_all(self, **which: Unpack[BulkKeywords]) -> pb.RetryTasksResponse:
        """Retries all tasks that match and have failed or were cancelled; the answer says what became of each."""
        return await self._connection.call(self._stub.RetryTasks, pb.RetryTasksRequest(**_bulk(which)))

    async def reprioritize_all(self, priority: int, **which: Unpack[BulkKeywords]) -> pb.ReprioritizeTasksResponse:
        """Gives all tasks that match and have not ended another priority; the answer says what became of each."""
        request = pb.ReprioritizeTasksRequest(priority=priority, **_bulk(which))
        return await self._connection.call(self._stub.ReprioritizeTasks, request)

    async def edits(self, task_id: str, *, page_size: int = 0, page_token: str = "") -> pb.ListTaskEditsResponse:
        """One page of what prompt and input were before each of their edits, the first edit first."""
        request = pb.ListTaskEditsRequest(task_id=task_id, page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListTaskEdits, request)

    async def delete(
        self, task_id: str, *, leave_children: bool = False, request_id: str = ""
    ) -> pb.DeleteTaskResponse:
        """Deletes an ended task; cancels one that has not ended, as `cancel` does, which `deleted` then says."""
        request = pb.DeleteTaskRequest(
            task_id=task_id, leave_children=leave_children, request_id=request_id or new_request_id()
        )
        return await self._connection.call(self._stub.DeleteTask, request)

    async def tree(self, task_id: str) -> pb.GetTaskTreeResponse:
        """A task with its children and theirs, depth-first; at most 1,001, and about 1 MiB."""
        return await self._connection.call(self._stub.GetTaskTree, pb.GetTaskTreeRequest(task_id=task_id))

    async def attempts(self, task_id: str) -> pb.ListTaskAttemptsResponse:
        """All attempts of a task, the first one first."""
        request = pb.ListTaskAttemptsRequest(task_id=task_id)
        return await self._connection.call(self._stub.ListTaskAttempts, request)

    async def explain(self, task_id: str) -> pb.ExplainTaskResponse:
        """Every reason why a task is not running, its place in the queue, and a sentence that sums it up."""
        request = pb.ExplainTaskRequest(task_id=task_id)
        return await self._connection.call(self._stub.ExplainTask, request)

    async def approve(
        self,
        task_id: str,
        decision: str = "approve",
        *,
        comment: str = "",
        parameters: Mapping[str, Any] | Struct | None = None,
        prompt: str | None = None,
        input: Mapping[str, Any] | Struct | None = None,
        shown_hash: str = "",
        request_id: str = "",
    ) -> pb.Task:
        """Decides about the start of a task, "approve" or "deny", perhaps with other content."""
        content: dict[str, Any] = {"parameters": struct(parameters), "prompt": prompt, "input": struct(input)}
        request = pb.ApproveTaskRequest(task_id=task_id, decision=decision, comment=comment, **content)
        request.shown_hash, request.request_id = shown_hash, request_id or new_request_id()
        return (await self._connection.call(self._stub.ApproveTask, request)).task

    async def record_merge(
        self, task_id: str, name: str, head_commit: str, merge: WorkspaceMerge, *, request_id: str = ""
    ) -> pb.Task:
        """Records how the merge of a task's branch has ended; `kapell task merge` merges, and records it."""
        request = pb.RecordTaskMergeRequest(task_id=task_id, name=name, head_commit=head_commit, merge=merge)
        request.request_id = request_id or new_request_id()
        return (await self._connection.call(self._stub.RecordTaskMerge, request)).task

    async def wait(
        self,
        task_id: str,
        *,
        timeout: Seconds | None = None,
        connect_timeout: float | None = CONNECT_TIMEOUT,
    ) -> pb.Task:
        """Waits for the task's end, through restarts of the server; answers with prompt, input and result.

        Raises WaitTimeout, with the task as it then stands, after `timeout`; Unavailable when the
        server cannot be reached at first for `connect_timeout` seconds.
        """
        loop = asyncio.get_running_loop()
        gives_up_at = None if timeout is None else loop.time() + seconds(timeout)
        reconnect = Reconnect(connect_timeout)
        while True:
            left = _LONGEST_WAIT if gives_up_at is None else max(0.0, gives_up_at - loop.time())
            wait = min(left, _LONGEST_WAIT)
            request = pb.WaitTaskRequest(task_id=task_id, wait=duration(wait))
            try:
                answer = await self._connection.call(self._stub.WaitTask, request, timeout=wait + _WAIT_MARGIN)
            except KapellError as error:
                pause = reconnect.pause_after(error)
                if pause is None or (gives_up_at is not None and loop.time() + pause > gives_up_at):
                    raise
                await asyncio.sleep(pause)
                continue
            reconnect.succeeded()
            if answer.task.state in FINAL_TASK_STATES:
                return answer.task
            if gives_up_at is not None and loop.time() >= gives_up_at:
                word = pb.TaskState.Name(answer.task.state).removeprefix("TASK_STATE_").lower()
                raise WaitTimeout(
                    f"task {task_id} has not ended yet - it is {word} and goes on - wait again, or cancel it",
                    task=answer.task,
                )

    def watch(self, **keywords: Unpack[TaskWatchKeywords]) -> Watch[pb.TaskEvent]:
        """The changes of matching tasks; see `Client.watch`. Tasks match as they are after each change."""
        start, query = split_start(keywords)
        wanted = task_filter(**query)
        return Watch(
            lambda options: self._connection.stream(
                self._stub.WatchTasks, pb.WatchTasksRequest(filter=wanted, options=options)
            ),
            start,
        )

    def logs(
        self,
        task_id: str,
        *,
        attempt: int = 0,
        offset: int = 0,
        follow: bool = False,
        connect_timeout: float | None = CONNECT_TIMEOUT,
    ) -> LogStream:
        """The log of one attempt from `offset` on; `attempt` 0 is the latest.

        With `follow` also what is added until the attempt has ended, and with the latest attempt
        every later one too, until the task has ended.
        """

        def open_stream(number: int, place: int) -> Stream[pb.StreamTaskLogsResponse]:
            request = pb.StreamTaskLogsRequest(task_id=task_id, attempt=number, offset=place, follow=follow)
            return self._connection.stream(self._stub.StreamTaskLogs, request)

        async def next_attempt(previous: int | None) -> int | None:
            if attempt:
                return attempt if previous is None else None
            if not follow and previous is not None:
                return None
            return await self._attempt_after(task_id, previous, wait=follow)

        return LogStream(open_stream, next_attempt, offset=offset, connect_timeout=connect_timeout)

    async def _attempt_after(self, task_id: str, previous: int | None, *, wait: bool) -> int | None:
        """The attempt to read after `previous`: the next one, or the latest at first; None when none will come."""
        answer = await self._connection.call(self._stub.GetTask, pb.GetTaskRequest(task_id=task_id))
        task = answer.task
        if not wait or task.attempt > (previous or 0) or task.state in FINAL_TASK_STATES:
            return _after(task, previous)
        async with self.watch(
            task_ids=[task_id], after_revision=answer.revision, on_compacted="snapshot", connect_timeout=None
        ) as events:
            async for event in events:
                ended = event.kind == EVENT_KIND_TASK_DELETED or event.task.state in FINAL_TASK_STATES
                if event.task.attempt > (previous or 0) or ended:
                    return _after(event.task, previous)
        return None


def _bulk(which: BulkKeywords) -> dict[str, Any]:
    """The fields that the requests of all changes of many tasks have."""
    query: Any = {name: value for name, value in which.items() if name in TaskQuery.__annotations__}
    return {
        "filter": task_filter(**query),
        "all": which.get("everything", False),
        "max_affected": which.get("max_affected", 0),
        "allow_partial": which.get("allow_partial", False),
        "preview": which.get("preview", False),
        "request_id": which.get("request_id") or new_request_id(),
    }


def _after(task: pb.Task, previous: int | None) -> int | None:
    if task.attempt > (previous or 0):
        return task.attempt if previous is None else previous + 1
    return None
