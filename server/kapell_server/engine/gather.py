"""When to begin the next batch: at once while the load is light, a moment later under concurrency.

A commit is fast, so taking whatever is queued would make batches of two or three and spend the
time on commits. Where batches had several commands, their senders are likely to come back within
a moment: waiting for about as many, at most a few milliseconds, doubles throughput. As many as
the largest batch of late, that is: going by the last one alone, small batches would stay small.
"""

from __future__ import annotations

import asyncio

_WINDOW_SECONDS = 0.003
_SHARE = 0.8
# Fewer are not worth a commit of their own once there is concurrency: small batches would stay small.
_AT_LEAST = 24
# How much of the largest batch is remembered from one batch to the next.
_MEMORY = 0.9


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

    def took(self, count: int) -> None:
        """The batch that begins now has `count` commands."""
        self._peak = max(count, self._peak * _MEMORY)

    async def wait(self, waiting: int) -> None:
        """Returns when a batch should begin. `waiting` commands are there already."""
        if not waiting and not self._rung and not self._closed:
            self._target = 1
            await self._sleep(None)
            waiting = 1
        if self._peak * _SHARE > 1 and not self._closed:
            self._target = max(_AT_LEAST, int(self._peak * _SHARE))
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
