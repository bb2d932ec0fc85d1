"""Spawned agents: how soon they are active, how soon nothing is left of what they run, and what an idle one weighs.

Hosts run where the server runs, all on one core, so that the figures are those of a small machine.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Sequence

import psutil
from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, Agent, AgentSpec, CommandRuntime

from tests.bench.place import kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

AGENTS = 30
KILLS = 100
SLOTS = 4
# A child, one in a session of its own, and one whose parent has gone; none of them listens to SIGTERM.
TREE = "trap '' TERM; sleep 600 & setsid sleep 600 & (sleep 600 &); echo up; wait"


@benchmark("agents")
async def agents(setting: Setting) -> Sequence[Row]:
    """Agents one by one, then trees of processes that are killed one by one."""
    with kapell(setting.directory) as server:
        async with Client(Endpoint(address=server.address, token=server.token)) as client:
            spawned, started = [], []
            for _ in range(AGENTS):
                begin = time.perf_counter()
                agent = await _spawn(client, "bench", "cat")
                started.append(time.perf_counter() - begin)
                spawned.append(agent)
            weights = [psutil.Process(agent.pid).memory_info().rss / 1e6 for agent in spawned]
            for agent in spawned:
                await client.agents.terminate(agent.agent_id)
            await _spawn(client, "tree", "{prompt}")
            killed = [await _kill(client) for _ in range(KILLS)]
    return [
        _row("spawn to active, p50", "s", _percentile(started, 50), f"{AGENTS} agents, one by one"),
        _row("spawn to active, p99", "s", _percentile(started, 99)),
        _row("cancel until nothing is left, p50", "s", _percentile(killed, 50), f"{KILLS} trees that ignore SIGTERM"),
        _row("cancel until nothing is left, p99", "s", _percentile(killed, 99), "kill_grace 1 s", goal=5),
        _row("memory of an idle host", "MB", _percentile(weights, 50)),
    ]


async def _spawn(client: Client, agent_type: str, script: str) -> Agent:
    command = CommandRuntime(argv=["sh", "-c", script])
    command.kill_grace.FromSeconds(1)
    spec = AgentSpec(agent_types=[agent_type], slots=SLOTS, command=command)
    agent = await client.agents.spawn(spec=spec, wait=60)
    if agent.state != AGENT_STATE_ACTIVE:
        raise RuntimeError(agent.state_reason)
    return agent


async def _kill(client: Client) -> float:
    """Seconds from the cancel of a task until the last process of its tree has ended."""
    task = await client.tasks.create("tree", TREE)
    async with client.tasks.logs(task.task_id, follow=True) as log:
        async for entry in log:
            if entry.text == "up":
                break
    mark = f"KAPELL_TASK_ID={task.task_id}\0".encode()
    tree = await asyncio.to_thread(_marked, mark)
    if len(tree) < 4:
        raise RuntimeError(f"the tree has {len(tree)} processes, not 4")
    ends = [os.pidfd_open(pid) for pid in tree]
    begin = time.perf_counter()
    await client.tasks.cancel(task.task_id)
    await client.tasks.wait(task.task_id)
    for end in ends:
        await asyncio.to_thread(select.select, [end], [], [])
        os.close(end)
    taken = time.perf_counter() - begin
    if left := await asyncio.to_thread(_marked, mark):
        raise RuntimeError(f"{len(left)} processes are left of a killed tree")
    return taken


def _marked(mark: bytes) -> list[int]:
    """The processes with a variable in their environment."""
    found = []
    for pid in psutil.pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                if mark in file.read():
                    found.append(pid)
        except OSError:
            continue
    return found


def _percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many of a hundred do not exceed."""
    return sorted(values)[-(-len(values) * percent // 100) - 1]


def _row(name: str, unit: str, figure: float, note: str = "", *, goal: float | None = None) -> Row:
    return Row(name=name, unit=unit, figures=[figure], compared=[figure], compared_unit=unit, goal=goal, note=note)
