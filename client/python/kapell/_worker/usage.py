"""What an attempt has used, on its way to the server: every record, once, as soon as it is known.

A record keeps its id, so a report that is repeated because its answer was lost counts once. What an attempt has used
was paid for, so it is reported also where its lease is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from kapell.errors import KapellError, LeaseLost
from kapell.v1.usage_pb2 import USAGE_OUTCOME_KIND_REFUSED, UsageRecord
from kapell.v1.worker_pb2 import ReportUsageRequest

if TYPE_CHECKING:
    from kapell._worker.leases import Lease
    from kapell._worker.session import Session

_log = logging.getLogger("kapell.worker")

AT_ONCE = 100
"""Records of one report."""
MOST_BYTES = 256 * 1024
MOST_WAITING = 10_000
"""Records that may wait while the server does not answer; more are dropped, which is logged."""


class UsageBuffer:
    """Records that were not reported yet, in their order."""

    def __init__(self) -> None:
        self.sender: asyncio.Task[None] | None = None
        """Who sends them; None while nothing was used."""
        self._start: Callable[[], asyncio.Task[None]] | None = None
        self._waiting: deque[UsageRecord] = deque()
        self._filled = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()
        self._unanswered = 0
        self._closed = False

    def on_first(self, start: Callable[[], asyncio.Task[None]]) -> None:
        """Calls `start` for the sender as soon as there is something to send."""
        self._start = start

    def put(self, record: UsageRecord) -> None:
        """Adds a record; never waits."""
        if len(self._waiting) >= MOST_WAITING:
            _log.error("usage is dropped: %d records wait for the server already", MOST_WAITING)
            return
        self._waiting.append(record)
        self._unanswered += 1
        self._sent.clear()
        self._filled.set()
        if self.sender is None and self._start is not None:
            self.sender = self._start()

    def take(self) -> list[UsageRecord]:
        """What fits into one report; empty where nothing waits."""
        taken: list[UsageRecord] = []
        size = 0
        while self._waiting and len(taken) < AT_ONCE:
            size += self._waiting[0].ByteSize()
            if taken and size > MOST_BYTES:
                break
            taken.append(self._waiting.popleft())
        if not self._waiting and not self._closed:
            self._filled.clear()
        return taken

    def answered(self, records: int) -> None:
        """So many of what was taken are in the ledger, or never will be."""
        self._unanswered -= records
        if not self._unanswered:
            self._sent.set()

    async def sent(self) -> None:
        """Waits until the server has answered all that was said so far."""
        await self._sent.wait()

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._filled.set()

    async def wait(self) -> None:
        """Waits for records, or for the close."""
        await self._filled.wait()

    @property
    def is_closed(self) -> bool:
        return self._closed


async def ship(session: Session, lease: Lease) -> None:
    """Reports the lease's usage until it is closed and all of it is out, also where the lease is lost by then."""
    while True:
        await lease.usage.wait()
        records = lease.usage.take()
        if not records:
            if lease.usage.is_closed:
                return
            continue
        request = ReportUsageRequest(lease_token=lease.token, records=records)
        try:
            answer = await session.insist(session.stub.ReportUsage, _asking(request))
        except KapellError as error:
            _log.error("%d records of usage of %s are lost: %s", len(records), lease.task_id, error)
            lease.usage.answered(len(records))
            if isinstance(error, LeaseLost):
                lease.lose()
            continue
        for outcome in answer.outcomes:
            if outcome.kind == USAGE_OUTCOME_KIND_REFUSED:
                _log.warning("usage of %s was refused: %s", lease.task_id, outcome.message)
        lease.follow(answer.directive, answer.pause, answer.revision)
        lease.usage.answered(len(records))


def _asking(request: ReportUsageRequest) -> Callable[[], ReportUsageRequest]:
    return lambda: request
