"""How soon a cold server serves, and what it weighs with a fleet and a backlog."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.bench.load import RawClient
from tests.bench.place import SERVER_CORE, kapell, pinned
from tests.bench.reading import fill
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark
from tests.bench.working import register

AGENTS = 200
TASKS = 10_000


@benchmark("start")
async def cold_start(setting: Setting) -> Sequence[Row]:
    """From exec to serving on a fresh data directory, and the imports no such server can avoid."""
    figures, floors = [], []
    imports = [*pinned(SERVER_CORE), sys.executable, "-c", "import grpc, sqlalchemy"]
    for _ in range(setting.repetitions):
        begin = time.perf_counter()
        await asyncio.to_thread(subprocess.run, imports, check=True, start_new_session=True)
        floors.append((time.perf_counter() - begin) * 1e3)
        begin = time.perf_counter()
        with kapell(setting.directory):
            figures.append((time.perf_counter() - begin) * 1e3)
    return [
        Row(
            name="cold start to serving",
            unit="ms",
            figures=figures,
            floors=floors,
            compared=figures,
            compared_unit="ms",
            goal=350,
            stretch=250,
            note="floor: import grpc, sqlalchemy",
        )
    ]


@benchmark("memory")
async def memory(setting: Setting) -> Sequence[Row]:
    """Resident memory with 200 registered workers and 10,000 tasks."""
    with kapell(setting.directory) as server:
        empty = server.memory() / 1e6
        async with RawClient(server.address, server.token) as client:
            for number in range(AGENTS):
                await register(server, client, f"memory-{number}", "memory")
            await fill(client, TASKS)
        full = server.memory() / 1e6
    return [
        Row(
            name=f"server memory, {AGENTS} agents, {TASKS:,} tasks",
            unit="MB",
            figures=[full],
            floors=[empty],
            compared=[full],
            compared_unit="MB",
            goal=250,
            stretch=150,
            note="floor: the same server, empty",
        )
    ]
