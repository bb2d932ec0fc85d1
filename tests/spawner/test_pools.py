"""A pool with everything real: agents start for tasks, end when idle, and the last word is the process table's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_STATE_FAILED, AGENT_STATE_TERMINATED
from kapell.v1.task_pb2 import TASK_STATE_RUNNING, TASK_STATE_SUCCEEDED
from kapell_server.spawner.process_tree import ProcessTable

from tests.support.server_process import ServerProcess

LONG = 60.0
POOL = """
[profiles.helper]
agent_types = ["helper"]
command = { argv = ["sh", "-c", "{prompt}"] }
pool = { max = 2, idle_stop = "1s" }
"""


async def test_agents_come_for_tasks_and_go_when_idle(tmp_path: Path) -> None:
    config = tmp_path / "kapell.toml"
    config.write_text(POOL)
    with ServerProcess(tmp_path / "data", arguments=("--config", str(config))) as server:
        async with Client(Endpoint(address=server.address, token=server.admin_token)) as client:
            assert [agent async for agent in client.agents.iterate()] == []

            tasks = [await client.tasks.create("helper", "true") for _ in range(4)]
            async with asyncio.timeout(LONG):
                done = [await client.tasks.wait(task.task_id) for task in tasks]

            assert [task.state for task in done] == [TASK_STATE_SUCCEEDED] * 4
            agents = [agent async for agent in client.agents.iterate()]
            assert 1 <= len(agents) <= 2
            assert {(agent.profile, agent.creator.id) for agent in agents} == {("helper", "pool")}
            for agent in agents:
                await _ended(client, agent.agent_id)
            log_id = json.loads((server.data_dir / "server.json").read_text())["log_id"]
            assert ProcessTable.read(log_id).agent_ids == set()


async def _ended(client: Client, agent_id: str) -> None:
    async with asyncio.timeout(LONG), client.agents.watch(agent_ids=[agent_id], initial_state=True) as events:
        async for event in events:
            if event.agent.state == AGENT_STATE_TERMINATED:
                return


async def test_a_pool_whose_hosts_were_all_killed_goes_on(tmp_path: Path) -> None:
    config, flag = tmp_path / "kapell.toml", tmp_path / "go"
    config.write_text(POOL)
    with ServerProcess(tmp_path / "data", arguments=("--config", str(config))) as server:
        async with Client(Endpoint(address=server.address, token=server.admin_token)) as client:
            script = f"test -e {flag} || exec sleep 1000"
            tasks = [await client.tasks.create("helper", script) for _ in range(2)]
            async with asyncio.timeout(LONG):
                for task in tasks:
                    await _running(client, task.task_id)

            for agent in [agent async for agent in client.agents.iterate()]:
                os.kill(agent.pid, signal.SIGKILL)
            flag.touch()

            async with asyncio.timeout(LONG):
                done = [await client.tasks.wait(task.task_id) for task in tasks]
            assert [(task.state, task.attempts_used) for task in done] == [(TASK_STATE_SUCCEEDED, 2)] * 2
            log_id = json.loads((server.data_dir / "server.json").read_text())["log_id"]
            agents = [agent async for agent in client.agents.iterate()]
            for agent in agents:
                if agent.state != AGENT_STATE_FAILED:
                    await _ended(client, agent.agent_id)
            assert len(agents) >= 3
            assert ProcessTable.read(log_id).agent_ids == set()


async def _running(client: Client, task_id: str) -> None:
    async with asyncio.timeout(LONG), client.tasks.watch(task_ids=[task_id], initial_state=True) as events:
        async for event in events:
            if event.task.state == TASK_STATE_RUNNING:
                return
