"""Spawned agents with everything real: server process, hosts, programs, and the death of any of them.

The judge of what is left is a FIFO that the programs and all they start hold open; see tree_watch.
The ordinary life of a task in an agent is in tests/host/test_host_real_server.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client, KapellError
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_TERMINATED,
    Agent,
    AgentSpec,
    AgentState,
    CommandRuntime,
)
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, TASK_STATE_SUCCEEDED
from kapell_server.spawner.process_tree import ProcessTable

from tests.spawner.tree_watch import TreeWatch
from tests.support.server_process import ServerProcess

SHELL = AgentSpec(agent_types=["sh"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))
LONG = 60.0

# A program with a child, a deaf child, and a deaf daemon without an environment.
FAMILY = """
exec 9>{fifo}
sleep 1000 &
(trap '' TERM INT HUP; exec sleep 1001) &
setsid sh -c "trap '' TERM INT HUP; env -i sleep 1002 & env -i setsid sleep 1003 & wait" &
trap '' TERM
echo program >&9
cat {gate}
echo done >&9
"""


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    async with Client(endpoint) as connected:
        yield connected


def family(watch: TreeWatch, gate: Path) -> str:
    """The prompt of the program above; it ends by itself when somebody writes to the gate."""
    os.mkfifo(gate)
    return FAMILY.format(fifo=watch.path, gate=gate)


def table(server: ServerProcess) -> ProcessTable:
    """The process table as the server sees it."""
    note = json.loads((server.data_dir / "server.json").read_text())
    return ProcessTable.read(note["log_id"])


async def spawn(client: Client, agent_id: str = "") -> Agent:
    agent = await client.agents.spawn(spec=SHELL, agent_id=agent_id, wait=30)
    assert agent.state == AGENT_STATE_ACTIVE, agent.state_reason
    return agent


async def reached(client: Client, agent_id: str, *states: AgentState.ValueType) -> Agent:
    """Waits until the agent is in one of the states."""
    async with asyncio.timeout(LONG), client.agents.watch(agent_ids=[agent_id], initial_state=True) as events:
        async for event in events:
            if event.agent.state in states:
                return event.agent
    raise AssertionError("a watch does not end")


@pytest.mark.parametrize("force", [True, False], ids=["forced", "graceful"])
async def test_terminate_answers_when_the_whole_tree_is_gone(
    client: Client, watch: TreeWatch, tmp_path: Path, force: bool
) -> None:
    agent = await spawn(client)
    task = await client.tasks.create("sh", family(watch, tmp_path / "gate"))
    await watch.said("program")

    ended = await client.agents.terminate(agent.agent_id, force=force, grace_period=0.2)

    assert not watch.alive
    assert ended.state == AGENT_STATE_TERMINATED
    assert (await client.tasks.get(task.task_id)).state == TASK_STATE_QUEUED


async def test_task_ends_within_the_grace_and_its_leftovers_with_it(
    client: Client, watch: TreeWatch, tmp_path: Path
) -> None:
    agent = await spawn(client)
    task = await client.tasks.create("sh", family(watch, tmp_path / "gate"))
    await watch.said("program")

    terminating = asyncio.create_task(client.agents.terminate(agent.agent_id, grace_period=LONG))
    await asyncio.to_thread((tmp_path / "gate").write_text, "go on\n")
    ended = await terminating

    assert watch.lines == ["program", "done"]
    assert not watch.alive
    assert (ended.state, ended.exit.code, ended.exit.signal) == (AGENT_STATE_TERMINATED, 0, 0)
    assert (await client.tasks.get(task.task_id)).state == TASK_STATE_SUCCEEDED


async def test_idle_agent_leaves_by_itself(client: Client) -> None:
    agent = await spawn(client)

    ended = await client.agents.terminate(agent.agent_id, grace_period=LONG)

    assert (ended.state, ended.exit.message) == (AGENT_STATE_TERMINATED, "exited with code 0")


async def test_dead_host_fails_its_agent_and_requeues_its_task(
    client: Client, watch: TreeWatch, tmp_path: Path
) -> None:
    agent = await spawn(client)
    prompt = f"exec 9>{watch.path}; setsid sh -c \"trap '' TERM; sleep 1000\" & echo program >&9; wait"
    task = await client.tasks.create("sh", prompt)
    await watch.said("program")

    os.kill(agent.pid, signal.SIGKILL)
    ended = await reached(client, agent.agent_id, AGENT_STATE_FAILED)

    assert not watch.alive
    assert ended.state_reason.startswith("its host killed by SIGKILL")
    assert (await client.tasks.get(task.task_id)).state == TASK_STATE_QUEUED


async def test_agents_and_their_tasks_survive_the_death_of_the_server(
    client: Client, server_process: ServerProcess, watch: TreeWatch, tmp_path: Path
) -> None:
    agent = await spawn(client)
    task = await client.tasks.create("sh", family(watch, tmp_path / "gate"))
    await watch.said("program")

    await asyncio.to_thread(server_process.restart)
    await asyncio.to_thread((tmp_path / "gate").write_text, "go on\n")
    async with asyncio.timeout(LONG):
        done = await client.tasks.wait(task.task_id)
    after = await client.agents.get(agent.agent_id)

    assert (done.state, done.attempt) == (TASK_STATE_SUCCEEDED, 1)
    assert (after.pid, after.instance) == (agent.pid, 1)
    ended = await client.agents.terminate(agent.agent_id, grace_period=LONG)
    assert not watch.alive
    assert ended.state == AGENT_STATE_TERMINATED


async def test_host_that_dies_without_a_server_is_noticed_at_the_next_start(
    client: Client, server_process: ServerProcess, watch: TreeWatch, tmp_path: Path
) -> None:
    agent = await spawn(client)
    prompt = f"exec 9>{watch.path}; setsid sh -c \"trap '' TERM; sleep 1000\" & echo program >&9; wait"
    task = await client.tasks.create("sh", prompt)
    await watch.said("program")

    await asyncio.to_thread(server_process.kill)
    os.kill(agent.pid, signal.SIGKILL)
    await asyncio.to_thread(server_process.start)
    await reached(client, agent.agent_id, AGENT_STATE_FAILED)

    assert not watch.alive
    assert (await client.tasks.get(task.task_id)).state == TASK_STATE_QUEUED


async def test_termination_is_finished_by_the_next_server(
    client: Client, server_process: ServerProcess, watch: TreeWatch, tmp_path: Path
) -> None:
    agent = await spawn(client)
    await client.tasks.create("sh", family(watch, tmp_path / "gate"))
    await watch.said("program")
    terminating = asyncio.create_task(client.agents.terminate(agent.agent_id, grace_period=3600))
    async with client.agents.watch(agent_ids=[agent.agent_id], initial_state=True) as events:
        async for event in events:
            if event.agent.state_reason == "terminated on request":
                break

    await asyncio.to_thread(server_process.restart)
    ended = await reached(client, agent.agent_id, AGENT_STATE_TERMINATED)

    assert not watch.alive
    assert ended.state == AGENT_STATE_TERMINATED
    terminating.cancel()
    await asyncio.gather(terminating, return_exceptions=True)


async def test_interrupted_server_leaves_no_process(
    client: Client, server_process: ServerProcess, watch: TreeWatch, tmp_path: Path
) -> None:
    for _ in range(3):
        await spawn(client)
    await client.tasks.create("sh", family(watch, tmp_path / "gate"))
    await watch.said("program")
    log_id = json.loads((server_process.data_dir / "server.json").read_text())["log_id"]

    code = await asyncio.to_thread(server_process.stop, signal.SIGINT)

    assert code in (0, 130)
    assert not watch.alive
    assert ProcessTable.read(log_id).agent_ids == set()


async def test_server_killed_again_and_again_while_agents_come_and_go(
    client: Client, server_process: ServerProcess
) -> None:
    names = [f"agent_{number}" for number in range(12)]

    for number in range(6):
        spawning = [asyncio.create_task(spawn(client, name)) for name in names[2 * number : 2 * number + 2]]
        ending = [
            asyncio.create_task(client.agents.terminate(name, force=number % 2 == 0, grace_period=0.1))
            for name in names[2 * number - 2 : 2 * number - 1]
        ]
        # From the moment of the request to a while after the answer.
        if number:
            await asyncio.wait(spawning + ending, return_when=asyncio.FIRST_COMPLETED, timeout=0.15 * number)
        await asyncio.to_thread(server_process.restart)
        for call in spawning + ending:
            call.cancel()
        await asyncio.gather(*spawning, *ending, return_exceptions=True)

    known = [agent async for agent in client.agents.iterate()]
    settled = {
        agent.agent_id: await reached(
            client, agent.agent_id, AGENT_STATE_ACTIVE, AGENT_STATE_TERMINATED, AGENT_STATE_FAILED
        )
        for agent in known
    }
    states = Counter(AgentState.Name(agent.state) for agent in settled.values())
    assert states["AGENT_STATE_FAILED"] == 0, states
    live = {name for name, agent in settled.items() if agent.state == AGENT_STATE_ACTIVE}
    hosts = table(server_process)
    assert hosts.agent_ids == live
    assert all(len(hosts.tree(name)) == 1 for name in live), "one host an agent"
    for name in live:
        await client.agents.terminate(name, force=True)
    assert table(server_process).agent_ids == set()


async def test_log_of_the_host_can_be_read_and_followed_to_its_end(client: Client) -> None:
    agent = await spawn(client)
    lines: list[str] = []

    async def follow() -> None:
        async with client.agents.logs(agent.agent_id, follow=True) as log:
            async for entry in log:
                lines.append(entry.text)

    following = asyncio.create_task(follow())
    await client.agents.terminate(agent.agent_id)
    async with asyncio.timeout(LONG):
        await following

    assert lines
    assert not any("kapell_ticket" in line or "kapell_agent_" in line for line in lines)


async def test_program_that_is_not_there_is_refused_before_an_agent_is_made(client: Client) -> None:
    spec = AgentSpec(agent_types=["sh"], command=CommandRuntime(argv=["no-such-program"]))

    with pytest.raises(KapellError) as refusal:
        await client.agents.spawn(spec=spec)

    assert refusal.value.reason == "PROGRAM_NOT_FOUND"
    assert "Install it" in str(refusal.value)
    assert [agent async for agent in client.agents.iterate()] == []


async def test_agent_that_was_deleted_leaves_no_files(client: Client, server_process: ServerProcess) -> None:
    agent = await spawn(client)
    await client.agents.terminate(agent.agent_id)
    directory = server_process.data_dir / "agents" / agent.agent_id
    assert (directory / "host.log").exists()

    await client.agents.delete(agent.agent_id)
    await spawn(client)

    assert not directory.exists()


async def test_environment_of_a_spec_reaches_the_program_and_nobody_else(
    server_process: ServerProcess, client: Client
) -> None:
    secret = "canary-7d1f"
    command = CommandRuntime(argv=["sh", "-c", "{prompt}"], env={"API_KEY": secret})
    agent = await client.agents.spawn(spec=AgentSpec(agent_types=["sh"], command=command), wait=LONG)

    task = await client.tasks.run("sh", "test ${#API_KEY} = 11 && echo it has it", timeout=LONG)

    assert task.result.string_value.strip() == "it has it"
    read = await client.agents.get(agent.agent_id)
    assert dict(read.spec.command.env) == {"API_KEY": "[hidden]"}
    events = [event async for event in client.events.iterate()]
    assert events and not any(secret in str(event) for event in events)
    assert secret not in (server_process.data_dir / "agents" / agent.agent_id / "host.log").read_text()
