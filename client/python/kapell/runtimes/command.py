"""The command runtime: a program for each task.

The program's output is the task's log, line by line; its exit is the outcome:

    exit code 0            the attempt succeeded; ResultFormat says what its result is
    another exit code      EXIT_CODE, with the last lines of standard error
    ended by a signal      SIGNAL
    not on this machine    PROGRAM_NOT_FOUND
    could not be started   SETUP_FAILED
    result not as agreed   RESULT_INVALID

A line on standard output of the form `::progress 40% linking` (or `::progress - linking`, where
it cannot be measured) becomes the task's progress and is not logged.

The program runs in a session of its own, with an environment made from an allow-list, the spec and
KAPELL_TASK_ID, KAPELL_ATTEMPT, KAPELL_AGENT_ID, KAPELL_PROMPT, KAPELL_INPUT_FILE,
KAPELL_RESULT_FILE, KAPELL_ARTIFACTS_DIR and KAPELL_LOCKS; it never sees a token that opens the API.
What it leaves in that directory becomes artifacts of the task, also where it failed, but not where
it was cancelled. Whichever way the attempt ends, the program and all that it started are ended with
it: SIGTERM and a grace when it is cancelled, SIGKILL otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import shutil
import signal
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from kapell._worker.outcome import TaskFailed
from kapell.runtimes import _artifacts, _result, _usage, placeholders
from kapell.runtimes._family import Families
from kapell.runtimes._output import Capture
from kapell.runtimes._processes import become_subreaper
from kapell.runtimes._program import Ending, Launch, Program, ProgramNotStarted
from kapell.runtimes._sessions import KnownSession, Sessions
from kapell.runtimes._setup import prepare
from kapell.runtimes._transcript import Transcript
from kapell.runtimes.adapters import adapter_for
from kapell.runtimes.adapters.contract import Verdict
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import RESULT_FORMAT_JSON, AgentSpec, CommandRuntime
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task

DEFAULT_KILL_GRACE = 5.0
_STDERR_LINES = 20


def build(spec: AgentSpec, *, agent_id: str, directory: Path) -> Command:
    """The runtime of a spec. Raises ValueError for a template that can never be filled in."""
    return Command(spec.command, agent_id=agent_id, directory=directory, is_subreaper=become_subreaper())


class _SessionRefused(Exception):
    """The program does not know the session it was to continue."""


class Command:
    """Runs the program of `spec` for each task. Each attempt has its own directory below `directory`."""

    def __init__(self, spec: CommandRuntime, *, agent_id: str, directory: Path, is_subreaper: bool = False) -> None:
        for template in (*spec.argv, spec.stdin, *spec.env.values()):
            placeholders.check(template)
        for template in spec.resume_argv:
            placeholders.check(template, placeholders.WITH_SESSION)
        self._spec = spec
        self._agent_id = agent_id
        self._directory = directory / "attempts"
        self._families = Families(is_subreaper=is_subreaper)
        self._sessions = Sessions(directory / "sessions")
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True, mode=0o700)
        self._reaps = is_subreaper
        if is_subreaper:
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._families.reap_orphans)

    async def run(self, attempt: Attempt, task: Task) -> object:
        """Runs the program and returns its result; see Runtime.run."""
        abandoned = asyncio.Event()
        work = asyncio.create_task(self._run(attempt, task, abandoned), name=f"program of {task.task_id}")
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            abandoned.set()
            await _settle(work)
            raise

    async def close(self) -> None:
        if self._reaps:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def _run(self, attempt: Attempt, task: Task, abandoned: asyncio.Event) -> object:
        """Goes on with the session of an earlier attempt where there is one, and else begins anew."""
        session = self._sessions.find(task) if self._spec.resume_argv and attempt.attempt > 1 else None
        if session is not None:
            try:
                return await self._once(attempt, task, abandoned, session)
            except _SessionRefused:
                self._sessions.forget(task)
                attempt.log(f"session {session.session_id} is not known any more: beginning anew", LOG_STREAM_SYSTEM)
        return await self._once(attempt, task, abandoned)

    async def _once(
        self, attempt: Attempt, task: Task, abandoned: asyncio.Event, session: KnownSession | None = None
    ) -> object:
        try:
            directory = Path(tempfile.mkdtemp(prefix=f"{attempt.attempt}-", dir=self._directory))
        except OSError as error:
            raise TaskFailed("SETUP_FAILED", f"no directory for the attempt in {self._directory}: {error}") from error
        try:
            launch = prepare(self._spec, task, attempt, agent_id=self._agent_id, directory=directory, session=session)
            transcript = self._transcript(launch, task, attempt)
            program = await self._start(launch)
            attempt.log(f"started {launch.argv[0]}, process {program.pid}", LOG_STREAM_SYSTEM)
            if launch.session:
                attempt.log(f"continues session {launch.session} of an earlier attempt", LOG_STREAM_SYSTEM)
            ending, capture, verdict = await self._watch(program, attempt, abandoned, transcript)
            if launch.session and verdict.session_refused:
                raise _SessionRefused
            attempt.program_ended()
            await _keep_artifacts(Path(launch.environment["KAPELL_ARTIFACTS_DIR"]), attempt, abandoned)
            result = self._outcome(launch, ending, capture, verdict, attempt)
            self._sessions.forget(task)
            return result
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def _transcript(self, launch: Launch, task: Task, attempt: Attempt) -> Transcript | None:
        adapter = adapter_for(self._spec.output, launch.argv)
        if adapter is None:
            return None
        directory = self._spec.working_directory

        def keep(session_id: str) -> None:
            if self._spec.resume_argv and directory:
                self._sessions.keep(task, KnownSession(session_id, directory))

        return Transcript(adapter, attempt, keep)

    async def _start(self, launch: Launch) -> Program:
        try:
            return await Program.start(launch, self._families)
        except ProgramNotStarted as error:
            raise _not_started(launch, error) from error
        except OSError as error:
            raise TaskFailed("SETUP_FAILED", f"{launch.argv[0]} could not be started: {error}") from error

    async def _watch(
        self, program: Program, attempt: Attempt, abandoned: asyncio.Event, transcript: Transcript | None
    ) -> tuple[Ending, Capture, Verdict]:
        """From the start of the program until nothing of it is left and all that it has said is told."""
        as_json = self._spec.result_format == RESULT_FORMAT_JSON
        keep = _result.MAX_JSON_BYTES if as_json else _result.TEXT_BYTES
        capture = Capture(attempt, keep=keep, transcript=transcript)
        try:
            await capture.open(program.stdout, program.stderr)
            await _first(program.exited(), attempt.cancelled.wait(), attempt.lease_lost.wait(), abandoned.wait())
            if attempt.cancelled.is_set() and not attempt.lease_lost.is_set() and not abandoned.is_set():
                await self._stop(program, attempt, abandoned)
        finally:
            ending = await program.end()
            await capture.drain()
        _remark(attempt, ending)
        if transcript is None:
            return ending, capture, Verdict()
        verdict = transcript.end(code=ending.code, stderr=capture.stderr.kept.text())
        capture.stdout.kept.add(verdict.message.encode(errors="replace"))
        return ending, capture, verdict

    async def _stop(self, program: Program, attempt: Attempt, abandoned: asyncio.Event) -> None:
        grace = DEFAULT_KILL_GRACE
        if self._spec.HasField("kill_grace"):
            grace = self._spec.kill_grace.ToMilliseconds() / 1000
        attempt.log(f"cancelled: SIGTERM to the program, SIGKILL after {grace:g} s", LOG_STREAM_SYSTEM)
        await _first(program.stop(grace), attempt.lease_lost.wait(), abandoned.wait())

    def _outcome(self, launch: Launch, ending: Ending, capture: Capture, verdict: Verdict, attempt: Attempt) -> object:
        if attempt.cancelled.is_set():
            raise TaskFailed("CANCELLED", "the program was ended because the task was cancelled")
        program = self._spec.argv[0]
        if ending.signal:
            name = _signal_name(ending.signal)
            raise TaskFailed(
                "SIGNAL",
                _with_tail(f"{program} was ended by {name}", capture),
                details={"signal": name, "number": ending.signal},
            )
        if verdict.failure is not None:
            raise verdict.failure
        if ending.code:
            raise TaskFailed(
                "EXIT_CODE",
                _with_tail(f"{program} exited with code {ending.code}", capture),
                details={"exit_code": ending.code},
            )
        result_file = Path(launch.environment["KAPELL_RESULT_FILE"])
        result = _result.read(self._spec.result_format, result_file, capture.stdout.kept, program=program)
        _usage.report(result, attempt)
        return result


async def _keep_artifacts(directory: Path, attempt: Attempt, abandoned: asyncio.Event) -> None:
    """Uploads what the program has left, for as long as the attempt goes on."""
    names = await asyncio.to_thread(_artifacts.find, directory)
    if not names:
        return
    if not (attempt.cancelled.is_set() or attempt.lease_lost.is_set() or abandoned.is_set()):
        sending = _artifacts.send(attempt, directory, names)
        await _first(sending, attempt.cancelled.wait(), attempt.lease_lost.wait(), abandoned.wait())
    if attempt.cancelled.is_set() and not attempt.lease_lost.is_set():
        attempt.log("not all files were kept as artifacts: the task was cancelled", LOG_STREAM_SYSTEM)


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


def _remark(attempt: Attempt, ending: Ending) -> None:
    if ending.leftovers:
        attempt.log(f"ended {ending.leftovers} process(es) that the program had left behind", LOG_STREAM_SYSTEM)
    if ending.immortal:
        ids = ", ".join(map(str, ending.immortal))
        attempt.log(f"could not end process(es) {ids}: end them by hand", LOG_STREAM_SYSTEM)


def _with_tail(text: str, capture: Capture) -> str:
    lines = capture.stderr.kept.text().split("\n")[-_STDERR_LINES:]
    tail = "\n".join(lines).strip("\n")
    return f"{text}:\n{tail}" if tail.strip() else text


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def _first(*events: Coroutine[Any, Any, object]) -> None:
    """Waits for the first of some coroutines and ends the others."""
    tasks = [asyncio.create_task(event, name="wait for the end of a program") for event in events]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def _settle(task: asyncio.Task[object]) -> None:
    """Waits until a task has ended, however often the waiting is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
