"""The face for artifacts: files of tasks, uploaded and downloaded whole, whatever breaks on the way."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from kapell import _upload
from kapell.connection import Connection
from kapell.errors import Conflict, KapellError
from kapell.messages import new_request_id
from kapell.reconnect import CONNECT_TIMEOUT, Reconnect
from kapell.v1 import artifact_pb2 as pb
from kapell.v1.artifact_pb2_grpc import ArtifactServiceStub
from kapell.v1.common_pb2 import LIST_ORDER_UNSPECIFIED, ListOrder

if TYPE_CHECKING:
    from kapell.v1.artifact_pb2_grpc import ArtifactServiceAsyncStub

_BLOCK = 1024 * 1024


class Artifacts:
    """`client.artifacts`. A transfer whose connection was lost goes on when the server is back."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def _stub(self) -> ArtifactServiceAsyncStub:
        return self._connection.stub(ArtifactServiceStub)

    async def upload(
        self,
        task_id: str,
        path: str | os.PathLike[str],
        *,
        name: str = "",
        media_type: str = "",
        labels: Mapping[str, str] | None = None,
        artifact_id: str = "",
        request_id: str = "",
        connect_timeout: float | None = CONNECT_TIMEOUT,
    ) -> pb.Artifact:
        """Uploads a file; returns when the server has checked and kept all of it.

        Without `name` it is that of the file, without `media_type` what its name tells. With
        `artifact_id` it goes on with an upload that was broken off, and `name` and the others count
        for nothing. `connect_timeout` bounds the search for the first connection. Raises OSError for
        a file that cannot be read.
        """
        begin: pb.CreateArtifactRequest | str = artifact_id or _upload.creation(
            path, task_id=task_id, name=name, media_type=media_type, labels=labels, request_id=request_id
        )
        return await _upload.upload(_Patience(self._connection, connect_timeout), self._stub, path, begin)

    async def download(
        self,
        artifact_id: str,
        path: str | os.PathLike[str] = ".",
        *,
        replace: bool = True,
        connect_timeout: float | None = CONNECT_TIMEOUT,
    ) -> Path:
        """Downloads a READY artifact to `path`, or, where that is a directory, under its own name into it.

        The file appears whole and checked, or not at all; one that was there is replaced, or without
        `replace` is kept, and FileExistsError raised. What was downloaded of it before, in a run that was
        broken off, is not asked for again. Raises OSError for a place that cannot be written, and Conflict
        where the bytes are not those of the checksum.
        """
        patience = _Patience(self._connection, connect_timeout)
        request = pb.GetArtifactRequest(artifact_id=artifact_id)
        artifact: pb.Artifact = (await patience(self._stub.GetArtifact, lambda: request)).artifact
        target = await asyncio.to_thread(_target, Path(path), artifact.name)
        if not replace:
            await asyncio.to_thread(_refuse_existing, target)
        part = target.parent / f".{artifact_id}.part"
        file = await asyncio.to_thread(_open_part, part)
        try:
            digest = hashlib.sha256()
            there = await asyncio.to_thread(_take_in, file, digest, artifact.size)
            await self._fetch(artifact_id, there, file, digest, patience.reconnect)
            if digest.hexdigest() != artifact.sha256:
                await asyncio.to_thread(part.unlink)
                raise Conflict(
                    f"the bytes of {artifact_id} are not those of its checksum - download it again",
                    reason="ARTIFACT_CHECKSUM_MISMATCH",
                    metadata={"artifact_id": artifact_id, "expected": artifact.sha256, "actual": digest.hexdigest()},
                )
            if not replace:
                await asyncio.to_thread(_refuse_existing, target)
            await asyncio.to_thread(_put_in_place, file, part, target)
        finally:
            await asyncio.to_thread(file.close)
        return target

    async def _fetch(self, artifact_id: str, there: int, file: IO[bytes], digest: Any, reconnect: Reconnect) -> None:
        """Appends what comes after `there` bytes, through as many connections as it takes."""
        while True:
            request = pb.DownloadArtifactRequest(artifact_id=artifact_id, offset=there)
            try:
                async with aclosing(self._connection.stream(self._stub.DownloadArtifact, request)) as stream:
                    async for message in stream:
                        reconnect.succeeded()
                        await asyncio.to_thread(file.write, message.data)
                        digest.update(message.data)
                        there += len(message.data)
                return
            except KapellError as error:
                pause = reconnect.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def get(self, artifact_id: str) -> pb.Artifact:
        """Reads what is known of an artifact; while it is UPLOADING also how much of it is there."""
        request = pb.GetArtifactRequest(artifact_id=artifact_id)
        return (await self._connection.call(self._stub.GetArtifact, request)).artifact

    async def list(
        self,
        task_id: str,
        *,
        attempt: int | None = None,
        name: str = "",
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListArtifactsResponse:
        """One page of a task's artifacts, newest first; `attempt` 0 asks for those that users uploaded."""
        request = pb.ListArtifactsRequest(
            task_id=task_id, attempt=attempt, name=name, order=order, page_size=page_size, page_token=page_token
        )
        return await self._connection.call(self._stub.ListArtifacts, request)

    async def iterate(
        self,
        task_id: str,
        *,
        attempt: int | None = None,
        name: str = "",
        order: ListOrder.ValueType = LIST_ORDER_UNSPECIFIED,
        page_size: int = 200,
    ) -> AsyncIterator[pb.Artifact]:
        """All artifacts of a task that match, page by page."""
        page_token = ""
        while True:
            page = await self.list(
                task_id, attempt=attempt, name=name, order=order, page_size=page_size, page_token=page_token
            )
            for artifact in page.artifacts:
                yield artifact
            page_token = page.next_page_token
            if not page_token:
                return

    async def delete(self, artifact_id: str, *, request_id: str = "") -> pb.DeleteArtifactResponse:
        """Deletes an artifact with its bytes."""
        request = pb.DeleteArtifactRequest(artifact_id=artifact_id, request_id=request_id or new_request_id())
        return await self._connection.call(self._stub.DeleteArtifact, request)


class _Patience:
    """Repeats a call while nobody answers: shortly for the first connection, for ever for one that was lost."""

    def __init__(self, connection: Connection, connect_timeout: float | None) -> None:
        self._connection = connection
        self.reconnect = Reconnect(connect_timeout)

    async def __call__(self, method: Any, make_request: Callable[[], Any]) -> Any:
        while True:
            try:
                answer = await self._connection.call(method, make_request())
            except KapellError as error:
                pause = self.reconnect.pause_after(error)
                if pause is None:
                    raise
            else:
                self.reconnect.succeeded()
                return answer
            await asyncio.sleep(pause)


def _target(place: Path, name: str) -> Path:
    """Where a download goes: of the name, which is the uploader's word, only the last part counts."""
    return place / PurePosixPath(name).name if place.is_dir() else place


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _open_part(part: Path) -> IO[bytes]:
    """The file of a download that is not complete. Raises BlockingIOError where another one has it."""
    file = part.open("a+b")
    try:
        import fcntl
    except ImportError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BlockingIOError(f"another download writes {part} - wait for it, or choose another directory") from None
    return file


def _take_in(file: IO[bytes], digest: Any, size: int) -> int:
    """Feeds the checksum with what is there already; how much that is. More than there can be is dropped."""
    if file.seek(0, os.SEEK_END) > size:
        file.truncate(0)
    file.seek(0)
    while block := file.read(_BLOCK):
        digest.update(block)
    return file.tell()


def _put_in_place(file: IO[bytes], part: Path, target: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    part.replace(target)
