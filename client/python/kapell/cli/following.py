"""Follows one task to its end: its log scrolls by, its state stands below."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from kapell.cli.app import App
from kapell.cli.commands.task_write import unserved
from kapell.cli.live import bar
from kapell.cli.loglines import LogPrinter
from kapell.cli.output import note
from kapell.cli.states import task_look
from kapell.cli.times import short
from kapell.client import Client
from kapell.v1.task_pb2 import Task
from kapell.watch import Watch

_UNSERVED_AFTER = 1.0
_LOG_TAIL = 5.0
"""Seconds the rest of the log may take to arrive after the task has ended."""


class Following:
    """One task that is followed. Where stdout is wanted for the task itself, its log goes to stderr."""

    def __init__(self, app: App, client: Client, task: Task, *, times: bool) -> None:
        self._app = app
        self._client = client
        self._task = task
        self._printer = LogPrinter(app.terminal, app.output, times=times, aside=not app.is_table)
        self._began = time.monotonic()
        self._watch: Watch[Any] | None = None

    async def until_end(self, timeout: float | None) -> Task:
        """The task as it ended, or as it is when `timeout` is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._follow()
        return await self._client.tasks.get(self._task.task_id)

    async def _follow(self) -> None:
        # What scrolls by and what is drawn end with this block, whichever way it is left.
        try:
            async with asyncio.TaskGroup() as group:
                log = group.create_task(self._print_log(), name="print log")
                clock = group.create_task(self._draw_every_moment(), name="draw state")
                served = group.create_task(self._mind_missing_agents(), name="look for agents")
                await self._watch_state()
                served.cancel()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(log), _LOG_TAIL)
                log.cancel()
                clock.cancel()
        finally:
            self._printer.live.clear()

    async def _watch_state(self) -> None:
        id = self._task.task_id
        start = self._task.revision
        async with self._client.tasks.watch(task_ids=[id], after_revision=start) as self._watch:
            async for event in self._watch:
                self._task = event.task
                self._draw()
                if task_look(event.task.state).final:
                    return

    async def _print_log(self) -> None:
        async with self._client.tasks.logs(self._task.task_id, follow=True) as entries:
            async for entry in entries:
                self._printer.write(entry, attempt=entries.attempt, offset=entries.offset - 1)

    async def _draw_every_moment(self) -> None:
        while self._app.terminal.live:
            self._draw()
            await asyncio.sleep(0.5)

    async def _mind_missing_agents(self) -> None:
        """Says once when the task waits and nobody serves its type."""
        await asyncio.sleep(_UNSERVED_AFTER)
        if self._task.attempt == 0 and (warning := await unserved(self._client, self._task.agent_type)):
            with self._printer.live.above():
                note(self._app.terminal.err(warning, "yellow"))

    def _draw(self) -> None:
        task, terminal = self._task, self._app.terminal
        look = task_look(task.state)
        parts = [f"{look.word} {short(time.monotonic() - self._began)}"]
        if task.attempts_used > 1 or task.attempt > 1:
            parts.append(f"attempt {task.attempt} of {task.retry_policy.max_attempts}")
        if task.HasField("progress"):
            fraction = task.progress.fraction
            known = f"{bar(fraction, terminal)} {fraction * 100:.0f}%" if fraction >= 0 else ""
            parts += [known, task.progress.step, task.progress.message]
        elif task.state_reason:
            parts.append(task.state_reason)
        if self._watch is not None and not self._watch.connected:
            parts.append("the server is away, reconnecting")
        self._printer.live.set(look.mark, look.colour, "  ".join(part for part in parts if part))
