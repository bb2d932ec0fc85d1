"""What runtimes that run a program for each attempt have in common.

Each attempt has a directory of its own below the agent's, and a program with a family; whichever way it
ends, the program and all that it started are ended with it, and the directory is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from kapell._worker.outcome import TaskFailed
from kapell.runtimes import _artifacts
from kapell.runtimes._family import Families
from kapell.runtimes._limits import Limits
from kapell.runtimes._output import Kept
from kapell.runtimes._processes import signal_name
from kapell.runtimes._program import Ending, Launch, Program, ProgramNotStarted
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import AgentLimits
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task

DEFAULT_KILL_GRACE = 5.0
_STDERR_LINES = 20


class ProgramRuntime(ABC):
    """A runtime with a program for each attempt. What an attempt does is for `_work` to say."""

    def __init__(self, *, directory: Path, is_subreaper: bool, limits: AgentLimits | None = None) -> None:
        self._directory = directory / "attempts"
        self._families = Families(is_subreaper=is_subreaper)
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, mode=0o700)
        self._reaps = is_subreaper
        self._limits = Limits(limits or AgentLimits())
        self._guards: dict[asyncio.Task[Any] | None, asyncio.Task[TaskFailed | None]] = {}
        """By the attempt's own task: who looks whether its program keeps within the limits."""
        self._beside: set[asyncio.Task[TaskFailed | None]] = set()
        if is_subreaper:
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._families.reap_orphans)

    @abstractmethod
    async def _work(self, attempt: Attempt, task: Task, directory: Path, abandoned: asyncio.Event) -> object:
        """Does the work with files below `directory`. Ends at once when `abandoned` is set."""

    async def run(self, attempt: Attempt, task: Task) -> object:
        """Runs the program and returns its result; see Runtime.run."""
        abandoned = asyncio.Event()
        work = asyncio.create_task(self._run(attempt, task, abandoned), name=f"program of {task.task_id}")
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            abandoned.set()
            await settle(work)
            raise

    async def close(self) -> None:
        if self._reaps:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _run(self, attempt: Attempt, task: Task, abandoned: asyncio.Event) -> object:
        try:
            directory = Path(tempfile.mkdtemp(prefix=f"{attempt.attempt}-", dir=self._directory))
        except OSError as error:
            raise TaskFailed("SETUP_FAILED", f"no directory for the attempt in {self._directory}: {error}") from error
        try:
            return await self._work(attempt, task, directory, abandoned)
        except TaskFailed as failed:
            exceeded = self._verdict()
            if exceeded is None or failed.reason == "CANCELLED":
                raise
            raise exceeded from failed
        finally:
            if (guard := self._guards.pop(asyncio.current_task(), None)) is not None:
                guard.cancel()
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _start(self, launch: Launch) -> Program:
        """Starts the attempt's program, which ends when it uses more than it may. To be called in `_work`'s task."""
        try:
            limited = replace(launch, open_files=self._limits.open_files)
            program = await Program.start(limited, self._families)
        except ProgramNotStarted as error:
            raise _not_started(launch, error) from error
        except OSError as error:
            raise TaskFailed("SETUP_FAILED", f"{launch.argv[0]} could not be started: {error}") from error
        if self._limits.are_watched:
            guard = asyncio.create_task(self._limits.enforce(program), name=f"limits of {program.pid}")
            self._guards[asyncio.current_task()] = guard
        return program

    async def start_beside(self, launch: Launch) -> Program:
        """Starts one more program of an attempt. The limits are its own: they end this program only.

        Raises as `Program.start`.
        """
        program = await Program.start(replace(launch, open_files=self._limits.open_files), self._families)
        if self._limits.are_watched:
            guard = asyncio.create_task(self._limits.enforce(program), name=f"limits of {program.pid}")
            self._beside.add(guard)
            guard.add_done_callback(self._beside.discard)
        return program

    def _verdict(self) -> TaskFailed | None:
        """Why the attempt's program, which has ended, was ended by its limits; None where it was not."""
        guard = self._guards.get(asyncio.current_task())
        # It is done once it has ended the program; one that is not may wait for a program that nothing can end.
        return guard.result() if guard is not None and guard.done() else None


async def keep_artifacts(directory: Path, attempt: Attempt, abandoned: asyncio.Event) -> None:
    """Uploads what the program has left, for as long as the attempt goes on."""
    names = await asyncio.to_thread(_artifacts.find, directory)
    if not names:
        return
    if not (attempt.cancelled.is_set() or attempt.lease_lost.is_set() or abandoned.is_set()):
        sending = _artifacts.send(attempt, directory, names)
        await first(sending, attempt.cancelled.wait(), attempt.lease_lost.wait(), abandoned.wait())
    if attempt.cancelled.is_set() and not attempt.lease_lost.is_set():
        attempt.log("not all files were kept as artifacts: the task was cancelled", LOG_STREAM_SYSTEM)


async def keep_pauses(program: Program, attempt: Attempt) -> None:
    """Stops the program while a budget pauses the attempt; when this ends, it is stopped no more."""
    while True:
        await attempt.paused.wait()
        program.halt()
        attempt.log("paused: a budget has no room for more, so the program is stopped (SIGSTOP)", LOG_STREAM_SYSTEM)
        try:
            await attempt.budget_room()
        finally:
            program.go_on()
        attempt.log("there is room in the budget: the program goes on (SIGCONT)", LOG_STREAM_SYSTEM)


def _not_started(launch: Launch, error: ProgramNotStarted) -> TaskFailed:
    program = launch.argv[0]
    match error.errno:
        case errno.ENOENT:
            return TaskFailed(
                "PROGRAM_NOT_FOUND",
                f"{launch.path} cannot run - the interpreter that its first line names does not exist - "
                "install it, or correct that line",
                retryable=False,
            )
        case errno.EACCES:
            text = f"{launch.path} may not be executed - make it executable (chmod +x)"
        case errno.ENOEXEC:
            text = f"{launch.path} is no program - give a script a first line such as #!/bin/sh"
        case errno.E2BIG:
            text = (
                f"the arguments and environment of {program} are too long for this system - "
                "put {prompt} or {input} into stdin instead of argv, or read KAPELL_INPUT_FILE"
            )
        case _:
            return TaskFailed("SETUP_FAILED", f"{program} could not be started: {error}")
    return TaskFailed("SETUP_FAILED", text, retryable=False)


def remark(attempt: Attempt, ending: Ending) -> None:
    if ending.leftovers:
        attempt.log(f"ended {ending.leftovers} process(es) that the program had left behind", LOG_STREAM_SYSTEM)
    if ending.immortal:
        ids = ", ".join(map(str, ending.immortal))
        attempt.log(f"could not end process(es) {ids}: end them by hand", LOG_STREAM_SYSTEM)


def died(program: str, ending: Ending, stderr: Kept) -> TaskFailed:
    """The failure of a program that ended by a signal or with a code other than 0, with its last words."""
    if ending.signal:
        name = signal_name(ending.signal)
        details: dict[str, object] = {"signal": name, "number": ending.signal}
        text = f"{program} was ended by {name}"
        if ending.out_of_memory:
            details["out_of_memory"] = True
            text += ": the system had no memory left (limits.memory of a profile bounds what its attempts use)"
        return TaskFailed("SIGNAL", with_tail(text, stderr), details=details)
    text = with_tail(f"{program} exited with code {ending.code}", stderr)
    return TaskFailed("EXIT_CODE", text, details={"exit_code": ending.code})


def with_tail(text: str, stderr: Kept) -> str:
    """The text, and below it the last lines of standard error."""
    lines = stderr.text().split("\n")[-_STDERR_LINES:]
    tail = "\n".join(lines).strip("\n")
    return f"{text}:\n{tail}" if tail.strip() else text


async def first(*events: Coroutine[Any, Any, object]) -> None:
    """Waits for the first of some coroutines and ends the others."""
    tasks = [asyncio.create_task(event, name="wait for the end of a program") for event in events]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def settle(task: asyncio.Task[Any]) -> None:
    """Waits until a task has ended, however often the waiting is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
