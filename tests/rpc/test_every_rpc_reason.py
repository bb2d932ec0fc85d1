"""Every reason of error.proto is raised by something real somewhere in these tests.

Most come from the table of test_every_rpc, on a server as it is. Those here need a server in
trouble: full, locked, crowded, or on its way out. What other files raise is named in ELSEWHERE.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1 import agent_pb2, event_pb2, task_pb2, worker_pb2
from kapell.v1.artifact_pb2 import CreateArtifactRequest
from kapell.v1.artifact_pb2_grpc import ArtifactServiceStub
from kapell.v1.error_pb2 import ErrorReason
from kapell.v1.task_pb2 import CreateTaskRequest, TaskSpec
from kapell.v1.task_pb2_grpc import TaskServiceStub
from kapell_server.domain.access import user
from kapell_server.domain.errors import KapellError
from kapell_server.testing import serve

from tests.rpc.rpc_table import CASES
from tests.rpc.scene import Ask, Refusal, Scene, unpack
from tests.support.server_process import ServerProcess
from tests.tidy.sources import ROOT

pytestmark = pytest.mark.timeout(60)

TMPFS_BYTES = 4 * 1024 * 1024

# Which test of this file raises which reason.
HERE = {
    "TOKEN_MISSING": "test_a_call_without_a_token_is_told_where_to_find_one",
    "SCOPE_MISSING": "test_an_agent_may_not_create_tasks",
    "AGENT_LIMIT": "test_one_agent_too_many_is_refused",
    "TOO_MANY_WATCHES": "test_one_watch_too_many_is_refused",
    "PAYLOAD_TOO_LARGE": "test_a_message_over_one_mebibyte_is_refused",
    "QUEUE_FULL": "test_writes_beyond_the_mailbox_are_refused_at_once",
    "STORAGE_FULL": "test_a_full_disk_refuses_writes_and_recovers",
    "STORAGE_BUSY": "test_a_database_that_somebody_else_locks_is_busy",
    "SERVER_DRAINING": "test_a_server_that_stops_says_so_to_its_watchers",
    "DEADLINE_EXCEEDED": "test_an_agent_that_does_not_end_in_time_is_named",
    "REQUEST_ID_REUSED": "test_a_request_id_is_good_for_one_request",
}
# Which file raises a reason that no server in good or bad health can be made to give from outside.
ELSEWHERE = {
    "INTERNAL": "tests/rpc/test_pipeline.py",
    "TOKEN_EXPIRED": "tests/rpc/test_access.py",
    "NOT_FOR_AGENTS": "tests/rpc/test_access.py",
    "RATE_LIMITED": "tests/rpc/test_limits.py",
    "TOKEN_LIMIT": "tests/domain/test_tokens.py",  # a thousand of them
    "SCHEDULE_LIMIT": "tests/domain/test_schedules.py",  # ten thousand of them
    "PRICE_LIMIT": "tests/domain/test_prices.py",  # two thousand of them
    "USAGE_CONFLICT": "tests/domain/test_usage_ledger.py",  # an outcome of one record
    "USAGE_LIMIT": "tests/engine/test_usage_limit.py",  # nine billion dollars
    "LOCK_LIMIT": "tests/domain/test_locks.py",  # a hundred thousand of them
    "SECRET_LIMIT": "tests/domain/test_secrets.py",  # a thousand of them
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One healthy server for this file."""
    with ServerProcess(tmp_path_factory.mktemp("reasons") / "data") as server:
        scene = Scene(server)
        yield scene
        scene.close()


@pytest.fixture
def troubled(server_process: ServerProcess) -> Iterator[Scene]:
    """A server of the test's own, to be brought into trouble."""
    scene = Scene(server_process)
    yield scene
    scene.close()


def create(**fields: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=TaskSpec(agent_type="nobody", **fields))


def test_every_reason_is_raised_somewhere() -> None:
    from_the_table = {refusal.partition(":")[0] for case in CASES.values() for refusal in case.refused}

    every = {name.removeprefix("ERROR_REASON_") for name in dict(ErrorReason.items())} - {"UNSPECIFIED"}
    assert from_the_table | HERE.keys() | ELSEWHERE.keys() == every


def test_the_lists_of_this_file_are_true() -> None:
    for reason, name in HERE.items():
        body = re.search(rf"def {name}\(.*?(?=\n\n\n|\Z)", Path(__file__).read_text(), re.DOTALL)
        assert body is not None, f"there is no {name}"
        assert f'"{reason}"' in body.group(), f"{name} does not look for {reason}"
    for reason, file in ELSEWHERE.items():
        assert f'"{reason}"' in (ROOT / file).read_text()


def test_a_call_without_a_token_is_told_where_to_find_one(scene: Scene) -> None:
    found = scene.refusal("CreateTask", Ask(create()), token="")

    assert found.reasons == ("TOKEN_MISSING",)
    assert "admin.token" in found.text


def test_an_agent_may_not_create_tasks(scene: Scene) -> None:
    found = scene.refusal("CreateTask", Ask(create()), token=scene.worker().token)

    assert found.reasons == ("SCOPE_MISSING",)
    assert found.metadata == {"scope": "write"}


def test_a_request_id_is_good_for_one_request(scene: Scene) -> None:
    request = create(prompt="one")
    request.request_id = "once"
    scene.ask("CreateTask", request)
    request.task.prompt = "two"

    assert scene.refusal("CreateTask", Ask(request)).reasons == ("REQUEST_ID_REUSED",)


def test_an_agent_that_does_not_end_in_time_is_named(scene: Scene) -> None:
    worker = scene.worker()
    request = agent_pb2.TerminateAgentRequest(agent_id=worker.agent_id)

    found = scene.refusal("TerminateAgent", Ask(request), seconds=1.0)

    assert found.reasons == ("DEADLINE_EXCEEDED",)
    assert worker.agent_id in found.text


@pytest.mark.parametrize("server_process", [("--max-agents", "1")], indirect=True)
def test_one_agent_too_many_is_refused(troubled: Scene) -> None:
    worker = troubled.worker()
    register = worker_pb2.RegisterWorkerRequest(instance_key="one too many", agent_types=["a"])

    registering = troubled.refusal("RegisterWorker", Ask(register))
    spawning = troubled.refusal("SpawnAgent", Ask(agent_pb2.SpawnAgentRequest(profile="shell")))

    assert registering.reasons == spawning.reasons == ("AGENT_LIMIT",)
    assert registering.metadata == {"limit": "1"}
    troubled.call("Deregister", Ask(worker_pb2.DeregisterRequest(agent_id=worker.agent_id)))
    troubled.ask("RegisterWorker", register)


@pytest.mark.parametrize("server_process", [("--max-watches", "1")], indirect=True)
def test_one_watch_too_many_is_refused(troubled: Scene) -> None:
    first = troubled.start("Watch", Ask(event_pb2.WatchRequest()))
    next(first)

    found = troubled.refusal("WatchTasks", Ask(task_pb2.WatchTasksRequest()))
    first.cancel()

    assert found.reasons == ("TOO_MANY_WATCHES",)
    assert found.metadata == {"limit": "1"}


def test_a_message_over_one_mebibyte_is_refused(scene: Scene) -> None:
    request = task_pb2.BatchCreateTasksRequest(tasks=[TaskSpec(agent_type="heavy", prompt="x" * 250_000)] * 5)

    found = scene.refusal("BatchCreateTasks", Ask(request))

    assert (found.code, found.reasons) == (grpc.StatusCode.RESOURCE_EXHAUSTED, ("PAYLOAD_TOO_LARGE",))
    assert found.metadata == {"limit": str(1024 * 1024)}
    heavy = task_pb2.ListTasksRequest(filter=task_pb2.TaskFilter(agent_types=["heavy"]))
    assert not scene.ask("ListTasks", heavy).tasks


async def test_writes_beyond_the_mailbox_are_refused_at_once(tmp_path: Path) -> None:
    async with serve(tmp_path) as server:
        engine = server.app.engine
        capacity = engine.diagnostics().mailbox_capacity

        writes = [engine.submit(create(), user("admin")) for _ in range(capacity + 10)]
        results = await asyncio.gather(*writes, return_exceptions=True)

    refused = [result for result in results if isinstance(result, KapellError)]
    assert {error.reason_name for error in refused} == {"QUEUE_FULL"}
    assert len(refused) == 10
    assert all(error.retry_after for error in refused)


def test_a_database_that_somebody_else_locks_is_busy(troubled: Scene) -> None:
    other = sqlite3.connect(troubled.server.data_dir / "kapell.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    found = troubled.refusal("CreateTask", Ask(create()))
    other.execute("ROLLBACK")
    other.close()

    assert (found.code, found.reasons) == (grpc.StatusCode.UNAVAILABLE, ("STORAGE_BUSY",))
    troubled.ask("CreateTask", create())
    assert len(troubled.ask("ListTasks", task_pb2.ListTasksRequest()).tasks) == 1


def test_a_server_that_stops_says_so_to_its_watchers(troubled: Scene) -> None:
    stream = troubled.start("Watch", Ask(event_pb2.WatchRequest()))
    next(stream)

    os.kill(troubled.server.pid, signal.SIGTERM)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)

    found = unpack(caught.value)
    assert (found.code, found.reasons) == (grpc.StatusCode.UNAVAILABLE, ("SERVER_DRAINING",))


def has_namespaces() -> bool:
    """Whether a small file system of one's own can be mounted without being anybody special."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose data directory is on a file system of 4 MiB that only it can see."""
    small = tmp_path / "small"
    small.mkdir()
    mount = f'mount -t tmpfs -o size={TMPFS_BYTES} tmpfs {small} && exec "$@"'
    server = ServerProcess(small / "data", prefix=("unshare", "-rm", "sh", "-c", mount, "sh"))
    server.start()
    yield server
    server.close()


@pytest.mark.skipif(not has_namespaces(), reason="needs user namespaces, to mount a small file system")
def test_a_full_disk_refuses_writes_and_recovers(cramped: ServerProcess) -> None:
    inside = Path(f"/proc/{cramped.pid}/root{cramped.data_dir}")
    bearer = (("authorization", f"Bearer {(inside / 'admin.token').read_text().strip()}"),)
    ballast = inside.parent / "ballast"
    ballast.write_bytes(b"\0" * (TMPFS_BYTES // 2))
    with grpc.insecure_channel(cramped.address) as channel:
        tasks = TaskServiceStub(channel)
        acknowledged, found = fill(tasks, bearer)

        assert (found.code, found.reasons) == (grpc.StatusCode.RESOURCE_EXHAUSTED, ("STORAGE_FULL",))
        assert "Free some space" in found.text
        ballast.unlink()
        after = tasks.CreateTask(create(prompt="there is room again"), metadata=bearer, timeout=10).task
        listed = tasks.ListTasks(task_pb2.ListTasksRequest(page_size=1000), metadata=bearer, timeout=10).tasks
    assert {task.task_id for task in listed} == {*acknowledged, after.task_id}


@pytest.mark.skipif(not has_namespaces(), reason="needs user namespaces, to mount a small file system")
def test_artifacts_leave_the_last_of_the_disk_to_the_database(cramped: ServerProcess) -> None:
    inside = Path(f"/proc/{cramped.pid}/root{cramped.data_dir}")
    bearer = (("authorization", f"Bearer {(inside / 'admin.token').read_text().strip()}"),)
    with grpc.insecure_channel(cramped.address) as channel:
        tasks, artifacts = TaskServiceStub(channel), ArtifactServiceStub(channel)
        task = tasks.CreateTask(create(), metadata=bearer, timeout=10).task
        request = CreateArtifactRequest(task_id=task.task_id, name="file", size=1)

        with pytest.raises(grpc.RpcError) as caught:
            artifacts.CreateArtifact(request, metadata=bearer, timeout=10)

    found = unpack(caught.value)
    assert (found.code, found.reasons) == (grpc.StatusCode.RESOURCE_EXHAUSTED, ("STORAGE_FULL",))
    assert "kept for the database" in found.text


def fill(tasks: Any, bearer: Any) -> tuple[list[str], Refusal]:
    """Creates tasks until one is refused; the ids of the others, and the refusal."""
    acknowledged = []
    while True:
        try:
            answer = tasks.CreateTask(create(prompt="x" * 60_000), metadata=bearer, timeout=10)
        except grpc.RpcError as error:
            return acknowledged, unpack(error)
        acknowledged.append(answer.task.task_id)


def test_the_deadline_of_a_wait_is_no_failure(scene: Scene) -> None:
    request = task_pb2.WaitTaskRequest(task_id=scene.queued().task_id, wait=Duration(seconds=1))

    answer = scene.call("WaitTask", Ask(request))

    assert answer.task.state == task_pb2.TASK_STATE_QUEUED
