"""What an adapter has read, told to the attempt: the log, progress, usage and the session."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from kapell.runtimes import _usage
from kapell.runtimes.adapters.contract import Adapter, Effect, Recording, Say, Session, Step, Use, Verdict
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LOG_STREAM_SYSTEM

MAX_EVENT_BYTES = 2 * 1024 * 1024
"""Longest line that is read as an event; what is longer is left out, and said to be."""
MAX_RECORD_BYTES = 64 * 1024 * 1024
_SESSION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Transcript:
    """One run of a program, read by its adapter. `on_session` is told the id of its session."""

    def __init__(self, adapter: Adapter, attempt: Attempt, on_session: Callable[[str], None]) -> None:
        self._adapter = adapter
        self._attempt = attempt
        self._on_session = on_session
        self._skips = False

    def take(self, line: bytes, *, is_whole: bool, time_ns: int) -> None:
        """Reads a line, or a part of one that is too long to be read."""
        if is_whole:
            self._skips = False
            self._do(self._adapter.feed(line.decode(errors="replace")), time_ns)
        elif not self._skips:
            self._skips = True
            self._attempt.log(f"a line of more than {MAX_EVENT_BYTES} bytes was left out", LOG_STREAM_SYSTEM)

    async def read_record(self, directory: Path) -> None:
        """Reads what the program, which has ended, has left about its run; `directory` is where it ran."""
        if not isinstance(self._adapter, Recording) or not self._adapter.record:
            return
        try:
            said = await asyncio.to_thread(_text_of, directory / self._adapter.record)
        except OSError as error:
            self._attempt.log(
                f"{self._adapter.record} cannot be read, so usage is not known: {error}", LOG_STREAM_SYSTEM
            )
        else:
            await asyncio.to_thread(self._adapter.take_record, said)

    def end(self, *, code: int, stderr: str) -> Verdict:
        """The program has ended and all of its output is read."""
        verdict = self._adapter.end(code=code, stderr=stderr, now=time.time())
        self._do(verdict.used, time.time_ns())
        return verdict

    def _do(self, effects: Iterable[Effect], time_ns: int) -> None:
        for effect in effects:
            match effect:
                case Say(text):
                    for line in text.split("\n"):
                        self._attempt.log(line, LOG_STREAM_STDOUT, time_ns=time_ns)
                case Step(step, message, fraction):
                    self._attempt.progress(fraction, step, message)
                case Use():
                    told = {"record_id": effect.record_id, "series": effect.series}
                    _usage.tell(effect.payload, self._attempt, "usage that the program told of", **told)
                case Session(session_id):
                    # It becomes an argument of the program, so it must be nothing else than an id.
                    if _SESSION_ID.fullmatch(session_id):
                        self._on_session(session_id)


def _text_of(file: Path) -> str:
    """The text of a plain file; what a program has put in its place is not waited for. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as opened:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file")
        if found.st_size > MAX_RECORD_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {MAX_RECORD_BYTES} bytes")
        return opened.read(MAX_RECORD_BYTES).decode(errors="replace")
