"""Worktrees with a real server and a real host: from the profile to the files that are kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AgentSpec, CommandRuntime
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED
from kapell.v1.workspace_pb2 import GitWorktree, WorkspaceRepository, WorkspaceSpec

from tests.support.server_process import ServerProcess
from tests.workspace.repositories import repository, show


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    async with Client(Endpoint(address=server_process.address, token=server_process.admin_token)) as connected:
        yield connected


async def spawn(client: Client, shop: Path) -> None:
    worktree = GitWorktree(repositories=[WorkspaceRepository(name="shop", path=str(shop))])
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
