"""A FIFO that every process of a tree holds open: what they say, and the moment the last is gone."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

STAND_IN = Path(__file__).with_name("stand_in_host.py")


class TreeWatch:
    """Told by the kernel, not by /proc, so it shares nothing with what it checks."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.lines: list[str] = []
        self._buffer = b""
        self._changed = asyncio.Event()
        self._open = True
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # While this end is held a tree that is yet to open the FIFO does not look like one that is gone.
        self._hold: int | None = os.open(path, os.O_WRONLY)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def command(self, *words: str) -> list[str]:
        """The command of a host whose tree is watched here."""
        return [sys.executable, "-I", "-S", str(STAND_IN), str(self.path), *words]

    async def said(self, line: str, times: int = 1) -> None:
        """Waits until so many processes have reported by this name."""
        while self.lines.count(line) < times:
            self._changed.clear()
            await self._changed.wait()

    async def gone(self) -> None:
        """Waits until no process holds the FIFO."""
        self._release()
        while self._open:
            self._changed.clear()
            await self._changed.wait()

    @property
    def alive(self) -> bool:
        """Whether a process holds the FIFO at this moment."""
        self._release()
        if self._open:
            self._read()
        return self._open

    def close(self) -> None:
        self._release()
        if self._open:
            asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _release(self) -> None:
        if self._hold is not None:
            os.close(self._hold)
            self._hold = None

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if not data:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._fd)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        self.lines += [line.decode() for line in lines]
        self._changed.set()
