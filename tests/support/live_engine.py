"""A real engine on a real database, with a clock moved by hand; nothing here waits on time.

A batch looks at what is due before its commands, so moving the clock and awaiting any answer is
enough to see what time has done.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from kapell.v1 import (
    admin_pb2,
    agent_pb2,
    alert_pb2,
    approval_pb2,
    budget_pb2,
    lock_pb2,
    price_pb2,
    queue_pb2,
    schedule_pb2,
    secret_pb2,
    task_pb2,
    template_pb2,
    usage_pb2,
    webhook_pb2,
    worker_pb2,
)
from kapell.v1.agent_pb2 import Agent, AgentSpec, CommandRuntime, SpawnAgentRequest
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import CancelTaskRequest, CreateTaskRequest, Task, TaskSpec
from kapell.v1.watch_pb2 import EventKind
from kapell.v1.worker_pb2 import (
    CompleteTaskRequest,
    HeartbeatRequest,
    LeaseBeat,
    LeaseTasksRequest,
    Offer,
    RegisterWorkerRequest,
)
from kapell_server.clock import ManualClock
from kapell_server.domain.access import Caller, Keyring, user
from kapell_server.domain.errors import KapellError
from kapell_server.domain.settings import Settings
from kapell_server.domain.tasks.bulk_job import RESPONSES
from kapell_server.engine.engine import Engine
from kapell_server.engine.facts import SpawnCommand
from kapell_server.engine.retention import Retention
from kapell_server.shipped_prices import shipped_prices
from kapell_server.store.database import Database, open_database
from kapell_server.store.record import Record
from kapell_server.supervise import Supervisor

USER = user("admin")
SPEC = AgentSpec(agent_types=["shell"], command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))
NO_WAIT = Duration()


class LiveEngine:
    """Engine and database of one server. `database` may be wrapped; `crashes` are parts that died.

    Retention does a round when a test asks for one; `files_deleted` are the tasks whose files it removed.
    """

    def __init__(
        self, url: str, directory: Path, wrap: Callable[[Database], Database] = lambda database: database
    ) -> None:
        self.clock = ManualClock()
        self.keyring = Keyring(b"k" * 32, admin_token="admin")
        self.settings = Settings()
        self.crashes: list[BaseException] = []
        self.files_deleted: list[str] = []
        self.engine: Engine
        self.database: Database
        self._url = url
        self._directory = directory
        self._wrap = wrap
        self._processes = 0
        self._starts = 0

    async def start(self) -> None:
        """Opens the database and loads what lives."""
        self.database = self._wrap(await open_database(self._url, self._directory))
        self._starts += 1
        self._supervisor = Supervisor(lambda name, error: self.crashes.append(error))
        self.engine = Engine(
            self.database,
            keyring=self.keyring,
            clock=self.clock,
            settings=self.settings,
            random=Random(self._starts),
            supervisor=self._supervisor,
            prices=shipped_prices(),
        )
        await self.engine.start()
        self.keep()

    async def _delete_files(self, task_id: str) -> None:
        self.files_deleted.append(task_id)

    def keep(self, **limits: float) -> None:
        """Sets limits of retention, which is unlimited otherwise, and begins a fresh one."""
        everything = {"keep_tasks_for": 0, "keep_tasks": 0, "keep_events_for": 0, "keep_events": 0}
        self.retention = Retention(
            self.engine,
            self.database,
            settings=dataclasses.replace(self.settings, **{**everything, **limits}),  # type: ignore[arg-type]
            clock=self.clock,
            delete_files=self._delete_files,
        )

    async def stop(self) -> None:
        await self.engine.stop()
        await self._supervisor.stop()
        await self.database.close()

    async def restart(self) -> None:
        """A new engine on the same database, as after an orderly stop."""
        await self.stop()
        await self.start()

    async def crash(self) -> None:
        """A new engine on the same database; the old one was not asked."""
        await self._supervisor.stop()
        await self.database.close()
        await self.start()

    # -- asking ------------------------------------------------------------------------------

    async def call(self, request: Any, caller: Caller = USER) -> Any:
        """The answer to one command, decoded."""
        take_in = self.engine.change_tasks if type(request) in RESPONSES else self.engine.submit
        return decoded(request, await take_in(request, caller))

    async def together(self, *requests: Any, caller: Caller = USER) -> list[Any]:
        """The answers, or refusals, of commands that one batch decides, in the order given."""
        return await asyncio.gather(*[self.call(request, caller) for request in requests], return_exceptions=True)

    async def refusal(self, request: Any, caller: Caller = USER) -> KapellError:
        """The refusal of a command that must be refused."""
        try:
            answer = await self.call(request, caller)
        except KapellError as error:
            return error
        raise AssertionError(f"{type(request).__name__} was answered with {answer}")

    async def pulse(self) -> None:
        """One batch that only looks at what is due."""
        refusal = await self.refusal(CancelTaskRequest(task_id="task_pulse"))
        assert refusal.reason_name == "TASK_NOT_FOUND"

    async def advance(self, seconds: float) -> None:
        """Moves the clock and has the engine look."""
        self.clock.advance(seconds)
        await self.pulse()

    # -- what tests do often -----------------------------------------------------------------

    async def create(self, agent_type: str = "shell", request_id: str = "", **spec: Any) -> Task:
        answer = await self.call(new_task(agent_type, request_id, **spec))
        task: Task = answer.task
        return task

    async def register(self, *agent_types: str, slots: int = 1) -> str:
        """A new external agent's id."""
        self._processes += 1
        request = RegisterWorkerRequest(
            instance_key=f"process-{self._processes}", agent_types=agent_types or ["shell"], slots=slots
        )
        agent_id: str = (await self.call(request)).agent.agent_id
        return agent_id

    async def spawn(self, agent_id: str = "", request_id: str = "") -> Agent:
        request = SpawnAgentRequest(agent_id=agent_id, spec=SPEC, request_id=request_id)
        agent: Agent = (await self.call(SpawnCommand(request, "", SPEC))).agent
        return agent

    async def lease(self, agent_id: str, max_tasks: int = 1, poll_id: str = "") -> list[Offer]:
        """What there is for the agent right now."""
        request = LeaseTasksRequest(agent_id=agent_id, max_tasks=max_tasks, poll_id=poll_id, wait=NO_WAIT)
        return list((await self.call(request)).offers)

    async def offer(self, agent_id: str) -> Offer:
        """The one task that there is for the agent."""
        [offer] = await self.lease(agent_id)
        return offer

    async def beat(self, agent_id: str, *offers: Offer) -> Any:
        """A heartbeat that names these leases."""
        beats = [LeaseBeat(lease_token=offer.lease_token) for offer in offers]
        return await self.call(HeartbeatRequest(agent_id=agent_id, leases=beats))

    async def complete(self, offer: Offer, result: str = "done") -> Any:
        request = CompleteTaskRequest(lease_token=offer.lease_token)
        request.result.string_value = result
        return await self.call(request)

    # -- looking -----------------------------------------------------------------------------

    async def task(self, task_id: str) -> Task:
        """The task with its content, as a client reads it."""
        return Task.FromString(await self.engine.reads.get_task(task_id))

    async def agent(self, agent_id: str) -> Agent:
        return await self.engine.reads.get_agent(agent_id)

    async def log(self) -> list[Record]:
        """Every event so far."""
        return await self.engine.reads.events_after(0, 1_000_000)

    async def event_names(self, *, tasks_only: bool = False) -> list[str]:
        """The names of all events so far, "task.created" and so on."""
        kinds = [Event.FromString(record.data).kind for record in await self.log()]
        names = [EventKind.Name(kind)[11:].lower().replace("_", ".", 1) for kind in kinds]
        return [name for name in names if not tasks_only or name.startswith("task.")]


def new_task(agent_type: str = "shell", request_id: str = "", **spec: Any) -> CreateTaskRequest:
    """A request for a task."""
    return CreateTaskRequest(task=TaskSpec(agent_type=agent_type, **spec), request_id=request_id)


def decoded(request: Any, answer: bytes) -> Any:
    """The response message of a request. A fact is answered with the agent it was about, or with nothing."""
    message = request if isinstance(request, Message) else getattr(request, "request", None)
    if message is None:
        return agent_pb2.SpawnAgentResponse.FromString(answer) if answer else None
    name = message.DESCRIPTOR.name.removesuffix("Request") + "Response"
    tasks = (task_pb2, template_pb2, schedule_pb2, approval_pb2)
    money = (usage_pb2, price_pb2, budget_pb2, alert_pb2, webhook_pb2)
    modules = (*tasks, *money, agent_pb2, queue_pb2, secret_pb2, worker_pb2, admin_pb2, lock_pb2)
    [response] = [getattr(module, name) for module in modules if hasattr(module, name)]
    return response.FromString(answer)


@asynccontextmanager
async def live_engine(
    url: str, directory: Path, wrap: Callable[[Database], Database] = lambda database: database
) -> AsyncIterator[LiveEngine]:
    """A started engine; stopped at the end, when none of its parts may have died."""
    live = LiveEngine(url, directory, wrap)
    await live.start()
    try:
        yield live
    finally:
        await live.stop()
    assert live.crashes == []


async def settled(awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task that has begun and waits for something else than its turn."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(10):
        await asyncio.sleep(0)
    return task
