"""Ends watches whose client takes nothing: such a client holds buffers of the transport for ever."""

from __future__ import annotations

import asyncio

import structlog

_log = structlog.get_logger(__name__)

STALL_SECONDS = 60.0
# How often stuck consumers are looked for, as a part of the time they are granted.
_CHECKS = 6


class Delivery:
    """Whether the consumer of one watch has a message that it has not finished with."""

    __slots__ = ("_now", "consumer", "given_at")

    def __init__(self, consumer: asyncio.Task[object] | None, loop: asyncio.AbstractEventLoop) -> None:
        self.consumer = consumer
        self.given_at: float | None = None
        self._now = loop.time

    def given(self) -> None:
        """A message is about to be handed out."""
        self.given_at = self._now()

    def taken(self) -> None:
        """The consumer came back for more."""
        self.given_at = None


class StallGuard:
    """Cancels consumers that are stuck with a message. One timer for all, and none without watches."""

    def __init__(self, stall_seconds: float = STALL_SECONDS) -> None:
        self._stall_seconds = stall_seconds
        self._deliveries: set[Delivery] = set()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self) -> Delivery:
        """Begins to look after the running task as the consumer of a watch."""
        loop = asyncio.get_running_loop()
        delivery = Delivery(asyncio.current_task(), loop)
        self._deliveries.add(delivery)
        if self._timer is None:
            self._schedule()
        return delivery

    def leave(self, delivery: Delivery) -> None:
        """The watch has ended."""
        self._deliveries.discard(delivery)
        if not self._deliveries and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._stall_seconds / _CHECKS, self._check)

    def _check(self) -> None:
        long_ago = asyncio.get_running_loop().time() - self._stall_seconds
        for delivery in self._deliveries:
            if delivery.given_at is None or delivery.given_at > long_ago or delivery.consumer is None:
                continue
            _log.info("watch ended", reason="its client takes no message", seconds=self._stall_seconds)
            delivery.consumer.cancel()
        self._schedule()
