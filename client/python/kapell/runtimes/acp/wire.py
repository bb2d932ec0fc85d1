"""Messages on the pipes of a program, one JSON object a line. Bounded, whatever the agent prints.

It is a transport of the library's connection. What is no message is a line of the log; an agent that
only ever prints such, or a message beyond all measure, does not speak the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from kapell.runtimes._program import Program
from kapell.runtimes._running import first
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_STDERR

MOST_MESSAGE_BYTES = 32 * 1024 * 1024
MOST_REQUESTS = 64
"""Requests of the agent that may wait for their answer at a time."""
_MOST_NOISE_BYTES = 64 * 1024
"""What may be printed before the first message."""
_SHOWN = 16 * 1024
_READ_BYTES = 64 * 1024
_BUSY = {"code": -32603, "message": f"more than {MOST_REQUESTS} requests wait for their answer already"}


class Wire:
    """The two pipes of one program."""

    def __init__(self, program: Program, attempt: Attempt) -> None:
        self.problem = ""
        """Why nothing more is read, in words; empty while all is well, or the program has closed its output."""
        self.read = 0
        """Bytes that were read."""
        self._program = program
        self._attempt = attempt
        self._buffer = bytearray()
        self._searched = 0
        self._noise = 0
        self._has_spoken = False
        self._open = 0
        self._sending = asyncio.Lock()

    async def open(self) -> None:
        """Begins to use the pipes, which are the wire's from now on."""
        loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader(limit=_READ_BYTES)
        self._input, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), self._program.stdout
        )
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, self._program.stdin)
        self._writer = asyncio.StreamWriter(transport, protocol, None, loop)

    async def send(self, message: dict[str, Any]) -> None:
        """Writes a message; waits while the agent does not read. Raises ConnectionError, but not for an answer."""
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        try:
            async with self._sending:
                if self._writer.is_closing():
                    raise ConnectionError("the agent does not listen any more")
                self._writer.write(data)
                await self._writer.drain()
        except (ConnectionError, OSError):
            if "method" in message:
                raise
        finally:
            if "method" not in message:
                self._open -= 1

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None where there will be none."""
        while (line := await self._line()) is not None:
            # Gives way after each, so that what one message has started is done before the next is read.
            await asyncio.sleep(0)
            message = _message(line)
            if message is None:
                await self._hear_noise(line)
                if self.problem:
                    return None
                continue
            self._has_spoken = True
            if "method" in message and "id" in message:
                self._open += 1
                if self._open > MOST_REQUESTS:
                    await self.send({"jsonrpc": "2.0", "id": message["id"], "error": _BUSY})
                    continue
            return message
        return None

    def hang_up(self) -> None:
        """Closes the program's standard input, which tells a well-behaved agent to end."""
        self._writer.close()

    async def close(self) -> None:
        """Lets go of both pipes."""
        self._input.close()
        if not self._writer.is_closing() or self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()

    async def _line(self) -> bytes | None:
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                return line
            self._searched = len(self._buffer)
            if self._searched > MOST_MESSAGE_BYTES:
                self._buffer.clear()
                self.problem = f"it sent a line of more than {MOST_MESSAGE_BYTES} bytes"
                return None
            await first(self._attempt.log_room(), self._attempt.cancelled.wait())
            chunk = await self._reader.read(_READ_BYTES)
            if not chunk:
                rest, self._buffer = bytes(self._buffer), bytearray()
                self._searched = 0
                return rest or None
            self._buffer += chunk
            self.read += len(chunk)

    async def _hear_noise(self, line: bytes) -> None:
        text = self._attempt.redactor.text(line.decode(errors="replace")).strip()
        if text:
            self._attempt.log(text[:_SHOWN], LOG_STREAM_STDERR)
        self._noise += len(line) + 1
        if not self._has_spoken and self._noise > _MOST_NOISE_BYTES:
            self.problem = f"it printed {self._noise} bytes that are no message of the protocol, beginning with none"


def _message(line: bytes) -> dict[str, Any] | None:
    """The message of a line; None where it is none that can be read."""
    message: object = None
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(line)
        if b"\\ud" in line.lower():
            # Halves of characters, which no text of ours can hold.
            message = json.loads(json.dumps(message, ensure_ascii=False).encode(errors="replace"))
    if not isinstance(message, dict) or not isinstance(message.get("id"), int | str | None):
        return None
    if "method" in message:
        return message if isinstance(message["method"], str) else None
    is_answer = "result" in message or isinstance(message.get("error"), dict)
    return message if is_answer else None
