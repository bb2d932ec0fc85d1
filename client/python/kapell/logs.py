"""Logs that outlive their connections: every entry once, in order, across the attempts of a task.

An entry's place is (attempt, offset). Each attempt is read by its number to its end; a stream
that breaks is opened again at the offset that was reached. Which attempt comes next is for the
face that opened the log to say. Cancelling a reader closes only the stream; the next read resumes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, Self

from kapell.connection import Stream
from kapell.errors import KapellError
from kapell.reconnect import Reconnect
from kapell.v1.common_pb2 import LogEntry


class LogMessage(Protocol):
    """What both log streams send."""

    @property
    def offset(self) -> int: ...
    @property
    def entries(self) -> Sequence[LogEntry]: ...


class LogStream:
    """An async iterator of log entries. Close it when done, or use `async with`. One reader at a time.

    `open_stream(attempt, offset)` opens one stream; `next_attempt(previous)` names the attempt to
    read after `previous` (None: the first one), waiting for it if need be, or None at the end.
    Raises what the server refuses, and Unavailable when the first connection fails.
    """

    def __init__(
        self,
        open_stream: Callable[[int, int], Stream[LogMessage]],
        next_attempt: Callable[[int | None], Awaitable[int | None]],
        *,
        offset: int = 0,
        connect_timeout: float | None,
    ) -> None:
        self._open = open_stream
        self._find_next = next_attempt
        self._reconnect = Reconnect(connect_timeout)
        self._stream: Stream[LogMessage] | None = None
        self._previous: int | None = None
        self._current: int | None = None
        self._received = offset
        self._ready: deque[LogEntry] = deque()
        self._closed = False
        self.attempt = 0
        self.offset = offset

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> LogEntry:
        """The next entry. `attempt` is then the one it belongs to, `offset` the place after it."""
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            await self._advance()
        entry = self._ready.popleft()
        self.attempt = self._current or 0
        self.offset = self._received - len(self._ready)
        return entry

    def close(self) -> None:
        """Ends the log; a reader that waits sees its end. Closing twice is fine."""
        self._closed = True
        self._ready.clear()
        self._drop_stream()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    async def _advance(self) -> None:
        """Finds the attempt to read, or takes one message of it; pauses when the connection is lost."""
        try:
            if self._current is None:
                await self._turn_to_next()
            else:
                await self._read(self._current)
        except KapellError as error:
            self._drop_stream()
            pause = self._reconnect.pause_after(error)
            if pause is None:
                self.close()
                raise
            await asyncio.sleep(pause)
        except asyncio.CancelledError:
            self._drop_stream()
            raise

    async def _turn_to_next(self) -> None:
        self._current = await self._find_next(self._previous)
        self._reconnect.succeeded()
        if self._current is None:
            self.close()
        elif self._previous is not None:
            self._received = 0

    async def _read(self, attempt: int) -> None:
        if self._stream is None:
            self._stream = self._open(attempt, self._received)
        try:
            message = await anext(self._stream)
        except StopAsyncIteration:
            self._drop_stream()
            self._previous, self._current = attempt, None
            return
        self._reconnect.succeeded()
        new = message.entries[max(0, self._received - message.offset) :]
        self._ready.extend(new)
        self._received += len(new)

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
