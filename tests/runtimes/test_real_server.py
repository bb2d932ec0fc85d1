"""The runtimes in spawned agents of a real server: from a task to its end, and what happens in between."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kapell import Client
from kapell._worker.values import from_value
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, Agent, AgentSpec
from kapell.v1.approval_pb2 import Approval
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_SUCCEEDED, Task

from tests.host.test_host import is_running
from tests.runtimes.casts import CASTS, PROGRAMS, WORKERS, Stage, acp
from tests.runtimes.test_acp_service import permission
from tests.support.model_endpoint import ModelEndpoint
from tests.support.server_process import ServerProcess


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    async with Client(endpoint) as connected:
        yield connected


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    directory = tmp_path / "shop"
    directory.mkdir()
    subprocess.run(["git", "init", "-q", str(directory)], check=True)
    return directory


async def spawn(client: Client, spec: AgentSpec) -> Agent:
    agent = await client.agents.spawn(spec=spec, wait=30)
    assert agent.state == AGENT_STATE_ACTIVE, agent.state_reason
    return agent


async def lines_of(client: Client, task: Task) -> list[str]:
    async with client.tasks.logs(task.task_id) as log:
        return [entry.text async for entry in log]


async def until_logged(client: Client, task: Task, count: int) -> list[str]:
    """The first lines that are numbers; waits for them."""
    found: list[str] = []
    async with asyncio.timeout(30), client.tasks.logs(task.task_id, follow=True) as log:
        async for entry in log:
            found += [entry.text] if entry.text.isdigit() else []
            if len(found) == count:
                break
    return found


async def asked(client: Client, task: Task) -> Approval:
    """The approval that the task waits for."""
    async with asyncio.timeout(30), client.approvals.watch(task_ids=[task.task_id]) as approvals:
        async for approval in approvals:
            return await client.approvals.get(approval.approval_id)
    raise AssertionError("the watch has ended")


@pytest.mark.parametrize("runtime", WORKERS)
async def test_task_is_done(client: Client, tmp_path: Path, runtime: str) -> None:
    steps = [["progress", 50, "half"], ["say", "hello"], ["usage", 0.25]]
    agent = await spawn(client, CASTS[runtime](Stage(tmp_path, ModelEndpoint()), {"steps": steps}))

    task = await client.tasks.run("played", "do it")
    cost = (await client.tasks.get(task.task_id)).usage.cost

    assert agent.runtime == runtime
    assert task.state == TASK_STATE_SUCCEEDED
    assert (cost.units, cost.nanos) == (0, 250_000_000)
    assert "half" in (task.progress.step, task.progress.message)
    assert "hello" in await lines_of(client, task)


@pytest.mark.parametrize("runtime", PROGRAMS)
async def test_nothing_is_left_of_a_task_that_is_cancelled_and_of_an_agent_that_is_ended(
    client: Client, tmp_path: Path, runtime: str
) -> None:
    agent = await spawn(client, CASTS[runtime](Stage(tmp_path, ModelEndpoint()), {"steps": [["leave"], ["hang"]]}))
    first = await client.tasks.create("played", "do it")
    pids = await until_logged(client, first, 2)

    await client.tasks.cancel(first.task_id)
    cancelled = await client.tasks.wait(first.task_id)
    left = [is_running(int(pid)) for pid in pids]
    second = await client.tasks.create("played", "do it again")
    pids = await until_logged(client, second, 2)
    await client.agents.terminate(agent.agent_id, force=True)

    assert (cancelled.state, left) == (TASK_STATE_CANCELLED, [False, False])
    assert [is_running(int(pid)) for pid in (*pids, agent.pid)] == [False] * 3


async def test_permission_is_decided_by_a_person_and_outlives_the_server(
    client: Client, server_process: ServerProcess, tmp_path: Path, shop: Path
) -> None:
    change = {"type": "diff", "path": f"{shop}/a.py", "oldText": None, "newText": "one\n"}
    call = {"title": "Write a.py", "kind": "edit", "content": [change], "locations": [{"path": f"{shop}/a.py"}]}
    write = ["call", "fs/write_text_file", {"path": f"{shop}/a.py", "content": "one\n"}]
    script = {"steps": [permission(call), write, ["say", "done"]]}
    await spawn(client, acp(tmp_path, script, working_directory=str(shop)))
    task = await client.tasks.create("played", "write a file")

    approval = await asked(client, task)
    await asyncio.to_thread(server_process.restart)
    waiting = await client.tasks.get(task.task_id)
    await client.approvals.decide(approval, "proceed-always", comment="well")
    ended = await client.tasks.wait(task.task_id)
    lines = await lines_of(client, task)
    rules = (await client.approvals.list_rules()).rules

    assert approval.content.diff.splitlines()[-1] == "+one"
    assert list(approval.content.paths) == [f"{shop}/a.py"]
    assert [option.label for option in approval.options] == ["Always allow"]
    assert waiting.waiting.detail == "Write a.py"
    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 1)
    answer = json.loads(next(line for line in lines if "outcome" in line))
    assert answer["outcome"]["optionId"] == "Proceed Always"
    assert (shop / "a.py").read_text() == "one\n"
    assert [(rule.spec.tool, list(rule.spec.paths)) for rule in rules] == [("edit", [f"{shop}/a.py"])]


async def test_refused_permission_is_told_to_the_agent(client: Client, tmp_path: Path) -> None:
    await spawn(client, acp(tmp_path, {"steps": [permission({"title": "rm -rf /", "kind": "execute"})]}))
    task = await client.tasks.create("played", "clean up")

    approval = await asked(client, task)
    await client.approvals.decide(approval, "deny", comment="not on my machine")
    ended = await client.tasks.wait(task.task_id)

    assert approval.content.command == "rm -rf /"
    assert approval.risk.reasons
    assert "not on my machine" in str(from_value(ended.result))
    assert '"optionId": "cancel"' in str(from_value(ended.result))


async def test_file_that_another_has_locked_is_not_written(client: Client, tmp_path: Path, shop: Path) -> None:
    steps = [["call", "fs/write_text_file", {"path": f"{shop}/{name}", "content": "x"}] for name in ("src/a", "docs/b")]
    await spawn(client, acp(tmp_path, {"steps": steps}, working_directory=str(shop)))

    async with client.locks.lock("shop/src", note="a release"):
        without = await client.tasks.run("played", "write")
    declared = await client.tasks.run("played", "write", locks=["shop/src"])
    lines = {task.task_id: await lines_of(client, task) for task in (without, declared)}

    assert any("shop/src is locked by" in line and "a release" in line for line in lines[without.task_id])
    assert any("no lock of yours covers it" in line for line in lines[declared.task_id])
    assert [line for line in lines[declared.task_id] if line.startswith("wrote")] == ["wrote src/a, 1 bytes"]


async def test_secret_of_the_profile_reaches_the_agent_and_no_log(client: Client, tmp_path: Path) -> None:
    await client.secrets.set("model-key", "tops3cret-value")
    script: dict[str, Any] = {"steps": [["environment", "MODEL_KEY"]]}
    await spawn(client, acp(tmp_path, script, env_from_secret={"MODEL_KEY": "model-key"}))

    task = await client.tasks.run("played", "say it")

    said = f"{await lines_of(client, task)}{task}"
    assert task.state == TASK_STATE_SUCCEEDED
    assert "tops3cret" not in said
    assert "(not set)" not in said
