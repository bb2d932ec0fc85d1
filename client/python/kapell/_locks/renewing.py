"""Keeping a lease of time alive, and knowing for certain when it can no longer be relied upon.

Times are of the monotonic clock, and counted from when a call was sent: the server cannot have
begun to count before. So `lost` is set here no later than the server gives the lock to somebody
else, also where the server does not answer. The one surprise: a machine that sleeps stops this
clock; the first renewal after it tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kapell.connection import backoff
from kapell.errors import DeadlineExceeded, Exhausted, Internal, KapellError, LockLost, Unavailable

RENEWALS_PER_TTL = 3
_LONGEST_CALL = 10.0


class Loss:
    """Whether something is still ours. Set once, with the reason."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.event = asyncio.Event()
        self.error: LockLost | None = None
        self.on_lost: Callable[[], None] | None = None

    def lose(self, error: LockLost) -> None:
        """Notes the loss; later ones change nothing."""
        if self.error is None:
            self.error = error
            self.event.set()
            if self.on_lost is not None:
                self.on_lost()

    def look(self, renewal: Renewal | None) -> None:
        """Notes that the time has run out, where it has and nobody has had the time to notice."""
        if self.error is None and renewal is not None and renewal.is_over:
            self.lose(renewal.expired())

    def check(self, renewal: Renewal | None = None) -> None:
        """Raises LockLost once it is lost."""
        self.look(renewal)
        if self.error is not None:
            raise self.error


class Renewal:
    """Renews until it is cancelled. `renew(timeout)` asks the server and returns the seconds that are left then."""

    def __init__(self, loss: Loss, renew: Callable[[float], Awaitable[float]]) -> None:
        self._loss = loss
        self._renew = renew
        self._deadline = 0.0
        self._due = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the time has run out."""
        return asyncio.get_running_loop().time() >= self._deadline

    def granted(self, sent_at: float, left: float) -> None:
        """The server has said, to a call sent then, that so much is left."""
        self._deadline = sent_at + left
        self._due = sent_at + left / RENEWALS_PER_TTL

    async def once(self) -> None:
        """Renews now. Raises LockLost, or what else the server says."""
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        left = await self._renew(max(0.1, min(_LONGEST_CALL, self._deadline - sent_at)))
        self.granted(sent_at, left)

    async def run(self) -> None:
        """Renews in time, again and again; returns when it is lost."""
        loop = asyncio.get_running_loop()
        while self._loss.error is None:
            await asyncio.sleep(max(0.0, self._due - loop.time()))
            try:
                async with asyncio.timeout_at(self._deadline):
                    await self._until_renewed()
            except LockLost as error:
                self._loss.lose(error)
            except TimeoutError:
                self._loss.lose(self.expired())
            except KapellError as error:
                self._loss.lose(_lost(f"{self._loss.what} cannot be renewed - {error}"))

    def expired(self) -> LockLost:
        """The error for a time that has run out."""
        return _lost(
            f"{self._loss.what} was not renewed in time - the server did not answer, or this process stood still"
        )

    async def _until_renewed(self) -> None:
        failures = 0
        while True:
            try:
                return await self.once()
            except KapellError as error:
                if not isinstance(error, (Unavailable, DeadlineExceeded, Exhausted, Internal)):
                    raise
                failures += 1
                await asyncio.sleep(error.retry_after or backoff(failures))


def _lost(text: str) -> LockLost:
    return LockLost(text, reason="LOCK_LOST")


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
