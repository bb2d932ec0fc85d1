"""A TCP proxy that hurts: cuts connections, at once or after so many bytes, refuses or freezes them.

For tests of everything that must survive the network. It stands between a client and a real
server and knows nothing of what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Self

_CHUNK = 64 * 1024


class CuttingProxy:
    """Forwards a free local port to `target` ("host:port"). Enter it to open, leave it to cut and close."""

    def __init__(self, target: str) -> None:
        self.aim(target)
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()
        self._refuses = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._budget: int | None = None
        self.address = ""
        self.accepted = 0
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def open_connections(self) -> int:
        """Connections that are up now."""
        return len(self._links)

    def aim(self, target: str) -> None:
        """Sends new connections to `target`, as when a server came up again elsewhere."""
        host, _, port = target.rpartition(":")
        self._target = (host.strip("[]"), int(port))

    def cut(self) -> int:
        """Resets every connection; says how many there were."""
        links = list(self._links)
        for link in links:
            link.reset()
        self.cuts += len(links)
        return len(links)

    def refuse(self) -> None:
        """Closes every new connection at once, until `accept`."""
        self._refuses = True

    def accept(self) -> None:
        """Takes connections again."""
        self._refuses = False

    def freeze(self) -> None:
        """Forwards nothing and closes nothing, as a network that swallows packets, until `thaw`."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Forwards again, what was held back included."""
        self._flowing.set()

    def cut_after(self, size: int) -> None:
        """Cuts once, after `size` more bytes of the server's answers; what is beyond them is lost."""
        self._budget = size

    async def wait_until(self, condition: Callable[[CuttingProxy], bool]) -> None:
        """Returns when the condition holds; looked at whenever a connection comes or goes."""
        async with self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        await self._notify()
        if self._refuses:
            _reset(writer)
            return
        try:
            upstream = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, upstream[1])
        self._links.add(link)
        await self._notify()
        there = self._forward(reader, upstream[1], answers=False)
        back = self._forward(upstream[0], writer, answers=True)
        tasks = {asyncio.ensure_future(there), asyncio.ensure_future(back)}
        self._tasks |= tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._tasks -= tasks
            self._links.discard(link)
            link.close()
            await self._notify()

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._flowing.wait()
                if answers and self._budget is not None:
                    self._budget -= len(data)
                    if self._budget < 0:
                        sink.write(data[: self._budget])
                        self._budget = None
                        await sink.drain()
                        self.cut()
                        return
                sink.write(data)
                await sink.drain()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _Link:
    """The two ends of one connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._ends = (client, server)

    def reset(self) -> None:
        for end in self._ends:
            _reset(end)

    def close(self) -> None:
        for end in self._ends:
            end.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes so that the peer sees a reset, not an orderly end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
