"""Fills a server with agents and tasks through the public API, and keeps it alive.

What it made carries the label `demo=kapell`; only that is ever cancelled or deleted here. Old
tasks of the demo are deleted once there are `KEEP` of them, so that a demo may run for days.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from kapell.demo import work
from kapell.demo.work import Job
from kapell.errors import Conflict, NotFound
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.task_pb2 import RetryPolicy

if TYPE_CHECKING:
    from kapell.client import Client
    from kapell.v1.agent_pb2 import Agent
    from kapell.v1.task_pb2 import Task

LABELS = {"demo": "kapell"}
KEEP = 200
"""Ended tasks of the demo that are kept."""

EVERY = 5.0
"""Seconds between two tasks of the trickle."""

_MOST_OPEN = 12
_CANCEL_AFTER = 4.0
_RETRY_AFTER = 2


class Stage:
    """The demo on one server. `directory` is where the agents look; `pace` is the pause between two files."""

    def __init__(self, client: Client, directory: Path, *, pace: float = work.PACE) -> None:
        self._client = client
        self._directory = directory
        self._pace = pace
        self._cancelling: asyncio.Task[None] | None = None

    async def open(self) -> list[Task]:
        """Spawns the agents and creates the first tasks; returns these when all agents are there."""
        runners = (self._spawn(name, [agent_type, "shell"], "{prompt}") for name, agent_type in work.AGENTS)
        await asyncio.gather(*runners, self._spawn(work.READER, ["code"], _doubled(work.READS), stdin="{prompt}"))
        doomed = await self._create(work.TO_BE_CANCELLED)
        self._cancelling = asyncio.create_task(self._cancel_once_it_runs(doomed), name="cancel one demo task")
        return [doomed, *[await self._create(job) for job in work.OPENING]]

    async def keep_alive(self, *, every: float = EVERY, jobs: Sequence[Job] = work.TRICKLE) -> None:
        """Creates one task after another, one each `every` seconds, until it is cancelled."""
        try:
            for job in itertools.cycle(jobs):
                await asyncio.sleep(every)
                if await self._open_tasks() < _MOST_OPEN:
                    await self._create(job)
                await self._forget_old_tasks()
        finally:
            if self._cancelling is not None:
                self._cancelling.cancel()

    async def _spawn(self, name: str, agent_types: Sequence[str], script: str, *, stdin: str = "") -> Agent:
        command = CommandRuntime(
            argv=["sh", "-c", script],
            stdin=stdin,
            env={"KAPELL_DEMO_PACE": f"{self._pace:g}"},
            working_directory=str(self._directory),
        )
        spec = AgentSpec(agent_types=agent_types, slots=2, command=command)
        return await self._client.agents.spawn(spec=spec, display_name=name, labels=LABELS, wait=20)

    async def _create(self, job: Job) -> Task:
        retry = RetryPolicy(max_attempts=job.max_attempts, initial_backoff=Duration(seconds=_RETRY_AFTER))
        return await self._client.tasks.create(
            job.agent_type,
            job.script,
            display_name=job.name,
            priority=job.priority,
            labels=LABELS,
            retry_policy=retry,
        )

    async def _cancel_once_it_runs(self, task: Task) -> None:
        async with self._client.tasks.watch(task_ids=[task.task_id], after_revision=task.revision) as events:
            async for event in events:
                if event.task.attempt > 0:
                    break
        await asyncio.sleep(_CANCEL_AFTER)
        with contextlib.suppress(Conflict, NotFound):  # Somebody was faster.
            await self._client.tasks.cancel(task.task_id, reason="the demo shows how a running task is cancelled")

    async def _open_tasks(self) -> int:
        page = await self._client.tasks.list(states=["pending", "queued"], labels=LABELS, page_size=_MOST_OPEN)
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


def _doubled(script: str) -> str:
    """A script without placeholders, as a command line writes it: with its braces doubled."""
    return script.replace("{", "{{").replace("}", "}}")
