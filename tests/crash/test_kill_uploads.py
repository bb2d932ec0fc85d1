"""kill -9 in the middle of uploads: what was acknowledged is there, and every client finishes by itself."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import pytest
from kapell import Client
from kapell.discovery import Endpoint
from kapell.v1.artifact_pb2 import CreateArtifactRequest, GetArtifactRequest, UploadArtifactRequest
from kapell.v1.artifact_pb2_grpc import ArtifactServiceStub

from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.timeout(120)

UPLOADS = 4
KILLS = 3
SIZE = 24 * 1024 * 1024


async def test_uploads_go_on_through_kills_of_the_server(server_process: ServerProcess, tmp_path: Path) -> None:
    seeds = random.Random(5)
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    async with Client(endpoint) as client:
        task_id = (await client.tasks.create("nobody", "wait")).task_id
        files = [tmp_path / f"file{number}" for number in range(UPLOADS)]
        for file in files:
            file.write_bytes(seeds.randbytes(SIZE))

        uploads = [asyncio.ensure_future(client.artifacts.upload(task_id, file)) for file in files]
        for kill in range(KILLS):
            await until_there_is_more(client, task_id, SIZE * UPLOADS * (kill + 1) // (KILLS + 2))
            server_process.kill()
            server_process.start()
        done = await asyncio.gather(*uploads)

        for file, artifact in zip(files, done, strict=True):
            assert artifact.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
            back = await client.artifacts.download(artifact.artifact_id, tmp_path / "back")
            assert back.read_bytes() == file.read_bytes()
        assert len((await client.artifacts.list(task_id)).artifacts) == UPLOADS


async def until_there_is_more(client: Client, task_id: str, count: int) -> None:
    """Waits until the uploads have so many bytes; each look is a call of its own."""
    there = 0
    while there < count:
        there = sum(artifact.upload_offset for artifact in (await client.artifacts.list(task_id)).artifacts)


async def test_an_acknowledged_chunk_is_there_after_every_kill(server_process: ServerProcess) -> None:
    endpoint = Endpoint(address=server_process.address, token=server_process.admin_token)
    data = random.Random(6).randbytes(40_000)
    async with Client(endpoint) as client:
        task_id = (await client.tasks.create("nobody", "wait")).task_id
        stub, call = client.connection.stub(ArtifactServiceStub), client.connection.call
        request = CreateArtifactRequest(task_id=task_id, name="file")
        artifact_id = (await call(stub.CreateArtifact, request)).artifact.artifact_id
        offset = 0
        for _ in range(4):
            chunk = UploadArtifactRequest(artifact_id=artifact_id, offset=offset, data=data[offset : offset + 10_000])
            offset = (await call(stub.UploadArtifact, chunk)).next_offset
            server_process.kill()
            server_process.start()
            found = (await call(stub.GetArtifact, GetArtifactRequest(artifact_id=artifact_id))).artifact
            assert found.upload_offset == offset
