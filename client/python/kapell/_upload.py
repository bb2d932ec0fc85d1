"""Sends a file as an artifact: in chunks, from where the server is, until its checksum is the file's.

Used by the client and by workers, who differ in how long they insist. It rests on the server's
promise that what it has answered is on its disk, so after any break the upload goes on at
`upload_offset`; the file is read again only for its checksum. The file must not change meanwhile:
then its bytes are not those of the checksum, and after a second try that is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Protocol

from kapell.errors import KapellError
from kapell.messages import new_request_id
from kapell.v1 import artifact_pb2 as pb

if TYPE_CHECKING:
    from kapell.v1.artifact_pb2_grpc import ArtifactServiceAsyncStub

CHUNK_BYTES = 512 * 1024
_TRIES = 3


class Insist(Protocol):
    """Calls a method until it is answered or refused for good."""

    def __call__(self, method: Any, make_request: Callable[[], Any], /) -> Awaitable[Any]: ...


def creation(
    path: str | os.PathLike[str],
    *,
    task_id: str = "",
    lease_token: str = "",
    name: str = "",
    media_type: str = "",
    labels: Mapping[str, str] | None = None,
    request_id: str = "",
) -> pb.CreateArtifactRequest:
    """The request that begins the upload of a file. Without `name` it is that of the file."""
    name = name or PurePath(path).name
    request = pb.CreateArtifactRequest(
        name=name,
        media_type=media_type or mimetypes.guess_type(name)[0] or "",
        labels=labels,
        request_id=request_id or new_request_id(),
    )
    if lease_token:
        request.lease_token = lease_token
    else:
        request.task_id = task_id
    return request


async def upload(
    insist: Insist,
    stub: ArtifactServiceAsyncStub,
    path: str | os.PathLike[str],
    begin: pb.CreateArtifactRequest | str,
) -> pb.Artifact:
    """Uploads the file and returns its artifact, READY. `begin` creates it, or is the id of one to go on with.

    Raises KapellError for what repeating cannot mend, and OSError for a file that cannot be read.
    """
    file = await asyncio.to_thread(Path(path).open, "rb")
    try:
        artifact: pb.Artifact
        if isinstance(begin, str):
            request = pb.GetArtifactRequest(artifact_id=begin)
            artifact = (await insist(stub.GetArtifact, lambda: request)).artifact
            lease_token = ""
        else:
            begin.size = os.fstat(file.fileno()).st_size
            artifact = (await insist(stub.CreateArtifact, lambda: begin)).artifact
            lease_token = begin.lease_token
        return await _Sending(insist, stub, file, artifact.artifact_id, lease_token).run(artifact.upload_offset)
    finally:
        await asyncio.to_thread(file.close)


class _Sending:
    """One file on its way."""

    def __init__(
        self, insist: Insist, stub: ArtifactServiceAsyncStub, file: IO[bytes], artifact_id: str, lease_token: str
    ) -> None:
        self._insist = insist
        self._stub = stub
        self._file = file
        self._artifact_id = artifact_id
        self._lease_token = lease_token

    async def run(self, there: int) -> pb.Artifact:
        """Sends what lies beyond `there` bytes, and completes."""
        tries = 0
        while True:
            tries += 1
            try:
                sha256 = await self._send(there)
                request = pb.CompleteArtifactRequest(
                    artifact_id=self._artifact_id, lease_token=self._lease_token, sha256=sha256
                )
                done = await self._insist(self._stub.CompleteArtifact, lambda request=request: request)  # type: ignore[misc]
                artifact: pb.Artifact = done.artifact
                return artifact
            except KapellError as error:
                if tries >= _TRIES:
                    raise
                if error.reason == "ARTIFACT_OFFSET_GAP":
                    there = int(error.metadata.get("expected", "0"))
                elif error.reason == "ARTIFACT_CHECKSUM_MISMATCH":
                    there = 0
                else:
                    raise

    async def _send(self, there: int) -> str:
        """Sends the bytes that are not there yet; the checksum of all."""
        digest = hashlib.sha256()
        position = 0
        self._file.seek(0)
        while data := await asyncio.to_thread(self._file.read, CHUNK_BYTES):
            digest.update(data)
            if position + len(data) > there:
                request = pb.UploadArtifactRequest(
                    artifact_id=self._artifact_id, lease_token=self._lease_token, offset=position, data=data
                )
                answer = await self._insist(self._stub.UploadArtifact, lambda request=request: request)  # type: ignore[misc]
                there = answer.next_offset
            position += len(data)
        return digest.hexdigest()
