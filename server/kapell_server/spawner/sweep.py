"""Kills trees in shared rounds: one reading of the process table serves everybody who waits.

Used by the keepers. A thousand agents that end together cost a handful of readings, not a
thousand. Readings run in one thread of their own and only while somebody asks.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from kapell_server.spawner.process_tree import Process, ProcessTable, Round, kill_round
from kapell_server.supervise import Supervisor

_log = structlog.get_logger(__name__)

# Readings in a row that must find nothing before a tree counts as gone, where none of them is complete
# because the machine starts processes all the time. A complete one is enough.
_CLEAN_READINGS = 10
# How long a round waits for the killed to vanish before it looks again, seconds.
_PATIENCE = 0.25
# Rounds after which what cannot be killed is logged, and only looked at once a second.
_STUBBORN_ROUNDS = 20
_STUBBORN_PAUSE = 1.0


@dataclass(slots=True, eq=False)
class _Hunt:
    """One tree that is to go."""

    waiters: list[asyncio.Future[None]] = field(default_factory=list)
    rounds: int = 0
    clean: int = 0


class Sweeper:
    """Finds and kills the processes of agents of one server. Belongs to the loop thread."""

    def __init__(self, log_id: str) -> None:
        self._log_id = log_id
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kapell-sweep")
        self._supervisor = Supervisor()
        self._hunts: dict[str, _Hunt] = {}
        self._hunting: asyncio.Task[None] | None = None

    async def read_table(self) -> ProcessTable:
        """A reading of the process table that begins after the call."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, ProcessTable.read, self._log_id)

    async def kill(self, agent_id: str) -> None:
        """Kills everything the agent has started, its host last; returns when readings find nothing more.

        Goes on for as long as it takes. Cancelling only ends the waiting. Raises OSError where the
        process table cannot be read.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hunts.setdefault(agent_id, _Hunt()).waiters.append(waiter)
        if self._hunting is None:
            self._hunting = self._supervisor.spawn(self._hunt(), name="spawner-sweep")
        await waiter

    async def stop(self, timeout: float) -> None:
        """Finishes what was begun, so that no host stays stopped; gives up after `timeout` seconds."""
        if self._hunting is not None:
            await asyncio.wait([self._hunting], timeout=timeout)
        await self._supervisor.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _hunt(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._hunts:
                sought = dict(self._hunts)
                cornered = [agent_id for agent_id, hunt in sought.items() if hunt.rounds]
                insist = all(hunt.rounds > _CLEAN_READINGS for hunt in sought.values())
                result = await loop.run_in_executor(self._thread, self._round, list(sought), cornered, insist)
                for agent_id, hunt in sought.items():
                    self._judge(agent_id, hunt, result.found.get(agent_id, []), result.complete)
                if self._hunts and all(hunt.rounds > _STUBBORN_ROUNDS for hunt in self._hunts.values()):
                    await asyncio.sleep(_STUBBORN_PAUSE)
        except Exception as error:
            # The waiters pass it on and may ask again.
            self._fail(error)
        finally:
            self._hunting = None

    def _round(self, agent_ids: list[str], cornered: list[str], insist: bool) -> Round:
        return kill_round(self._log_id, agent_ids, patience=_PATIENCE, cornered=cornered, insist=insist)

    def _judge(self, agent_id: str, hunt: _Hunt, found: list[Process], complete: bool) -> None:
        hunt.rounds += 1
        hunt.clean = 0 if found else _CLEAN_READINGS if complete else hunt.clean + 1
        if hunt.rounds == _STUBBORN_ROUNDS and found:
            _log.warning("processes outlive SIGKILL", agent_id=agent_id, pids=[each.pid for each in found])
        if hunt.clean >= _CLEAN_READINGS:
            del self._hunts[agent_id]
            for waiter in hunt.waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        hunts, self._hunts = self._hunts, {}
        for hunt in hunts.values():
            for waiter in hunt.waiters:
                if not waiter.done():
                    waiter.set_exception(error)
