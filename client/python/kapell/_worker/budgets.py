"""Waiting for room in a budget: what a handler does that was told to use no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Literal

from kapell._worker.leases import Lease

Saying = Callable[[Literal["budget"], str], AbstractContextManager[None]]
"""Says what the work waits for, for as long as a block lasts."""


async def room(lease: Lease, waiting: Saying) -> None:
    """Returns once all that was used has arrived and the lease may use more. Raises CancelledError."""
    await _or_cancelled(lease, lease.usage.sent())
    while lease.paused.is_set():
        with waiting("budget", lease.pause.reason):
            await _or_cancelled(lease, lease.continued.wait())


async def _or_cancelled(lease: Lease, awaited: Awaitable[object]) -> None:
    """Waits; raises CancelledError where the attempt is to stop first."""
    work = asyncio.ensure_future(awaited)
    stop = asyncio.create_task(lease.cancelled.wait(), name=f"cancel of {lease.task_id}")
    try:
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise asyncio.CancelledError("the task was cancelled while it waited for room in a budget")
    finally:
        work.cancel()
        stop.cancel()
