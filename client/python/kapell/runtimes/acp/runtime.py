"""An attempt with an ACP agent, from the start of its program until nothing of it is left.

    the turn ends with end_turn    the attempt succeeded; its result is the agent's last message, or its result file
    beyond its limits              LIMIT_EXCEEDED
    max_tokens, refusal and so on  MAX_TOKENS, MAX_TURN_REQUESTS, REFUSED
    the program ends before that   EXIT_CODE or SIGNAL, with the last lines of standard error
    it does not speak the protocol PROTOCOL_ERROR; does not answer: NO_ANSWER; wants a sign-in: AUTH_REQUIRED

While a budget has no room for what the attempt would use, the agent is stopped (SIGSTOP), as a program of a command is;
terminals that it has opened go on.

A cancelled task gets session/cancel, SIGTERM after a grace, and SIGKILL after another; a lost lease SIGKILL at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from kapell._worker.outcome import TaskFailed
from kapell._worker.values import from_struct
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
    with_tail,
)
from kapell.runtimes._setup import prepare
from kapell.runtimes.acp.conversation import Conversation, Gone
from kapell.runtimes.acp.files import Files, place_of
from kapell.runtimes.acp.kept import KeptSession
from kapell.runtimes.acp.permissions import Permissions
from kapell.runtimes.acp.service import Service
from kapell.runtimes.acp.terminals import Terminals
from kapell.runtimes.acp.updates import Updates
from kapell.runtimes.acp.wire import Wire
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import (
    ACP_PERMISSIONS_DENY,
    ACP_SESSION_PER_AGENT,
    RESULT_FORMAT_TEXT,
    AcpRuntime,
    AgentLimits,
    AgentSpec,
    CommandRuntime,
)
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task

_FAREWELL = 1.0
"""Seconds an agent has to end by itself once its input is closed."""
_LAST_WORDS = 5.0
_GO_ON = "Your work on the following task was interrupted. Look at what is done already, and go on from there."
_REFUSED = (
    "A person has refused what you asked permission for. Do not try it again in another way. "
    "Take into account what was said, and go on with the task as far as that allows:"
)
_MOST_REMARKS = 10
"""Turns of one attempt: a rule that refuses with a comment must not keep an agent busy for ever."""
_STOPS: dict[str, tuple[str, str, bool | None]] = {
    "max_tokens": ("MAX_TOKENS", "the model has reached its limit of tokens before it was done", None),
    "max_turn_requests": ("MAX_TURN_REQUESTS", "the agent has called its model as often as it may in one turn", None),
    "refusal": ("REFUSED", "the model refuses to go on with this prompt", False),
    "cancelled": ("AGENT_ERROR", "the agent ended its turn as cancelled, which nobody had asked for", None),
}


def build(spec: AgentSpec, *, agent_id: str, directory: Path) -> Acp:
    """The runtime of a spec. Raises ValueError for a template that can never be filled in."""
    subreaper = become_subreaper()
    return Acp(spec.acp, agent_id=agent_id, directory=directory, is_subreaper=subreaper, limits=spec.limits)


class Acp(ProgramRuntime):
    """Runs the agent of `spec` for each task."""

    def __init__(
        self,
        spec: AcpRuntime,
        *,
        agent_id: str,
        directory: Path,
        is_subreaper: bool = False,
        limits: AgentLimits | None = None,
    ) -> None:
        for template in (*spec.argv, *spec.env.values()):
            placeholders.check(template)
        super().__init__(directory=directory, is_subreaper=is_subreaper, limits=limits)
        self.spec = spec
        self.agent_id = agent_id
        # What is launched is described as for a command.
        self._command = CommandRuntime(
            argv=spec.argv,
            env=spec.env,
            env_from_secret=spec.env_from_secret,
            working_directory=spec.working_directory,
        )
        self.grace = spec.kill_grace.ToMilliseconds() / 1000 if spec.HasField("kill_grace") else DEFAULT_KILL_GRACE

    async def _work(self, attempt: Attempt, task: Task, directory: Path, abandoned: asyncio.Event) -> object:
        launch = prepare(self._command, task, attempt, agent_id=self.agent_id, directory=directory, tells_prompt=False)
        launch = dataclasses.replace(launch, talks=True)
        program = await self._start(launch)
        attempt.log(f"started {self.spec.argv[0]}, process {program.pid}", LOG_STREAM_SYSTEM)
        turn = _Turn(self, attempt, task, launch, program)
        failure: TaskFailed | Gone | None = None
        try:
            await turn.run(is_private=launch.directory.is_relative_to(directory), abandoned=abandoned)
        except (TaskFailed, Gone) as error:
            failure = error
        remark(attempt, turn.ending)
        await keep_artifacts(Path(launch.environment["KAPELL_ARTIFACTS_DIR"]), attempt, abandoned)
        if attempt.cancelled.is_set():
            raise TaskFailed("CANCELLED", "the agent was ended because the task was cancelled")
        if failure is not None:
            raise turn.gone() if isinstance(failure, Gone) else failure
        result_file = Path(launch.environment["KAPELL_RESULT_FILE"])
        result = _result.read(RESULT_FORMAT_TEXT, result_file, turn.updates.result, program=self.spec.argv[0])
        _usage.report(result, attempt)
        return result


class _Turn:
    """One program and the one turn that it is asked for."""

    def __init__(self, runtime: Acp, attempt: Attempt, task: Task, launch: Launch, program: Program) -> None:
        self.ending = Ending(code=0, signal=0, leftovers=0, immortal=())
        self.updates = Updates(attempt, hide_thoughts=runtime.spec.hide_thoughts)
        self._runtime = runtime
        self._spec = runtime.spec
        self._attempt = attempt
        self._task = task
        self._launch = launch
        self._program = program
        self._capture = Capture(attempt, keep=1)
        self._wire = Wire(program, attempt)
        program.written = lambda: self._wire.read + self._capture.stderr.kept.total
        self._ended_by_itself = False
        self._is_buried = False
        self._is_asked = asyncio.Event()

    async def run(self, *, is_private: bool, abandoned: asyncio.Event) -> None:
        """From the start of the program until nothing of it is left. Raises TaskFailed and Gone."""
        writes = self._spec.permissions != ACP_PERMISSIONS_DENY
        async with contextlib.AsyncExitStack() as held:
            held.push_async_callback(self._bury)
            await self._wire.open()
            await self._capture.open(None, self._program.stderr)
            prefix = self._launch.environment.get("KAPELL_LOCK_PREFIX", "")
            place = await asyncio.to_thread(place_of, self._launch.directory, is_private=is_private, prefix=prefix)
            terminals = None
            if writes:
                terminals = Terminals(self._attempt, place, self._runtime.start_beside, self._launch)
                held.push_async_callback(terminals.close)
            self._permissions = Permissions(self._attempt, place, self.updates, self._spec.permissions)
            service = Service(
                self.updates,
                self._permissions,
                Files(self._attempt, place, writes=writes),
                terminals,
            )
            talk = Conversation(self._spec, self._wire, service, self._attempt)
            held.push_async_callback(talk.close)
            # Before the connection is closed: an answer that the agent does not read would wait for ever.
            held.push_async_callback(self._end)
            work = asyncio.create_task(
                self._converse(talk, is_private=is_private), name=f"turn of {self._task.task_id}"
            )
            held.push_async_callback(_ended, work)
            pausing = asyncio.create_task(self._keep_pauses(), name=f"pauses of {self._task.task_id}")
            held.push_async_callback(_ended, pausing)
            await self._until_over(work, pausing, talk, abandoned)
        if work.cancelled():
            raise Gone
        work.result()

    def gone(self) -> TaskFailed:
        """The failure of a program that closed its output before it had answered."""
        name, stderr = self._spec.argv[0], self._capture.stderr.kept
        if self._wire.problem:
            text = f"{name} does not speak the Agent Client Protocol: {self._wire.problem} - check argv of the profile"
            return TaskFailed("PROTOCOL_ERROR", with_tail(text, stderr))
        if self._ended_by_itself and (self.ending.code or self.ending.signal):
            return died(name, self.ending, stderr)
        text = f"{name} {'ended' if self._ended_by_itself else 'closed its output'} before it had answered"
        return TaskFailed("PROTOCOL_ERROR", with_tail(text, stderr))

    async def _converse(self, talk: Conversation, *, is_private: bool) -> None:
        await talk.greet(writes=self._spec.permissions != ACP_PERMISSIONS_DENY)
        kept = None if is_private else self._kept()
        goes_on = await self._open(talk, kept)
        text = _prompt_of(self._task)
        if goes_on and self._spec.session != ACP_SESSION_PER_AGENT:
            text = f"{_GO_ON}\n\n{text}"
        self._is_asked.set()
        reason = await self._prompt(talk, text)
        self.updates.finish()
        if reason != "end_turn":
            other = ("AGENT_ERROR", f"the agent ended its turn with {reason}", None)
            name, words, retryable = _STOPS.get(reason, other)
            raise TaskFailed(name, words, details={"stop_reason": reason}, retryable=retryable)
        if kept is not None and self._spec.session != ACP_SESSION_PER_AGENT:
            await asyncio.to_thread(kept.forget)

    async def _prompt(self, talk: Conversation, text: str) -> str:
        """The turn, and another one for what people have said when they refused something; why the last one ended."""
        for _ in range(_MOST_REMARKS):
            reason, tokens = await talk.prompt(text)
            self.updates.pause()
            self.updates.spending.turn(tokens)
            remarks = self._permissions.remarks()
            if not remarks or reason not in ("end_turn", "cancelled") or self._attempt.cancelled.is_set():
                break
            self._attempt.log("tells the agent why it was refused", LOG_STREAM_SYSTEM)
            text = "\n".join((_REFUSED, *remarks))
        return reason

    async def _open(self, talk: Conversation, kept: KeptSession | None) -> bool:
        """Opens the session, the earlier one where there is one; whether it goes on."""
        directory = str(self._launch.directory)
        earlier = await asyncio.to_thread(kept.read) if kept is not None and self._may_go_on() else ""
        opened = None
        if earlier and kept is not None:
            # A session that the agent dies of, or hangs at, is not to be tried for ever.
            await asyncio.to_thread(kept.forget)
            self.updates.is_muted = True
            opened = await talk.reopen(earlier, directory)
            self.updates.is_muted = False
        goes_on = opened is not None
        if opened is None:
            opened = await talk.open(directory)
        how = "goes on" if goes_on else "begins" if not earlier else f"begins in the place of {earlier}"
        self._attempt.log(f"session {opened.session_id} {how}", LOG_STREAM_SYSTEM)
        if kept is not None:
            await asyncio.to_thread(kept.write, opened.session_id)
        await talk.choose(opened)
        self.updates.spending.model = self._spec.model or opened.model
        return goes_on

    def _may_go_on(self) -> bool:
        return self._attempt.attempt > 1 or self._spec.session == ACP_SESSION_PER_AGENT

    def _kept(self) -> KeptSession:
        owner = f"{self._task.task_id}/{self._task.retries}"
        if self._spec.session == ACP_SESSION_PER_AGENT:
            owner = self._runtime.agent_id
        return KeptSession(self._launch.environment, self._launch.directory, program=self._launch.path, owner=owner)

    async def _keep_pauses(self) -> None:
        """From the prompt on: before it nothing is used, and answers are waited for no longer than so."""
        await self._is_asked.wait()
        await keep_pauses(self._program, self._attempt)

    async def _until_over(
        self, work: asyncio.Task[None], pausing: asyncio.Task[None], talk: Conversation, abandoned: asyncio.Event
    ) -> None:
        """Until the turn is over, or is to end; then ends the program in the way that fits."""
        cancelled, lost = self._attempt.cancelled, self._attempt.lease_lost
        await first(asyncio.wait((work,)), self._program.exited(), cancelled.wait(), lost.wait(), abandoned.wait())
        await _ended(pausing)  # It lets a program that is stopped go on, so that it hears what it is told.
        if lost.is_set() or abandoned.is_set():
            return
        if cancelled.is_set():
            leave = self._cancel(work, talk)
        elif self._program.has_exited:
            # What it has said last may still be in the pipe, which ends when nobody is left who could write.
            await self._end()
            leave = _within(_LAST_WORDS, asyncio.wait((work,)))
        elif work.done() and not work.cancelled() and isinstance(work.exception(), Gone):
            leave = _within(0 if self._wire.problem else _FAREWELL, self._program.exited())
        else:
            leave = self._farewell()
        await first(leave, lost.wait(), abandoned.wait())

    async def _cancel(self, work: asyncio.Task[None], talk: Conversation) -> None:
        grace = self._runtime.grace
        if talk.session_id:
            self._attempt.log(f"cancelled: session/cancel, SIGTERM after {grace:g} s", LOG_STREAM_SYSTEM)
            await _within(grace, self._tell_and_wait(work, talk))
        await self._program.stop(grace)

    async def _tell_and_wait(self, work: asyncio.Task[None], talk: Conversation) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            await talk.cancel()
        await asyncio.wait((work,))

    async def _farewell(self) -> None:
        """A closed input tells the agent to end; what does not is asked to, and then made to."""
        self._wire.hang_up()
        await _within(_FAREWELL, self._program.exited())
        await self._program.stop(self._runtime.grace)

    async def _bury(self) -> None:
        self.updates.finish()
        await self._end()
        await self._wire.close()
        await self._capture.drain()

    async def _end(self) -> None:
        """Nothing of the program is left, and it is known how it ended."""
        if not self._is_buried:
            self._ended_by_itself = self._program.has_exited
            self.ending = await self._program.end()
            self._is_buried = True
            self._attempt.program_ended()


async def _ended(work: asyncio.Task[None]) -> None:
    """Ends a task, and leaves what came of it to whoever asks."""
    work.cancel()
    await asyncio.wait((work,))


async def _within(seconds: float, waiting: Coroutine[Any, Any, object]) -> None:
    """Waits no longer than so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await waiting


def _prompt_of(task: Task) -> str:
    """The prompt, and below it the input, unless a template has put that into the prompt already."""
    if not task.input.fields or task.template_id:
        return task.prompt
    shown = json.dumps(from_struct(task.input), ensure_ascii=False, indent=1)
    return f"{task.prompt}\n\nThe input of the task, as JSON:\n\n```json\n{shown}\n```".lstrip()
