"""A Kapell server as a child process that never outlives its parent.

Started in a process group of its own, so that a Ctrl-C of the terminal reaches it once, through
`stop`. On Linux it also gets SIGINT when its parent dies by `kill -9`; SIGINT makes it end the
agents it spawned, SIGTERM would leave them running.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

START_LIMIT = 30.0
"""Seconds a server may take until it serves."""

STOP_LIMIT = 30.0
"""Seconds a server may take to end its agents and itself before it is killed."""

_LINE_LIMIT = 1 << 20

# Ties the child's life to ours, then becomes the server; code between fork and exec would be unsafe.
_SHIM = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT, 0, 0, 0)
if os.getppid() == parent:
    os.execv(sys.executable, [sys.executable, "-m", "kapell_server", *sys.argv[2:]])
"""


class ServerFailedError(Exception):
    """The server ended by itself, before or after it served. It has said why, where it could."""

    def __init__(self, code: int, *, had_served: bool) -> None:
        how = f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        super().__init__(how)
        self.had_served = had_served


class DemoServer:
    """Enter it to have a serving server; leaving it ends server and agents, whatever happened.

    `say` gets what the server has to report, a line at a time: warnings and errors of its log.
    """

    def __init__(self, arguments: Sequence[str], *, say: Callable[[str], None]) -> None:
        self._arguments = [*arguments, "--log-format", "json"]
        self._say = say
        self._process: Process | None = None
        self._readers: list[asyncio.Task[None]] = []
        self._serving: asyncio.Future[dict[str, Any]] | None = None
        self.address = ""
        self.data_dir = Path()

    async def __aenter__(self) -> DemoServer:
        loop = asyncio.get_running_loop()
        self._serving = loop.create_future()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _SHIM, str(os.getpid()), *self._arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            limit=_LINE_LIMIT,
            process_group=0,
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        for name, stream in (("stdout", self._process.stdout), ("stderr", self._process.stderr)):
            self._readers.append(loop.create_task(self._read(stream), name=f"server's {name}"))
        try:
            ready = await self._until_serving()
        except BaseException:
            await self.stop()
            raise
        self.address = str(ready["grpc_address"])
        self.http_address = str(ready["http_address"])
        self.data_dir = Path(str(ready["data_dir"]))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def ended(self) -> int:
        """Waits until the server has ended, and returns its exit code."""
        assert self._process is not None, "the server was not started"
        return await self._process.wait()

    async def stop(self) -> None:
        """Ends the server and the agents it spawned; returns when it is gone. Stopping twice is fine."""
        process = self._process
        assert process is not None, "the server was not started"
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), STOP_LIMIT)
            except TimeoutError:
                self._say(f"The server did not stop within {STOP_LIMIT:g} s and is killed; its agents may go on.")
                process.kill()
                await process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _until_serving(self) -> dict[str, Any]:
        assert self._serving is not None
        loop = asyncio.get_running_loop()
        ended = loop.create_task(self.ended(), name="server's end")
        try:
            either: set[asyncio.Future[Any]] = {self._serving, ended}
            await asyncio.wait(either, timeout=START_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            if self._serving.done():
                return self._serving.result()
            if ended.done():
                await asyncio.gather(*self._readers, return_exceptions=True)
                raise ServerFailedError(ended.result(), had_served=False)
        finally:
            ended.cancel()
        raise TimeoutError(f"the server did not serve within {START_LIMIT:g} s")

    async def _read(self, stream: asyncio.StreamReader) -> None:
        """Takes the server's lines until it closes the stream, so that it never waits for us."""
        while line := await stream.readline():
            text = line.decode("utf-8", "replace").rstrip()
            try:
                entry = json.loads(text)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                self._say(text)
            elif entry.get("event") == "serving" and self._serving is not None and not self._serving.done():
                self._serving.set_result(entry)
            elif entry.get("level") in ("warning", "error", "critical"):
                self._say(f"server: {entry.get('event', text)}")
