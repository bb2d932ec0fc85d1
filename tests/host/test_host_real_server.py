"""Spawned agents on a real server: real hosts, real programs, and the death of any of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell._worker.values import from_value
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_TERMINATED,
    Agent,
    AgentSpec,
    CommandRuntime,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    TASK_STATE_SUCCEEDED,
    Task,
)

from tests.host.test_host import ends, is_running
from tests.support.server_process import ServerProcess

SHELL = AgentSpec(agent_types=["sh"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    async with Client(endpoint) as connected:
        yield connected


async def spawn(client: Client) -> Agent:
    agent = await client.agents.spawn(spec=SHELL, wait=20)
    assert agent.state == AGENT_STATE_ACTIVE, agent.state_reason
    return agent


async def first_lines(client: Client, task: Task, count: int) -> list[str]:
    """The first lines a program writes, remarks of the host left out; waits for them."""
    lines: list[str] = []
    async with asyncio.timeout(30), client.tasks.logs(task.task_id, follow=True) as log:
        async for entry in log:
            if not entry.text.startswith("started "):
                lines.append(entry.text)
            if len(lines) == count:
                break
    return lines


async def test_command_runs_in_an_agent_and_streams_its_output(client: Client) -> None:
    await spawn(client)

    task = await client.tasks.create("sh", "echo one; echo '::progress 50% half'; echo two >&2; echo three")
    ended = await client.tasks.wait(task.task_id)
    async with client.tasks.logs(task.task_id) as log:
        lines = sorted([entry.text async for entry in log][1:])

    assert (ended.state, from_value(ended.result)) == (TASK_STATE_SUCCEEDED, "one\nthree")
    assert ended.progress.message == "half"
    assert lines == ["one", "three", "two"]


async def test_failing_command_fails_its_task_with_the_end_of_stderr(client: Client) -> None:
    await spawn(client)

    task = await client.tasks.run("sh", "echo reason >&2; exit 9", max_attempts=1)

    assert (task.state, task.failure.reason) == (TASK_STATE_FAILED, "EXIT_CODE")
    assert task.failure.message == "sh exited with code 9:\nreason"
    assert task.failure.details.fields["exit_code"].number_value == 9


async def test_programs_and_agents_survive_kills_of_the_server(
    client: Client, server_process: ServerProcess, tmp_path: Path
) -> None:
    agent = await spawn(client)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    task = await client.tasks.create("sh", f"echo $$; cat {gate}; echo end")
    [pid] = await first_lines(client, task, 1)

    for _ in range(3):
        await asyncio.to_thread(server_process.restart)
    assert is_running(int(pid))
    await asyncio.to_thread(server_process.kill)
    await asyncio.to_thread(gate.write_text, "said while the server was dead\n")
    await asyncio.to_thread(server_process.start)
    ended = await client.tasks.wait(task.task_id)
    after = await client.agents.get(agent.agent_id)

    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 1)
    assert from_value(ended.result) == f"{pid}\nsaid while the server was dead\nend"
    assert (after.state, after.instance, after.pid) == (AGENT_STATE_ACTIVE, 1, agent.pid)


async def test_killed_host_takes_its_programs_along_and_its_task_goes_to_another(client: Client) -> None:
    agent = await spawn(client)
    task = await client.tasks.create("sh", 'test "$KAPELL_ATTEMPT" = 2 || { echo $$; sleep 300; }')
    [pid] = await first_lines(client, task, 1)
    program = os.pidfd_open(int(pid))

    os.kill(agent.pid, signal.SIGKILL)
    await ends(program)
    await spawn(client)
    async with asyncio.timeout(30):
        ended = await client.tasks.wait(task.task_id)
    after = await client.agents.get(agent.agent_id)

    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 2)
    assert after.state == AGENT_STATE_FAILED


async def test_host_and_server_killed_together_leave_no_program_and_lose_no_task(
    client: Client, server_process: ServerProcess
) -> None:
    agent = await spawn(client)
    # The second one gave its parent up, so that only the server's sweep can find it.
    script = 'test "$KAPELL_ATTEMPT" = 2 || { echo $$; setsid sleep 300 & echo $!; sleep 300; }'
    task = await client.tasks.create("sh", script)
    pids = [int(line) for line in await first_lines(client, task, 2)]
    watched = [os.pidfd_open(pid) for pid in pids]

    os.kill(agent.pid, signal.SIGKILL)
    await asyncio.to_thread(server_process.kill)
    await asyncio.to_thread(server_process.start)
    for pidfd in watched:
        await ends(pidfd)
    await spawn(client)
    async with asyncio.timeout(30):
        ended = await client.tasks.wait(task.task_id)

    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 2)


async def test_cancelled_task_leaves_no_process(client: Client) -> None:
    await spawn(client)
    task = await client.tasks.create("sh", "echo $$; setsid sleep 300 & echo $!; wait")
    pids = await first_lines(client, task, 2)

    await client.tasks.cancel(task.task_id)
    ended = await client.tasks.wait(task.task_id)

    assert ended.state == TASK_STATE_CANCELLED
    assert [is_running(int(pid)) for pid in pids] == [False, False]


async def test_attempt_that_takes_too_long_is_ended(client: Client) -> None:
    await spawn(client)

    task = await client.tasks.create("sh", "echo $$; sleep 300", run_timeout=0.5, max_attempts=1)
    ended = await client.tasks.wait(task.task_id)
    [pid] = await first_lines(client, task, 1)

    assert (ended.state, ended.failure.reason) == (TASK_STATE_FAILED, "RUN_TIMEOUT")
    assert not is_running(int(pid))


@pytest.mark.parametrize("force", [True, False], ids=["forced", "graceful"])
async def test_terminated_agent_leaves_no_process_and_its_task_is_queued_again(client: Client, force: bool) -> None:
    agent = await spawn(client)
    task = await client.tasks.create("sh", "echo $$; sleep 300")
    [pid] = await first_lines(client, task, 1)

    ended = await client.agents.terminate(agent.agent_id, force=force, grace_period=0.2)
    left = [number for number in (agent.pid, int(pid)) if is_running(number)]
    again = await client.tasks.get(task.task_id)

    assert (ended.state, left) == (AGENT_STATE_TERMINATED, [])
    assert again.state == TASK_STATE_QUEUED


async def test_graceful_end_lets_a_task_finish(client: Client, tmp_path: Path) -> None:
    agent = await spawn(client)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    task = await client.tasks.create("sh", f"echo up; cat {gate}")
    await first_lines(client, task, 1)

    terminating = asyncio.create_task(client.agents.terminate(agent.agent_id, grace_period=30))
    await asyncio.to_thread(gate.write_text, "down\n")
    agent = await terminating
    ended = await client.tasks.get(task.task_id)

    assert agent.state == AGENT_STATE_TERMINATED
    assert (ended.state, from_value(ended.result)) == (TASK_STATE_SUCCEEDED, "up\ndown")


async def test_drained_agent_works_again_when_it_is_resumed(client: Client) -> None:
    agent = await spawn(client)

    await client.agents.drain(agent.agent_id)
    waiting = await client.tasks.create("sh", "true")
    await client.agents.resume(agent.agent_id)
    async with asyncio.timeout(20):
        ended = await client.tasks.wait(waiting.task_id)

    assert ended.state == TASK_STATE_SUCCEEDED
