"""A real gRPC server that implements WorkerService in memory, with faults on demand.

For tests of what workers do when answers are lost, the server dies or the lease is gone. What a
correct server decides is proven elsewhere, on the real one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.struct_pb2 import Value
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status
from kapell._worker.values import to_value
from kapell.discovery import Endpoint
from kapell.v1 import worker_pb2 as pb
from kapell.v1.common_pb2 import LogEntry
from kapell.v1.task_pb2 import Task, TaskFailure, TaskProgress
from kapell.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

BOOTSTRAP_TOKEN = "kapell_ticket_of_the_test"
Context = aio.ServicerContext[Any, Any]
R = TypeVar("R")


@dataclass
class Job:
    """One task as the server sees it. `state` is one of queued, running, succeeded, failed, cancelled, released."""

    task: Task
    state: str = "queued"
    attempt: int = 0
    cancelling: bool = False
    result: Value | None = None
    failure: TaskFailure | None = None
    progress: list[TaskProgress] = field(default_factory=list)
    logs: dict[int, list[LogEntry]] = field(default_factory=lambda: defaultdict(list))
    beats: int = 0

    @property
    def token(self) -> str:
        return f"{self.task.task_id}.{self.attempt}"

    def lines(self, attempt: int = 1) -> list[str]:
        return [entry.text for entry in self.logs[attempt]]


class MemoryServer(WorkerServiceServicer):
    """Start it with `async with`; `kill` and `revive` keep the port and the state."""

    def __init__(self, *, heartbeat: float = 0.1, slots: int = 0) -> None:
        self.jobs: dict[str, Job] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self.registrations: list[pb.RegisterWorkerRequest] = []
        self.deregistered: list[str] = []
        self.directive = pb.AGENT_DIRECTIVE_NONE
        self.agent_token = ""
        self.agent_id = "agent_one"
        self.batches: list[int] = []
        self._heartbeat = heartbeat
        self._slots = slots
        self._lose_answers: dict[str, int] = defaultdict(int)
        self._refusals: dict[str, list[tuple[int, str, dict[str, str]]]] = defaultdict(list)
        self._polls: dict[str, list[str]] = {}
        self._changed = asyncio.Condition()
        self._hints: list[asyncio.Queue[pb.WatchDirectivesResponse]] = []
        self._server: aio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> MemoryServer:
        await self.revive()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(address=f"127.0.0.1:{self._port}", token=BOOTSTRAP_TOKEN)

    async def revive(self) -> None:
        """Serves, on the port of before if there was one."""
        self._server = aio.server(options=[("grpc.so_reuseport", 0)])
        add_WorkerServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def kill(self) -> None:
        """Ends all calls and the port at once."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    # What tests ask of it.

    async def add(self, agent_type: str = "work", prompt: str = "", **input: object) -> Job:
        """A new task."""
        task = Task(task_id=f"task_{len(self.jobs)}", agent_type=agent_type, prompt=prompt)
        task.input.CopyFrom(to_value(input).struct_value)
        job = self.jobs[task.task_id] = Job(task)
        await self._notify()
        return job

    async def until(self, condition: Callable[[], object], timeout: float = 60) -> None:
        """Waits until something has become true."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    async def ended(self, *jobs: Job) -> None:
        """Waits until the tasks have ended."""
        await self.until(lambda: all(job.state in ("succeeded", "failed", "cancelled") for job in jobs))

    async def cancel(self, job: Job, *, hint: bool) -> None:
        """Asks for the cancelling of a running task."""
        job.cancelling = True
        if hint:
            for queue in self._hints:
                queue.put_nowait(pb.WatchDirectivesResponse(cancel_task_ids=[job.task.task_id]))
        await self._notify()

    async def supersede(self, job: Job, *, offer_again: bool = False) -> None:
        """The lease expired: the attempt is no longer anybody's."""
        job.attempt += 1
        job.state = "queued" if offer_again else "superseded"
        await self._notify()

    async def direct(self, directive: pb.AgentDirective.ValueType) -> None:
        """Says something to the agent from now on."""
        self.directive = directive
        await self._notify()

    def forget(self) -> None:
        """The agent's token is no longer known."""
        self.agent_token = "gone"

    def lose_answers(self, method: str, times: int) -> None:
        """The next calls have their effect, but their answers are lost."""
        self._lose_answers[method] = times

    def refuse(self, method: str, code: int, reason: str, metadata: Mapping[str, str] = {}) -> None:
        """The next call is refused, without effect."""
        self._refusals[method].append((code, reason, dict(metadata)))

    # The service.

    async def RegisterWorker(self, request: pb.RegisterWorkerRequest, context: Context) -> pb.RegisterWorkerResponse:
        await self._begin("RegisterWorker", context, BOOTSTRAP_TOKEN)
        self.registrations.append(request)
        self.agent_token = self.agent_token if self.agent_token not in ("", "gone") else uuid.uuid4().hex
        response = pb.RegisterWorkerResponse(agent_token=self.agent_token, log_id="log_test")
        response.agent.agent_id = self.agent_id
        response.agent.slots_total = self._slots or request.slots or 1
        response.heartbeat_interval.FromMilliseconds(int(self._heartbeat * 1000))
        response.lease_duration.FromSeconds(10)
        return await self._answer("RegisterWorker", context, response)

    async def LeaseTasks(self, request: pb.LeaseTasksRequest, context: Context) -> pb.LeaseTasksResponse:
        await self._begin("LeaseTasks", context)
        if request.poll_id not in self._polls:
            try:
                async with asyncio.timeout(request.wait.seconds), self._changed:
                    await self._changed.wait_for(self._offerable)
            except TimeoutError:
                return pb.LeaseTasksResponse()
            offered = self._offerable()[: request.max_tasks]
            for job in offered:
                job.state, job.attempt = "running", job.attempt + 1
            self._polls[request.poll_id] = [job.task.task_id for job in offered]
        response = pb.LeaseTasksResponse()
        for task_id in self._polls[request.poll_id]:
            job = self.jobs[task_id]
            response.offers.add(task=job.task, attempt=job.attempt, lease_token=job.token)
        return await self._answer("LeaseTasks", context, response)

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatResponse:
        await self._begin("Heartbeat", context)
        response = pb.HeartbeatResponse(directive=self.directive)
        for beat in request.leases:
            job = self._holder(beat.lease_token)
            directive = pb.LEASE_DIRECTIVE_LOST
            if job is not None and job.state == "running":
                job.beats += 1
                directive = pb.LEASE_DIRECTIVE_CANCEL if job.cancelling else pb.LEASE_DIRECTIVE_CONTINUE
            response.leases.add(lease_token=beat.lease_token, directive=directive)
        response.heartbeat_interval.FromMilliseconds(int(self._heartbeat * 1000))
        return await self._answer("Heartbeat", context, response)

    async def ReportProgress(self, request: pb.ReportProgressRequest, context: Context) -> pb.ReportProgressResponse:
        await self._begin("ReportProgress", context)
        job = await self._running(request.lease_token, context)
        job.progress.append(request.progress)
        return await self._answer("ReportProgress", context, pb.ReportProgressResponse(directive=_of(job)))

    async def AppendTaskLogs(self, request: pb.AppendTaskLogsRequest, context: Context) -> pb.AppendTaskLogsResponse:
        await self._begin("AppendTaskLogs", context)
        job = await self._running(request.lease_token, context)
        log = job.logs[job.attempt]
        if request.offset > len(log):
            await _refuse(context, code_pb2.OUT_OF_RANGE, "LOG_OFFSET_GAP", {"expected": str(len(log))})
        log.extend(list(request.entries)[len(log) - request.offset :])
        response = pb.AppendTaskLogsResponse(next_offset=len(log), directive=_of(job))
        return await self._answer("AppendTaskLogs", context, response)

    async def CompleteTask(self, request: pb.CompleteTaskRequest, context: Context) -> pb.CompleteTaskResponse:
        await self._begin("CompleteTask", context)
        if not self._complete(request):
            await _refuse(context, code_pb2.ABORTED, "LEASE_LOST")
        return await self._answer("CompleteTask", context, pb.CompleteTaskResponse())

    async def BatchCompleteTasks(
        self, request: pb.BatchCompleteTasksRequest, context: Context
    ) -> pb.BatchCompleteTasksResponse:
        await self._begin("BatchCompleteTasks", context)
        self.batches.append(len(request.completions))
        response = pb.BatchCompleteTasksResponse()
        for completion in request.completions:
            response.outcomes.add(lease_lost=not self._complete(completion))
        return await self._answer("BatchCompleteTasks", context, response)

    async def FailTask(self, request: pb.FailTaskRequest, context: Context) -> pb.FailTaskResponse:
        await self._begin("FailTask", context)
        job = self._holder(request.lease_token)
        if job is None:
            await _refuse(context, code_pb2.ABORTED, "LEASE_LOST")
        job.failure = request.failure
        job.state = "cancelled" if job.cancelling else "failed"
        return await self._answer("FailTask", context, pb.FailTaskResponse())

    async def ReleaseTask(self, request: pb.ReleaseTaskRequest, context: Context) -> pb.ReleaseTaskResponse:
        await self._begin("ReleaseTask", context)
        job = await self._running(request.lease_token, context)
        job.state = "released"
        return await self._answer("ReleaseTask", context, pb.ReleaseTaskResponse())

    async def WatchDirectives(
        self, request: pb.WatchDirectivesRequest, context: Context
    ) -> AsyncIterator[pb.WatchDirectivesResponse]:
        await self._begin("WatchDirectives", context)
        queue: asyncio.Queue[pb.WatchDirectivesResponse] = asyncio.Queue()
        self._hints.append(queue)
        try:
            yield pb.WatchDirectivesResponse(directive=self.directive)
            while True:
                yield await queue.get()
        finally:
            self._hints.remove(queue)

    async def Deregister(self, request: pb.DeregisterRequest, context: Context) -> pb.DeregisterResponse:
        await self._begin("Deregister", context)
        self.deregistered.append(request.reason)
        return await self._answer("Deregister", context, pb.DeregisterResponse())

    # Within.

    def _offerable(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.state == "queued"]

    def _holder(self, token: str) -> Job | None:
        return next((job for job in self.jobs.values() if job.token == token), None)

    async def _running(self, token: str, context: Context) -> Job:
        job = self._holder(token)
        if job is None or job.state != "running":
            await _refuse(context, code_pb2.ABORTED, "LEASE_LOST")
        return job

    def _complete(self, request: pb.CompleteTaskRequest) -> bool:
        job = self._holder(request.lease_token)
        if job is None or job.state not in ("running", "succeeded"):
            return False
        job.state, job.result = "succeeded", request.result
        return True

    async def _begin(self, method: str, context: Context, token: str | None = None) -> None:
        self.calls[method] += 1
        sent = dict(context.invocation_metadata() or ()).get("authorization")
        if sent != f"Bearer {token or self.agent_token}":
            await _refuse(context, code_pb2.UNAUTHENTICATED, "TOKEN_INVALID")
        if self._refusals[method]:
            await _refuse(context, *self._refusals[method].pop(0))

    async def _answer(self, method: str, context: Context, response: R) -> R:
        await self._notify()
        if self._lose_answers[method]:
            self._lose_answers[method] -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return response

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _of(job: Job) -> pb.LeaseDirective.ValueType:
    return pb.LEASE_DIRECTIVE_CANCEL if job.cancelling else pb.LEASE_DIRECTIVE_CONTINUE


async def _refuse(context: Context, code: int, reason: str, metadata: Mapping[str, str] = {}) -> NoReturn:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="kapell.dev", metadata=metadata))
    status = status_pb2.Status(code=code, message=f"refused with {reason}", details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort does not return")


def states(jobs: Iterable[Job]) -> list[str]:
    """The states of some tasks."""
    return [job.state for job in jobs]
