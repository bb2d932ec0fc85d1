"""The calls that are open, and the one watchman who ends those that should be over.

A timer for each call would cost as much as the rest of the pipeline. Instead every call enters
its task in a dictionary, and once a second somebody looks at the oldest entries: a unary call
without a deadline of its own is ended after 30 s, a stream whose client has taken nothing for
60 s is reset (its memory is the server's, and the client may resume), and a drain knows
when the last call has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from grpc.aio import ServicerContext

from kapell_server.domain.errors import KapellError

UNARY_LIMIT = 30.0
STALL_LIMIT = 60.0
TICK = 1.0

Context = ServicerContext[Any, Any]


class LongCall:
    """A stream or a long poll as the watchman sees it. `blocked_since` is 0 while nothing is being sent.

    `ended_with` is set where the server ends the call, by cancelling its task or after the message at hand.
    """

    __slots__ = ("blocked_since", "ended_with", "for_agents", "guest", "header", "version")

    def __init__(self) -> None:
        self.blocked_since = 0.0
        self.ended_with: KapellError | None = None
        self.guest: Any = None
        """Whose call it is, once they were let in; for the pipeline alone, as the rest."""
        self.header: str | bytes | None = None
        self.version: Any = None
        self.for_agents = False


class OpenCalls:
    """Every call that has begun and not ended. Times are those of `time.perf_counter`."""

    def __init__(self, *, unary_limit: float = UNARY_LIMIT, stall_limit: float = STALL_LIMIT) -> None:
        self.unary: dict[asyncio.Task[Any], tuple[float, Context]] = {}
        """Calls that must answer soon, the oldest first."""
        self.waiting: dict[asyncio.Task[Any], LongCall] = {}
        """Calls that bound their own wait: long polls."""
        self.streams: dict[asyncio.Task[Any], LongCall] = {}
        self.check: Callable[[LongCall], KapellError | None] = lambda call: None
        """Why a long call may not go on, asked once a second; None while it may."""
        self.overdue: set[asyncio.Task[Any]] = set()
        """Unary calls that were cancelled by the watchman, not by their client."""
        self.unary_limit = unary_limit
        self._stall_limit = stall_limit

    async def watch(self) -> None:
        """Ends what is overdue, once a second, until cancelled."""
        while True:
            await asyncio.sleep(TICK)
            self.end_overdue(time.perf_counter())
            self.end_unwelcome()

    def end_overdue(self, now: float) -> None:
        """Cancels unary calls and streams that are over their limit at `now`."""
        for task, (begun, context) in self.unary.items():
            if now - begun < self.unary_limit:
                break
            if task not in self.overdue and context.time_remaining() is None:
                self.overdue.add(task)
                task.cancel()
        for task, stream in self.streams.items():
            if stream.blocked_since and now - stream.blocked_since > self._stall_limit:
                stream.blocked_since = 0.0
                task.cancel()

    def end_unwelcome(self) -> None:
        """Ends long calls whose token is good no more."""
        for task, call in [*self.waiting.items(), *self.streams.items()]:
            refusal = self.check(call)
            if refusal is not None:
                _end(task, call, refusal)

    def end_long_calls(self, error: KapellError) -> None:
        """Ends all streams and long polls with the error.

        A stream in the middle of a message ends itself after it: where its first write is cancelled,
        grpc sends the headers a second time with the status, fails, and the client never learns why.
        """
        for task, call in [*self.waiting.items(), *self.streams.items()]:
            _end(task, call, error)

    async def until_none(self, timeout: float) -> int:
        """Waits until no call is open, at most `timeout` seconds; how many are left."""
        left = [*self.unary, *self.waiting, *self.streams]
        if left:
            await asyncio.wait(left, timeout=timeout)
        return sum(not task.done() for task in left)


def _end(task: asyncio.Task[Any], call: LongCall, error: KapellError) -> None:
    if call.ended_with is None:
        call.ended_with = error
        if not call.blocked_since:
            task.cancel()
