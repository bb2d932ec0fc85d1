"""What a program writes: bytes in, log lines, progress and a bounded remainder out.

Memory stays bounded whatever the program does: lines are cut at MAX_LINE_BYTES, what is kept for
the result has a limit, and reading pauses while the log has no room. Once the log is full the
output is only skimmed, so that a flood passes at the speed of the pipe.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from kapell.rules.redaction import StreamRedactor
from kapell.runtimes._transcript import MAX_EVENT_BYTES, Transcript
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_STDERR, LOG_STREAM_STDOUT, LogStream

MAX_LINE_BYTES = 16 * 1024
PROGRESS = b"::progress "
_PROGRESS_LINE = re.compile(r"::progress +(?:(?P<percent>\d+(?:\.\d+)?)%|-)(?: +(?P<message>.*?))? *")
_MAX_PROGRESS_BYTES = 8 * 1024
_READ_BYTES = 16 * 1024
_SKIM_BYTES = 256 * 1024
_READ_AHEAD_BYTES = 64 * 1024
_STDERR_BYTES = 8 * 1024
_DRAIN_TIMEOUT = 5.0


def parse_progress(line: bytes) -> tuple[float | None, str] | None:
    """Fraction and message of a line like `::progress 40% linking`; None where the line is an ordinary one.

    `::progress - message` says that the work goes on but cannot be measured: the fraction is None.
    """
    if not line.startswith(PROGRESS) or len(line) > _MAX_PROGRESS_BYTES:
        return None
    found = _PROGRESS_LINE.fullmatch(line.decode(errors="replace"))
    if found is None:
        return None
    percent = found["percent"]
    fraction = None if percent is None else float(percent) / 100
    if fraction is not None and fraction > 1:
        return None
    return fraction, (found["message"] or "")[:1000]


@dataclass(frozen=True, slots=True)
class Piece:
    """A line, or a part of one that is too long."""

    data: bytes
    """Its bytes, the newline included where there was one."""
    is_whole: bool
    """Whether it is a line from its first byte to its last."""

    @property
    def text(self) -> bytes:
        """The bytes without the newline."""
        return self.data.removesuffix(b"\n").removesuffix(b"\r")


class Lines:
    """Cuts a stream of bytes into pieces that end with a newline or have `limit` bytes (at least 4)."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._rest = b""
        self._inside = False

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """The pieces that are complete now. Must be read to the end."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            yield from self._cut(line + b"\n")
            self._inside = False
        if len(self._rest) > self._limit:
            *pieces, last = self._cut(self._rest)
            yield from pieces
            self._rest, self._inside = last.data, True

    def skim(self, chunk: bytes, needle: bytes) -> bytes | None:
        """All up to the last newline at once; None, with nothing taken, where `needle` occurs."""
        data = self._rest + chunk
        if needle in data:
            return None
        end = data.rfind(b"\n") + 1
        if len(data) - end > self._limit:
            self._inside, end = True, len(data)
        elif end:
            self._inside = False
        self._rest = data[end:]
        return data[:end]

    def finish(self) -> Iterator[Piece]:
        """What is left when the stream has ended without a newline."""
        rest, self._rest = self._rest, b""
        if rest:
            yield from self._cut(rest)

    def _cut(self, line: bytes) -> Iterator[Piece]:
        limit = self._limit + line.endswith(b"\n")
        is_whole = not self._inside and len(line) <= limit
        while len(line) > limit:
            cut = _character_boundary(line, self._limit)
            yield Piece(line[:cut], False)
            line = line[cut:]
        yield Piece(line, is_whole)


class Kept:
    """The last `limit` bytes of a stream, and how many there were."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        self._bytes += data
        if len(self._bytes) > 2 * self._limit:
            del self._bytes[: -self._limit]

    @property
    def is_cut(self) -> bool:
        """Whether more came than is kept."""
        return self.total > self._limit

    def text(self) -> str:
        """What is kept, without the last newline; a character that was cut in two is left out."""
        data = bytes(self._bytes[-self._limit :])
        if self.is_cut:
            skip = 0
            while skip < min(3, len(data)) and data[skip] & 0xC0 == 0x80:
                skip += 1
            data = data[skip:]
        return data.removesuffix(b"\n").removesuffix(b"\r").decode(errors="replace")


class Pump:
    """Carries one stream of a program to the attempt's log, and keeps the end of it."""

    def __init__(
        self,
        attempt: Attempt,
        stream: LogStream.ValueType,
        *,
        keep: int,
        progress: bool,
        transcript: Transcript | None = None,
    ) -> None:
        self.kept = Kept(keep)
        self.read = 0
        """Bytes that have come."""
        self._attempt = attempt
        self._stream = stream
        self._progress = progress
        self._transcript = transcript
        self._lines = Lines() if transcript is None else Lines(MAX_EVENT_BYTES)
        self._masked = StreamRedactor(attempt.redactor)
        self._hurry = asyncio.Event()

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Reads until the stream ends."""
        while chunk := await reader.read(_SKIM_BYTES if self._attempt.log_full else _READ_BYTES):
            self.read += len(chunk)
            chunk = self._masked.feed(chunk)
            if self._transcript is not None or not self._attempt.log_full:
                self._take(self._lines.feed(chunk))
                await self._room()
            elif (skimmed := self._lines.skim(chunk, PROGRESS)) is not None:
                self.kept.add(skimmed)
            else:
                self._take(self._lines.feed(chunk))
        self._take(self._lines.feed(self._masked.finish()))
        self._take(self._lines.finish())

    def hurry(self) -> None:
        """The program is over: what is still in the pipe is little, so do not wait for room any more."""
        self._hurry.set()

    def _take(self, pieces: Iterator[Piece]) -> None:
        now = time.time_ns()
        for piece in pieces:
            if self._transcript is not None:
                self._transcript.take(piece.text, is_whole=piece.is_whole, time_ns=now)
                continue
            if self._progress and piece.is_whole and self._report(piece.text):
                continue
            self.kept.add(piece.data)
            if piece.text or piece.is_whole:
                self._attempt.log(piece.text.decode(errors="replace"), self._stream, time_ns=now)

    def _report(self, line: bytes) -> bool:
        progress = parse_progress(line)
        if progress is None:
            return False
        fraction, message = progress
        self._attempt.progress(fraction, message=message)
        return True

    async def _room(self) -> None:
        if self._hurry.is_set():
            # Gives way to the rest of the host between two chunks.
            await asyncio.sleep(0)
            return
        room = asyncio.ensure_future(self._attempt.log_room())
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait((room, hurry), return_when=asyncio.FIRST_COMPLETED)
        finally:
            room.cancel()
            hurry.cancel()


class Capture:
    """Both streams of one program, from its start until they are read to the end."""

    def __init__(self, attempt: Attempt, *, keep: int, transcript: Transcript | None = None) -> None:
        self.stdout = Pump(attempt, LOG_STREAM_STDOUT, keep=keep, progress=True, transcript=transcript)
        self.stderr = Pump(attempt, LOG_STREAM_STDERR, keep=_STDERR_BYTES, progress=False)
        self._pipes: list[asyncio.ReadTransport] = []
        self._running: list[asyncio.Task[None]] = []

    async def open(self, stdout: IO[bytes] | None, stderr: IO[bytes]) -> None:
        """Begins to read the pipes, which are the capture's from now on; without `stdout` another one reads it."""
        if stdout is not None:
            await self._read(self.stdout, stdout, "stdout")
        await self._read(self.stderr, stderr, "stderr")

    async def drain(self) -> None:
        """Reads what is left after the program has ended, and closes the pipes.

        A process that would not die can hold them open, so this waits no longer than a few seconds.
        """
        for pump in (self.stdout, self.stderr):
            pump.hurry()
        if self._running:
            _, stuck = await asyncio.wait(self._running, timeout=_DRAIN_TIMEOUT)
            for task in stuck:
                task.cancel()
        ended = await asyncio.gather(*self._running, return_exceptions=True)
        for transport in self._pipes:
            transport.close()
        for failure in ended:
            if isinstance(failure, Exception):
                raise failure

    async def _read(self, pump: Pump, pipe: IO[bytes], name: str) -> None:
        reader = asyncio.StreamReader(limit=_READ_AHEAD_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        self._pipes.append(transport)
        self._running.append(asyncio.create_task(pump.run(reader), name=f"read {name}"))


def _character_boundary(data: bytes, limit: int) -> int:
    """The largest cut up to `limit` that does not split a character of UTF-8."""
    cut = limit
    while cut > limit - 3 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut if data[cut] & 0xC0 != 0x80 else limit
