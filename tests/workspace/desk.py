"""A host's worktrees and attempts that work in them: real git, a stand-in for the attempt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kapell._worker.outcome import TaskFailed
from kapell._workspace.registry import Record, Registry
from kapell.host.task_worktrees import TaskWorktrees
from kapell.runtimes.contract import Workspace
from kapell.v1.task_pb2 import Task
from kapell.v1.workspace_pb2 import GitWorktree, WorkspaceRepository

from tests.host.attempts import RecordedAttempt
from tests.workspace.repositories import write

Work = Callable[[Workspace], object]


class Desk:
    """A host's worktrees, and attempts that work in them."""

    def __init__(self, tmp_path: Path, **spec: object) -> None:
        self.shop = tmp_path / "shop"
        self.root = tmp_path / "data" / "workspaces"
        self.registry = Registry(self.root)
        self.spec = GitWorktree(
            **{"repositories": [WorkspaceRepository(name="shop", path=str(self.shop))], **spec}  # type: ignore[arg-type]
        )

    async def attempt(
        self, work: Work = lambda place: None, *, task_id: str = "task_one", number: int = 1
    ) -> RecordedAttempt:
        """One attempt from its beginning to its end."""
        attempt = RecordedAttempt(task_id=task_id, attempt=number)
        task = Task(task_id=task_id, agent_type="coder")
        made = TaskWorktrees(self.spec, self.root, agent_id="agent_one")
        async with made.of(attempt, task) as trees:
            attempt.workspace = trees.workspace

            async def run() -> object:
                return work(trees.workspace)

            await trees.keep_work(run())
        return attempt

    async def refusal(self, **more: object) -> TaskFailed:
        with pytest.raises(TaskFailed) as caught:
            await self.attempt(**more)  # type: ignore[arg-type]
        assert caught.value.reason == "SETUP_FAILED"
        return caught.value

    def record(self, task_id: str = "task_one", name: str = "shop") -> Record:
        found = self.registry.find(task_id, name)
        assert found is not None
        return found


def exit_code(script: str, *args: Path) -> int:
    """How a Python program of its own ends."""
    return subprocess.run([sys.executable, "-c", script, *map(str, args)], check=False).returncode


def writes(**files: str) -> Work:
    return lambda place: write(place.directory, files)
