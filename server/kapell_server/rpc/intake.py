"""Takes calls from grpc as they come, where grpc.aio takes one at a time.

grpc.aio's server has one request for a call open. The way from there through its thread, a task and back to its loop,
which then opens the next, takes five turns of the event loop. So under load calls stand in grpc's own line, first come,
first served, where nobody knows yet whose they are, and a flood of one caller is everybody's wait; and half of the CPU
time of a call goes there. Here `SLOTS` requests are open, and all calls that have come are begun in one turn.

This leans on the inside of grpc (1.85): its loop asks `AioServer._make_request_call_future` for the next call. A grpc
that does not ask, or whose server is built otherwise, serves as it would alone. A test tells.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc
from grpc.aio import _server

from kapell_server.supervise import Supervisor

_log = structlog.get_logger(__name__)

SLOTS = 256
"""Requests for calls that are open: more than usually come between two turns of the loop."""


def server(options: Sequence[tuple[str, Any]]) -> Any:
    """As `grpc.aio.server`, with an intake of ours where this grpc takes one."""
    try:
        return _Server(options)
    except (AttributeError, TypeError) as error:
        _log.warning("this grpc begins one call at a time; a flood of one caller delays all", error=str(error))
        return grpc.aio.server(options=options)


class Prefetch:
    """Calls that have come, for a loop that asks for them one by one. `request` waits for the next."""

    def __init__(self, request: Callable[[], Awaitable[Any]], slots: int = SLOTS) -> None:
        self._request = request
        self._slots = slots
        self._came: deque[Any] = deque()
        self._asked: asyncio.Future[Any] | None = None
        self._tasks = Supervisor()
        self._open = 0
        self._stopping = False

    def next(self) -> asyncio.Future[Any]:
        """The next call. Opens the requests that are missing: all at first, later those that have failed."""
        while self._open < self._slots:
            self._open += 1
            self._tasks.spawn(self._request_calls(), name="intake")
        self._asked = asked = _Prompt()
        if self._came:
            asked.set_result(self._came.popleft())
        return asked

    def stop(self) -> None:
        """Drops what nobody will begin any more: grpc does not end before all of its calls have."""
        self._stopping = True
        self._came.clear()

    async def _request_calls(self) -> None:
        """Ends by an error, which is for whoever asks to judge."""
        while True:
            try:
                call = await self._request()
            except Exception as error:
                self._open -= 1
                if self._asked is not None and not self._asked.done():
                    self._asked.set_exception(error)
                return
            if self._asked is not None and not self._asked.done():
                self._asked.set_result(call)
            elif not self._stopping:
                self._came.append(call)
            del call  # a call that is over ends with its last reference


class _Prompt(asyncio.Future[Any]):
    """A future that calls back at once where it is done, so that waiting for it takes no turn of the loop."""

    def add_done_callback(self, call: Callable[[Any], object], *, context: Any = None) -> None:
        """As in asyncio, but for the turn."""
        if self.done():
            call(self)
        else:
            super().add_done_callback(call, context=context)


class Intake(cygrpc.AioServer):  # type: ignore[misc]
    """grpc's server, whose loop gets all calls that have come."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._calls = Prefetch(self._request_call)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        if method is not None:
            registered: asyncio.Future[Any] = super()._make_request_call_future(method)
            return registered
        return self._calls.next()

    async def shutdown(self, grace: float | None) -> None:
        """As grpc's."""
        self._calls.stop()
        await super().shutdown(grace)


class _Server(_server.Server):
    """grpc.aio's server around our intake."""

    def __init__(self, options: Sequence[tuple[str, Any]]) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = Intake(self._loop, None, (), (), tuple(options), None)
