"""The services of a real server as a test calls them: stubs with a token, and a worker by hand."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import grpc
from kapell.v1 import (
    admin_pb2_grpc,
    agent_pb2_grpc,
    event_pb2_grpc,
    task_pb2,
    task_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from kapell.v1.common_pb2 import LogEntry


def bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with this token."""
    return (("authorization", f"Bearer {token}"),) if token is not None else ()


class Services:
    """The stubs of one caller."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._token = token
        self.tasks: Any = task_pb2_grpc.TaskServiceStub(channel)
        self.agents: Any = agent_pb2_grpc.AgentServiceStub(channel)
        self.workers: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        self.events: Any = event_pb2_grpc.EventServiceStub(channel)
        self.admin: Any = admin_pb2_grpc.AdminServiceStub(channel)

    def __call__(self, method: Any, request: Any, timeout: float | None = 20) -> Any:
        return method(request, metadata=bearer(self._token), timeout=timeout)


@dataclass
class Worker:
    """A registered external agent."""

    agent_id: str
    call: Services

    async def lease(self, wait: int = 10) -> worker_pb2.Offer:
        request = worker_pb2.LeaseTasksRequest(agent_id=self.agent_id, wait={"seconds": wait})
        answer = await self.call(self.call.workers.LeaseTasks, request)
        assert len(answer.offers) == 1
        return answer.offers[0]

    async def log(self, offer: worker_pb2.Offer, offset: int, *lines: str) -> Any:
        request = worker_pb2.AppendTaskLogsRequest(
            lease_token=offer.lease_token, offset=offset, entries=[LogEntry(text=line) for line in lines]
        )
        return await self.call(self.call.workers.AppendTaskLogs, request)

    async def complete(self, offer: worker_pb2.Offer) -> Any:
        request = worker_pb2.CompleteTaskRequest(lease_token=offer.lease_token, result={"string_value": "ok"})
        return await self.call(self.call.workers.CompleteTask, request)


async def register(owner: Services, channel: grpc.aio.Channel, slots: int = 4) -> Worker:
    request = worker_pb2.RegisterWorkerRequest(instance_key=uuid.uuid4().hex, agent_types=["test"], slots=slots)
    answer = await owner(owner.workers.RegisterWorker, request)
    return Worker(answer.agent.agent_id, Services(channel, answer.agent_token))


async def create(owner: Services, **spec: Any) -> task_pb2.Task:
    spec.setdefault("agent_type", "test")
    answer = await owner(owner.tasks.CreateTask, task_pb2.CreateTaskRequest(task=spec))
    return answer.task


async def wait(owner: Services, task_id: str, seconds: int = 10) -> task_pb2.Task:
    request = task_pb2.WaitTaskRequest(task_id=task_id, wait={"seconds": seconds})
    return (await owner(owner.tasks.WaitTask, request)).task


async def read_logs(owner: Services, **request: Any) -> list[tuple[int, int, list[str]]]:
    call = owner(owner.tasks.StreamTaskLogs, task_pb2.StreamTaskLogsRequest(**request))
    return [(m.attempt, m.offset, [e.text for e in m.entries]) async for m in call]
