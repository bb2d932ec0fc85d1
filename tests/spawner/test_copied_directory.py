"""A data directory that was copied: two servers, each with its own log, and neither touches the other's agents."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client, KapellError
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AGENT_STATE_FAILED, Agent, AgentSpec, CommandRuntime
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_SUCCEEDED
from kapell_server.spawner.process_tree import ProcessTable

from tests.spawner.agent_records import AgentRecords
from tests.spawner.conftest import Place
from tests.spawner.tree_watch import TreeWatch
from tests.support.server_process import ServerProcess

SHELL = AgentSpec(agent_types=["sh"], command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))
LONG = 60.0


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[TreeWatch]:
    watch = TreeWatch(tmp_path / "alive")
    yield watch
    watch.close()


def client_of(server: ServerProcess) -> Client:
    return Client(Endpoint(address=server.address, token=server.admin_token))


def copied(server: ServerProcess, path: Path) -> ServerProcess:
    """A server on a copy of the directory, not started. The original is held still, so that the copy is whole."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        shutil.copytree(server.data_dir, path)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    return ServerProcess(path)


async def failed(client: Client, agent_id: str) -> Agent:
    """Waits until the agent has failed."""
    async with asyncio.timeout(LONG), client.agents.watch(agent_ids=[agent_id], initial_state=True) as events:
        async for event in events:
            if event.agent.state == AGENT_STATE_FAILED:
                return event.agent
    raise AssertionError("a watch does not end")


async def test_server_on_a_copied_directory_leaves_the_agents_of_the_original_alone(
    server_process: ServerProcess, watch: TreeWatch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    async with client_of(server_process) as client:
        agent = await client.agents.spawn(spec=SHELL, wait=30)
        task = await client.tasks.create("sh", f"exec 9>{watch.path}; echo program >&9; cat {gate}; echo done >&9")
        await watch.said("program")
        log = await client.events.log_info()
        second = await asyncio.to_thread(copied, server_process, tmp_path / "copy")

        await asyncio.to_thread(second.start)
        try:
            async with client_of(second) as copy:
                ended = await failed(copy, agent.agent_id)
                log_of_copy = await copy.events.log_info()
                with pytest.raises(KapellError) as refusal:
                    await copy.watch(after_revision=log.revision, log_id=log.log_id).ready()
                task_of_copy = await copy.tasks.get(task.task_id)
        finally:
            await asyncio.to_thread(second.close)

        assert watch.lines == ["program"]
        assert watch.alive
        await asyncio.to_thread(gate.write_text, "go on\n")
        async with asyncio.timeout(LONG):
            done = await client.tasks.wait(task.task_id)
        after = await client.agents.get(agent.agent_id)
    assert (done.state, done.attempt) == (TASK_STATE_SUCCEEDED, 1)
    assert (after.state, after.pid, after.instance) == (AGENT_STATE_ACTIVE, agent.pid, 1)
    assert ended.state == AGENT_STATE_FAILED
    assert task_of_copy.state == TASK_STATE_QUEUED
    assert log_of_copy.log_id != log.log_id
    assert refusal.value.reason == "REVISION_COMPACTED"
    assert "the data directory is a copy" in second.log


async def test_copied_directory_keeps_its_new_log_and_the_original_its_own(
    server_process: ServerProcess, tmp_path: Path
) -> None:
    second = await asyncio.to_thread(copied, server_process, tmp_path / "copy")
    logs = []

    for server in (server_process, second, second, server_process):
        if server is second:
            await asyncio.to_thread(server.start)
        else:
            await asyncio.to_thread(server.restart)
        async with client_of(server) as client:
            logs.append((await client.events.log_info()).log_id)
        if server is second:
            await asyncio.to_thread(server.stop)

    assert logs[0] == logs[3]
    assert logs[1] == logs[2]
    assert logs[0] != logs[1]


async def test_host_of_another_log_under_the_same_agent_id_is_nobody_of_ours(place: Place) -> None:
    watch = place.watch()
    await place.started(watch.command())
    place.records.spawn("agent_a")
    await watch.said("host")
    place.records = AgentRecords(log_id=f"{place.log_id}_copy")
    place.records.spawn("agent_a", state=AGENT_STATE_ACTIVE)
    assert ProcessTable.read(place.records.log_id).agent_ids == set(), "nothing that a start could sweep"

    await place.started(watch.command())
    ended = await place.records.ended("agent_a")

    assert ended.state == AGENT_STATE_FAILED
    assert watch.alive
