"""What programs leave in KAPELL_ARTIFACTS_DIR: with a stand-in attempt, and through a real server and host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client
from kapell._worker.outcome import TaskFailed
from kapell.discovery import Endpoint
from kapell.errors import Exhausted, LeaseLost
from kapell.runtimes._artifacts import MOST_FILES, send
from kapell.runtimes.command import Command
from kapell.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task, run, sh
from tests.host.test_host_real_server import SHELL
from tests.support.server_process import ServerProcess

LEAVE = 'cd "$KAPELL_ARTIFACTS_DIR"; mkdir -p a/b; printf one > a/b/one.txt; printf two > two.txt; '


async def test_files_become_artifacts_before_the_outcome(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    result = await run(tmp_path, sh(LEAVE + "echo done"), None, attempt)

    assert result == "done"
    assert attempt.artifacts == {"a/b/one.txt": b"one", "two.txt": b"two"}
    assert attempt.remarks[1:] == ["kept a/b/one.txt as artifact_1", "kept two.txt as artifact_2"]


async def test_a_failed_program_keeps_its_files(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    with pytest.raises(TaskFailed, match="code 3"):
        await run(tmp_path, sh(LEAVE + "exit 3"), None, attempt)

    assert set(attempt.artifacts) == {"a/b/one.txt", "two.txt"}


async def test_links_and_pipes_are_left_out(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    secret = tmp_path / "secret"
    secret.write_text("secret")
    script = f'cd "$KAPELL_ARTIFACTS_DIR"; ln -s {secret} link; ln -s {tmp_path} dir; mkfifo pipe; printf x > file'

    await run(tmp_path, sh(script), None, attempt)

    assert attempt.artifacts == {"file": b"x"}


async def test_what_cannot_be_kept_is_said_and_the_rest_is_kept(tmp_path: Path) -> None:
    attempt = RecordedAttempt(refused={"a/b/one.txt": Exhausted("An artifact may have 1 MiB.")})

    result = await run(tmp_path, sh(LEAVE + "printf x > \"$(printf 'b\\377d')\"; echo done"), None, attempt)

    assert result == "done"
    assert set(attempt.artifacts) == {"two.txt"}
    assert "a/b/one.txt was not kept as an artifact: An artifact may have 1 MiB." in attempt.remarks
    assert any(remark.startswith("b?d was not kept") for remark in attempt.remarks)


async def test_too_many_files_are_said(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    (tmp_path / "x").write_text("x")

    await send(attempt, tmp_path, ["x"] * (MOST_FILES + 2))

    assert attempt.remarks[-1] == "2 more files were not kept as artifacts: pack them into one"


async def test_a_lost_lease_ends_the_uploads(tmp_path: Path) -> None:
    attempt = RecordedAttempt(refused={"a/b/one.txt": LeaseLost("gone")})

    await run(tmp_path, sh(LEAVE), None, attempt)

    assert attempt.artifacts == {}
    assert len(attempt.remarks) == 1


async def test_a_cancelled_attempt_does_not_wait_for_its_files(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    attempt.uploads_may_end.clear()
    runtime = Command(sh(LEAVE + "echo up"), agent_id="agent_one", directory=tmp_path / "agent")
    running = asyncio.ensure_future(runtime.run(attempt, a_task()))
    await attempt.until_stdout(1)

    attempt.cancel()

    with pytest.raises(TaskFailed, match="cancelled"):
        await running
    await runtime.close()
    assert attempt.artifacts == {}
    assert attempt.remarks[-1] == "not all files were kept as artifacts: the task was cancelled"


@pytest.fixture
async def client(server_process: ServerProcess) -> AsyncIterator[Client]:
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    async with Client(endpoint) as connected:
        yield connected


@pytest.mark.timeout(120)
async def test_a_program_leaves_files_and_a_user_fetches_them(client: Client, tmp_path: Path) -> None:
    await client.agents.spawn(spec=SHELL, wait=20)
    script = 'cd "$KAPELL_ARTIFACTS_DIR"; mkdir out; head -c 2000000 /dev/zero > out/zeros.bin; echo text > note.txt'

    task = await client.tasks.run("sh", script)
    failed = await client.tasks.run("sh", script + "; exit 1", max_attempts=1)

    assert (task.state, failed.state) == (TASK_STATE_SUCCEEDED, TASK_STATE_FAILED)
    found = {artifact.name: artifact for artifact in (await client.artifacts.list(task.task_id, attempt=1)).artifacts}
    assert {name: artifact.size for name, artifact in found.items()} == {"out/zeros.bin": 2_000_000, "note.txt": 5}
    assert all(artifact.agent_id for artifact in found.values())
    assert len((await client.artifacts.list(failed.task_id)).artifacts) == 2
    fetched = await client.artifacts.download(found["out/zeros.bin"].artifact_id, tmp_path)
    assert fetched == tmp_path / "zeros.bin"
    assert fetched.stat().st_size == 2_000_000
    async with client.tasks.logs(task.task_id) as log:
        assert f"kept note.txt as {found['note.txt'].artifact_id}" in [entry.text async for entry in log]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server_process", [("--max-artifact-mib", "1")], indirect=True)
async def test_the_end_of_a_task_waits_for_its_files_through_kills_of_the_server(
    client: Client, server_process: ServerProcess, tmp_path: Path
) -> None:
    await client.agents.spawn(spec=SHELL, wait=20)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = f'cd "$KAPELL_ARTIFACTS_DIR"; head -c 2000000 /dev/zero > large; echo x > small; cat {gate}'
    task = await client.tasks.create("sh", script)
    opened = await asyncio.to_thread(os.open, gate, os.O_WRONLY)

    server_process.kill()
    os.close(opened)
    server_process.start()
    ended = await client.tasks.wait(task.task_id, timeout=60)

    assert ended.state == TASK_STATE_SUCCEEDED
    assert [artifact.name for artifact in (await client.artifacts.list(task.task_id)).artifacts] == ["small"]
    async with client.tasks.logs(task.task_id) as log:
        texts = [entry.text async for entry in log]
    assert any(text.startswith("large was not kept as an artifact: An artifact may have 1 MiB") for text in texts)
