"""ArtifactService: uploads, downloads and lists of files. Nothing of it passes the writer of the engine.

What agents may read is checked before, by `fence`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from kapell.v1 import artifact_pb2
from kapell.v1.artifact_pb2 import ARTIFACT_STATE_READY

from kapell_server.domain.access import Caller
from kapell_server.domain.tasks.artifact import (
    Writer,
    check_user,
    check_worker,
    check_writer,
    offset_gap,
    state_conflict,
)

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine
    from kapell_server.store.artifacts import ArtifactStore
    from kapell_server.store.reads import Reads

# Bytes in one message of a download.
MESSAGE_BYTES = 256 * 1024


class ArtifactServicer:
    """The methods of ArtifactService."""

    def __init__(self, engine: Engine, reads: Reads, artifacts: ArtifactStore) -> None:
        self._engine = engine
        self._reads = reads
        self._artifacts = artifacts

    async def CreateArtifact(
        self, request: artifact_pb2.CreateArtifactRequest, caller: Caller
    ) -> artifact_pb2.CreateArtifactResponse:
        writer = self._writer(request.lease_token, caller, request.task_id)
        return await self._artifacts.create(request, writer, caller, revision=self._engine.revision)

    async def UploadArtifact(
        self, request: artifact_pb2.UploadArtifactRequest, caller: Caller
    ) -> artifact_pb2.UploadArtifactResponse:
        writer = self._writer(request.lease_token, caller)
        check_writer(writer, await self._artifacts.get(request.artifact_id))
        offset = await self._artifacts.write(request.artifact_id, request.offset, request.data)
        return artifact_pb2.UploadArtifactResponse(next_offset=offset, revision=self._engine.revision)

    async def CompleteArtifact(
        self, request: artifact_pb2.CompleteArtifactRequest, caller: Caller
    ) -> artifact_pb2.CompleteArtifactResponse:
        writer = self._writer(request.lease_token, caller)
        check_writer(writer, await self._artifacts.get(request.artifact_id))
        artifact = await self._artifacts.complete(request.artifact_id, request.sha256)
        return artifact_pb2.CompleteArtifactResponse(artifact=artifact, revision=self._engine.revision)

    async def GetArtifact(
        self, request: artifact_pb2.GetArtifactRequest, caller: Caller
    ) -> artifact_pb2.GetArtifactResponse:
        return artifact_pb2.GetArtifactResponse(
            artifact=await self._artifacts.get(request.artifact_id), revision=self._engine.revision
        )

    async def ListArtifacts(
        self, request: artifact_pb2.ListArtifactsRequest, caller: Caller
    ) -> artifact_pb2.ListArtifactsResponse:
        artifacts, token = await self._artifacts.list(request)
        return artifact_pb2.ListArtifactsResponse(
            artifacts=artifacts, next_page_token=token, revision=self._engine.revision
        )

    async def DownloadArtifact(
        self, request: artifact_pb2.DownloadArtifactRequest, caller: Caller
    ) -> AsyncGenerator[artifact_pb2.DownloadArtifactResponse, None]:
        artifact = await self._artifacts.get(request.artifact_id)
        if artifact.state != ARTIFACT_STATE_READY:
            raise state_conflict(artifact.artifact_id, artifact.state)
        offset = request.offset
        if offset > artifact.size:
            raise offset_gap(artifact.artifact_id, offset, artifact.size)
        yield artifact_pb2.DownloadArtifactResponse(artifact=artifact, offset=offset)
        while offset < artifact.size:
            limit = min(MESSAGE_BYTES, artifact.size - offset)
            data = await self._artifacts.read(artifact, offset, limit)
            assert data, f"the file of {artifact.artifact_id} ends at {offset} of {artifact.size} bytes"
            yield artifact_pb2.DownloadArtifactResponse(offset=offset, data=data)
            offset += len(data)

    async def DeleteArtifact(
        self, request: artifact_pb2.DeleteArtifactRequest, caller: Caller
    ) -> artifact_pb2.DeleteArtifactResponse:
        return await self._artifacts.delete(request, caller, revision=self._engine.revision)

    def _writer(self, lease_token: str, caller: Caller, task_id: str = "") -> Writer:
        """What the caller may write to. Using a lease renews it."""
        if not lease_token:
            check_user(caller)
            return Writer(task_id, 0, "")
        check_worker(caller)
        leased_task, attempt, _ = self._engine.check_lease(lease_token, caller)
        return Writer(leased_task, attempt, caller.agent_id)
