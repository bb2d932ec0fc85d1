"""The floor: what grpc.aio itself can do, with nothing behind it. `python -m tests.bench.floor`.

`Echo` gives its request back. `Follow` is the barest fan-out there is: ready bytes, written to
every stream as soon as it has taken the last; what came meanwhile goes along in one message.
`Publish` says how many messages a second are made for it, for how long.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import uvloop
from kapell_server.rpc.server import OPTIONS

SERVICE = "kapell.bench.Floor"
MESSAGE_BYTES = 400


class Floor:
    """Handlers over raw bytes."""

    def __init__(self) -> None:
        self._published: list[bytes] = []
        self._news = asyncio.Event()

    async def echo(self, request: bytes, _: Any) -> bytes:
        return request

    async def follow(self, _: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        yield b"\n"
        sent = len(self._published)
        while True:
            while sent == len(self._published):
                await self._news.wait()
            news, sent = b"".join(self._published[sent:]), len(self._published)
            yield news

    async def publish(self, request: bytes, _: Any) -> bytes:
        rate, seconds = (float(word) for word in request.split())
        loop = asyncio.get_running_loop()
        begin = loop.time()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))
            self._published.append(b"%020d" % time.time_ns() + b"x" * (MESSAGE_BYTES - 20))
            news, self._news = self._news, asyncio.Event()
            news.set()
        return b"\n"


async def serve() -> None:
    """Serves on a free port of the loopback, whose number it prints."""
    floor = Floor()
    handlers: dict[str, Any] = {
        "Echo": grpc.unary_unary_rpc_method_handler(floor.echo),
        "Publish": grpc.unary_unary_rpc_method_handler(floor.publish),
        "Follow": grpc.unary_stream_rpc_method_handler(floor.follow),
    }
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
