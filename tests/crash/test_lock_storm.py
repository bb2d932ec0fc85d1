"""kill -9 of those who hold locks: nobody ever believes to have what another one has, and nothing stays locked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from kapell import Client
from kapell.v1 import lock_pb2 as pb
from kapell.v1 import watch_pb2

from tests.crash import lock_history
from tests.crash.lock_history import Hold, Write
from tests.crash.lock_workers import TTL
from tests.support.server_process import ServerProcess

EXPIRES_WITHIN = 1.0
# The busiest machine still gets its timers run in this time.
MERCY = 10.0


class Fighters:
    """The workers, and the one who kills them."""

    def __init__(self, server: ServerProcess, directory: Path, *, count: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self.kills = 0
        directory.mkdir()
        arguments = (server.address, server.admin_token, str(directory), str(count), str(seed))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.lock_workers", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        self._pids: list[int] = []

    def fight(self, seconds: float, *, every: float) -> None:
        """Lets them fight, and kills one after another."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        heard = b""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            heard += self.process.stdout.read() or b""
            *lines, heard = heard.split(b"\n")
            self._pids += map(int, lines)
            if len(self._pids) > 4:
                # The newest is left alone: it is to get somewhere.
                victim = self._pids.pop(self._rng.randrange(len(self._pids) - 1))
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.kills += 1
            time.sleep(self._rng.uniform(0.5, 1.5) * every)  # the pace of the storm, not a wait

    def end(self) -> None:
        """Kills all of them, holders included, and waits for that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        self.process.stdout.close()


async def storm(server: ServerProcess, directory: Path, *, count: int, seconds: float, every: float) -> Fighters:
    """Fails where a promise was broken."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    fighters = Fighters(server, directory, count=count, seed=seed)
    try:
        await asyncio.to_thread(fighters.fight, seconds, every=every)
    finally:
        await asyncio.to_thread(fighters.end)
    async with Client(server.address, token=server.admin_token) as client:
        await asyncio.wait_for(all_free(client), TTL + EXPIRES_WITHIN + MERCY)
        grants = [
            (event.lock.path, event.lock.fencing_token)
            async for event in client.events.iterate(order=2, kinds=["lock.granted", "lock.updated"], page_size=1000)
            if event.kind == watch_pb2.EVENT_KIND_LOCK_GRANTED
        ]
    history = await asyncio.to_thread(lock_history.read, directory)
    print(f"{fighters.kills} kills, {len(history.holds)} holds, {dict(history.counts)}, {len(grants)} grants")
    found = lock_history.faults(history) + lock_history.falling_tokens(grants)
    assert not found, "\n".join([f"{len(found)} promises were broken", *found[:20]])
    assert history.counts["hold"] > seconds * 5, "this was no fight"
    assert history.counts["wrote"] > 0
    return fighters


async def all_free(client: Client) -> None:
    """Returns when no lock is held and nobody waits: the dead have let go."""
    held: set[str] = set()
    async with client.locks.watch(initial_state=True) as events:
        page = await client.locks.list(page_size=1)
        if not page.locks and not page.waiters:
            return
        async for event in events:
            if event.HasField("lock"):
                (held.add if event.lock.state == pb.LOCK_STATE_HELD else held.discard)(event.lock.lock_id)
            if not held and not (await client.locks.list(page_size=1)).locks:
                return


async def test_sixteen_processes_fight_and_are_killed(server_process: ServerProcess, tmp_path: Path) -> None:
    fighters = await storm(server_process, tmp_path / "history", count=16, seconds=8, every=0.15)

    assert fighters.kills > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_sixty_four_processes_fight_and_are_killed(server_process: ServerProcess, tmp_path: Path) -> None:
    fighters = await storm(server_process, tmp_path / "history", count=64, seconds=60, every=0.1)

    assert fighters.kills > 100


def hold(owner: str, path: str, begin: float, end: float, mode: int = 1) -> Hold:
    return Hold(owner=owner, path=path, mode=mode, token=1, begin=begin, end=end)


@pytest.mark.parametrize(
    ("other", "overlaps"),
    [
        (hold("b", "web/src/a", 1.5, 3), True),
        (hold("b", "web", 0, 1.1), True),
        (hold("b", "web/src", 2, 3), False),
        (hold("b", "web/src2", 1, 2), False),
        (hold("a", "web/src", 1, 2), False),
        (hold("b", "web/src", 1, 2, mode=2), True),
    ],
)
def test_the_auditor_sees_an_overlap(other: Hold, overlaps: bool) -> None:
    assert bool(list(lock_history.overlaps([hold("a", "web/src", 1, 2), other]))) is overlaps


def test_the_auditor_lets_readers_be_and_sees_late_writes_and_falling_tokens() -> None:
    readers = [hold("a", "web", 1, 2, mode=2), hold("b", "web/src", 1, 2, mode=2)]
    newer = Write(owner="a", path="web", mode=1, token=8, asked=1.0, told=1.1)

    assert list(lock_history.overlaps(readers)) == []
    assert list(lock_history.late_writes([newer, Write(owner="b", path="web/a", mode=1, token=7, asked=1.2, told=1.3)]))
    assert not list(
        lock_history.late_writes([newer, Write(owner="b", path="web/a", mode=1, token=9, asked=1.2, told=1.3)])
    )
    assert lock_history.falling_tokens([("a", 1), ("b", 5), ("a", 1)]) == ["a: 1 after 1"]
