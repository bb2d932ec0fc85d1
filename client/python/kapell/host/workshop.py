"""Gives each attempt its workspace, and looks after it when the attempt has ended.

Stands between the worker and the runtime, so that no runtime knows how a workspace comes to be:
it finds `attempt.workspace`, or None where it is to make a directory of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

from kapell._worker.outcome import TaskFailed
from kapell.host.task_worktrees import TaskWorktrees
from kapell.runtimes.contract import Attempt, Runtime, Workspace
from kapell.v1.task_pb2 import Task
from kapell.v1.workspace_pb2 import WorkspaceSpec

ROOT = "KAPELL_WORKSPACES_DIR"
"""Environment variable by which the server says where worktrees and their registry are."""


class Workshop:
    """The workspaces of one agent."""

    def __init__(self, spec: WorkspaceSpec, runtime: Runtime, *, agent_id: str) -> None:
        self._spec = spec
        self._runtime = runtime
        root = Path(os.environ.get(ROOT) or Path.cwd() / "workspaces")
        self._worktrees = TaskWorktrees(spec.git_worktree, root, agent_id=agent_id)

    async def run(self, attempt: Attempt, task: Task) -> object:
        """As Runtime.run, in the workspace that the spec says. Raises TaskFailed where there is none to be had."""
        kind = self._spec.WhichOneof("kind")
        if kind == "git_worktree":
            async with self._worktrees.of(attempt, task) as worktrees:
                attempt.workspace = worktrees.workspace
                return await worktrees.keep_work(self._runtime.run(attempt, task))
        if kind == "directory":
            attempt.workspace = _shared(Path(self._spec.directory))
        return await self._runtime.run(attempt, task)


def _shared(directory: Path) -> Workspace:
    if not directory.is_dir():
        problem = "does not exist" if not directory.exists() else "is no directory"
        hint = "create it, or correct the profile"
    elif not os.access(directory, os.W_OK | os.X_OK):
        problem, hint = "may not be written to", "check its permissions"
    else:
        return Workspace(directory=directory, environment={"KAPELL_WORKSPACE": str(directory)})
    raise TaskFailed("SETUP_FAILED", f"the workspace {directory} {problem} - {hint}", retryable=False)
