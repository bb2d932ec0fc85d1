"""Worktrees with a real server and a real host: from the profile to the files that are kept."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AgentSpec, CommandRuntime
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from kapell.v1.workspace_pb2 import (
    MERGE_OUTCOME_CONFLICT,
    MERGE_OUTCOME_MERGED,
    GitWorktree,
    WorkspaceMergePolicy,
    WorkspaceRepository,
    WorkspaceSpec,
)

from tests.support.server_process import ServerProcess
from tests.workspace.repositories import repository, show


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    async with Client(Endpoint(address=server_process.address, token=server_process.admin_token)) as connected:
        yield connected


async def spawn(client: Client, shop: Path, merge: WorkspaceMergePolicy | None = None) -> None:
    worktree = GitWorktree(repositories=[WorkspaceRepository(name="shop", path=str(shop))], merge=merge)
    spec = AgentSpec(
        agent_types=["coder"],
        slots=2,
        command=CommandRuntime(argv=["sh", "-c", "{prompt}"]),
        workspace=WorkspaceSpec(git_worktree=worktree),
    )
    agent = await client.agents.spawn(spec=spec, wait=20)
    assert agent.state == AGENT_STATE_ACTIVE, agent.state_reason


async def test_tasks_at_the_same_time_have_worktrees_of_their_own(
    client: Client, server_process: ServerProcess, tmp_path: Path
) -> None:
    shop = repository(tmp_path / "shop")
    await spawn(client, shop)

    tasks = [
        await client.tasks.create("coder", f"echo {name} > name; git add name; git commit -qm mine; echo left > left")
        for name in ("one", "two")
    ]
    ended = [await client.tasks.wait(task.task_id) for task in tasks]

    assert [task.state for task in ended] == [TASK_STATE_SUCCEEDED] * 2
    for task, name in zip(tasks, ("one", "two"), strict=True):
        assert show(shop, f"kapell/{task.task_id}:name") == name
        assert show(shop, f"kapell/{task.task_id}:left") == "left"
    assert [(left.files_changed, left.attempt) for task in ended for left in task.workspaces] == [(2, 1)] * 2
    for task in tasks:
        kept = [artifact.name async for artifact in client.artifacts.iterate(task.task_id)]
        assert sorted(kept) == ["commits.txt", "diff.patch"]
        assert (server_process.data_dir / "workspaces" / "trees" / task.task_id / "shop" / "left").exists()


async def test_worktrees_outlive_kills_of_host_and_server(
    client: Client, server_process: ServerProcess, tmp_path: Path
) -> None:
    shop = repository(tmp_path / "shop")
    await spawn(client, shop)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    first = f"echo 1 > first; git add first; echo 2 > left; echo up > {gate}; sleep 300"
    script = f'test "$KAPELL_ATTEMPT" = 2 || {{ {first}; }}; echo 3 > more'
    task = await client.tasks.create("coder", script)
    await asyncio.to_thread(gate.read_text)
    [agent] = [agent async for agent in client.agents.iterate()]

    os.kill(agent.pid, signal.SIGKILL)
    await asyncio.to_thread(server_process.restart)
    await spawn(client, shop)
    ended = await client.tasks.wait(task.task_id)

    assert (ended.state, ended.attempt) == (TASK_STATE_SUCCEEDED, 2)
    [left] = ended.workspaces
    assert (left.files_changed, left.attempt, left.dirty) == (3, 2, False)
    assert [show(shop, f"{left.branch}:{name}") for name in ("first", "left", "more")] == ["1", "2", "3"]


async def test_a_cancelled_task_keeps_what_it_has_done(client: Client, tmp_path: Path) -> None:
    shop = repository(tmp_path / "shop")
    await spawn(client, shop)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    task = await client.tasks.create("coder", f"echo 1 > first; echo up > {gate}; sleep 300")
    await asyncio.to_thread(gate.read_text)

    await client.tasks.cancel(task.task_id)
    ended = await client.tasks.wait(task.task_id)

    assert ended.state == TASK_STATE_CANCELLED
    assert [left.files_changed for left in ended.workspaces] == [1]
    assert show(shop, f"kapell/{task.task_id}:first") == "1"


async def test_success_merges_where_the_profile_says_so(client: Client, tmp_path: Path) -> None:
    shop = repository(tmp_path / "shop")
    await spawn(client, shop, WorkspaceMergePolicy(on_success=True, check=["test", "-e", "README.md"]))

    tasks = [await client.tasks.create("coder", f"echo {name} > {name}") for name in ("one", "two")]
    ended = [await client.tasks.wait(task.task_id) for task in tasks]
    bad = await client.tasks.run("coder", "rm README.md")
    held = [lock async for lock in client.locks.iterate()]

    assert [task.state for task in ended] == [TASK_STATE_SUCCEEDED] * 2
    assert [task.workspaces[0].merge.outcome for task in ended] == [MERGE_OUTCOME_MERGED] * 2
    assert [(shop / name).read_text() for name in ("one", "two")] == ["one\n", "two\n"]
    assert (bad.state, bad.failure.reason, bad.attempt) == (TASK_STATE_FAILED, "MERGE_FAILED", 1)
    assert show(shop, "main:README.md") == "# Shop"
    assert held == []


async def test_a_conflict_fails_the_attempt_that_was_to_merge(client: Client, tmp_path: Path) -> None:
    shop = repository(tmp_path / "shop")
    await spawn(client, shop, WorkspaceMergePolicy(on_success=True))
    up, gate = tmp_path / "up", tmp_path / "gate"
    os.mkfifo(up)
    os.mkfifo(gate)
    slow = await client.tasks.create("coder", f"echo slow > same; echo > {up}; cat {gate}")
    await asyncio.to_thread(up.read_text)
    await client.tasks.run("coder", "echo fast > same")

    await asyncio.to_thread(gate.write_text, "go on")
    ended = await client.tasks.wait(slow.task_id)

    assert (ended.state, ended.failure.reason) == (TASK_STATE_FAILED, "MERGE_FAILED")
    assert ended.failure.message.endswith("were changed in main, too: same")
    assert ended.workspaces[0].merge.outcome == MERGE_OUTCOME_CONFLICT
    assert show(shop, "main:same") == "fast"
    assert show(shop, f"{ended.workspaces[0].branch}:same") == "slow"
