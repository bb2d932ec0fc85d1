"""The command runtime: a program for each task.

The program's output is the task's log, line by line; its exit is the outcome:

    exit code 0            the attempt succeeded; ResultFormat says what its result is
    another exit code      EXIT_CODE, with the last lines of standard error
    ended by a signal      SIGNAL
    not on this machine    PROGRAM_NOT_FOUND
    could not be started   SETUP_FAILED
    result not as agreed   RESULT_INVALID
    beyond its limits      LIMIT_EXCEEDED

A line on standard output of the form `::progress 40% linking` (or `::progress - linking`, where
it cannot be measured) becomes the task's progress and is not logged.

The program runs in a session of its own, with an environment made from an allow-list, the spec and
KAPELL_TASK_ID, KAPELL_ATTEMPT, KAPELL_AGENT_ID, KAPELL_PROMPT, KAPELL_INPUT_FILE,
KAPELL_RESULT_FILE, KAPELL_ARTIFACTS_DIR and KAPELL_LOCKS. KAPELL_ADDRESS and KAPELL_TOKEN open what concerns its own
attempt and nothing else, for as long as that lasts, unless the profile says `api_access = "none"`; the agent's own
token it never sees.

While a budget has no room for what the attempt would use, its process group is stopped (SIGSTOP), and goes on
(SIGCONT) when there is; its leases are kept meanwhile, and so are its slot and its locks. A process that has left the
group is not reached, and a call that is under way at the provider goes on there: it is paid for.

What it leaves in that directory becomes artifacts of the task, also where it failed, but not where
it was cancelled. Whichever way the attempt ends, the program and all that it started are ended with
it: SIGTERM and a grace when it is cancelled, SIGKILL otherwise.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from kapell._worker.outcome import TaskFailed
from kapell.runtimes import _result, _usage, placeholders
from kapell.runtimes._output import Capture
from kapell.runtimes._processes import become_subreaper
from kapell.runtimes._program import Ending, Launch, Program
from kapell.runtimes._running import (
    DEFAULT_KILL_GRACE,
    ProgramRuntime,
    died,
    first,
    keep_artifacts,
    keep_pauses,
    remark,
    settle,
)
from kapell.runtimes._sessions import KnownSession, Sessions
from kapell.runtimes._setup import lasting_directory, prepare
from kapell.runtimes._transcript import Transcript
from kapell.runtimes.adapters import adapter_for
from kapell.runtimes.adapters.contract import Verdict
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import RESULT_FORMAT_JSON, AgentLimits, AgentSpec, CommandRuntime
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task


def build(spec: AgentSpec, *, agent_id: str, directory: Path) -> Command:
    """The runtime of a spec. Raises ValueError for a template that can never be filled in."""
    subreaper = become_subreaper()
    return Command(spec.command, agent_id=agent_id, directory=directory, is_subreaper=subreaper, limits=spec.limits)


class _SessionRefused(Exception):
    """The program does not know the session it was to continue."""


class Command(ProgramRuntime):
    """Runs the program of `spec` for each task. Each attempt has its own directory below `directory`."""

    def __init__(
        self,
        spec: CommandRuntime,
        *,
        agent_id: str,
        directory: Path,
        is_subreaper: bool = False,
        limits: AgentLimits | None = None,
    ) -> None:
        for template in (*spec.argv, spec.stdin, *spec.env.values()):
            placeholders.check(template)
        for template in spec.resume_argv:
            placeholders.check(template, placeholders.WITH_SESSION)
        super().__init__(directory=directory, is_subreaper=is_subreaper, limits=limits)
        self._sessions = Sessions(directory / "sessions")
        self._spec = spec
        self._agent_id = agent_id

    async def _work(self, attempt: Attempt, task: Task, directory: Path, abandoned: asyncio.Event) -> object:
        """Goes on with the session of an earlier attempt where there is one, and else begins anew."""
        session = self._sessions.find(task) if self._spec.resume_argv and attempt.attempt > 1 else None
        if session is not None:
            tried = directory / "resumed"
            tried.mkdir()
            try:
                return await self._once(attempt, task, tried, abandoned, session)
            except _SessionRefused:
                self._sessions.forget(task)
                attempt.log(f"session {session.session_id} is not known any more: beginning anew", LOG_STREAM_SYSTEM)
        return await self._once(attempt, task, directory, abandoned)

    async def _once(
        self,
        attempt: Attempt,
        task: Task,
        directory: Path,
        abandoned: asyncio.Event,
        session: KnownSession | None = None,
    ) -> object:
        launch = prepare(self._spec, task, attempt, agent_id=self._agent_id, directory=directory, session=session)
        transcript = self._transcript(launch, task, attempt)
        program = await self._start(launch)
        attempt.log(f"started {launch.argv[0]}, process {program.pid}", LOG_STREAM_SYSTEM)
        if launch.session:
            attempt.log(f"continues session {launch.session} of an earlier attempt", LOG_STREAM_SYSTEM)
        ending, capture = await self._watch(program, attempt, abandoned, transcript)
        verdict = await _told(transcript, launch, ending, capture)
        if launch.session and verdict.session_refused and not attempt.cancelled.is_set() and not abandoned.is_set():
            raise _SessionRefused
        attempt.program_ended()
        await keep_artifacts(Path(launch.environment["KAPELL_ARTIFACTS_DIR"]), attempt, abandoned)
        result = self._outcome(launch, ending, capture, verdict, attempt)
        self._sessions.forget(task)
        return result

    def _transcript(self, launch: Launch, task: Task, attempt: Attempt) -> Transcript | None:
        adapter = adapter_for(self._spec.output, launch.argv)
        if adapter is None:
            return None
        directory = lasting_directory(self._spec, attempt)

        def keep(session_id: str) -> None:
            if self._spec.resume_argv and directory:
                self._sessions.keep(task, KnownSession(session_id, directory))

        return Transcript(adapter, attempt, keep)

    async def _watch(
        self, program: Program, attempt: Attempt, abandoned: asyncio.Event, transcript: Transcript | None
    ) -> tuple[Ending, Capture]:
        """From the start of the program until nothing of it is left and all that it has said is told."""
        as_json = self._spec.result_format == RESULT_FORMAT_JSON
        keep = _result.MAX_JSON_BYTES if as_json else _result.TEXT_BYTES
        capture = Capture(attempt, keep=keep, transcript=transcript)
        program.written = lambda: capture.stdout.read + capture.stderr.read
        pausing = asyncio.create_task(keep_pauses(program, attempt), name=f"pauses of {attempt.task_id}")
        try:
            await capture.open(program.stdout, program.stderr)
            await first(program.exited(), attempt.cancelled.wait(), attempt.lease_lost.wait(), abandoned.wait())
            pausing.cancel()  # It lets a program that is stopped go on, so that it hears a SIGTERM.
            await settle(pausing)
            if attempt.cancelled.is_set() and not attempt.lease_lost.is_set() and not abandoned.is_set():
                await self._stop(program, attempt, abandoned)
        finally:
            pausing.cancel()
            ending = await program.end()
            await capture.drain()
        remark(attempt, ending)
        return ending, capture

    async def _stop(self, program: Program, attempt: Attempt, abandoned: asyncio.Event) -> None:
        grace = DEFAULT_KILL_GRACE
        if self._spec.HasField("kill_grace"):
            grace = self._spec.kill_grace.ToMilliseconds() / 1000
        attempt.log(f"cancelled: SIGTERM to the program, SIGKILL after {grace:g} s", LOG_STREAM_SYSTEM)
        await first(program.stop(grace), attempt.lease_lost.wait(), abandoned.wait())

    def _outcome(self, launch: Launch, ending: Ending, capture: Capture, verdict: Verdict, attempt: Attempt) -> object:
        if attempt.cancelled.is_set():
            raise TaskFailed("CANCELLED", "the program was ended because the task was cancelled")
        program = self._spec.argv[0]
        if verdict.failure is not None and not ending.signal:
            raise verdict.failure
        if ending.signal or ending.code:
            raise died(program, ending, capture.stderr.kept)
        result_file = Path(launch.environment["KAPELL_RESULT_FILE"])
        result = _result.read(self._spec.result_format, result_file, capture.stdout.kept, program=program)
        _usage.report(result, attempt)
        return result


async def _told(transcript: Transcript | None, launch: Launch, ending: Ending, capture: Capture) -> Verdict:
    """What the adapter makes of all that the program has said; its last message stands for standard output."""
    if transcript is None:
        return Verdict()
    await transcript.read_record(launch.directory)
    verdict = transcript.end(code=ending.code, stderr=capture.stderr.kept.text())
    capture.stdout.kept.add(verdict.message.encode(errors="replace"))
    return verdict
