"""A receiver of webhooks: a real HTTP server on a port of this machine, which answers as it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

DEADLINE = 20.0


@dataclass(frozen=True, slots=True)
class Received:
    """One POST."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        """The body, which is JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    def is_signed_by(self, secret: str) -> bool:
        """Whether it is signed as Standard Webhooks says; reckoned here from the text of that rule alone."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        head = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}."
        mac = base64.b64encode(hmac.new(key, head.encode() + self.body, hashlib.sha256).digest()).decode()
        return f"v1,{mac}" in self.headers["webhook-signature"].split(" ")


class Receiver:
    """Answers 200 unless `answers` holds other codes, which are used up one by one."""

    def __init__(self) -> None:
        self.answers: deque[int] = deque()
        self.url = ""
        self.all: list[Received] = []
        self._new: asyncio.Queue[Received] = asyncio.Queue()

    async def next(self) -> Received:
        """The next POST that comes, or has come and was not asked for."""
        return await asyncio.wait_for(self._new.get(), DEADLINE)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        received = Received(head[0].split(" ")[1], headers, body)
        code = self.answers.popleft() if self.answers else 200
        writer.write(f"HTTP/1.1 {code} Told\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        self.all.append(received)
        self._new.put_nowait(received)


@asynccontextmanager
async def http_receiver() -> AsyncIterator[Receiver]:
    """A receiver that listens."""
    receiver = Receiver()
    server = await asyncio.start_server(receiver.handle, "127.0.0.1", 0)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook/part?token=hidden"
    try:
        yield receiver
    finally:
        server.close()
        await server.wait_closed()
