"""Where attempts work: the workspace of the profile, as every runtime finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kapell._worker.outcome import TaskFailed
from kapell.host.workshop import Workshop
from kapell.runtimes.command import Command
from kapell.runtimes.contract import Workspace
from kapell.v1.agent_pb2 import CommandRuntime
from kapell.v1.workspace_pb2 import WorkspaceSpec

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task, run, sh


async def test_a_program_runs_in_the_workspace_of_its_attempt(tmp_path: Path) -> None:
    attempt = RecordedAttempt(workspace=Workspace(directory=tmp_path, environment={"KAPELL_WORKSPACE": "here"}))

    said = await run(tmp_path, sh('pwd; echo "$KAPELL_WORKSPACE"'), None, attempt)

    assert said == f"{tmp_path}\nhere"


async def test_a_working_directory_of_the_runtime_comes_first(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    attempt = RecordedAttempt(workspace=Workspace(directory=tmp_path))

    said = await run(tmp_path, sh("pwd", working_directory=str(own)), None, attempt)

    assert said == str(own)


async def in_directory(spec: WorkspaceSpec, tmp_path: Path, command: CommandRuntime) -> object:
    runtime = Command(command, agent_id="agent_one", directory=tmp_path / "agent")
    try:
        return await Workshop(spec, runtime, agent_id="agent_one").run(RecordedAttempt(), a_task())
    finally:
        await runtime.close()


async def test_a_shared_directory_is_the_workspace_of_all_attempts(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()

    said = await in_directory(WorkspaceSpec(directory=str(shared)), tmp_path, sh('pwd; echo "$KAPELL_WORKSPACE"'))

    assert said == f"{shared}\n{shared}"


async def test_a_missing_directory_is_said_and_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="nowhere does not exist - create it") as caught:
        await in_directory(WorkspaceSpec(directory=str(tmp_path / "nowhere")), tmp_path, sh("true"))

    assert (caught.value.reason, caught.value.retryable) == ("SETUP_FAILED", False)


async def test_without_a_workspace_the_directory_is_a_fresh_one(tmp_path: Path) -> None:
    said = await in_directory(WorkspaceSpec(), tmp_path, sh('pwd; echo "${KAPELL_WORKSPACE-none}"'))

    assert str(said).startswith(str(tmp_path / "agent" / "attempts"))
    assert str(said).endswith("work\nnone")
