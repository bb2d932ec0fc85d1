"""Programs that belong to a workspace: the set-up before the work, the check before a merge.

They run in the process group of their own, which is ended with them, and in the session of whoever runs them: the
families of a host's programs (`kapell.runtimes._family`) leave that alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TAIL_BYTES = 8 * 1024
_GRACE = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a program has ended."""

    code: int
    """Exit code; negative: the signal that ended it."""
    timed_out: bool
    tail: str
    """The last of what it has written."""

    @property
    def is_good(self) -> bool:
        return self.code == 0 and not self.timed_out

    def why(self, program: str, seconds: float) -> str:
        """What went wrong, with the end of what it has written."""
        if self.timed_out:
            text = f"{program} took longer than {seconds:g} s and was ended"
        elif self.code < 0:
            text = f"{program} was ended by signal {-self.code}"
        else:
            text = f"{program} exited with code {self.code}"
        return f"{text}:\n{self.tail}" if self.tail else text


async def run(argv: Sequence[str], directory: Path, environment: Mapping[str, str], seconds: float) -> Ended:
    """Runs a program to its end, or to that of its time; nothing of its group is left, also when cancelled.

    Raises OSError where it cannot be started.
    """
    with tempfile.TemporaryFile() as output:
        process = await asyncio.create_subprocess_exec(
            *argv,
            cwd=directory,
            env=dict(environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        timed_out = False
        try:
            async with asyncio.timeout(seconds):
                await process.wait()
        except TimeoutError:
            timed_out = True
            await _stop(process)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            code = await process.wait()
            await _reap(process.pid)
        return Ended(code=code, timed_out=timed_out, tail=_tail(output.fileno()))


def key(argv: Sequence[str], inputs: Iterable[str], directory: Path) -> str:
    """What tells one state of a set-up's inputs from another. A file that is not there is a state, too."""
    digest = hashlib.sha256(repr(list(argv)).encode(errors="surrogatepass"))
    for name in inputs:
        digest.update(b"\0" + os.fsencode(name) + b"\0")
        try:
            if not (directory / name).is_file():
                raise FileNotFoundError  # An agent may have put a pipe there, which nobody would ever write to.
            with (directory / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:
            digest.update(b"none")
    return digest.hexdigest()


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE):
            await process.wait()


async def _reap(group: int) -> None:
    """Takes leave of those of the group that have become ours: a host is the parent of all orphans below it."""
    pause = 0.001
    # They were killed, and there is no event for their end.
    while not _is_reaped(group) and pause < 1:
        await asyncio.sleep(pause)
        pause *= 2


def _is_reaped(group: int) -> bool:
    """Whether none of the group is our child any more."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
        return False
    return True


def _tail(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace").strip()
