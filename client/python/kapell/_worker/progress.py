"""Progress of an attempt on its way to the server: only the latest word, not too often."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from kapell._worker.values import printable
from kapell.errors import KapellError, LeaseLost
from kapell.rules.redaction import Redactor
from kapell.v1.task_pb2 import TaskProgress
from kapell.v1.worker_pb2 import ReportProgressRequest

if TYPE_CHECKING:
    from kapell._worker.leases import Lease
    from kapell._worker.session import Session

_log = logging.getLogger("kapell.worker")

INTERVAL = 0.25
"""Least seconds between two reports of one attempt."""


class ProgressSlot:
    """The latest progress that was not reported yet."""

    def __init__(self, redactor: Redactor | None = None) -> None:
        self._redactor = redactor or Redactor()
        self.sender: asyncio.Task[None] | None = None
        """Who sends it; None while nothing was said."""
        self._start: Callable[[], asyncio.Task[None]] | None = None
        self._latest: TaskProgress | None = None
        self._filled = asyncio.Event()
        self._closing = asyncio.Event()

    def on_first(self, start: Callable[[], asyncio.Task[None]]) -> None:
        """Calls `start` for the sender as soon as there is something to send."""
        self._start = start

    def put(self, fraction: float | None, step: str = "", message: str = "") -> None:
        """Replaces what was not reported yet. Out of range is brought into it; texts are cut."""
        known = fraction is not None and math.isfinite(fraction) and fraction >= 0
        self._latest = TaskProgress(
            fraction=min(1.0, fraction) if known and fraction is not None else -1.0,
            step=printable(self._redactor.text(step))[:200],
            message=printable(self._redactor.text(message))[:1000],
        )
        self._filled.set()
        if self.sender is None and self._start is not None:
            self.sender = self._start()

    def take(self) -> TaskProgress | None:
        """The latest progress, once."""
        latest, self._latest = self._latest, None
        if not self._closing.is_set():
            self._filled.clear()
        return latest

    def close(self) -> None:
        """Nothing more comes."""
        self._closing.set()
        self._filled.set()

    async def wait(self) -> None:
        """Waits for progress, or for the close."""
        await self._filled.wait()

    async def rest(self, seconds: float) -> None:
        """Waits so long, or until the close."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    @property
    def is_closed(self) -> bool:
        return self._closing.is_set()


async def report(session: Session, lease: Lease) -> None:
    """Reports the lease's progress until it is closed and the last word is out, or the lease is lost."""
    slot = lease.progress
    while True:
        await slot.wait()
        latest = slot.take()
        if latest is None:
            if slot.is_closed:
                return
            continue
        try:
            answer = await session.insist(session.stub.ReportProgress, _reporting(lease, latest))
        except LeaseLost:
            lease.lose()
            return
        except KapellError as error:
            _log.warning("the progress of %s is not reported: %s", lease.task_id, error)
            return
        lease.follow(answer.directive)
        await slot.rest(INTERVAL)


def _reporting(lease: Lease, progress: TaskProgress) -> Callable[[], ReportProgressRequest]:
    request = ReportProgressRequest(lease_token=lease.token, progress=progress)
    return lambda: request
