"""What one caller may ask of the server at a time, so that a flood of one does not delay the others.

Three limits for each principal. Unary calls at work: those beyond wait in line, in order, behind their
own and nobody else's; once the line is full, they are refused. That needs an intake that is faster than the
work (`rpc/intake`): what grpc has not handed over yet is first come, first served. Calls a
second: those beyond it are put off, up to a second, then refused. Open watches and long polls: beyond
it they are refused. Agents are principals of their own. A refusal is held back for a moment, or a
client that repeats it at once would cost as much as if it were served.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass

from kapell.v1.error_pb2 import ERROR_REASON_RATE_LIMITED, ERROR_REASON_TOO_MANY_WATCHES

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError

MOST_WAITING = 5_000
"""Calls of one principal that stand in line, as many as a connection may have open; the next one is refused."""
_COME_AGAIN = 1.0
"""When to repeat what found the line full, seconds."""
PATIENCE = 1.0
"""How long a call over the rate is put off rather than refused, seconds."""
_BURST = 1.0
"""A second's worth of calls may come at once."""
_PRINCIPALS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class CallLimits:
    """Of each principal. 0 is no limit."""

    at_once: int = 32
    """More would do nothing for speed, and with 64 the intake falls behind the work (decision 0020)."""
    a_second: int = 10_000
    watches: int = 5_000
    polls: int = 5_000


class Share:
    """What one principal takes of the server. Times are those of `time.perf_counter`."""

    __slots__ = ("_interval", "_limits", "_next", "_waiting", "active", "polls", "watches")

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._interval = 1 / limits.a_second if limits.a_second else 0.0
        self._next = 0.0
        """When the next call would come at an even pace; it may come `_BURST` before."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.active = 0
        self.watches = 0
        self.polls = 0

    @property
    def idle(self) -> bool:
        """Whether nothing of it is open, so that forgetting it forgets no more than its rate."""
        return not (self.active or self.watches or self.polls)

    def delay(self, now: float) -> float:
        """Seconds that a call at `now` is to be put off; mostly 0. Raises RATE_LIMITED."""
        at = self._next if self._next > now else now
        ahead = at - now - _BURST
        if ahead <= 0:
            self._next = at + self._interval
            return 0.0
        if ahead > PATIENCE:
            raise KapellError(
                ERROR_REASON_RATE_LIMITED,
                f"More than {self._limits.a_second:,} calls a second came with this token, its limit."
                " Make fewer, or do more with each (BatchCreateTasks).",
                metadata={"limit": str(self._limits.a_second)},
                retry_after=ahead,
            )
        self._next = at + self._interval
        return ahead

    def enter(self) -> bool:
        """Takes a place at work if there is one; where it is False, `line_up` is to be awaited."""
        if self._limits.at_once and self.active >= self._limits.at_once:
            return False
        self.active += 1
        return True

    async def line_up(self) -> None:
        """Takes the place that the next call but those before it leaves. Raises RATE_LIMITED."""
        if len(self._waiting) >= MOST_WAITING:
            raise KapellError(
                ERROR_REASON_RATE_LIMITED,
                f"{MOST_WAITING:,} calls with this token wait already, behind {self._limits.at_once} at work."
                " Wait for answers before sending more.",
                metadata={"limit": str(MOST_WAITING)},
                retry_after=_COME_AGAIN,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # it had just been given a place
            raise

    def leave(self) -> None:
        """Gives the place of a call that has ended to the next in line."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.active -= 1

    def open_watch(self) -> None:
        """Counts a stream that begins. Raises TOO_MANY_WATCHES."""
        if self._limits.watches and self.watches >= self._limits.watches:
            raise _too_many("watches", self._limits.watches)
        self.watches += 1

    def open_poll(self) -> None:
        """Counts a long poll that begins. Raises TOO_MANY_WATCHES."""
        if self._limits.polls and self.polls >= self._limits.polls:
            raise _too_many("long polls", self._limits.polls)
        self.polls += 1


class Shares:
    """The share of each principal that calls."""

    def __init__(self, limits: CallLimits) -> None:
        self._limits = limits
        self._shares: OrderedDict[tuple[str, str], Share] = OrderedDict()

    def of(self, caller: Caller) -> Share:
        """The share of whoever calls; tokens of one user share it."""
        key = caller.kind.value, caller.agent_id or caller.name
        share = self._shares.get(key)
        if share is None:
            self._forget()
            share = self._shares[key] = Share(self._limits)
        else:
            self._shares.move_to_end(key)
        return share

    def _forget(self) -> None:
        """Forgets idle shares, the longest unused first, where there are many."""
        if len(self._shares) >= _PRINCIPALS:
            idle = [key for key, share in self._shares.items() if share.idle]
            for key in idle[: _PRINCIPALS // 4]:
                del self._shares[key]


def _too_many(what: str, limit: int) -> KapellError:
    return KapellError(
        ERROR_REASON_TOO_MANY_WATCHES,
        f"{limit:,} {what} are open with this token's user, its limit. Close some, or follow several things by one.",
        metadata={"limit": str(limit)},
    )
