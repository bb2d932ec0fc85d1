"""One agent's keeper: brings the machine to what the agent's record says, and the record to the facts.

A keeper looks at two things only, the newest record and the host, and acts on the difference; what
woke it does not matter, and acting twice does no harm:

    record                          host lives              no host
    PENDING                         report it started       start it, when its time has come
    STARTING ACTIVE DRAINING LOST   -                       clear the tree, report the exit
    TERMINATING                     end it, then as right   clear the tree, report the exit
    TERMINATED FAILED or deleted    clear the tree          clear the tree; the keeper is done

An exit is reported only when nothing of the agent's process tree is left. The engine answers with the record: it is
final, or PENDING again where the agent's restart policy says so. A fact the engine does
not take (it is busy, or the database is) is told again later. When the server stops, keepers are
cancelled in whatever they do; the next server finds the same record and the same processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass

import structlog
from kapell.v1.agent_pb2 import (
    AGENT_STATE_FAILED,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATED,
    AGENT_STATE_TERMINATING,
    Agent,
    SpawnAgentResponse,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.error_pb2 import (
    ERROR_REASON_AGENT_NOT_FOUND,
    ERROR_REASON_AGENT_STATE_CONFLICT,
    ERROR_REASON_SERVER_DRAINING,
)

from kapell_server.domain.access import system
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted, AgentStartFailed
from kapell_server.spawner.gate import StartGate
from kapell_server.spawner.host_log import last_words
from kapell_server.spawner.host_process import HostLauncher, HostProcess, adopt
from kapell_server.spawner.ports import Engine, Reads
from kapell_server.spawner.process_tree import Process
from kapell_server.spawner.sweep import Sweeper

_log = structlog.get_logger(__name__)

SPAWNER = system("spawner")
FINAL_STATES = frozenset({AGENT_STATE_TERMINATED, AGENT_STATE_FAILED})

_RETRY_FIRST = 0.1
_RETRY_LONGEST = 5.0
# How often a waiting termination is looked at again: it may have become a forced one.
_LOOK_INTERVAL = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long keepers wait, seconds."""

    # Beyond the grace period that the host was told of: the way of the directive and back.
    grace_margin: float = 1.0
    # From SIGTERM to SIGKILL; also what a host has for leaving by itself after its agent has ended.
    term: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What all keepers share."""

    engine: Engine
    reads: Reads
    launcher: HostLauncher
    sweeper: Sweeper
    gate: StartGate
    patience: Patience


class Keeper:
    """Keeps one agent, in a task that runs `run`. All methods belong to the loop thread."""

    def __init__(self, agent: Agent, site: Site, *, found: Process | None = None) -> None:
        """`found` is the agent's host where an earlier server process left one running."""
        self.agent_id = agent.agent_id
        self.ended = asyncio.Event()
        self._agent = agent
        self._site = site
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        # Whether the engine knows that the host was started; whether there ever was one.
        self._announced = agent.state != AGENT_STATE_PENDING
        self._launched = False
        # Its termination was asked of an earlier server process, which has had its time.
        self._overdue = agent.state == AGENT_STATE_TERMINATING
        # Why this keeper itself has its host killed; empty while it does not.
        self._verdict = ""
        self._host: HostProcess | None = None
        if found is not None:
            self._adopt(found)

    @property
    def final(self) -> bool:
        """Whether the record says that the agent has ended."""
        return self._agent.state in FINAL_STATES

    @property
    def revision(self) -> int:
        """The revision of the newest record it was shown."""
        return self._agent.revision

    def observe(self, agent: Agent) -> None:
        """Shows the keeper a record; an older one than it knows is ignored."""
        if agent.revision > self._agent.revision:
            self._agent = agent
            self.wake()

    def wake(self) -> None:
        """Has the keeper look again."""
        self._wake.set()

    async def run(self) -> None:
        """Keeps the agent until it has ended and nothing of it is left. Cancelling leaves the host alone."""
        pause = _RETRY_FIRST
        try:
            while not self.ended.is_set():
                try:
                    await self._step()
                    pause = _RETRY_FIRST
                except KapellError as error:
                    if error.reason == ERROR_REASON_SERVER_DRAINING:
                        return
                    _log.warning("fact not taken, trying again", agent_id=self.agent_id, error=error.message)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _RETRY_LONGEST)
                except OSError as error:
                    _log.warning("cannot look after an agent, trying again", agent_id=self.agent_id, error=str(error))
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _RETRY_LONGEST)
        finally:
            self._site.gate.leave(self)
            if self._host is not None:
                self._host.release()

    async def _step(self) -> None:
        """Looks once, does the one thing that is called for, and waits for news where there is none."""
        self._wake.clear()
        state = self._agent.state
        alive = self._alive()
        if state not in (AGENT_STATE_PENDING, AGENT_STATE_STARTING) or (self._launched and not alive):
            self._site.gate.leave(self)
        if state in FINAL_STATES:
            await self._clear()
        elif state == AGENT_STATE_TERMINATING:
            await self._terminate()
        elif alive is None:
            if state == AGENT_STATE_PENDING and not self._launched:
                await (self._news(None) if self._agent.HasField("next_start_time") else self._start())
            else:
                await self._report_exit()
        elif not self._announced:
            await self._site.engine.submit(AgentProcessStarted(self.agent_id, alive.pid), SPAWNER)
            self._announced = True
        elif self._verdict:
            await self._site.sweeper.kill(self.agent_id)
            await self._news(self._site.patience.term)
        else:
            await self._news(None)

    def _alive(self) -> HostProcess | None:
        return self._host if self._host is not None and self._host.exit is None else None

    def _adopt(self, found: Process) -> None:
        self._host = adopt(found, self.wake)
        self._launched = True
        address = self._site.launcher.address()
        if self._host is not None and found.address != address:
            # It would call for a server that is not there, for ever.
            self._verdict = f"the server has moved from {found.address} to {address}, which its host cannot know"

    async def _start(self) -> None:
        if not self._site.gate.enter(self):
            await self._news(None)
            return
        try:
            spec = await self._site.reads.agent_spec(self.agent_id)
            self._host = await self._site.launcher.launch(self.agent_id, spec, self.wake)
        except OSError as error:
            reason = f"its host could not be started: {error.strerror or error}"
            # It may run although it cannot be watched.
            await self._gone()
            await self._report(AgentStartFailed(self.agent_id, reason))
            return
        self._launched = True

    async def _terminate(self) -> None:
        asked = self._site.engine.termination(self.agent_id)
        if self._alive() is not None and not self._is_forced():
            # Nobody has asked where the host said goodbye by itself.
            patience = self._site.patience
            grace = patience.term if asked is None else asked.grace_seconds + patience.grace_margin
            if not await self._leaves_within(grace) and not self._is_forced():
                self._send(signal.SIGTERM)
                await self._leaves_within(self._site.patience.term)
        await self._gone()
        reason = asked.reason if asked is not None else ""
        await self._report(AgentProcessExited(self.agent_id, self._exit(), reason))

    async def _clear(self) -> None:
        """The record is final already: nothing to report, but nothing may be left either."""
        if self._alive() is not None:
            await self._leaves_within(self._site.patience.term)
        await self._gone()
        self.ended.set()

    async def _report_exit(self) -> None:
        """The host ended without being asked."""
        await self._gone()
        exit = self._exit()
        reason = self._verdict or f"its host {exit.message}"
        if not self._verdict and self._agent.state in (AGENT_STATE_PENDING, AGENT_STATE_STARTING):
            reason += " before it registered"
        if exit.code:
            words = await asyncio.to_thread(last_words, self._site.launcher.log_path(self.agent_id))
            reason += f", saying: {words}" if words else ""
        reason += f"; see: kapell agent logs {self.agent_id}"
        await self._report(AgentProcessExited(self.agent_id, exit, reason))

    async def _report(self, fact: AgentProcessExited | AgentStartFailed) -> None:
        """Tells the engine how it ended; the keeper is done then, unless the agent is to be started again."""
        try:
            answer = SpawnAgentResponse.FromString(await self._site.engine.submit(fact, SPAWNER))
        except KapellError as error:
            # Deleted, or ended already: then there is nobody to tell.
            if error.reason not in (ERROR_REASON_AGENT_NOT_FOUND, ERROR_REASON_AGENT_STATE_CONFLICT):
                raise
            self.ended.set()
            return
        self.observe(answer.agent)
        if not answer.HasField("agent") or self.final:
            self.ended.set()
            return
        self._site.gate.leave(self)
        self._host = None
        self._launched = self._announced = self._overdue = False
        self._verdict = ""

    async def _gone(self) -> None:
        """Returns when no process of the agent is left and the exit of its host has been seen."""
        await self._site.sweeper.kill(self.agent_id)
        while self._alive() is not None:
            await self._news(None)

    def _exit(self) -> ProcessExit:
        if self._host is not None and self._host.exit is not None:
            return self._host.exit
        if not self._launched and self._agent.HasField("exit"):
            return self._agent.exit  # It was to be started again, and is as its last process left it.
        if self._launched or self._announced:
            return ProcessExit(message="ended while no server was watching; its exit status is unknown")
        return ProcessExit(message="was never started")

    def _send(self, signum: signal.Signals) -> None:
        if self._host is not None:
            self._host.send(signum)

    def _is_forced(self) -> bool:
        asked = self._site.engine.termination(self.agent_id)
        return self._overdue if asked is None else asked.force

    async def _leaves_within(self, seconds: float) -> bool:
        """Whether the host has ended by itself; gives up early when force is asked for."""
        deadline = self._loop.time() + seconds
        while self._alive() is not None:
            left = deadline - self._loop.time()
            if left <= 0 or self._is_forced():
                return False
            await self._news(min(left, _LOOK_INTERVAL))
        return True

    async def _news(self, timeout: float | None) -> None:
        """Waits for a newer record, the host's exit or another wake."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it can swallow a cancellation that comes with the news.
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()
