"""ArtifactService on a real server: who may write and read, downloads that are cut, deletion with the task."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from kapell.v1 import artifact_pb2_grpc, task_pb2, worker_pb2
from kapell.v1.artifact_pb2 import (
    ARTIFACT_STATE_READY,
    Artifact,
    CompleteArtifactRequest,
    CreateArtifactRequest,
    DeleteArtifactRequest,
    DownloadArtifactRequest,
    GetArtifactRequest,
    ListArtifactsRequest,
    UploadArtifactRequest,
)
from kapell_server.testing import TestServer

from tests.rpc.conftest import failure
from tests.rpc.services import Services, Worker, create, register

pytestmark = pytest.mark.timeout(60)

DATA = random.Random(3).randbytes(1_000_000)


def stub(channel: grpc.aio.Channel) -> Any:
    return artifact_pb2_grpc.ArtifactServiceStub(channel)  # type: ignore[no-untyped-call]


async def keep(owner: Services, channel: grpc.aio.Channel, data: bytes, **fields: Any) -> Artifact:
    """Uploads for a user, or with `lease_token` for a worker."""
    artifacts, lease = stub(channel), {key: fields[key] for key in ("lease_token",) if key in fields}
    begun = await owner(artifacts.CreateArtifact, CreateArtifactRequest(name="file", **fields))
    for offset in range(0, len(data), 500_000):
        chunk = UploadArtifactRequest(
            artifact_id=begun.artifact.artifact_id, offset=offset, data=data[offset : offset + 500_000], **lease
        )
        await owner(artifacts.UploadArtifact, chunk)
    end = CompleteArtifactRequest(
        artifact_id=begun.artifact.artifact_id, sha256=hashlib.sha256(data).hexdigest(), **lease
    )
    return (await owner(artifacts.CompleteArtifact, end)).artifact


async def running(owner: Services, channel: grpc.aio.Channel, task_id: str) -> tuple[Worker, worker_pb2.Offer]:
    worker = await register(owner, channel)
    await create(owner, task_id=task_id)
    return worker, await worker.lease()


async def test_a_download_begins_anywhere_and_is_cut_into_messages(owner: Services, channel: grpc.aio.Channel) -> None:
    await create(owner, task_id="task_a")
    artifact = await keep(owner, channel, DATA, task_id="task_a")
    request = DownloadArtifactRequest(artifact_id=artifact.artifact_id, offset=100_001)

    messages = [message async for message in owner(stub(channel).DownloadArtifact, request)]

    assert messages[0].artifact == artifact
    assert b"".join(message.data for message in messages) == DATA[100_001:]
    assert all(len(message.data) <= 256 * 1024 for message in messages)
    assert [message.offset for message in messages][:3] == [100_001, 100_001, 100_001 + 256 * 1024]


async def test_a_reader_who_leaves_in_mid_stream_leaves_nothing_open(
    server: TestServer, owner: Services, channel: grpc.aio.Channel
) -> None:
    await create(owner, task_id="task_a")
    artifact = await keep(owner, channel, DATA, task_id="task_a")
    request = DownloadArtifactRequest(artifact_id=artifact.artifact_id)

    for _ in range(20):
        call = owner(stub(channel).DownloadArtifact, request)
        await call.read()
        await call.read()
        call.cancel()
    whole = [message async for message in owner(stub(channel).DownloadArtifact, request)]

    assert sum(len(message.data) for message in whole) == len(DATA)


async def test_an_uploader_who_leaves_in_mid_chunk_goes_on(owner: Services, channel: grpc.aio.Channel) -> None:
    await create(owner, task_id="task_a")
    artifacts = stub(channel)
    request = CreateArtifactRequest(task_id="task_a", name="file")
    artifact_id = (await owner(artifacts.CreateArtifact, request)).artifact.artifact_id
    offset = 0
    while offset < len(DATA):
        chunk = UploadArtifactRequest(artifact_id=artifact_id, offset=offset, data=DATA[offset : offset + 300_000])
        abandoned = owner(artifacts.UploadArtifact, chunk)
        await asyncio.sleep(0)
        abandoned.cancel()
        offset = (await owner(artifacts.UploadArtifact, chunk)).next_offset

    end = CompleteArtifactRequest(artifact_id=artifact_id, sha256=hashlib.sha256(DATA).hexdigest())
    assert (await owner(artifacts.CompleteArtifact, end)).artifact.size == len(DATA)


async def test_an_artifact_that_is_deleted_ends_its_downloads(owner: Services, channel: grpc.aio.Channel) -> None:
    await create(owner, task_id="task_a")
    artifact = await keep(owner, channel, DATA * 40, task_id="task_a")
    call = owner(stub(channel).DownloadArtifact, DownloadArtifactRequest(artifact_id=artifact.artifact_id))
    await call.read()

    await owner(stub(channel).DeleteArtifact, DeleteArtifactRequest(artifact_id=artifact.artifact_id))

    async def rest() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    assert (await failure(rest())).info.reason == "ARTIFACT_NOT_FOUND"


async def test_an_agent_writes_under_its_lease_and_reads_its_own_task(
    owner: Services, channel: grpc.aio.Channel
) -> None:
    worker, offer = await running(owner, channel, "task_a")
    other = await register(owner, channel)
    artifacts = stub(channel)

    mine = await keep(worker.call, channel, b"mine", lease_token=offer.lease_token)
    given = await keep(owner, channel, b"given", task_id="task_a")

    assert (mine.task_id, mine.attempt, mine.agent_id) == ("task_a", 1, worker.agent_id)
    assert (given.attempt, given.agent_id) == (0, "")
    listed = await worker.call(artifacts.ListArtifacts, ListArtifactsRequest(task_id="task_a"))
    assert [artifact.artifact_id for artifact in listed.artifacts] == [given.artifact_id, mine.artifact_id]
    get = GetArtifactRequest(artifact_id=given.artifact_id)
    assert (await worker.call(artifacts.GetArtifact, get)).artifact == given
    assert (await failure(other.call(artifacts.GetArtifact, get))).info.reason == "NOT_OWNER"
    await worker.complete(offer)
    assert (await failure(worker.call(artifacts.GetArtifact, get))).info.reason == "NOT_OWNER"


async def test_an_agent_reads_what_its_task_has_waited_for_and_what_it_has_made(
    owner: Services, channel: grpc.aio.Channel
) -> None:
    await create(owner, task_id="task_first", agent_type="other")
    await create(owner, task_id="task_stranger", agent_type="other")
    worker = await register(owner, channel)
    finished = {"task_id": "task_first", "condition": "DEPENDENCY_CONDITION_FINISHED"}
    await create(owner, task_id="task_a", dependencies=[finished])
    await owner(owner.tasks.CancelTask, task_pb2.CancelTaskRequest(task_id="task_first"))
    await worker.lease()
    await create(owner, task_id="task_child", agent_type="other", parent_task_id="task_a")

    for task_id in ("task_first", "task_a", "task_child"):
        kept = await keep(owner, channel, b"x", task_id=task_id)
        get = GetArtifactRequest(artifact_id=kept.artifact_id)
        assert (await worker.call(stub(channel).GetArtifact, get)).artifact == kept
    stranger = ListArtifactsRequest(task_id="task_stranger")
    assert (await failure(worker.call(stub(channel).ListArtifacts, stranger))).info.reason == "NOT_OWNER"


async def test_a_superseded_attempt_can_neither_go_on_nor_complete(owner: Services, channel: grpc.aio.Channel) -> None:
    worker, offer = await running(owner, channel, "task_a")
    artifacts, lease = stub(channel), offer.lease_token
    begun = await worker.call(artifacts.CreateArtifact, CreateArtifactRequest(lease_token=lease, name="file"))
    artifact_id = begun.artifact.artifact_id
    chunk = UploadArtifactRequest(artifact_id=artifact_id, lease_token=lease, data=b"late")
    await worker.call(artifacts.UploadArtifact, chunk)

    await worker.call(worker.call.workers.ReleaseTask, worker_pb2.ReleaseTaskRequest(lease_token=lease))
    again = await worker.lease()

    end = CompleteArtifactRequest(
        artifact_id=artifact_id, lease_token=lease, sha256=hashlib.sha256(b"late").hexdigest()
    )
    for call, request in ((artifacts.UploadArtifact, chunk), (artifacts.CompleteArtifact, end)):
        assert (await failure(worker.call(call, request))).info.reason == "LEASE_LOST"
        request.lease_token = again.lease_token
        assert (await failure(worker.call(call, request))).info.reason == "NOT_OWNER"
    left = (await owner(artifacts.GetArtifact, GetArtifactRequest(artifact_id=artifact_id))).artifact
    assert (left.state != ARTIFACT_STATE_READY, left.upload_offset) == (True, 4)


async def test_deleting_a_task_deletes_its_artifacts(
    server: TestServer, owner: Services, channel: grpc.aio.Channel
) -> None:
    worker, offer = await running(owner, channel, "task_a")
    artifact = await keep(worker.call, channel, b"old", lease_token=offer.lease_token)
    await worker.complete(offer)

    await owner(owner.tasks.DeleteTask, task_pb2.DeleteTaskRequest(task_id="task_a"))

    get = GetArtifactRequest(artifact_id=artifact.artifact_id)
    assert (await failure(owner(stub(channel).GetArtifact, get))).info.reason == "ARTIFACT_NOT_FOUND"
    assert not files_of(server.app.directory.artifacts)


def files_of(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def test_no_word_of_a_user_becomes_a_path(server: TestServer, owner: Services, channel: grpc.aio.Channel) -> None:
    await create(owner, task_id="task_a")
    artifact = await owner(
        stub(channel).CreateArtifact, CreateArtifactRequest(task_id="task_a", name="etc/passwd", media_type="a/b")
    )
    chunk = UploadArtifactRequest(artifact_id=artifact.artifact.artifact_id, data=b"x")

    await owner(stub(channel).UploadArtifact, chunk)

    names = {path.name for path in files_of(server.app.directory.artifacts)}
    assert names == {artifact.artifact.artifact_id, f"{artifact.artifact.artifact_id}.parts"}
