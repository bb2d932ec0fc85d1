"""WorkerService: what agents say. All but logs and directives is the engine's to decide."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kapell.v1 import worker_pb2

from kapell_server.domain.access import Caller
from kapell_server.rpc.children import ChildWaits
from kapell_server.rpc.directives import Directives
from kapell_server.rpc.durations import seconds
from kapell_server.rpc.pipeline import waits

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.logs import LogStore

DEFAULT_WAIT = 30.0


class WorkerServicer:
    """The methods of WorkerService."""

    def __init__(self, engine: Engine, *, logs: LogStore, directives: Directives) -> None:
        self._engine = engine
        self._logs = logs
        self._directives = directives
        self.RegisterWorker = engine.submit
        self.Heartbeat = engine.submit
        self.ReportProgress = engine.submit
        self.ReportUsage = engine.submit
        self.ReportWorkspaces = engine.submit
        self.CompleteTask = engine.submit
        self.BatchCompleteTasks = engine.submit
        self.FailTask = engine.submit
        self.ReleaseTask = engine.submit
        self.CreateChildTasks = engine.submit
        self.Deregister = engine.submit
        self._child_waits = ChildWaits(engine)

    @waits
    async def LeaseTasks(self, request: worker_pb2.LeaseTasksRequest, caller: Caller, patience: float) -> bytes:
        """The engine waits. A client whose deadline is shorter than its wait is answered before it."""
        wait = seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        if patience < wait:
            request.wait.FromNanoseconds(int(patience * 1e9))
        return await self._engine.submit(request, caller)

    async def AppendTaskLogs(
        self, request: worker_pb2.AppendTaskLogsRequest, caller: Caller
    ) -> worker_pb2.AppendTaskLogsResponse:
        task_id, attempt, directive = self._engine.check_lease(request.lease_token, caller)
        masked = (await self._engine.redactor(task_id)).message(request)
        offset = await self._logs.append(task_id, attempt, request.offset, masked.entries)
        return worker_pb2.AppendTaskLogsResponse(
            next_offset=offset,
            directive=worker_pb2.LeaseDirective.ValueType(directive),
            revision=self._engine.revision,
        )

    @waits
    async def WaitChildTasks(
        self, request: worker_pb2.WaitChildTasksRequest, caller: Caller, patience: float
    ) -> worker_pb2.WaitChildTasksResponse:
        wait = seconds(request.wait) if request.HasField("wait") else DEFAULT_WAIT
        return await self._child_waits.wait(request.lease_token, caller, min(wait, patience))

    def WatchDirectives(
        self, request: worker_pb2.WatchDirectivesRequest, caller: Caller
    ) -> AsyncGenerator[worker_pb2.WatchDirectivesResponse, None]:
        return self._directives.follow(request.agent_id, caller)
