"""Fills a server with agents and tasks through the public API, and keeps it alive.

What it made carries the label `demo=kapell`; only that is ever cancelled or deleted here. Old
tasks of the demo are deleted once there are `KEEP` of them, so that a demo may run for days.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from kapell.demo import scenes, work
from kapell.demo.scenes import Scene
from kapell.demo.work import Job
from kapell.errors import AlreadyExists, Conflict, NotFound
from kapell.task_specs import TaskFields, task_spec
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.task_pb2 import RetryPolicy, TaskSpec

if TYPE_CHECKING:
    from kapell.client import Client
    from kapell.v1.agent_pb2 import Agent
    from kapell.v1.task_pb2 import Task

LABELS = {"demo": "kapell"}
_SCENE = "demo.scene"
KEEP = 200
"""Ended tasks of the demo that are kept."""

EVERY = 5.0
"""Seconds between two tasks of the trickle."""

_MOST_OPEN = 4
_CANCEL_AFTER = 4.0
_RETRY_AFTER = 2
_OPEN = ("pending", "awaiting_approval", "queued", "running", "cancelling")


class Stage:
    """The demo on one server. `directory` is where the agents look; `pace` is the pause between two files."""

    def __init__(self, client: Client, directory: Path, *, pace: float = work.PACE) -> None:
        self._client = client
        self._directory = directory
        self._pace = pace
        self._cancelling: asyncio.Task[None] | None = None
        self._agents: dict[str, Agent] = {}
        self._idle_since: dict[str, float] = {}

    async def open(self) -> list[Task]:
        """Spawns the agents that are not there, and creates the first tasks; returns these when all agents are."""
        await self._find_agents()
        runners = [self._spawn(name, [agent_type, "shell"], "{prompt}") for name, agent_type in work.AGENTS]
        runners += [self._spawn(name, [kind], "{prompt}", slots=slots) for name, kind, slots in work.PLAYERS]
        await asyncio.gather(
            self._create_budget(),
            *runners,
            self._spawn(work.READER, ["code"], _doubled(work.READS), stdin="{prompt}"),
        )
        played = [task for scene in scenes.SCENES for task in await self._play_unless_open(scene)]
        doomed = await self._create(work.TO_BE_CANCELLED)
        self._cancelling = asyncio.create_task(self._cancel_once_it_runs(doomed), name="cancel one demo task")
        return [*played, doomed, *[await self._create(job) for job in work.OPENING]]

    async def keep_alive(self, *, every: float = EVERY, jobs: Sequence[Job] = work.TRICKLE) -> None:
        """Creates one task after another, one each `every` seconds, and plays scenes again, until it is cancelled."""
        try:
            for job in itertools.cycle(jobs):
                await asyncio.sleep(every)
                if await self._waiting(job.agent_type) < _MOST_OPEN:
                    await self._create(job)
                for scene in scenes.SCENES:
                    await self._play_again(scene)
                await self._forget_old_tasks()
        finally:
            if self._cancelling is not None:
                self._cancelling.cancel()

    async def _find_agents(self) -> None:
        live = ("starting", "active")
        page = await self._client.agents.list(states=live, labels=LABELS, page_size=100)
        self._agents = {agent.display_name: agent for agent in page.agents}

    async def _spawn(
        self, name: str, agent_types: Sequence[str], script: str, *, stdin: str = "", slots: int = 2
    ) -> Agent:
        """Starts an agent, unless one of that name has outlived an earlier server that was killed."""
        if found := self._agents.get(name):
            return found
        command = CommandRuntime(
            argv=["sh", "-c", script],
            stdin=stdin,
            env={"KAPELL_DEMO_PACE": f"{self._pace:g}"},
            working_directory=str(self._directory),
        )
        spec = AgentSpec(agent_types=agent_types, slots=slots, command=command)
        return await self._client.agents.spawn(spec=spec, display_name=name, labels=LABELS, wait=20)

    async def _create_budget(self) -> None:
        """A budget of a few cents for the drafts; one of an earlier demo here goes on, with what it has spent."""
        with contextlib.suppress(AlreadyExists):
            await self._client.budgets.create(
                scenes.BUDGET_LIMIT,
                budget_id=scenes.BUDGET_ID,
                scope=f"label:{_SCENE}={scenes.SPENDING.name}",
                thresholds={80: "notify", 100: "approval"},
                description="of the demo: its flood of drafts stops here, and asks",
            )

    async def _play_again(self, scene: Scene) -> None:
        """Creates the jobs of a scene once the scene has rested."""
        now = asyncio.get_running_loop().time()
        if await self._open_tasks(scene):
            self._idle_since.pop(scene.name, None)
        elif now - self._idle_since.setdefault(scene.name, now) >= scene.rest:
            await self._play(scene)

    async def _play_unless_open(self, scene: Scene) -> list[Task]:
        """The tasks of a scene that an earlier demo has left, else new ones."""
        return await self._open_tasks(scene) or await self._play(scene)

    async def _play(self, scene: Scene) -> list[Task]:
        specs = [_spec(job, {_SCENE: scene.name}) for job in scene.jobs]
        return list((await self._client.tasks.create_batch(specs)).tasks)

    async def _open_tasks(self, scene: Scene) -> list[Task]:
        labels = {**LABELS, _SCENE: scene.name}
        return list((await self._client.tasks.list(states=_OPEN, labels=labels, page_size=100)).tasks)

    async def _create(self, job: Job) -> Task:
        return (await self._client.tasks.create_batch([_spec(job)])).tasks[0]

    async def _cancel_once_it_runs(self, task: Task) -> None:
        async with self._client.tasks.watch(task_ids=[task.task_id], after_revision=task.revision) as events:
            async for event in events:
                if event.task.attempt > 0:
                    break
        await asyncio.sleep(_CANCEL_AFTER)
        with contextlib.suppress(Conflict, NotFound):  # Somebody was faster.
            await self._client.tasks.cancel(task.task_id, reason="the demo shows how a running task is cancelled")

    async def _waiting(self, agent_type: str) -> int:
        """How many of the demo's tasks of this type wait, at most `_MOST_OPEN`."""
        page = await self._client.tasks.list(
            states=["pending", "queued"], labels=LABELS, agent_types=[agent_type], page_size=_MOST_OPEN
        )
        return len(page.tasks)

    async def _forget_old_tasks(self) -> None:
        ended = [
            task.task_id
            async for task in self._client.tasks.iterate(
                states=["succeeded", "failed", "cancelled"], labels=LABELS, order=LIST_ORDER_OLDEST_FIRST
            )
        ]
        for task_id in ended[:-KEEP]:
            with contextlib.suppress(NotFound):  # Somebody was faster.
                await self._client.tasks.delete(task_id)


def _spec(job: Job, labels: Mapping[str, str] = MappingProxyType({})) -> TaskSpec:
    """The task that a job is to be."""
    fields = TaskFields(
        display_name=job.name,
        priority=job.priority,
        labels={**LABELS, **labels},
        retry_policy=RetryPolicy(max_attempts=job.max_attempts, initial_backoff=Duration(seconds=_RETRY_AFTER)),
        locks=job.locks,
        read_locks=job.read_locks,
    )
    if job.estimate:
        fields["estimate"] = job.estimate
    if job.approval is not None:
        fields["approval"] = job.approval
    return task_spec(job.agent_type, job.script, **fields)


def _doubled(script: str) -> str:
    """A script without placeholders, as a command line writes it: with its braces doubled."""
    return script.replace("{", "{{").replace("}", "}}")
