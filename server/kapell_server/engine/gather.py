"""When to begin the next batch: at once while the load is light, a moment later under concurrency.

A commit is fast, so taking whatever is queued would make batches of two or three and spend the
time on commits. Whoever was answered is likely to come back within a moment: waiting for most of
them, at most a few milliseconds, doubles throughput. How many they are is seen when a commit ends:
those of its batch and those that came meanwhile. The batch alone would not do: small ones would
stay small.
"""

from __future__ import annotations

import asyncio

_WINDOW_SECONDS = 0.003
_SHARE = 0.8
# How much of the most that were there at once is remembered from one batch to the next.
_MEMORY = 0.95


class Gather:
    """Wakes the writer's loop. All methods belong to the event loop."""

    def __init__(self) -> None:
        self._peak = 1.0
        self._target = 1
        self._waiter: asyncio.Future[None] | None = None
        self._rung = False
        self._closed = False

    def arrived(self, waiting: int) -> None:
        """Another command waits; there are `waiting` now."""
        if waiting >= self._target:
            self._wake()

    def ring(self) -> None:
        """Begins a batch even if no command waits: something is due."""
        self._rung = True
        self._wake()

    def close(self) -> None:
        """Never waits again."""
        self._closed = True
        self._wake()

    def done(self, count: int, waiting: int) -> None:
        """A batch of `count` commands has ended; `waiting` others came meanwhile."""
        self._peak = max(float(count + waiting), self._peak * _MEMORY)

    async def wait(self, waiting: int) -> None:
        """Returns when a batch should begin. `waiting` commands are there already."""
        if not waiting and not self._rung and not self._closed:
            self._target = 1
            await self._sleep(None)
            waiting = 1
        if self._peak * _SHARE >= 2 and not self._closed:
            self._target = int(self._peak * _SHARE)
            if waiting < self._target:
                await self._sleep(_WINDOW_SECONDS)
        self._rung = False

    async def _sleep(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._wake) if seconds is not None else None
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
