"""Artifacts of tasks: rows in the database, bytes in files, one upload at a time in memory.

The rows are written past the writer, each by one small statement between two batches. The order
keeps the promise: a row before its file, bytes and directories on the disk before the row says
READY, and a row gone before its file. So a file without a row is rubbish, which the housekeeping
finds, and a READY row has all its bytes.

Methods belong to the loop thread. What works on files runs in threads, and goes on when its
caller is cancelled: it is a repeat when the caller comes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
import structlog
from kapell.v1.artifact_pb2 import (
    ARTIFACT_STATE_READY,
    Artifact,
    CreateArtifactRequest,
    CreateArtifactResponse,
    DeleteArtifactRequest,
    DeleteArtifactResponse,
    ListArtifactsRequest,
)
from sqlalchemy.engine import Connection

from kapell_server.clock import Clock
from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.ids import IdMinter
from kapell_server.domain.not_found import task_not_found
from kapell_server.domain.tasks.artifact import (
    ArtifactLimits,
    Room,
    Writer,
    artifact_not_found,
    check_bytes,
    completed,
    new_artifact,
    offset_gap,
    state_conflict,
)
from kapell_server.domain.times import SECOND
from kapell_server.store import artifact_rows as sql
from kapell_server.store.artifact_files import ArtifactFiles, Upload
from kapell_server.store.database import Database
from kapell_server.store.listing import Listing, page_of
from kapell_server.store.pages import Page
from kapell_server.store.remembered import Remembered
from kapell_server.store.schema import artifacts
from kapell_server.supervise import Supervisor

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_THREADS = 4
_SWEEP = 200
"""Rows or files that one step of the housekeeping looks at."""
_STEP_SECONDS, _SWEEP_SECONDS = 1.0, 60.0
"""Pause after one step, and after all rows were looked at."""


@dataclass(frozen=True, slots=True)
class _Open:
    """An upload that has not ended: what is known of it, and its file."""

    artifact: Artifact
    upload: Upload
    completing: asyncio.Lock = field(default_factory=asyncio.Lock)


class ArtifactStore:
    """All artifacts. `open` before the first use, `close` after the last."""

    def __init__(
        self,
        database: Database,
        root: Path,
        *,
        clock: Clock,
        limits: ArtifactLimits,
        supervisor: Supervisor,
        random: Random | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._limits = limits
        self._files = ArtifactFiles(root, free_bytes=limits.free_bytes)
        self._room = Room(limits)
        self._minter = IdMinter(random or Random())
        self._open: dict[str, _Open] = {}
        self._finding = asyncio.Lock()
        self._supervisor = supervisor
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kapell-artifacts")
        self._cursor = 0
        self._files_are_swept = False

    async def open(self) -> None:
        """Counts what there is. Uploads that were open are found again when somebody asks for them."""

        def load(connection: Connection) -> tuple[int, dict[str, int], list[Any]]:
            ready = connection.scalar(sa.select(sa.func.coalesce(sa.func.sum(sql.READY_SIZE), 0)))
            ready_of = {task_id: int(size) for task_id, size in connection.execute(sql.USED_BESIDE_UPLOADS)}
            return int(ready or 0), ready_of, list(connection.execute(sql.UPLOADS))

        def sizes(rows: list[Any]) -> list[int]:
            return [max(announced or 0, self._files.size(task, artifact)) for artifact, task, announced in rows]

        self._room.ready, ready_of, rows = await self._database.read(load)
        for (artifact_id, task_id, _), size in zip(rows, await self._run(sizes, rows), strict=True):
            self._room.open(artifact_id, task_id, ready_of[task_id], size)

    def close(self) -> None:
        """Waits for what is under way in threads. Nothing may be called afterwards."""
        self._threads.shutdown(wait=True)

    # -- uploads -----------------------------------------------------------------------------

    async def create(
        self, request: CreateArtifactRequest, writer: Writer, caller: Caller, *, revision: int = 0
    ) -> CreateArtifactResponse:
        """Begins an upload at this revision of the log; the same request_id gives the first answer again.

        What earlier attempts have not completed goes first: nobody can go on with it, and it takes room.
        Raises KapellError TASK_NOT_FOUND, ARTIFACT_LIMIT, STORAGE_FULL, REQUEST_ID_REUSED.
        """
        if writer.attempt > 1:
            await self._to_the_end(self._delete_all(sql.superseded(writer.task_id, writer.attempt)))
        now_ns = self._clock.now_ns()
        artifact = new_artifact(self._minter.mint("artifact", now_ns), request, writer, now_ns)
        announced = request.size if request.HasField("size") else None
        known = Remembered(caller, request, request.request_id)

        def work(connection: Connection) -> bytes | None:
            first = known.first_answer(connection)
            if first is not None:
                return first
            task_id = writer.task_id
            if connection.scalar(sql.TASK, {"task_id": task_id}) is None:
                raise task_not_found(task_id)
            count, ready = connection.execute(sql.USED, {"task_id": task_id}).one()
            self._room.check_new(task_id, int(ready), count, announced or 0)
            self._files.check_free(announced or 0)
            self._room.open(artifact.artifact_id, task_id, int(ready), announced or 0)
            number = (connection.scalar(sql.LAST_NUMBER) or 0) + 1
            connection.execute(sql.INSERT, sql.as_row(artifact, number, announced, now_ns))
            answer = CreateArtifactResponse(artifact=artifact, revision=revision)
            known.remember(connection, answer.SerializeToString(), now_ns)
            return None

        try:
            first = await self._database.write(work)
        except BaseException:
            self._room.close(artifact.artifact_id)
            raise
        if first is not None:
            answer = CreateArtifactResponse.FromString(first)
            answer.replayed = True
            return answer
        upload = Upload(self._files, artifact.task_id, artifact.artifact_id, announced)
        self._open[artifact.artifact_id] = _Open(artifact, upload)
        return CreateArtifactResponse(artifact=artifact, revision=revision)

    async def write(self, artifact_id: str, offset: int, data: bytes) -> int:
        """Adds a chunk; where the upload goes on. What is below that is on the disk.

        Raises KapellError ARTIFACT_NOT_FOUND, ARTIFACT_OFFSET_GAP, ARTIFACT_STATE_CONFLICT,
        ARTIFACT_LIMIT, STORAGE_FULL.
        """
        open_ = await self._upload_of(artifact_id)
        if open_ is None:
            raise state_conflict(artifact_id, ARTIFACT_STATE_READY)
        upload = open_.upload
        if offset > upload.end:
            raise offset_gap(artifact_id, offset, upload.end)
        self._room.grow(artifact_id, offset + len(data))
        return await self._run(upload.write, offset, data)

    async def complete(self, artifact_id: str, sha256: str) -> Artifact:
        """Makes the artifact READY if its bytes have this checksum; otherwise its upload begins again.

        Raises KapellError ARTIFACT_NOT_FOUND, ARTIFACT_CHECKSUM_MISMATCH, ARTIFACT_STATE_CONFLICT.
        """
        open_ = await self._upload_of(artifact_id)
        if open_ is None:
            return await self._known_ready(artifact_id, sha256)
        return await self._to_the_end(self._complete(open_, sha256))

    async def _known_ready(self, artifact_id: str, sha256: str) -> Artifact:
        ready = await self.get(artifact_id)
        if ready.sha256 != sha256:
            raise state_conflict(artifact_id, ARTIFACT_STATE_READY)
        return ready

    async def _complete(self, open_: _Open, sha256: str) -> Artifact:
        """One completion at a time: another must not begin the upload again that this one has sealed."""
        artifact_id, upload = open_.artifact.artifact_id, open_.upload
        async with open_.completing:
            if self._open.get(artifact_id) is not open_:
                return await self._known_ready(artifact_id, sha256)
            size, digest = await self._run(upload.seal)
            try:
                check_bytes(open_.artifact, sha256, size, digest, size_announced=upload.announced is not None)
            except KapellError:
                await self._run(upload.restart)
                raise
            ready = completed(open_.artifact, size, digest, self._clock.now_ns())
            await self._make_ready(ready, upload)
            return ready

    async def _make_ready(self, ready: Artifact, upload: Upload) -> None:
        values = {"id": ready.artifact_id, "bytes": ready.size, "message": ready.SerializeToString()}
        if not await self._database.write(lambda connection: connection.execute(sql.MAKE_READY, values).rowcount):
            raise artifact_not_found(ready.artifact_id)
        self._room.close(ready.artifact_id, ready.size)
        self._open.pop(ready.artifact_id, None)
        await self._run(upload.finish)

    # -- reads -------------------------------------------------------------------------------

    async def get(self, artifact_id: str) -> Artifact:
        """What is known of an artifact, with its upload_offset. Raises ARTIFACT_NOT_FOUND."""
        open_ = self._open.get(artifact_id)
        if open_ is None:
            row = await self._database.read(lambda found: found.execute(sql.ROW, {"artifact_id": artifact_id}).first())
            if row is None:
                raise artifact_not_found(artifact_id)
            if row[1] == ARTIFACT_STATE_READY:
                return Artifact.FromString(row[3])
            open_ = await self._upload_of(artifact_id)
        # None where it was completed between the two looks.
        return _shown(open_) if open_ is not None else await self.get(artifact_id)

    async def list(self, request: ListArtifactsRequest) -> tuple[list[Artifact], str]:
        """A page of a task's artifacts and the token of the next. Raises TASK_NOT_FOUND, PAGE_TOKEN_INVALID."""
        bound_to = ListArtifactsRequest()
        bound_to.CopyFrom(request)
        for name in ("page_size", "page_token", "order"):
            bound_to.ClearField(name)
        page = Page(size=request.page_size, token=request.page_token, order=request.order, bound_to=bound_to)

        def named(data: bytes) -> bool:
            return Artifact.FromString(data).name == request.name

        listing = Listing(
            key=artifacts.c.number,
            data=artifacts.c.data,
            parts=([artifacts.c.task_id == request.task_id],),
            rest=[artifacts.c.attempt == request.attempt] if request.HasField("attempt") else (),
            matches=named if request.name else None,
        )

        def work(connection: Connection) -> tuple[list[Artifact], str]:
            if connection.scalar(sql.TASK, {"task_id": request.task_id}) is None:
                raise task_not_found(request.task_id)
            rows = page_of(connection, listing, page)
            token = "" if rows.next_cursor is None else page.token(rows.next_cursor)
            return [Artifact.FromString(data) for data in rows.data], token

        found, token = await self._database.read(work)
        return [
            artifact if artifact.state == ARTIFACT_STATE_READY else await self._now(artifact) for artifact in found
        ], token

    async def read(self, artifact: Artifact, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes of a READY artifact. Raises ARTIFACT_NOT_FOUND where it was deleted meanwhile."""
        return await self._run(self._files.read, artifact.task_id, artifact.artifact_id, offset, limit)

    # -- ends --------------------------------------------------------------------------------

    async def delete(
        self, request: DeleteArtifactRequest, caller: Caller, *, revision: int = 0
    ) -> DeleteArtifactResponse:
        """Deletes an artifact at this revision of the log; the same request_id gives the first answer again.

        Raises ARTIFACT_NOT_FOUND.
        """
        now_ns = self._clock.now_ns()
        known = Remembered(caller, request, request.request_id)

        def work(connection: Connection) -> tuple[str, int] | bytes:
            first = known.first_answer(connection)
            if first is not None:
                return first
            row = connection.execute(sql.ROW, {"artifact_id": request.artifact_id}).first()
            if row is None:
                raise artifact_not_found(request.artifact_id)
            connection.execute(sql.DELETE, {"id": request.artifact_id})
            known.remember(connection, DeleteArtifactResponse(revision=revision).SerializeToString(), now_ns)
            return row[0], row[2] if row[1] == ARTIFACT_STATE_READY else 0

        async def delete() -> DeleteArtifactResponse:
            deleted = await self._database.write(work)
            if isinstance(deleted, bytes):
                answer = DeleteArtifactResponse.FromString(deleted)
                answer.replayed = True
                return answer
            await self._let_go(request.artifact_id, *deleted)
            return DeleteArtifactResponse(revision=revision)

        return await self._to_the_end(delete())

    async def delete_task(self, task_id: str) -> None:
        """Deletes all artifacts of a task; nothing happens where there are none."""
        is_open = any(open_.artifact.task_id == task_id for open_ in self._open.values())
        if not is_open and not await self._run(self._files.any_of, task_id):
            return

        async def delete() -> None:
            await self._delete_all(artifacts.c.task_id == task_id)
            await self._run(self._files.remove_task, task_id)

        await self._to_the_end(delete())

    async def keep_house(self) -> None:
        """Drops what has lived too long or has lost its task, a little at a time, until cancelled."""
        while True:
            pause = _STEP_SECONDS
            try:
                if not await self.sweep():
                    pause = _SWEEP_SECONDS
            except (KapellError, OSError) as error:
                _log.warning("the housekeeping of artifacts is put off", reason=str(error))
            await asyncio.sleep(pause)

    async def sweep(self) -> bool:
        """One step of the housekeeping; whether there is more to look at before it begins anew."""
        if not self._files_are_swept:
            await self._sweep_files()
            self._files_are_swept = True
        now_ns, limits = self._clock.now_ns(), self._limits
        begun_before = now_ns - int(limits.upload_lifetime * SECOND)
        made_before = now_ns - int(limits.max_age * SECOND) if limits.max_age else 0
        rows = await self._database.read(partial(sql.next_rows, cursor=self._cursor, limit=_SWEEP))
        self._cursor = rows[-1][0] if len(rows) == _SWEEP else 0
        doomed = [
            artifact_id
            for _, artifact_id, state, create_ns, is_orphan, _ in rows
            if is_orphan or create_ns < (made_before if state == ARTIFACT_STATE_READY else begun_before)
        ]
        if doomed:
            await self._delete_rows(artifacts.c.artifact_id.in_(doomed))
        left = [artifact_id for _, artifact_id, *_, is_left in rows if is_left]
        if left:
            await self._delete_rows(artifacts.c.artifact_id.in_(left) & sql.UPLOADING)
        return self._cursor > 0

    async def _sweep_files(self) -> None:
        """Removes files that have no row: of a crash between a row's end and its file's. Once is enough."""
        found = await self._run(lambda: list(self._files.all_ids()))
        for start in range(0, len(found), _SWEEP):
            chunk = found[start : start + _SWEEP]
            ids = [artifact_id for _, artifact_id in chunk]
            statement = sa.select(artifacts.c.artifact_id).where(artifacts.c.artifact_id.in_(ids))
            known = set(await self._database.read(_scalars(statement)))
            for task_id, artifact_id in chunk:
                if artifact_id not in known:
                    await self._run(self._files.remove, task_id, artifact_id)

    async def _delete_all(self, which: sa.ColumnElement[bool]) -> None:
        while await self._delete_rows(which):
            pass

    async def _delete_rows(self, which: sa.ColumnElement[bool]) -> bool:
        """Deletes up to a step's worth of rows with their files; whether there were any."""
        columns = (artifacts.c.artifact_id, artifacts.c.task_id, artifacts.c.state, artifacts.c.size)
        statement = sa.select(*columns).where(which).limit(_SWEEP)

        def work(connection: Connection) -> list[Any]:
            rows = list(connection.execute(statement))
            if rows:
                connection.execute(sa.delete(artifacts).where(artifacts.c.artifact_id.in_([row[0] for row in rows])))
            return rows

        rows = await self._database.write(work)
        for artifact_id, task_id, state, size in rows:
            await self._let_go(artifact_id, task_id, size if state == ARTIFACT_STATE_READY else 0)
        return bool(rows)

    async def _let_go(self, artifact_id: str, task_id: str, ready_bytes: int) -> None:
        """After the row is gone: its room and its files."""
        self._room.close(artifact_id)
        self._room.free(task_id, ready_bytes)
        open_ = self._open.pop(artifact_id, None)
        if open_ is not None:
            await self._run(open_.upload.drop)
        else:
            await self._run(self._files.remove, task_id, artifact_id)

    # -- within ------------------------------------------------------------------------------

    async def _upload_of(self, artifact_id: str) -> _Open | None:
        """The upload of an artifact; None where it has ended. Raises ARTIFACT_NOT_FOUND.

        It is in memory from its creation on, and found again after a restart, or where the creation
        was committed although it seemed to fail.
        """
        if artifact_id in self._open:
            return self._open[artifact_id]
        async with self._finding:
            return self._open.get(artifact_id) or await self._find_upload(artifact_id)

    async def _find_upload(self, artifact_id: str) -> _Open | None:
        def load(connection: Connection) -> tuple[Any, int] | None:
            row = connection.execute(sql.ROW, {"artifact_id": artifact_id}).first()
            return row and (row, int(connection.execute(sql.USED, {"task_id": row[0]}).one()[1]))

        found = await self._database.read(load)
        if found is None:
            raise artifact_not_found(artifact_id)
        (task_id, state, announced, data), ready_of_task = found
        if state == ARTIFACT_STATE_READY:
            return None
        upload = Upload(self._files, task_id, artifact_id, announced)
        end = await self._run(upload.recover)
        if artifact_id not in self._room.uploads:
            self._room.open(artifact_id, task_id, ready_of_task, max(announced or 0, end))
        self._open[artifact_id] = open_ = _Open(Artifact.FromString(data), upload)
        return open_

    async def _now(self, artifact: Artifact) -> Artifact:
        """An artifact that was UPLOADING when it was read, as it is now; as it was where it is gone."""
        try:
            return await self.get(artifact.artifact_id)
        except KapellError:
            return artifact

    async def _to_the_end(self, work: Coroutine[Any, Any, R]) -> R:
        """Does what must not stop between the database and memory, even when the caller is cancelled."""
        outcome: R | Exception = await asyncio.shield(
            self._supervisor.spawn(_outcome(work), name="change of an artifact")
        )
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Does `work` in a thread. It is finished even when the caller is cancelled."""
        job = asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))
        job.add_done_callback(_noticed)
        return await asyncio.shield(job)


def _shown(open_: _Open) -> Artifact:
    """A copy that says where the upload goes on."""
    shown = Artifact()
    shown.CopyFrom(open_.artifact)
    shown.upload_offset = open_.upload.end
    return shown


async def _outcome(work: Awaitable[R]) -> R | Exception:
    """A failure as a value: it is an answer, and no death of a part of the server."""
    try:
        return await work
    except Exception as error:
        return error


def _noticed(job: asyncio.Future[Any]) -> None:
    """The caller of a job may be gone; then its failure is nobody's."""
    if not job.cancelled():
        job.exception()


def _scalars(statement: sa.Select[Any]) -> Callable[[Connection], Iterable[Any]]:
    return lambda connection: connection.scalars(statement).all()
