"""A place to spawn in: records in memory, a real spawner, real processes, and a sweep afterwards."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from kapell_server.domain.access import Keyring
from kapell_server.spawner.keeper import Patience
from kapell_server.spawner.process_tree import ProcessTable, kill_round
from kapell_server.spawner.spawner import Spawner

from tests.spawner.agent_records import AgentRecords
from tests.spawner.tree_watch import TreeWatch

ADDRESS = "127.0.0.1:50051"
QUICK = Patience(grace_margin=0.1, term=0.3)


class Place:
    """One machine with one data directory; servers come and go, processes and records stay."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.log_id = f"log_{secrets.token_hex(6)}"
        self.records = AgentRecords(log_id=self.log_id)
        self.address = ADDRESS
        self._watches: list[TreeWatch] = []
        self._spawners: list[Spawner] = []

    def watch(self) -> TreeWatch:
        """A FIFO for one tree, or for several that are watched as one."""
        watch = TreeWatch(self.data_dir / f"alive-{len(self._watches)}")
        self._watches.append(watch)
        return watch

    def spawner(self, command: Sequence[str], *, patience: Patience = QUICK, **environ: str) -> Spawner:
        """A spawner as a server makes it at its start; not started yet."""
        spawner = Spawner(
            self.records,
            self.records,
            data_dir=self.data_dir,
            server_address=lambda: self.address,
            keyring=Keyring(b"k" * 32, admin_token="admin"),
            host_command=command,
            patience=patience,
            environ={"PATH": "/usr/bin:/bin", **environ},
        )
        self._spawners.append(spawner)
        return spawner

    async def started(self, command: Sequence[str], *, patience: Patience = QUICK, **environ: str) -> Spawner:
        """A spawner that has been started."""
        spawner = self.spawner(command, patience=patience, **environ)
        await spawner.start()
        return spawner

    def table(self) -> ProcessTable:
        """The process table as it is now."""
        return ProcessTable.read(self.log_id)

    async def clear(self) -> None:
        """Stops the spawners and kills what a failed test may have left."""
        for spawner in self._spawners:
            await spawner.stop(terminate_agents=False)
        while left := self.table().agent_ids:
            await asyncio.to_thread(kill_round, self.log_id, left, patience=1.0)
        for watch in self._watches:
            watch.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    await place.clear()


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[TreeWatch]:
    watch = TreeWatch(tmp_path / "alive")
    yield watch
    watch.close()
