"""TaskService: hands commands to the engine and questions to the reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kapell.v1 import task_pb2
from kapell.v1.error_pb2 import ERROR_REASON_TASK_NOT_FOUND

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.transitions import TASK_FINAL
from kapell_server.rpc.durations import seconds
from kapell_server.rpc.pipeline import waits
from kapell_server.rpc.task_logs import TaskLogs
from kapell_server.watch.filters import for_tasks
from kapell_server.watch.follow import Watches
from kapell_server.wire import field, int_field

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.artifacts import ArtifactStore
    from kapell_server.store.logs import LogStore
    from kapell_server.store.reads import Reads

DEFAULT_WAIT = 30.0
# A hint may be lost, so waiting looks again after this long, seconds.
RECHECK = 5.0


class TaskServicer:
    """The methods of TaskService. Commands go straight to the engine, which answers encoded."""

    def __init__(
        self,
        engine: Engine,
        reads: Reads,
        *,
        watches: Watches,
        logs: LogStore,
        artifacts: ArtifactStore,
        task_logs: TaskLogs,
    ) -> None:
        self._engine = engine
        self._reads = reads
        self._watches = watches
        self._logs = logs
        self._artifacts = artifacts
        self._task_logs = task_logs
        self.CreateTask = engine.submit
        self.BatchCreateTasks = engine.submit
        self.UpdateTask = engine.submit
        self.CancelTask = engine.submit
        self.RetryTask = engine.submit
        self.CancelTasks = engine.change_tasks
        self.RetryTasks = engine.change_tasks
        self.ReprioritizeTasks = engine.change_tasks
        self.ExplainTask = engine.submit
        self.ApproveTask = engine.submit
        self.RecordTaskMerge = engine.submit

    async def GetTask(self, request: task_pb2.GetTaskRequest, caller: Caller) -> bytes:
        revision = self._engine.revision
        return task_response(await self._reads.get_task(request.task_id), revision)

    async def ListTasks(self, request: task_pb2.ListTasksRequest, caller: Caller) -> bytes:
        return await self._reads.list_tasks(request)

    async def CountTasks(self, request: task_pb2.CountTasksRequest, caller: Caller) -> task_pb2.CountTasksResponse:
        return await self._reads.count_tasks(request)

    async def GetTaskTree(self, request: task_pb2.GetTaskTreeRequest, caller: Caller) -> task_pb2.GetTaskTreeResponse:
        tree = await self._reads.families.tree(request.task_id)
        await self._reads.usage.fill_tasks(node.task for node in tree.nodes)
        return tree

    async def ListTaskAttempts(
        self, request: task_pb2.ListTaskAttemptsRequest, caller: Caller
    ) -> task_pb2.ListTaskAttemptsResponse:
        return await self._reads.list_attempts(request.task_id)

    async def ListTaskEdits(
        self, request: task_pb2.ListTaskEditsRequest, caller: Caller
    ) -> task_pb2.ListTaskEditsResponse:
        return await self._reads.list_edits(request)

    async def DeleteTask(self, request: task_pb2.DeleteTaskRequest, caller: Caller) -> bytes:
        """Removes logs and artifacts too. They are no part of the transaction: a repeat after a crash finds them."""
        answer = await self._engine.submit(request, caller)
        response = task_pb2.DeleteTaskResponse.FromString(answer)
        if response.deleted and not (response.replayed and await self._exists(request.task_id)):
            await self._logs.delete(request.task_id)
            await self._artifacts.delete_task(request.task_id)
        return answer

    @waits
    async def WaitTask(self, request: task_pb2.WaitTaskRequest, caller: Caller, patience: float) -> bytes:
        """Answers with the task as it is when it has ended, or when the wait is over."""
        wait = seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        now = asyncio.get_running_loop().time
        until = now() + min(wait, patience)
        task = await self._reads.task(request.task_id)
        while task.state not in TASK_FINAL and (left := until - now()) > 0:
            record = await self._engine.ring.wait_resource(request.task_id, task.revision, min(left, RECHECK))
            if record is None:
                task = await self._reads.task(request.task_id)
            else:
                assert isinstance(record.resource, task_pb2.Task)
                task = record.resource
        revision = self._engine.revision
        return task_response(await self._reads.get_task(request.task_id), revision)

    def StreamTaskLogs(
        self, request: task_pb2.StreamTaskLogsRequest, caller: Caller
    ) -> AsyncGenerator[task_pb2.StreamTaskLogsResponse, None]:
        return self._task_logs.stream(request)

    def WatchTasks(self, request: task_pb2.WatchTasksRequest, caller: Caller) -> AsyncGenerator[bytes, None]:
        return self._watches.follow(for_tasks(request.filter), request.options)

    async def _exists(self, task_id: str) -> bool:
        try:
            await self._reads.task(task_id)
        except KapellError as error:
            if error.reason != ERROR_REASON_TASK_NOT_FOUND:
                raise
            return False
        return True


def task_response(task: bytes, revision: int) -> bytes:
    """GetTaskResponse (or WaitTaskResponse, its twin) around an encoded Task, without decoding it."""
    return field(1, task) + int_field(2, revision)
