"""kill -9 of the server under load: what was promised before holds afterwards.

SIGKILL proves the death of a process, not the loss of power: what the kernel has taken over is
still written. That a commit reaches the disk is a matter of the pragmas (test_pragmas.py).
"""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from tests.crash.storm import ARGUMENTS, Storm
from tests.support.server_process import ServerProcess

short_leases = pytest.mark.parametrize("server_process", [ARGUMENTS], indirect=True, ids=["short leases"])


async def survive(server: ServerProcess, kills: int, freezes: int) -> Storm:
    """A storm with so many plain kills and kills of a stopped process; fails where a promise was broken."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    ways = [False] * kills + [True] * freezes
    rng.shuffle(ways)
    async with Storm(server, seed) as storm:
        for frozen in ways:
            await storm.kill(frozen=frozen)
        await storm.calm()
        faults = await storm.faults()
    counts = storm.journal.counts
    print(f"{storm.kills} kills, {storm.poacher.tried} dead tokens tried")
    print({mark: count for mark, count in sorted(counts.items()) if mark.endswith(("acknowledged", "interrupted"))})
    assert not faults, "\n".join([f"{len(faults)} promises were broken", *faults[:20]])
    return storm


def database_is_sound(data_dir: Path) -> bool:
    """SQLite's own check of every page and index."""
    with sqlite3.connect(data_dir / "kapell.db") as database:
        return list(database.execute("PRAGMA integrity_check")) == [("ok",)]


@short_leases
async def test_no_promise_is_broken_by_eight_kills_under_load(server_process: ServerProcess) -> None:
    storm = await survive(server_process, kills=5, freezes=2)

    server_process.stop()
    assert storm.kills == 8
    assert database_is_sound(server_process.data_dir)
    assert sum(watcher.streams for watcher in storm.log_watchers) >= 2 * 8


@pytest.mark.slow
@short_leases
@pytest.mark.timeout(600)
async def test_no_promise_is_broken_by_forty_kills_under_load(server_process: ServerProcess) -> None:
    storm = await survive(server_process, kills=29, freezes=10)

    server_process.stop()
    assert storm.kills == 40
    assert database_is_sound(server_process.data_dir)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_promise_is_broken_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    server = ServerProcess(tmp_path / "data", arguments=(*ARGUMENTS, "--database-url", postgres_url))
    server.start()
    try:
        await survive(server, kills=12, freezes=4)
    finally:
        server.close()
