"""Commands that the agent runs through us, each a program with a family of its own, ended with the attempt.

What they print is in the attempt's log, and the end of it is kept for the agent, as lines. Without
arguments a command is taken as a line for a shell, as agents send it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from acp.schema import (
    CreateTerminalRequest,
    KillTerminalRequest,
    ReleaseTerminalRequest,
    TerminalOutputRequest,
    WaitForTerminalExitRequest,
)

from kapell._worker.outcome import TaskFailed
from kapell.runtimes._output import Capture, Kept
from kapell.runtimes._processes import signal_name
from kapell.runtimes._program import Ending, Launch, Program, ProgramNotStarted
from kapell.runtimes._setup import find_program
from kapell.runtimes.acp.files import Place, lock_refusal, refused
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

Start = Callable[[Launch], Awaitable[Program]]

MOST_AT_A_TIME = 16
MOST_KEPT_BYTES = 1024 * 1024


class Terminals:
    """The terminals of one attempt. Must be closed."""

    def __init__(self, attempt: Attempt, place: Place, start: Start, launch: Launch) -> None:
        self._attempt = attempt
        self._place = place
        self._start = start
        self._launch = launch
        self._terminals: dict[str, _Terminal] = {}
        self._made = 0

    async def create(self, request: CreateTerminalRequest) -> dict[str, Any]:
        if len(self._terminals) >= MOST_AT_A_TIME:
            raise refused(f"{MOST_AT_A_TIME} terminals are open already - release one")
        directory = await asyncio.to_thread(self._directory, request.cwd or str(self._place.directory))
        reason = await lock_refusal(self._attempt, self._place)
        if reason:
            raise refused(f"no command may run: {reason}")
        argv = [request.command, *(request.args or ())] if request.args else ["sh", "-c", request.command]
        environment = {**self._launch.environment, **{entry.name: entry.value for entry in request.env or ()}}
        try:
            launch = Launch(
                path=find_program(argv[0], environment, directory),
                argv=argv,
                environment=environment,
                directory=directory,
            )
            program = await self._start(launch)
        except TaskFailed as error:
            raise refused(error.message) from None
        except (ProgramNotStarted, OSError, ValueError) as error:
            raise refused(f"{argv[0]} could not be started: {error}") from None
        self._made += 1
        terminal_id = f"terminal-{self._made}"
        limit = MOST_KEPT_BYTES if request.output_byte_limit is None else request.output_byte_limit
        terminal = _Terminal(program, self._attempt, keep=min(max(limit, 1), MOST_KEPT_BYTES))
        self._terminals[terminal_id] = terminal
        self._attempt.log(f"{terminal_id} runs: {request.command} {' '.join(request.args or ())}", LOG_STREAM_SYSTEM)
        return {"terminalId": terminal_id}

    async def output(self, request: TerminalOutputRequest) -> dict[str, Any]:
        terminal = self._known(request.terminal_id)
        answer: dict[str, Any] = {"output": terminal.output.text(), "truncated": terminal.output.is_cut}
        return answer | ({"exitStatus": terminal.status} if terminal.status is not None else {})

    async def wait(self, request: WaitForTerminalExitRequest) -> dict[str, Any]:
        return await self._known(request.terminal_id).ended()

    async def kill(self, request: KillTerminalRequest) -> dict[str, Any]:
        await self._known(request.terminal_id).kill()
        return {}

    async def release(self, request: ReleaseTerminalRequest) -> dict[str, Any]:
        terminal = self._known(request.terminal_id)
        await terminal.kill()
        self._terminals.pop(request.terminal_id, None)
        return {}

    async def close(self) -> None:
        """Ends all that still runs."""
        await asyncio.gather(*(terminal.kill() for terminal in self._terminals.values()))

    def _directory(self, path: str) -> Path:
        directory = Path(self._place.inside(path))
        if not directory.is_dir():
            raise refused(f"{path} is no directory")
        return directory

    def _known(self, terminal_id: str) -> _Terminal:
        if terminal_id not in self._terminals:
            raise refused(f"there is no terminal {terminal_id!r}: it was released, or never created")
        return self._terminals[terminal_id]


class _Terminal:
    """One command, from its start until nothing of it is left."""

    def __init__(self, program: Program, attempt: Attempt, *, keep: int) -> None:
        self.output = Kept(keep)
        self.status: dict[str, Any] | None = None
        self._program = program
        program.written = lambda: self.output.total
        self._capture = Capture(attempt, keep=keep)
        # Both streams in the order in which they come, as on a screen.
        self._capture.stdout.kept = self._capture.stderr.kept = self.output
        self._end = asyncio.Event()
        self._life = asyncio.create_task(self._live(), name=f"terminal, process {program.pid}")

    async def ended(self) -> dict[str, Any]:
        """Waits for the end; how it came."""
        await _undisturbed(self._life)
        assert self.status is not None
        return self.status

    async def kill(self) -> None:
        """Ends the command and all that it started."""
        self._end.set()
        await _undisturbed(self._life)

    async def _live(self) -> None:
        waits = [asyncio.ensure_future(wait) for wait in (self._program.exited(), self._end.wait())]
        try:
            await self._capture.open(self._program.stdout, self._program.stderr)
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            ending = await self._program.end()
            await self._capture.drain()
            self.status = _status_of(ending)


async def _undisturbed(life: asyncio.Task[None]) -> None:
    """Waits without ending what is waited for."""
    waiting: Awaitable[None] = asyncio.shield(life)
    await waiting


def _status_of(ending: Ending) -> dict[str, Any]:
    if ending.signal:
        return {"exitCode": None, "signal": signal_name(ending.signal)}
    return {"exitCode": ending.code, "signal": None}
