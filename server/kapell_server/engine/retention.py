"""The housekeeping of what is kept: finished tasks and events beyond their age or number go, the oldest first.

States: one supervised loop, resting between rounds; a compaction by hand wakes it. Authority: none of
its own; tasks go by a command like any other, in steps of a few, and so does the mark up to which
the log was compacted. The rows below the mark follow between batches. A step waits until nobody else waits for the
writer, if that comes soon, and is followed by a rest of several times its length, so that
dispatch does not notice. Failures: what the database refuses is tried again in the next round;
what a crash leaves half done is, the mark and the events of deletion being durable, done after
the start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import structlog
from kapell.v1.error_pb2 import ERROR_REASON_SERVER_DRAINING

from kapell_server.clock import Clock
from kapell_server.domain.access import system
from kapell_server.domain.errors import KapellError
from kapell_server.domain.settings import Settings
from kapell_server.domain.times import SECOND
from kapell_server.engine.engine import Engine
from kapell_server.engine.facts import EventsOutlived, TasksOutlived
from kapell_server.store import retention as rows
from kapell_server.store.database import Database
from kapell_server.supervise import Supervisor

_log = structlog.get_logger(__name__)

ROUND_SECONDS = 30.0
TASK_STEP = 25
EVENT_STEP = 250
# A step is followed by a rest of so many times its length, and waits so long at most for an empty mailbox.
REST_TIMES = 4.0
PATIENCE_SECONDS = 1.0
# A crash can leave the logs of one step behind, whose events are among so many latest ones.
_EVENTS_BACK = 5_000
_RETENTION = system("retention")


class Retention:
    """Keeps one engine's database within its limits. `delete_files` removes what of a task is outside of it."""

    def __init__(
        self,
        engine: Engine,
        database: Database,
        *,
        settings: Settings,
        clock: Clock,
        delete_files: Callable[[str], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._database = database
        self._settings = settings
        self._clock = clock
        self._delete_files = delete_files
        self._swept = False
        self._task: asyncio.Task[None] | None = None

    def start(self, supervisor: Supervisor) -> None:
        """Begins the rounds. `stop` before the engine does."""
        self._task = supervisor.spawn(self._run(), name="retention")

    async def stop(self) -> None:
        """Ends the rounds; nothing is half done in the database."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self.round()
            except KapellError as error:
                if error.reason != ERROR_REASON_SERVER_DRAINING:
                    _log.warning("retention is put off", reason=error.reason_name)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._engine.compacted.wait(), ROUND_SECONDS)

    async def round(self) -> None:
        """Brings everything within its limits. Raises KapellError where the database refuses."""
        if not self._swept:
            await self._sweep()
            self._swept = True
        self._engine.compacted.clear()
        await self._tasks()
        await self._events()

    async def _sweep(self) -> None:
        """Removes the files of tasks that a crash has left behind."""
        for task_id in await self._database.read(partial(rows.tasks_deleted_lately, events_back=_EVENTS_BACK)):
            await self._delete_files(task_id)

    async def _tasks(self) -> None:
        settings = self._settings
        ended_by_ns = self._clock.now_ns() - int(settings.keep_tasks_for * SECOND) if settings.keep_tasks_for else 0
        excess = await self._database.read(rows.count_ended) - settings.keep_tasks if settings.keep_tasks else 0
        needed = 0
        while ended_by_ns or excess > 0:
            oldest = await self._database.read(partial(rows.oldest_ended, skip=needed, limit=TASK_STEP))
            going = [entry for place, entry in enumerate(oldest) if place < excess or entry[1] <= ended_by_ns]
            if not going:
                return
            fact = TasksOutlived(tuple(task_id for task_id, _ in going), max(end_ns for _, end_ns in going))
            began = await self._turn()
            gone = (await self._engine.submit_aside(fact, _RETENTION)).decode().split()
            for task_id in gone:
                await self._delete_files(task_id)
            excess -= len(gone)
            needed += len(going) - len(gone)
            await self._rest(began)

    async def _events(self) -> None:
        settings, engine = self._settings, self._engine
        outlived = engine.revision - settings.keep_events if settings.keep_events else 0
        if settings.keep_events_for:
            before = self._clock.now_ns() - int(settings.keep_events_for * SECOND)
            outlived = max(outlived, await self._database.read(partial(rows.newest_event_before, time_ns=before)))
        if min(outlived, engine.revision - 1) > engine.oldest_revision:
            await engine.submit_aside(EventsOutlived(outlived), _RETENTION)
        while True:
            began = await self._turn()
            if not await self._database.write(partial(rows.drop_events, limit=EVENT_STEP)):
                return
            await self._rest(began)

    async def _turn(self) -> float:
        """Waits until nobody waits for the writer, or long enough. Returns the time."""
        await self._engine.quiet(PATIENCE_SECONDS)
        return time.monotonic()

    async def _rest(self, began: float) -> None:
        await asyncio.sleep(REST_TIMES * (time.monotonic() - began))
