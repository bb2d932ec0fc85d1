"""Agents that are started again, with everything real: hosts killed, servers killed in between, ended for good."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_TERMINATED,
    RESTART_MODE_ON_FAILURE,
    Agent,
    AgentSpec,
    CommandRuntime,
    RestartPolicy,
)
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED

from tests.spawner.tree_watch import TreeWatch
from tests.support.server_process import ServerProcess

LONG = 60.0
SOON = Duration(nanos=100_000_000)
FAR = Duration(seconds=600)


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    async with Client(Endpoint(address=server_process.address, token=server_process.admin_token)) as connected:
        yield connected


def restarting(pause: Duration, most: int = 5) -> AgentSpec:
    policy = RestartPolicy(
        mode=RESTART_MODE_ON_FAILURE, first_pause=pause, longest_pause=Duration(seconds=1200), max_restarts=most
    )
    return AgentSpec(agent_types=["sh"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]), restart=policy)


async def reached(client: Client, agent_id: str, wanted: Callable[[Agent], bool]) -> Agent:
    """Waits until the agent is as wanted."""
    async with asyncio.timeout(LONG), client.agents.watch(agent_ids=[agent_id], initial_state=True) as events:
        async for event in events:
            if wanted(event.agent):
                return event.agent
    raise AssertionError("a watch does not end")


async def test_a_host_that_is_killed_is_started_again_until_that_is_given_up(client: Client) -> None:
    agent = await client.agents.spawn(spec=restarting(SOON, most=2), wait=30)

    for instance in (1, 2, 3):
        alive = await reached(
            client, agent.agent_id, lambda a, n=instance: a.state == AGENT_STATE_ACTIVE and a.instance == n
        )
        task = await client.tasks.create("sh", f"echo {instance}")
        assert (await client.tasks.wait(task.task_id)).state == TASK_STATE_SUCCEEDED
        os.kill(alive.pid, signal.SIGKILL)

    ended = await reached(client, agent.agent_id, lambda a: a.state == AGENT_STATE_FAILED)
    assert ended.restart_count == 2
    assert ended.state_reason.startswith("given up after 2 restarts in a row: its host killed by SIGKILL")


async def test_what_a_dead_host_left_is_gone_before_the_next_one_starts(client: Client, watch: TreeWatch) -> None:
    agent = await client.agents.spawn(spec=restarting(SOON), wait=30)
    deaf = f"exec 9>{watch.path}; setsid sh -c \"trap '' TERM; sleep 1000\" & echo program >&9; wait"
    await client.tasks.create("sh", deaf, max_attempts=1)
    await watch.said("program")

    os.kill(agent.pid, signal.SIGKILL)
    await reached(client, agent.agent_id, lambda a: a.restart_count == 1)

    assert not watch.alive


async def test_the_next_server_starts_what_the_last_one_was_to_start(
    client: Client, server_process: ServerProcess
) -> None:
    agent = await client.agents.spawn(spec=restarting(Duration(seconds=2)), wait=30)
    os.kill(agent.pid, signal.SIGKILL)
    await reached(client, agent.agent_id, lambda a: a.HasField("next_start_time"))

    await asyncio.to_thread(server_process.restart)
    again = await reached(client, agent.agent_id, lambda a: a.state == AGENT_STATE_ACTIVE and a.instance == 2)

    assert again.pid != agent.pid
    ended = await client.agents.terminate(agent.agent_id, grace_period=LONG)
    assert (ended.state, ended.restart_count) == (AGENT_STATE_TERMINATED, 1)


async def test_one_that_waits_for_its_next_start_can_be_ended(client: Client) -> None:
    agent = await client.agents.spawn(spec=restarting(FAR), wait=30)
    os.kill(agent.pid, signal.SIGKILL)
    await reached(client, agent.agent_id, lambda a: a.HasField("next_start_time"))

    async with asyncio.timeout(LONG):
        ended = await client.agents.terminate(agent.agent_id)

    assert ended.state == AGENT_STATE_TERMINATED
    assert ended.exit.message == "killed by SIGKILL", "how it has ended, and not that it was to start"
