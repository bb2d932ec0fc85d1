"""Keeps the processes of this machine in step with the records of agents: one keeper an agent.

Made by `app` with the engine and the reads; started after the engine, stopped before it. It reads
records and submits facts and never decides what an agent's state is. Level-triggered: the records
say what should be, the process table says what is, and both outlive the server. On start it lists
the live agents, adopts their hosts by the mark in their environment, and sweeps marked processes
that no live agent owns. Then it follows the ring for agents that are new, changed or deleted; when
the ring is quiet it compares the whole list again, should anything have been missed.

States and authority: see `keeper`. What may fail: starting a host (the agent is FAILED and says
why), killing (goes on until it is done), reporting (goes on until the engine takes it).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import structlog
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATING,
    TERMINATE_MODE_GRACEFUL,
    Agent,
    AgentFilter,
    AgentSpec,
    ListAgentsRequest,
    TerminateAgentRequest,
)
from kapell.v1.error_pb2 import (
    ERROR_REASON_AGENT_NOT_FOUND,
    ERROR_REASON_AGENT_STATE_CONFLICT,
    ERROR_REASON_SERVER_DRAINING,
)
from kapell.v1.watch_pb2 import EVENT_KIND_AGENT_DELETED, EVENT_KIND_AGENT_SPAWNED

from kapell_server.domain.access import Keyring
from kapell_server.domain.errors import KapellError
from kapell_server.spawner import programs
from kapell_server.spawner.environment import allowed
from kapell_server.spawner.gate import StartGate
from kapell_server.spawner.host_log import LogPage, follow_log, read_log, trim
from kapell_server.spawner.host_process import HOST_COMMAND, HostLauncher
from kapell_server.spawner.keeper import SPAWNER, Keeper, Patience, Site
from kapell_server.spawner.ports import Engine, Reads
from kapell_server.spawner.process_tree import Process, ProcessTable
from kapell_server.spawner.sweep import Sweeper
from kapell_server.store.record import Record
from kapell_server.supervise import Supervisor

_log = structlog.get_logger(__name__)

LIVE_STATES = (
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    AGENT_STATE_TERMINATING,
    AGENT_STATE_LOST,
)
EXTERNAL = "external"

_BATCH = 1000
_AGENT_ID = re.compile(r"agent_[a-z0-9_-]{1,58}")
# How long the ring must be quiet before the whole list is compared, seconds.
_QUIET = 60.0
_TRIM_INTERVAL = 10.0
_RETRY_PAUSE = 1.0
# What running tasks have when the server ends its agents.
_STOP_GRACE_SECONDS = 2
# How long `stop` waits for trees that are being killed.
_STOP_PATIENCE = 10.0


class Spawner:
    """Starts, adopts, watches and ends the hosts of agents. All methods belong to the loop thread."""

    def __init__(
        self,
        engine: Engine,
        reads: Reads,
        *,
        data_dir: Path,
        server_address: Callable[[], str],
        keyring: Keyring,
        host_command: Sequence[str] = HOST_COMMAND,
        patience: Patience | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`server_address` is asked at each start of a host: the port may be known late."""
        self._engine = engine
        self._reads = reads
        self._environ = environ
        self._launcher = HostLauncher(
            data_dir=data_dir,
            log_id=engine.log_id,
            server_address=server_address,
            keyring=keyring,
            environ=environ,
            command=host_command,
        )
        self._sweeper = Sweeper(engine.log_id)
        self._site = Site(
            engine=engine,
            reads=reads,
            launcher=self._launcher,
            sweeper=self._sweeper,
            gate=StartGate(4 * (os.cpu_count() or 1)),
            patience=patience or Patience(),
        )
        self._supervisor = Supervisor()
        self._keepers: dict[str, Keeper] = {}
        self._cursor = 0
        self._ending = False

    async def start(self) -> None:
        """Adopts what an earlier server left and begins to follow the records. Needs the engine started."""
        self._cursor = self._engine.ring.head
        # The table first: a host that this server is yet to start must not look like an orphan.
        table = await self._sweeper.read_table()
        await self._compare(table)
        for agent_id in table.agent_ids - self._keepers.keys():
            _log.warning("sweeping processes that no live agent owns", agent_id=agent_id)
            self._supervisor.spawn(self._sweeper.kill(agent_id), name=f"spawner-sweep-{agent_id}")
        self._supervisor.spawn(self._follow(), name="spawner-follow")
        self._supervisor.spawn(self._tend_files(), name="spawner-files")

    async def stop(self, *, terminate_agents: bool) -> None:
        """Stops keeping agents.

        With `terminate_agents` all of them are ended first, which takes a few seconds and needs the
        engine and, for grace, the rpc server still running; where the engine takes no writes, as
        when the disk is full, they are killed and the next start finds them gone. Otherwise hosts
        live on and are adopted by the next start.
        """
        left = await self._terminate_all() if terminate_agents else []
        await self._supervisor.stop()
        if left:
            await self._kill_all(left)
        await self._sweeper.stop(_STOP_PATIENCE)

    def find_program(self, spec: AgentSpec) -> str:
        """The absolute path of the spec's program. Raises KapellError PROGRAM_NOT_FOUND."""
        return programs.find_program(spec, allowed(self._environ))

    def log_path(self, agent_id: str) -> Path:
        """The log of the agent's host, which may not exist. Raises KapellError AGENT_NOT_FOUND."""
        if not _AGENT_ID.fullmatch(agent_id):
            raise KapellError(
                ERROR_REASON_AGENT_NOT_FOUND,
                f"No agent has the id {agent_id[:64]!r}. List the agents to see their ids.",
                metadata={"agent_id": agent_id[:64]},
            )
        return self._launcher.log_path(agent_id)

    async def stream_log(self, agent_id: str, offset: int, *, follow: bool) -> AsyncIterator[LogPage]:
        """The log of the agent's host from line `offset` on, in pages of at least one line.

        With `follow` until the agent has ended and nothing of it is left. Empty for agents started
        elsewhere. Raises KapellError AGENT_NOT_FOUND, LOG_OFFSET_GAP.
        """
        path = self.log_path(agent_id)
        ended = self._ended(agent_id)
        if follow:
            async for page in follow_log(path, offset, ended):
                yield page
            return
        last = ended.is_set()
        while (page := await read_log(path, offset, ended=last)).entries:
            yield page
            offset = page.next_offset

    def _ended(self, agent_id: str) -> asyncio.Event:
        keeper = self._keepers.get(agent_id)
        if keeper is not None:
            return keeper.ended
        ended = asyncio.Event()
        ended.set()
        return ended

    async def _follow(self) -> None:
        ring = self._engine.ring
        while True:
            try:
                if await ring.wait_beyond(self._cursor, _QUIET):
                    await self._catch_up()
                else:
                    await self._compare(None)
            except KapellError as error:
                if error.reason == ERROR_REASON_SERVER_DRAINING:
                    return
                _log.warning("cannot read the records, trying again", error=error.message)
                await asyncio.sleep(_RETRY_PAUSE)

    async def _catch_up(self) -> None:
        """Shows the keepers what the log has beyond the cursor."""
        while self._cursor < self._engine.ring.head:
            records = self._engine.ring.after(self._cursor, _BATCH)
            if records is None:
                records = await self._reads.events_after(self._cursor, _BATCH)
            if not records or records[0].revision != self._cursor + 1:
                # The log has lost what came next.
                self._cursor = self._engine.ring.head
                await self._compare(None)
                return
            for record in records:
                self._observe(record)
                self._cursor = record.revision
            await asyncio.sleep(0)

    def _observe(self, record: Record) -> None:
        agent = record.resource
        if not isinstance(agent, Agent) or agent.runtime == EXTERNAL:
            return
        if record.kind == EVENT_KIND_AGENT_DELETED:
            self._supervisor.spawn(self._remove(agent.agent_id), name=f"spawner-remove-{agent.agent_id}")
        elif (keeper := self._keepers.get(agent.agent_id)) is not None:
            keeper.observe(agent)
        elif record.kind == EVENT_KIND_AGENT_SPAWNED and not self._ending:
            # Only a new agent gets a keeper here: a late event of one that has ended must not revive it.
            self._keep(agent, None)

    def _keep(self, agent: Agent, found: Process | None) -> None:
        keeper = Keeper(agent, self._site, found=found)
        self._keepers[agent.agent_id] = keeper
        task = self._supervisor.spawn(keeper.run(), name=f"spawner-{agent.agent_id}")
        task.add_done_callback(lambda _: self._keepers.pop(agent.agent_id, None))

    async def _compare(self, table: ProcessTable | None) -> None:
        """Compares all live agents with the keepers: shows what is new, adopts what has no keeper."""
        before = set(self._keepers)
        live = {agent.agent_id: agent for agent in await self._live_agents()}
        missing = [agent for agent_id, agent in live.items() if agent_id not in before | self._keepers.keys()]
        if missing and table is None:
            table = await self._sweeper.read_table()
        for agent in missing:
            assert table is not None
            self._keep(agent, table.host(agent.agent_id, agent.pid))
        for agent_id in before & self._keepers.keys():
            await self._show(agent_id, live.get(agent_id))

    async def _show(self, agent_id: str, agent: Agent | None) -> None:
        """Shows a keeper its record; one that is no longer live is read by itself."""
        keeper = self._keepers.get(agent_id)
        if keeper is None:
            return
        try:
            keeper.observe(agent or await self._reads.get_agent(agent_id))
        except KapellError as error:
            if error.reason != ERROR_REASON_AGENT_NOT_FOUND:
                raise
            await self._remove(agent_id)

    async def _live_agents(self) -> list[Agent]:
        request = ListAgentsRequest(filter=AgentFilter(states=LIVE_STATES), page_size=_BATCH)
        agents: list[Agent] = []
        while True:
            page = await self._reads.list_agents(request)
            agents += (agent for agent in page.agents if agent.runtime != EXTERNAL)
            if not page.next_page_token:
                return agents
            request.page_token = page.next_page_token

    async def _remove(self, agent_id: str) -> None:
        """The agent was deleted: clears what should not be there any more, and its directory."""
        keeper = self._keepers.get(agent_id)
        if keeper is not None:
            await self._sweeper.kill(agent_id)
            await keeper.ended.wait()
        await asyncio.to_thread(shutil.rmtree, self._launcher.directory(agent_id), ignore_errors=True)

    async def _tend_files(self) -> None:
        """Keeps logs within their size; once, removes the directories of agents deleted in a crash."""
        for agent_id in await asyncio.to_thread(self._launcher.known_directories):
            if agent_id not in self._keepers and _AGENT_ID.fullmatch(agent_id):
                await self._remove_unknown(agent_id)
        while True:
            for agent_id in list(self._keepers):
                try:
                    await asyncio.to_thread(trim, self._launcher.log_path(agent_id))
                except OSError as error:
                    _log.warning("cannot shrink an agent's log", agent_id=agent_id, error=str(error))
            await asyncio.sleep(_TRIM_INTERVAL)

    async def _remove_unknown(self, agent_id: str) -> None:
        try:
            await self._reads.get_agent(agent_id)
        except KapellError as error:
            if error.reason == ERROR_REASON_AGENT_NOT_FOUND:
                await self._remove(agent_id)

    async def _terminate_all(self) -> list[str]:
        """Ends every agent as a user would, and returns when all are gone; the ids that could not be ended so."""
        self._ending = True
        try:
            async with asyncio.timeout(_STOP_PATIENCE):
                while keepers := [keeper for keeper in self._keepers.values() if not keeper.ended.is_set()]:
                    await asyncio.gather(*(self._terminate(keeper.agent_id) for keeper in keepers))
                    await asyncio.gather(*(keeper.ended.wait() for keeper in keepers))
        except TimeoutError as error:
            # What the engine has noted as terminating is killed by the next start.
            _log.warning("agents are left", agent_ids=sorted(self._keepers), error=str(error))
        except KapellError as error:
            left = sorted(keeper.agent_id for keeper in self._keepers.values() if not keeper.ended.is_set())
            _log.warning("agents are killed, which cannot be recorded now", agent_ids=left, error=str(error))
            return left
        return []

    async def _kill_all(self, agent_ids: list[str]) -> None:
        try:
            async with asyncio.timeout(_STOP_PATIENCE):
                await asyncio.gather(*(self._sweeper.kill(agent_id) for agent_id in agent_ids))
        except (TimeoutError, OSError) as error:
            _log.warning("agents are left", agent_ids=agent_ids, error=str(error))

    async def _terminate(self, agent_id: str) -> None:
        request = TerminateAgentRequest(
            agent_id=agent_id,
            mode=TERMINATE_MODE_GRACEFUL,
            grace_period=Duration(seconds=_STOP_GRACE_SECONDS),
            reason="the server was stopped",
        )
        try:
            await self._engine.submit(request, SPAWNER)
        except KapellError as error:
            if error.reason not in (ERROR_REASON_AGENT_NOT_FOUND, ERROR_REASON_AGENT_STATE_CONFLICT):
                raise
