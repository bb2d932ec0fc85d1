"""Files up and down through a real server: cut connections, deaths of the server, damage on disk."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kapell import Client, errors
from kapell.artifacts import Artifacts
from kapell.discovery import Endpoint
from kapell.sync import SyncArtifacts
from kapell.v1.artifact_pb2 import (
    ARTIFACT_STATE_READY,
    ARTIFACT_STATE_UPLOADING,
    CreateArtifactRequest,
    UploadArtifactRequest,
)
from kapell.v1.artifact_pb2_grpc import ArtifactServiceStub
from kapell.v1.task_pb2 import TASK_STATE_SUCCEEDED, Task
from kapell.worker import TaskContext, Worker
from kapell_server.testing import TestServer, serve

from tests.clients.working import working
from tests.support.cutting_proxy import CuttingProxy

DATA = random.Random(1).randbytes(3 * 1024 * 1024 + 17)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    async with serve(tmp_path, no_templates=True, max_artifact_mib=8) as server:
        yield server


@pytest.fixture
async def proxy(server: TestServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(server.address) as proxy:
        yield proxy


@pytest.fixture
async def client(server: TestServer, proxy: CuttingProxy) -> AsyncIterator[Client]:
    async with Client(proxy.address, token=server.admin_token) as client:
        yield client


@pytest.fixture
async def task_id(client: Client) -> str:
    return (await client.tasks.create("nobody", "wait")).task_id


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_bytes(DATA)
    return path


async def test_a_file_goes_up_and_comes_back(client: Client, task_id: str, file: Path, tmp_path: Path) -> None:
    artifact = await client.artifacts.upload(task_id, file, labels={"kind": "report"})

    assert (artifact.state, artifact.size, artifact.name) == (ARTIFACT_STATE_READY, len(DATA), "report.html")
    assert (artifact.media_type, dict(artifact.labels)) == ("text/html", {"kind": "report"})
    assert artifact.sha256 == hashlib.sha256(DATA).hexdigest()
    assert await client.artifacts.get(artifact.artifact_id) == artifact
    assert [found async for found in client.artifacts.iterate(task_id)] == [artifact]
    there = tmp_path / "there"
    there.mkdir()
    assert await client.artifacts.download(artifact.artifact_id, there) == there / "report.html"
    assert await client.artifacts.download(artifact.artifact_id, there / "copy") == there / "copy"
    assert {path.name for path in there.iterdir()} == {"report.html", "copy"}
    assert (there / "report.html").read_bytes() == (there / "copy").read_bytes() == DATA

    await client.artifacts.delete(artifact.artifact_id)

    with pytest.raises(errors.NotFound):
        await client.artifacts.download(artifact.artifact_id, there)
    assert not list(there.glob(".*"))


async def test_an_empty_file_goes_up_and_comes_back(client: Client, task_id: str, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")

    artifact = await client.artifacts.upload(task_id, tmp_path / "empty")

    assert (await client.artifacts.download(artifact.artifact_id, tmp_path / "back")).read_bytes() == b""


@pytest.mark.parametrize("cut_after", [200, 500, 2_000])
async def test_an_upload_goes_on_after_cuts(
    client: Client, proxy: CuttingProxy, task_id: str, file: Path, cut_after: int
) -> None:
    await client.artifacts.list(task_id)
    proxy.cut_after(cut_after)

    artifact = await client.artifacts.upload(task_id, file)

    assert artifact.size == len(DATA)
    assert len((await client.artifacts.list(task_id)).artifacts) == 1


@pytest.mark.parametrize("cut_after", [1_000, 300_000, 1_500_000])
async def test_a_download_goes_on_after_a_cut(
    client: Client, proxy: CuttingProxy, task_id: str, file: Path, tmp_path: Path, cut_after: int
) -> None:
    artifact = await client.artifacts.upload(task_id, file)
    proxy.cut_after(cut_after)

    await client.artifacts.download(artifact.artifact_id, tmp_path / "back")

    assert proxy.cuts
    assert (tmp_path / "back").read_bytes() == DATA


async def test_a_download_that_broke_off_is_finished_by_another(
    client: Client, task_id: str, file: Path, tmp_path: Path
) -> None:
    artifact = await client.artifacts.upload(task_id, file)
    part = tmp_path / f".{artifact.artifact_id}.part"
    part.write_bytes(DATA[:1_000_000])

    await client.artifacts.download(artifact.artifact_id, tmp_path / "back")

    assert (tmp_path / "back").read_bytes() == DATA
    assert not part.exists()


async def test_a_damaged_download_is_refused_and_the_next_one_is_whole(
    client: Client, task_id: str, file: Path, tmp_path: Path
) -> None:
    artifact = await client.artifacts.upload(task_id, file)
    back = tmp_path / "back"
    back.write_text("before")
    (tmp_path / f".{artifact.artifact_id}.part").write_bytes(b"rubbish")

    with pytest.raises(errors.Conflict, match="checksum"):
        await client.artifacts.download(artifact.artifact_id, back)

    assert back.read_text() == "before"
    await client.artifacts.download(artifact.artifact_id, back)
    assert back.read_bytes() == DATA


async def test_an_upload_that_broke_off_is_finished_by_its_id(client: Client, task_id: str, file: Path) -> None:
    stub = client.connection.stub(ArtifactServiceStub)
    request = CreateArtifactRequest(task_id=task_id, name="a")
    begun = (await client.connection.call(stub.CreateArtifact, request)).artifact
    chunk = UploadArtifactRequest(artifact_id=begun.artifact_id, data=DATA[:1000])
    await client.connection.call(stub.UploadArtifact, chunk)
    assert (await client.artifacts.get(begun.artifact_id)).state == ARTIFACT_STATE_UPLOADING

    done = await client.artifacts.upload(task_id, file, artifact_id=begun.artifact_id)

    assert (done.artifact_id, done.size) == (begun.artifact_id, len(DATA))
    assert await client.artifacts.upload(task_id, file, artifact_id=begun.artifact_id) == done


async def test_wrong_bytes_that_were_there_are_sent_again(client: Client, task_id: str, file: Path) -> None:
    stub = client.connection.stub(ArtifactServiceStub)
    request = CreateArtifactRequest(task_id=task_id, name="a")
    begun = (await client.connection.call(stub.CreateArtifact, request)).artifact
    chunk = UploadArtifactRequest(artifact_id=begun.artifact_id, data=b"other")
    await client.connection.call(stub.UploadArtifact, chunk)

    done = await client.artifacts.upload(task_id, file, artifact_id=begun.artifact_id)

    assert done.sha256 == hashlib.sha256(DATA).hexdigest()


async def test_what_is_too_large_or_not_there_is_said(client: Client, task_id: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * (9 * 1024 * 1024))

    with pytest.raises(errors.Exhausted, match="8 MiB"):
        await client.artifacts.upload(task_id, tmp_path / "large")
    with pytest.raises(FileNotFoundError):
        await client.artifacts.upload(task_id, tmp_path / "nothing")
    with pytest.raises(errors.InvalidRequest, match="relative path"):
        await client.artifacts.upload(task_id, tmp_path / "large", name="../large")


def test_the_blocking_client_has_the_same_verbs() -> None:
    asynchronous, blocking = ({name for name in vars(face) if name[0] != "_"} for face in (Artifacts, SyncArtifacts))

    assert blocking == asynchronous


async def test_a_worker_uploads_for_its_attempt(server: TestServer, client: Client, file: Path, tmp_path: Path) -> None:
    worker = Worker(Endpoint(address=server.address, token=server.admin_token))
    seen: list[tuple[str, str]] = []

    @worker.task("make")
    async def make(ctx: TaskContext, task: Task) -> object:
        artifact = await ctx.upload_artifact(file, name="out/report.html")
        seen.append((artifact.agent_id, ctx.agent_id))
        return artifact.artifact_id

    async with working(worker):
        task = await client.tasks.run("make")

    assert task.state == TASK_STATE_SUCCEEDED
    artifact = await client.artifacts.get(task.result.string_value)
    assert (artifact.task_id, artifact.attempt, artifact.name) == (task.task_id, 1, "out/report.html")
    assert seen[0][0] == seen[0][1] != ""
