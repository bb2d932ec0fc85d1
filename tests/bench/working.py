"""Whole lifecycles, and how soon a task is in a waiting worker's hands."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from kapell.v1.task_pb2 import CreateTaskRequest, TaskSpec
from kapell.v1.worker_pb2 import (
    BatchCompleteTasksRequest,
    BatchCompleteTasksResponse,
    CompleteTaskRequest,
    HeartbeatRequest,
    LeaseTasksRequest,
    LeaseTasksResponse,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
)

from tests.bench import messages
from tests.bench.load import RawClient, percentile
from tests.bench.place import Target, kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

WORKERS = 4
SLOTS = 16
CREATORS = 64
# Tasks created and not yet completed: enough that no worker ever waits, few enough to mean little.
BACKLOG = 256
HEARTBEAT_SECONDS = 3.0


@dataclass(slots=True)
class Worker:
    """A worker that completes whatever it is offered at once."""

    client: RawClient
    agent_id: str
    completed: int = 0
    free: int = SLOTS
    has_room: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, permits: asyncio.Semaphore) -> None:
        """Polls and completes until cancelled."""
        lease = self.client.unary(messages.WORKERS + "LeaseTasks")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            for poll in itertools.count():
                while not self.free:
                    self.has_room.clear()
                    await self.has_room.wait()
                request = LeaseTasksRequest(agent_id=self.agent_id, max_tasks=self.free, poll_id=f"poll-{poll}")
                answer = LeaseTasksResponse.FromString(await lease(request.SerializeToString()))
                tokens = [offer.lease_token for offer in answer.offers]
                if tokens:
                    self.free -= len(tokens)
                    group.create_task(self._complete(tokens, permits))

    async def _complete(self, tokens: list[str], permits: asyncio.Semaphore) -> None:
        request = BatchCompleteTasksRequest(completions=[CompleteTaskRequest(lease_token=token) for token in tokens])
        complete = self.client.unary(messages.WORKERS + "BatchCompleteTasks")
        answer = BatchCompleteTasksResponse.FromString(await complete(request.SerializeToString()))
        assert not any(outcome.lease_lost for outcome in answer.outcomes), "a lease was lost during the benchmark"
        self.completed += len(tokens)
        self.free += len(tokens)
        self.has_room.set()
        for _ in tokens:
            permits.release()

    async def _beat(self) -> None:
        beat = self.client.unary(messages.WORKERS + "Heartbeat")
        request = HeartbeatRequest(agent_id=self.agent_id).SerializeToString()
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await beat(request)


async def register(server: Target, client: RawClient, key: str, agent_type: str) -> tuple[str, str]:
    """Registers a worker; its agent id and token."""
    request = RegisterWorkerRequest(instance_key=f"bench-{key}", agent_types=[agent_type], slots=SLOTS)
    answer = await client.unary(messages.WORKERS + "RegisterWorker")(request.SerializeToString())
    response = RegisterWorkerResponse.FromString(answer)
    return response.agent.agent_id, response.agent_token


@benchmark("lifecycle")
async def lifecycle_rate(setting: Setting) -> Sequence[Row]:
    """Create, lease and complete by unary verbs, completions batched as they come."""
    figures, floors = [], []
    with kapell(setting.directory) as server:
        for number in range(setting.repetitions):
            floors.append((await setting.echo(width=64)).rate)
            figures.append(await lifecycles(server, setting.seconds * 2, messages.spec(f"bench-{number}")))
    return [
        Row(
            name=f"whole lifecycles, {WORKERS} workers × {SLOTS} slots, unary",
            unit="/s",
            figures=figures,
            floors=floors,
            goal=0.35,
            stretch=0.45,
            higher_is_better=True,
        )
    ]


async def lifecycles(server: Target, seconds: float, spec: TaskSpec) -> float:
    """Tasks like `spec`, of a type that is used once, that went through their whole life a second."""
    permits = asyncio.Semaphore(BACKLOG)
    agent_type = spec.agent_type
    request = CreateTaskRequest(task=spec).SerializeToString()
    async with RawClient(server.address, server.token) as creator:
        create = creator.unary(messages.TASKS + "CreateTask")

        async def feed() -> None:
            while True:
                await permits.acquire()
                await create(request)

        workers = []
        for number in range(WORKERS):
            agent_id, token = await register(server, creator, f"{agent_type}-{number}", agent_type)
            workers.append(Worker(RawClient(server.address, token), agent_id))
        tasks = [asyncio.ensure_future(worker.run(permits)) for worker in workers]
        tasks += [asyncio.ensure_future(feed()) for _ in range(CREATORS)]
        await asyncio.sleep(seconds / 4)
        before, begin = sum(worker.completed for worker in workers), time.perf_counter()
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        taken, done = time.perf_counter() - begin, sum(worker.completed for worker in workers) - before
        failures = [task.exception() for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:
            await worker.client.__aexit__(None, None, None)
    assert not failures, failures
    return done / taken


@benchmark("dispatch")
async def dispatch_latency(setting: Setting) -> Sequence[Row]:
    """From the commit of a task to the offer in the hands of a worker that waits.

    The commit is taken to be half an echo before its answer arrives.
    """
    p50s, p99s, floors = [], [], []
    with kapell(setting.directory) as server:
        async with RawClient(server.address, server.token) as client:
            for number in range(setting.repetitions):
                echo = (await setting.echo(width=1, seconds=setting.seconds / 2)).percentile(50)
                floors.append(echo)
                gaps = await _gaps(server, client, f"dispatch-{number}", count=300)
                gaps = [gap + echo / 2 for gap in gaps]
                p50s.append(percentile(gaps, 50))
                p99s.append(percentile(gaps, 99))
    return [
        Row(
            name=f"dispatch: commit → offer, {name}",
            unit="ms",
            figures=[figure * 1e3 for figure in figures],
            floors=[floor * 1e3 for floor in floors],
            goal=goal,
            note="floor: echo p50",
        )
        for name, figures, goal in (("p50", p50s, 2.0), ("p99", p99s, 5.0))
    ]


async def _gaps(server: Target, client: RawClient, key: str, *, count: int) -> list[float]:
    """Seconds from the answer to a create until its offer arrives; negative where the offer is first."""
    rounds = await _rounds(server, client, key, count, key)
    return [arrived - answered for _, answered, arrived in rounds]


async def dispatch_times(
    server: Target, client: RawClient, key: str, *, count: int, agent_type: str = ""
) -> list[float]:
    """Seconds from sending a create until a waiting worker has its offer, for `count` tasks.

    Of a type of their own, unless one is named; nothing of that may be able to run.
    """
    return [arrived - sent for sent, _, arrived in await _rounds(server, client, key, count, agent_type or key)]


async def _rounds(
    server: Target, client: RawClient, key: str, count: int, agent_type: str
) -> list[tuple[float, float, float]]:
    """When each create was sent, when it was answered, and when its offer arrived."""
    agent_id, token = await register(server, client, key, agent_type)
    create = client.unary(messages.TASKS + "CreateTask")
    request = messages.create(agent_type)
    rounds = []
    async with RawClient(server.address, token) as worker:
        lease = worker.unary(messages.WORKERS + "LeaseTasks")
        complete = worker.unary(messages.WORKERS + "BatchCompleteTasks")

        async def offered(number: int) -> tuple[float, LeaseTasksResponse]:
            poll = LeaseTasksRequest(agent_id=agent_id, max_tasks=1, poll_id=f"poll-{number}")
            answer = await lease(poll.SerializeToString())
            return time.perf_counter(), LeaseTasksResponse.FromString(answer)

        for number in range(count):
            waiting = asyncio.ensure_future(offered(number))
            # The poll must lie at the server before the task is made.
            await asyncio.sleep(0.005)
            sent = time.perf_counter()
            await create(request)
            answered = time.perf_counter()
            arrived, response = await waiting
            rounds.append((sent, answered, arrived))
            done = CompleteTaskRequest(lease_token=response.offers[0].lease_token)
            await complete(BatchCompleteTasksRequest(completions=[done]).SerializeToString())
    return rounds
