"""A small real server: the generated services on a real port, over lists in memory.

It keeps the contract of the watch (revisions, bookmarks, snapshot, compaction, log ids) and of
request ids, so the client can be tested against it where a test must decide what the server
does: refuse, compact, restart with another log, answer nonsense.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status
from kapell.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    agent_pb2,
    agent_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    watch_pb2,
)
from kapell.v1.common_pb2 import LogEntry

FINAL = (task_pb2.TASK_STATE_SUCCEEDED, task_pb2.TASK_STATE_FAILED, task_pb2.TASK_STATE_CANCELLED)


def refusal(code: str, reason: str, text: str = "", *, retry_after: float | None = None, **metadata: str) -> Any:
    """A status as a Kapell server sends it."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="kapell.dev", metadata=metadata)]
    if retry_after is not None:
        delay = Duration()
        delay.FromMilliseconds(int(retry_after * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if reason == "REQUEST_INVALID":
        violation = error_details_pb2.BadRequest.FieldViolation(field="task.agent_type", description="is required")
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    number = code_pb2.Code.Value(code)
    return rpc_status.to_status(status_pb2.Status(code=number, message=text or reason, details=packed))


class Log:
    """The event log: records in order, and a bell for who waits for more."""

    def __init__(self, log_id: str = "log_a") -> None:
        self.log_id = log_id
        self.oldest = 0
        self.events: list[event_pb2.Event] = []
        self.resources: dict[str, task_pb2.Task | agent_pb2.Agent] = {}
        self._grown = asyncio.Condition()

    @property
    def head(self) -> int:
        return self.events[-1].revision if self.events else 0

    async def put(self, kind: int, resource: task_pb2.Task | agent_pb2.Agent) -> int:
        """Records a change and wakes the watchers."""
        revision = self.head + 1
        resource.revision = revision
        event = event_pb2.Event(revision=revision, kind=kind)  # type: ignore[arg-type]
        if isinstance(resource, task_pb2.Task):
            event.task.CopyFrom(resource)
            key = resource.task_id
        else:
            event.agent.CopyFrom(resource)
            key = resource.agent_id
        if kind in (watch_pb2.EVENT_KIND_TASK_DELETED, watch_pb2.EVENT_KIND_AGENT_DELETED):
            self.resources.pop(key, None)
        else:
            self.resources[key] = resource
        self.events.append(event)
        async with self._grown:
            self._grown.notify_all()
        return revision

    async def beyond(self, revision: int) -> None:
        async with self._grown:
            await self._grown.wait_for(lambda: self.head > revision)


class FakeServer:
    """The state that the services share, and the knobs that tests turn."""

    def __init__(self) -> None:
        self.address = ""
        self.log = Log()
        self.calls: Counter[str] = Counter()
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.metadata: dict[str, str] = {}
        self.answers: dict[str, Any] = {}
        self.failures: dict[str, list[Any]] = defaultdict(list)
        self.logs: dict[tuple[str, int], list[LogEntry]] = defaultdict(list)
        self.ended_attempts: set[tuple[str, int]] = set()
        self.log_grown = asyncio.Condition()
        self._called = asyncio.Condition()

    async def called(self, method: str) -> None:
        """Returns when the method has been called."""
        async with self._called:
            await self._called.wait_for(lambda: self.calls[method] > 0)

    def fail(self, method: str, *statuses: Any) -> None:
        """Fails the next calls of a method, one status each; a bare grpc.StatusCode is sent without details."""
        self.failures[method].extend(statuses)

    async def enter(self, method: str, request: Any, context: Any) -> None:
        """What each method does first: count, remember, fail if told to."""
        self.calls[method] += 1
        self.requests[method].append(request)
        self.metadata = dict(context.invocation_metadata())
        async with self._called:
            self._called.notify_all()
        if self.failures[method]:
            status = self.failures[method].pop(0)
            if isinstance(status, grpc.StatusCode):
                await context.abort(status, "told to")
            await context.abort_with_status(status)

    async def create(self, task_id: str, **fields: Any) -> task_pb2.Task:
        """Creates a task as by another client."""
        task = task_pb2.Task(**{"task_id": task_id, "state": task_pb2.TASK_STATE_QUEUED, **fields})
        await self.log.put(watch_pb2.EVENT_KIND_TASK_CREATED, task)
        return task

    def task(self, task_id: str) -> task_pb2.Task:
        """The task as it stands; it must exist."""
        task = self.log.resources[task_id]
        assert isinstance(task, task_pb2.Task)
        return task

    async def change(self, task_id: str, kind: int, **fields: Any) -> int:
        """Records a change of a task."""
        task = task_pb2.Task()
        task.MergeFrom(self.task(task_id))
        task.MergeFrom(task_pb2.Task(**fields))
        return await self.log.put(kind, task)

    async def write_log(self, task_id: str, attempt: int, *lines: str) -> None:
        """Appends lines to the log of an attempt."""
        self.logs[task_id, attempt].extend(LogEntry(text=line) for line in lines)
        async with self.log_grown:
            self.log_grown.notify_all()

    async def end_attempt(self, task_id: str, attempt: int) -> None:
        """No more lines will come for the attempt."""
        self.ended_attempts.add((task_id, attempt))
        async with self.log_grown:
            self.log_grown.notify_all()

    async def follow(
        self, options: watch_pb2.WatchOptions, wanted: Callable[[event_pb2.Event], bool], context: Any
    ) -> AsyncIterator[event_pb2.WatchResponse]:
        """The watch contract, over whatever log there is when the watch begins."""
        log = self.log
        start = options.start_after_revision
        is_foreign = options.log_id and options.log_id != log.log_id
        if is_foreign or 0 < start < log.oldest:
            await context.abort_with_status(
                refusal("OUT_OF_RANGE", "REVISION_COMPACTED", oldest=str(log.oldest), log_id=log.log_id)
            )
        cursor = start if start or options.log_id else log.head
        yield _bookmark(log, cursor)
        if options.send_initial_state:
            for resource in list(log.resources.values()):
                snapshot = event_pb2.Event(kind=watch_pb2.EVENT_KIND_SNAPSHOT, revision=resource.revision)
                member = "task" if isinstance(resource, task_pb2.Task) else "agent"
                getattr(snapshot, member).CopyFrom(resource)
                if wanted(snapshot) and resource.revision <= cursor:
                    yield event_pb2.WatchResponse(events=[snapshot])
            yield _bookmark(log, cursor, snapshot_complete=True)
        while True:
            await log.beyond(cursor)
            events = [event for event in log.events[cursor:] if wanted(event)]
            cursor = log.head
            for begin in range(0, len(events), 7):
                yield event_pb2.WatchResponse(events=events[begin : begin + 7])
            yield _bookmark(log, cursor)


def _bookmark(log: Log, revision: int, *, snapshot_complete: bool = False) -> event_pb2.WatchResponse:
    mark = watch_pb2.Bookmark(revision=revision, log_id=log.log_id, snapshot_complete=snapshot_complete)
    return event_pb2.WatchResponse(bookmark=mark)


class _Admin(admin_pb2_grpc.AdminServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        await self._server.enter("GetServerInfo", request, context)
        return admin_pb2.GetServerInfoResponse(version="0.0.1", log_id=self._server.log.log_id)


class _Events(event_pb2_grpc.EventServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def GetLogInfo(self, request: Any, context: Any) -> Any:
        await self._server.enter("GetLogInfo", request, context)
        log = self._server.log
        return event_pb2.GetLogInfoResponse(log_id=log.log_id, revision=log.head, oldest_revision=log.oldest)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._server.enter("Watch", request, context)
        kinds = set(request.filter.kinds)

        def wanted(event: event_pb2.Event) -> bool:
            return not kinds or event.kind in kinds or event.kind == watch_pb2.EVENT_KIND_SNAPSHOT

        async for message in self._server.follow(request.options, wanted, context):
            yield message


class _Agents(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def SpawnAgent(self, request: Any, context: Any) -> Any:
        await self._server.enter("SpawnAgent", request, context)
        agent = agent_pb2.Agent(agent_id=request.agent_id or "agent_1", profile=request.profile)
        revision = await self._server.log.put(watch_pb2.EVENT_KIND_AGENT_SPAWNED, agent)
        return agent_pb2.SpawnAgentResponse(agent=agent, revision=revision)

    async def WatchAgents(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._server.enter("WatchAgents", request, context)
        async for message in self._server.follow(request.options, lambda e: e.HasField("agent"), context):
            yield agent_pb2.WatchAgentsResponse.FromString(message.SerializeToString())

    async def StreamAgentLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._server.enter("StreamAgentLogs", request, context)
        async for offset, entries in _follow_log(self._server, request.agent_id, 0, request):
            yield agent_pb2.StreamAgentLogsResponse(offset=offset, entries=entries)


class _Tasks(task_pb2_grpc.TaskServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    async def CreateTask(self, request: Any, context: Any) -> Any:
        await self._server.enter("CreateTask", request, context)
        known = self._server.answers.get(request.request_id)
        if known is None:
            spec = request.task
            task = await self._server.create(
                spec.task_id or f"task_{len(self._server.log.resources)}", prompt=spec.prompt
            )
            known = task_pb2.CreateTaskResponse(task=task, revision=task.revision)
            self._server.answers[request.request_id] = known
        if self._server.failures["CreateTask after"]:
            await context.abort(self._server.failures["CreateTask after"].pop(0), "the answer was lost")
        return known

    async def GetTask(self, request: Any, context: Any) -> Any:
        await self._server.enter("GetTask", request, context)
        task = await self._find(request.task_id, context)
        return task_pb2.GetTaskResponse(task=task, revision=self._server.log.head)

    async def CancelTask(self, request: Any, context: Any) -> Any:
        await self._server.enter("CancelTask", request, context)
        await self._find(request.task_id, context)
        await self._server.change(
            request.task_id, watch_pb2.EVENT_KIND_TASK_CANCELLED, state=task_pb2.TASK_STATE_CANCELLED
        )
        return task_pb2.CancelTaskResponse(task=self._server.task(request.task_id))

    async def ListTasks(self, request: Any, context: Any) -> Any:
        await self._server.enter("ListTasks", request, context)
        tasks = [task for task in self._server.log.resources.values() if isinstance(task, task_pb2.Task)]
        begin, size = int(request.page_token or 0), request.page_size or 50
        more = str(begin + size) if begin + size < len(tasks) else ""
        page = tasks[begin : begin + size]
        return task_pb2.ListTasksResponse(tasks=page, next_page_token=more, revision=self._server.log.head)

    async def UpdateTask(self, request: Any, context: Any) -> Any:
        await self._server.enter("UpdateTask", request, context)
        return task_pb2.UpdateTaskResponse(task=request.task)

    async def WaitTask(self, request: Any, context: Any) -> Any:
        await self._server.enter("WaitTask", request, context)
        wait = request.wait.seconds + request.wait.nanos / 1e9

        async def ended() -> None:
            while (await self._find(request.task_id, context)).state not in FINAL:
                await self._server.log.beyond(self._server.log.head)

        with suppress(TimeoutError):
            await asyncio.wait_for(ended(), wait)
        return task_pb2.WaitTaskResponse(task=await self._find(request.task_id, context))

    async def StreamTaskLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._server.enter("StreamTaskLogs", request, context)
        async for offset, entries in _follow_log(self._server, request.task_id, request.attempt, request):
            yield task_pb2.StreamTaskLogsResponse(attempt=request.attempt, offset=offset, entries=entries)

    async def WatchTasks(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._server.enter("WatchTasks", request, context)
        ids = set(request.filter.task_ids)

        def wanted(event: event_pb2.Event) -> bool:
            return event.HasField("task") and (not ids or event.task.task_id in ids)

        async for message in self._server.follow(request.options, wanted, context):
            yield task_pb2.WatchTasksResponse.FromString(message.SerializeToString())

    async def _find(self, task_id: str, context: Any) -> task_pb2.Task:
        task = self._server.log.resources.get(task_id)
        if not isinstance(task, task_pb2.Task):
            await context.abort_with_status(
                refusal("NOT_FOUND", "TASK_NOT_FOUND", f"no task has the id {task_id!r}", task_id=task_id)
            )
            raise AssertionError("abort raises")
        return task


async def _follow_log(
    server: FakeServer, owner: str, attempt: int, request: Any
) -> AsyncIterator[tuple[int, list[LogEntry]]]:
    """Pieces of a log from an offset on, three lines at a time."""
    entries, place = server.logs[owner, attempt], request.offset
    yield place, []
    while True:
        while place < len(entries):
            piece = entries[place : place + 3]
            yield place, piece
            place += len(piece)
        if not request.follow or (owner, attempt) in server.ended_attempts:
            return
        async with server.log_grown:
            while place == len(entries) and (owner, attempt) not in server.ended_attempts:
                await server.log_grown.wait()


@asynccontextmanager
async def serving(fake: FakeServer, address: str = "127.0.0.1:0") -> AsyncIterator[FakeServer]:
    """Serves until the end of the block; then every open call is cancelled."""
    server = aio.server(options=[("grpc.so_reuseport", 0)])
    admin_pb2_grpc.add_AdminServiceServicer_to_server(_Admin(fake), server)  # type: ignore[abstract]
    agent_pb2_grpc.add_AgentServiceServicer_to_server(_Agents(fake), server)  # type: ignore[abstract]
    event_pb2_grpc.add_EventServiceServicer_to_server(_Events(fake), server)  # type: ignore[abstract]
    task_pb2_grpc.add_TaskServiceServicer_to_server(_Tasks(fake), server)  # type: ignore[abstract]
    port = server.add_insecure_port(address)
    fake.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)
