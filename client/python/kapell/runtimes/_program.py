"""One running program: started in a session of its own, ended with everything it started.

The program stays unreaped (a zombie) until its group has been killed, so that no signal can ever
reach a stranger that got the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kapell.runtimes import _processes
from kapell.runtimes._family import MARK, Families

_SHIM = str(Path(__file__).with_name("_shim.py"))
_GROUP_PAUSE = 0.02
_KILL_TIMEOUT = 5.0


class ProgramNotStarted(Exception):
    """The system would not run the program; `errno` says why, as `os.strerror` puts it."""

    def __init__(self, number: int) -> None:
        super().__init__(os.strerror(number) if number else "the program was not started")
        self.errno = number


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """What to run. `path` is the file, `argv` what it is told, `environment` all of its environment."""

    path: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    stdin: Path | None = None
    """A file to read from; nothing where it is None."""
    session: str = ""
    """The session of an earlier attempt that it continues."""
    talks: bool = False
    """Its standard input is a pipe, `Program.stdin`, in the place of a file."""
    open_files: int = 0
    """Files that each of its processes may have open; 0 where that is not limited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a program ended: by itself with `code`, or by `signal` (then code is 0)."""

    code: int
    signal: int
    leftovers: int
    """How many processes it left behind; they were killed."""
    immortal: tuple[int, ...]
    """Ids of processes that would not die."""
    out_of_memory: bool = False
    """It was ended by SIGKILL, and the system has killed something for want of memory since it began."""


class Program:
    """A program that was started. Every one must be `end`ed."""

    def __init__(self, process: subprocess.Popen[bytes], families: Families, pidfd: int | None) -> None:
        self._process = process
        self._families = families
        self._pidfd = pidfd
        self._exited = asyncio.Event()
        self.written: Callable[[], int] = lambda: 0
        """How many bytes it has written so far, as far as whoever reads them tells."""
        self._oom_kills = _processes.oom_kills()
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._stopped = 0.0
        """When it was stopped; 0 while it runs."""
        self._watch_exit()

    @classmethod
    async def start(cls, launch: Launch, families: Families) -> Program:
        """Starts the program. Raises ProgramNotStarted, or OSError where no process can be made at all."""
        status, status_of_child = os.pipe()
        mark = uuid.uuid4().hex
        try:
            process = _spawn(launch, mark, status_of_child)
        except BaseException:
            os.close(status)
            raise
        finally:
            os.close(status_of_child)
        families.adopt(process.pid, mark)
        program = cls(process, families, _pidfd_of(process.pid))
        try:
            refused = await _read_to_end(status)
        except BaseException:
            await program.end()
            program.close_output()
            raise
        if refused:
            await program.end()
            program.close_output()
            raise ProgramNotStarted(int(refused))
        return program

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdin(self) -> IO[bytes]:
        """For a launch that `talks`."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        assert self._process.stderr is not None
        return self._process.stderr

    @property
    def has_exited(self) -> bool:
        """Whether the program itself has ended."""
        return self._exited.is_set()

    def members(self) -> list[int]:
        """Ids of its processes: itself and all that it has started. Looks at the whole machine's, so in a thread."""
        return self._families.members(self.pid)

    def seconds(self) -> float:
        """How long it has run, without the time in which it was stopped."""
        return (self._stopped or self._loop.time()) - self._begun

    def halt(self) -> None:
        """Stops its group for a while (SIGSTOP)."""
        self.signal_group(signal.SIGSTOP)
        self._stopped = self._stopped or self._loop.time()

    def go_on(self) -> None:
        """Lets its group go on after a `halt` (SIGCONT)."""
        self.signal_group(signal.SIGCONT)
        if self._stopped:
            self._begun += self._loop.time() - self._stopped
            self._stopped = 0.0

    async def exited(self) -> None:
        """Waits until the program itself has ended; what it started may still run."""
        await self._exited.wait()

    def signal_group(self, number: signal.Signals) -> bool:
        """Sends a signal to the program and the others of its group; False where none is left."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            # Some of them changed their user, which killpg reports only if it reached nobody else.
            return True
        return True

    async def stop(self, grace: float) -> None:
        """SIGTERM to the group, and up to `grace` seconds to obey; SIGKILL is left to `end`."""
        if grace <= 0 or not self.signal_group(signal.SIGTERM):
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self.exited()
                # Its children in the group may still be tidying up; there is no event for that.
                while self._families.group_lives(self.pid):  # noqa: ASYNC110
                    await asyncio.sleep(_GROUP_PAUSE)

    async def end(self) -> Ending:
        """Kills group and family, verifies that nobody is left, and says how the program ended."""
        ended_by_itself = self.has_exited
        self.signal_group(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_TIMEOUT):
                await self.exited()
        leftovers, immortal = await self._families.end(self.pid)
        if not self._exited.is_set():
            immortal = [self.pid, *immortal]
        self.abandon()
        code = self._process.poll()
        if code is None or code >= 0:
            return Ending(code=code or 0, signal=0, leftovers=leftovers, immortal=tuple(immortal))
        starved = ended_by_itself and -code == signal.SIGKILL and _processes.oom_kills() > self._oom_kills
        return Ending(code=0, signal=-code, leftovers=leftovers, immortal=tuple(immortal), out_of_memory=starved)

    def abandon(self) -> None:
        """Stops watching the program and reaps it where it has ended."""
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._process.poll()
        self._families.dismiss(self.pid)

    def close_output(self) -> None:
        """Closes our ends of its pipes, for those that nobody reads."""
        self.stdout.close()
        self.stderr.close()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _watch_exit(self) -> None:
        loop = asyncio.get_running_loop()
        if self._pidfd is not None:
            loop.add_reader(self._pidfd, self._note_exit)
            return
        waiting = loop.run_in_executor(None, _wait_unreaped, self._process)
        waiting.add_done_callback(lambda _: self._exited.set())

    def _note_exit(self) -> None:
        assert self._pidfd is not None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._exited.set()


def _spawn(launch: Launch, mark: str, status: int) -> subprocess.Popen[bytes]:
    told = (str(status), str(os.getpid()), str(launch.open_files))
    shim = [sys.executable, "-I", "-S", _SHIM, *told, launch.path, *launch.argv]
    with contextlib.ExitStack() as opened:
        stdin: int | IO[bytes] = subprocess.PIPE if launch.talks else subprocess.DEVNULL
        if launch.stdin is not None:
            stdin = opened.enter_context(launch.stdin.open("rb"))
        return subprocess.Popen(
            shim,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=launch.directory,
            env={**launch.environment, MARK: mark},
            pass_fds=(status,),
            start_new_session=True,
            bufsize=0,
        )


def _pidfd_of(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


def _wait_unreaped(process: subprocess.Popen[bytes]) -> None:
    if hasattr(os, "waitid"):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    else:
        process.wait()


async def _read_to_end(fd: int) -> bytes:
    """All of what comes through a pipe; closes it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    received = bytearray()

    def readable() -> None:
        chunk = os.read(fd, 64)
        received.extend(chunk)
        if not chunk and not done.done():
            done.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await done
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return bytes(received)
