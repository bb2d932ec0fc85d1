"""Keys of a terminal, one at a time, while the event loop goes on; the terminal is left as it was found."""

from __future__ import annotations

import asyncio
import codecs
import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

RESIZED = "\x0c"
"""What a change of the terminal's size is read as: Ctrl-L, by which people have their screens drawn anew."""


class Keys:
    """Keys as they are pressed, for the time of an `async with`. Ctrl-C still interrupts."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._typed: asyncio.Queue[str] = asyncio.Queue()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._ended = False

    async def __aenter__(self) -> Self:
        self._before = termios.tcgetattr(self._fd)
        self._quiet = termios.tcgetattr(self._fd)
        self._quiet[3] &= ~(termios.ICANON | termios.ECHO)
        self._take()
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, self._typed.put_nowait, RESIZED)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGWINCH)
        self._give_back()

    def _take(self) -> None:
        # What was typed before the question stood there is no answer to it.
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._quiet)
        if not self._ended:
            asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _give_back(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        except termios.error:
            self._ended = True  # The terminal is gone, and with it whatever was to be restored.

    @contextmanager
    def lent(self) -> Iterator[None]:
        """For as long as the terminal is another program's."""
        self._give_back()
        try:
            yield
        finally:
            self._take()

    def _read(self) -> None:
        try:
            data = os.read(self._fd, 1024)
        except OSError:
            data = b""
        if not data:
            self._ended = True
            asyncio.get_running_loop().remove_reader(self._fd)
            self._typed.put_nowait("")
        for character in self._decoder.decode(data):
            self._typed.put_nowait(character)

    def forget(self) -> None:
        """Drops what was typed and not asked for."""
        if not self._ended:
            termios.tcflush(self._fd, termios.TCIFLUSH)
        while not self._typed.empty():
            self._typed.get_nowait()

    async def key(self) -> str:
        """The next key. Raises EOFError once no more can come."""
        if self._ended and self._typed.empty():
            raise EOFError
        key = await self._typed.get()
        if not key:
            raise EOFError
        return key
