"""The HTTP server: an ASGI application on uvicorn, in the loop of everything else.

Bound before anything else begins, like the gRPC server; it answers from `start` on. uvicorn's own handling of
signals is left out: the process has one place for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from kapell_server.supervise import Supervisor

_BACKLOG = 1024
_GRACE = 5
_KEEP_ALIVE = 65


class HttpAddressUnusableError(Exception):
    """The server cannot listen there; the text says why."""


class HttpServer:
    """One listening socket and what answers on it. `start` once, then `stop` once."""

    def __init__(self) -> None:
        self.address = ""
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stopping = False

    def bind(self, address: str) -> str:
        """Takes the address ("host:port", port 0 for any); the address with its real port.

        Raises HttpAddressUnusableError.
        """
        host, _, port = address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise HttpAddressUnusableError(_why_unusable(address, error)) from None
        self._socket.setblocking(False)
        self.address = f"{host}:{self._socket.getsockname()[1]}"
        return self.address

    def start(self, supervisor: Supervisor, build: Callable[[], ASGIApp]) -> None:
        """Serves the application that `build` makes, in a moment: what comes before finds the socket and waits.

        The libraries of HTTP are imported by then, off the loop, so that nothing else waits for them.
        """
        assert self._socket is not None, "bind comes first"
        self._serving = supervisor.spawn(self._serve(build, self._socket), name="HTTP server")

    async def _serve(self, build: Callable[[], ASGIApp], listening: socket.socket) -> None:
        self._server = await asyncio.to_thread(_server_of, build)
        if not self._stopping:
            await self._server.serve(sockets=[listening])

    async def stop(self) -> None:
        """Lets open requests end, at most 5 s, and closes the socket. Stopping before the start is no error."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait([self._serving])
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _server_of(build: Callable[[], ASGIApp]) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        build(),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
        timeout_keep_alive=_KEEP_ALIVE,
    )
    return Server(config)


def _why_unusable(address: str, error: OSError) -> str:
    choose = 'choose another address with --http-address (port 0 takes a free port, "" leaves HTTP out)'
    match error.errno:
        case errno.EADDRINUSE:
            return f"Cannot listen on {address}: the port is in use. Stop the program that has it, or {choose}."
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return f"Cannot listen on {address}: the address is not one of this machine; {choose}."
        case errno.EACCES | errno.EPERM:
            return f"Cannot listen on {address}: this user may not use that port; {choose}."
        case _:
            return f"Cannot listen on {address}: {error}; {choose}."
