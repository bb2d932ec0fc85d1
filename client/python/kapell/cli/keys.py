"""Keys of a terminal, one at a time, while the event loop goes on; the terminal is left as it was found."""

from __future__ import annotations

import asyncio
import codecs
import os
import sys
import termios
from types import TracebackType
from typing import Self


class Keys:
    """Keys as they are pressed, for the time of an `async with`. Ctrl-C still interrupts."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._typed: asyncio.Queue[str] = asyncio.Queue()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def __aenter__(self) -> Self:
        self._before = termios.tcgetattr(self._fd)
        quiet = termios.tcgetattr(self._fd)
        quiet[3] &= ~(termios.ICANON | termios.ECHO)
        # What was typed before the question stood there is no answer to it.
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, quiet)
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        data = os.read(self._fd, 1024)
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
        for character in self._decoder.decode(data):
            self._typed.put_nowait(character)

    def forget(self) -> None:
        """Drops what was typed and not asked for."""
        termios.tcflush(self._fd, termios.TCIFLUSH)
        while not self._typed.empty():
            self._typed.get_nowait()

    async def key(self) -> str:
        """The next key."""
        return await self._typed.get()


def can_ask() -> bool:
    """Whether somebody sits there: keys can be read, and questions seen."""
    return sys.stdin.isatty() and sys.stderr.isatty()
