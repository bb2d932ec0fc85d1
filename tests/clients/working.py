"""What the tests of the worker share: one that runs for the length of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kapell._worker.values import from_value
from kapell.worker import Worker

from tests.clients.memory_server import Job


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """The worker runs; at the end it is stopped, if it has not ended by itself."""
    running = asyncio.create_task(worker.run())
    try:
        yield running
    finally:
        worker.stop(at_once=True)
        async with asyncio.timeout(20):
            await asyncio.wait((running,))
    if not running.cancelled():
        running.result()


def result_of(job: Job) -> object:
    """The result of a task that succeeded."""
    assert job.result is not None
    return from_value(job.result)
