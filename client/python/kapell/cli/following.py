"""Follows one task to its end: its log scrolls by, its state stands below. Its steps get a line each when they end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Any

from kapell.cli.app import App
from kapell.cli.commands.task_write import unserved
from kapell.cli.desk import Desk
from kapell.cli.live import bar
from kapell.cli.loglines import LogPrinter
from kapell.cli.output import note
from kapell.cli.queue_views import blocker_command, blocker_detail
from kapell.cli.states import task_look
from kapell.cli.terminal import visible
from kapell.cli.times import short
from kapell.cli.views import failure_text, ran_for
from kapell.client import Client
from kapell.errors import PermissionDenied
from kapell.v1.task_pb2 import Blocker, Task
from kapell.watch import Watch

_UNSERVED_AFTER = 1.0
_MOST_WATCHED = 100
"""Tasks that one watch may name."""
_LOG_TAIL = 5.0
"""Seconds the rest of the log may take to arrive after the task has ended."""


class Following:
    """One task that is followed. Where stdout is wanted for the task itself, its log goes to stderr."""

    def __init__(self, app: App, client: Client, task: Task, *, times: bool) -> None:
        self._app = app
        self._client = client
        self._task = task
        self._printer = LogPrinter(app.terminal, app.output, times=times, aside=not app.is_table)
        self._desk = Desk(app, client, self._printer.live, root_task_id=task.root_task_id or task.task_id)
        self._began = time.monotonic()
        self._watch: Watch[Any] | None = None
        self._names = {entry.task_id: entry.name for entry in task.dependencies}
        """How the task calls those it waits for."""
        self._steps: dict[str, Task] = {}
        """Those of them that are its children, by id."""

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
                desk = group.create_task(self._mind_approvals(), name="approvals")
                served = group.create_task(self._mind_missing_agents(), name="look for agents")
                await self._watch_state()
                served.cancel()
                desk.cancel()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(log), _LOG_TAIL)
                log.cancel()
                clock.cancel()
        finally:
            self._printer.live.clear()

    async def _mind_approvals(self) -> None:
        """Shows what waits for a decision. Whoever may not read approvals follows without."""
        try:
            await self._desk.work()
        except* PermissionDenied:
            pass

    async def _watch_state(self) -> None:
        id = self._task.task_id
        if task_look(self._task.state).final:  # It failed as it was created; no event will come.
            return
        start = self._task.revision
        # The steps come last: a task lists them after what it was asked to wait for.
        ids = [id, *list(self._names)[-(_MOST_WATCHED - 1) :]]
        async with self._client.tasks.watch(task_ids=ids, after_revision=start) as self._watch:
            async for event in self._watch:
                if event.task.task_id != id:
                    await self._desk.free.wait()
                    self._notice(event.task)
                    continue
                was_paused, self._task = self._task.HasField("pause"), event.task
                self._draw()
                if event.task.HasField("pause") and not was_paused:
                    await self._say_why_it_pauses()
                if task_look(event.task.state).final:
                    return

    def _notice(self, step: Task) -> None:
        """Remembers how a step stands, and says when it has ended."""
        if step.parent_task_id != self._task.task_id:
            return
        before = self._steps.get(step.task_id)
        self._steps[step.task_id] = step
        look = task_look(step.state)
        if look.final and (before is None or before.state != step.state):
            terminal = self._app.terminal
            why = failure_text(step.failure) if step.HasField("failure") else step.state_reason
            took = f" in {ran_for(step)}" if step.start_time.seconds else ""
            said = f"{self._names[step.task_id]}  {look.word}{took}" + (f": {why}" if why else "")
            mark = f"{look.mark} " if terminal.marks else ""
            with self._printer.live.above():
                note(terminal.err(mark + visible(said), look.colour))
        self._draw()

    async def _print_log(self) -> None:
        async with self._client.tasks.logs(self._task.task_id, follow=True) as entries:
            async for entry in entries:
                await self._desk.free.wait()
                self._printer.write(entry, attempt=entries.attempt, offset=entries.offset - 1)

    async def _draw_every_moment(self) -> None:
        while self._app.terminal.live:
            self._draw()
            await asyncio.sleep(0.5)

    async def _mind_missing_agents(self) -> None:
        """Says once when the task or a step waits: that nobody serves its type, or what else is in the way."""
        await asyncio.sleep(_UNSERVED_AFTER)
        await self._desk.free.wait()
        waiting = [step for step in self._steps.values() if task_look(step.state).word == "queued"]
        for agent_type in sorted({task.agent_type for task in waiting or [self._task] if task.attempt == 0}):
            if warning := await unserved(self._client, agent_type):
                with self._printer.live.above():
                    note(self._app.terminal.err(warning, "yellow"))
                return
        await self._say_why_it_waits()

    async def _say_why_it_waits(self) -> None:
        """Says once what keeps the task from running."""
        if self._task.attempt or self._steps or task_look(self._task.state).final:
            return
        answer = await self._client.tasks.explain(self._task.task_id)
        await self._desk.free.wait()
        if answer.blockers:
            self._tell(f"It waits: {answer.summary}", answer.blockers)

    async def _say_why_it_pauses(self) -> None:
        """Says that a budget has told the attempt to use no more, and what helps."""
        answer = await self._client.tasks.explain(self._task.task_id)
        await self._desk.free.wait()
        if answer.task.HasField("pause"):
            self._tell(answer.summary, answer.blockers)

    def _tell(self, said: str, blockers: Iterable[Blocker]) -> None:
        """A sentence, and for each budget in the way who and until when, and the command that helps."""
        terminal = self._app.terminal
        with self._printer.live.above():
            note(terminal.err(visible(said), "yellow"))
            for blocker in blockers:
                if way_out := blocker_command(blocker):
                    note(terminal.err(f"  {visible(blocker_detail(blocker))}", "dim"))
                    note(terminal.err(f"  next: {visible(way_out)}", "dim"))

    def _draw(self) -> None:
        if not self._desk.free.is_set():
            return
        task, terminal = self._task, self._app.terminal
        look = task_look(task.state)
        parts = [f"{look.word} {short(time.monotonic() - self._began)}"]
        if self._steps and not task.attempt:
            done = sum(task_look(step.state).final for step in self._steps.values())
            parts.append(f"{done} of {len(self._steps)} steps done")
        if task.attempts_used > 1 or task.attempt > 1:
            parts.append(f"attempt {task.attempt} of {task.retry_policy.max_attempts}")
        if task.HasField("progress"):
            fraction = task.progress.fraction
            known = f"{bar(fraction, terminal)} {fraction * 100:.0f}%" if fraction >= 0 else ""
            parts += [known, task.progress.step, task.progress.message]
        elif task.state_reason:
            parts.append(task.state_reason)
        if task.HasField("pause"):
            parts.append("paused by a budget")
        if self._watch is not None and not self._watch.connected:
            parts.append("the server is away, reconnecting")
        self._printer.live.set(look.mark, look.colour, "  ".join(part for part in parts if part))
