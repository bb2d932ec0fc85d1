"""Artifacts on both databases: uploads through restarts, room, lists, ends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from kapell.v1.artifact_pb2 import (
    ARTIFACT_STATE_READY,
    ARTIFACT_STATE_UPLOADING,
    Artifact,
    CreateArtifactRequest,
    DeleteArtifactRequest,
    ListArtifactsRequest,
)
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.task_pb2 import CancelTaskRequest, DeleteTaskRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.artifact import ArtifactLimits, Writer
from kapell_server.store.artifacts import ArtifactStore
from kapell_server.store.schema import artifacts as table
from kapell_server.supervise import Supervisor

from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import USER, LiveEngine

DAY = 86_400.0
LIMITS = ArtifactLimits(
    artifact_bytes=100,
    task_bytes=250,
    total_bytes=400,
    task_artifacts=5,
    open_uploads=8,
    max_age=10 * DAY,
    free_bytes=0,
)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Shelf:
    """A store whose process can end and begin anew, on a live engine's database."""

    def __init__(self, live: LiveEngine, root: Path) -> None:
        self.live = live
        self.root = root
        self.store: ArtifactStore
        self.database = FaultyDatabase(live.database)
        self.crashes: list[BaseException] = []
        self._supervisor = Supervisor(lambda name, error: self.crashes.append(error))
        self._starts = 0

    async def start(self) -> None:
        self._starts += 1
        self.store = ArtifactStore(
            self.database,
            self.root,
            clock=self.live.clock,
            limits=LIMITS,
            supervisor=self._supervisor,
            random=Random(self._starts),
        )
        await self.store.open()

    async def restart(self) -> None:
        """As after kill -9: nothing is tidied up."""
        self.store.close()
        await self.start()

    async def task(self, task_id: str) -> str:
        await self.live.create(task_id=task_id)
        return task_id

    async def begin(self, task_id: str, writer: Writer | None = None, **fields: Any) -> Artifact:
        request = CreateArtifactRequest(**{"task_id": task_id, "name": "report.txt", **fields})
        return (await self.store.create(request, writer or Writer(task_id, 0, ""), USER)).artifact

    async def keep(self, task_id: str, data: bytes, **fields: Any) -> Artifact:
        artifact = await self.begin(task_id, **fields)
        if data:
            await self.store.write(artifact.artifact_id, 0, data)
        return await self.store.complete(artifact.artifact_id, sha256(data))

    async def names(self, task_id: str, **fields: Any) -> list[str]:
        found, _ = await self.store.list(ListArtifactsRequest(task_id=task_id, **fields))
        return [artifact.name for artifact in found]

    async def ids(self, task_id: str) -> set[str]:
        found, _ = await self.store.list(ListArtifactsRequest(task_id=task_id))
        return {artifact.artifact_id for artifact in found}

    async def delete(self, artifact_id: str) -> None:
        await self.store.delete(DeleteArtifactRequest(artifact_id=artifact_id), USER)

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
async def shelf(live: LiveEngine, tmp_path: Path) -> AsyncIterator[Shelf]:
    shelf = Shelf(live, tmp_path / "artifacts")
    await shelf.start()
    yield shelf
    shelf.store.close()
    assert shelf.crashes == []


async def refused(call: Any) -> KapellError:
    with pytest.raises(KapellError) as caught:
        await call
    return caught.value


async def test_an_upload_becomes_ready_and_is_read_back(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    begun = await shelf.begin(task, media_type="text/plain", labels={"kind": "report"}, size=6)
    assert (begun.state, begun.upload_offset, begun.size) == (ARTIFACT_STATE_UPLOADING, 0, 6)

    assert await shelf.store.write(begun.artifact_id, 0, b"one") == 3
    assert (await shelf.store.get(begun.artifact_id)).upload_offset == 3
    await shelf.store.write(begun.artifact_id, 3, b"two")
    ready = await shelf.store.complete(begun.artifact_id, sha256(b"onetwo"))

    assert (ready.state, ready.size, ready.sha256) == (ARTIFACT_STATE_READY, 6, sha256(b"onetwo"))
    assert ready.HasField("complete_time")
    assert dict(ready.labels) == {"kind": "report"}
    assert await shelf.store.get(begun.artifact_id) == ready
    assert await shelf.store.complete(begun.artifact_id, sha256(b"onetwo")) == ready
    assert await shelf.store.read(ready, 2, 3) == b"etw"
    assert shelf.on_disk() == [begun.artifact_id]


async def test_ready_and_acknowledged_bytes_survive_the_process(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    ready = await shelf.keep(task, b"ready")
    begun = await shelf.begin(task, name="other")
    await shelf.store.write(begun.artifact_id, 0, b"half")

    await shelf.restart()

    assert await shelf.store.get(ready.artifact_id) == ready
    assert await shelf.store.read(ready, 0, 99) == b"ready"
    assert (await shelf.store.get(begun.artifact_id)).upload_offset == 4
    assert await shelf.store.write(begun.artifact_id, 4, b" done") == 9
    assert (await shelf.store.complete(begun.artifact_id, sha256(b"half done"))).size == 9


async def test_uploads_are_found_again_by_whoever_asks(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    begun = [await shelf.begin(task, name=str(number)) for number in range(3)]
    for number, artifact in enumerate(begun):
        await shelf.store.write(artifact.artifact_id, 0, b"x" * (number + 1))

    await shelf.restart()
    found, _ = await shelf.store.list(ListArtifactsRequest(task_id=task))
    assert [artifact.upload_offset for artifact in found] == [3, 2, 1]
    await shelf.restart()
    await asyncio.gather(*(shelf.store.write(begun[0].artifact_id, 1, b"y") for _ in range(3)))
    await shelf.restart()
    await shelf.delete(begun[1].artifact_id)

    assert (await shelf.store.complete(begun[0].artifact_id, sha256(b"xy"))).size == 2
    assert shelf.store._room.uploads.keys() == {begun[2].artifact_id}


async def test_two_completions_at_once_do_not_take_the_bytes_away(shelf: Shelf) -> None:
    begun = await shelf.begin(await shelf.task("task_a"))
    await shelf.store.write(begun.artifact_id, 0, b"hello")

    both = (shelf.store.complete(begun.artifact_id, sha256(said)) for said in (b"hello", b"bye"))
    answers = await asyncio.gather(*both, return_exceptions=True)

    assert (await shelf.store.read(answers[0], 0, 100), type(answers[1])) == (b"hello", KapellError)


async def test_another_checksum_begins_the_upload_again(shelf: Shelf) -> None:
    begun = await shelf.begin(await shelf.task("task_a"))
    await shelf.store.write(begun.artifact_id, 0, b"wrong")

    found = await refused(shelf.store.complete(begun.artifact_id, sha256(b"right")))

    assert found.reason_name == "ARTIFACT_CHECKSUM_MISMATCH"
    assert found.metadata["actual"] == sha256(b"wrong")
    assert (await shelf.store.get(begun.artifact_id)).upload_offset == 0
    await shelf.store.write(begun.artifact_id, 0, b"right")
    ready = await shelf.store.complete(begun.artifact_id, sha256(b"right"))
    assert ready.size == 5
    other = await refused(shelf.store.complete(begun.artifact_id, sha256(b"other")))
    assert other.reason_name == "ARTIFACT_STATE_CONFLICT"
    assert (await refused(shelf.store.write(begun.artifact_id, 5, b"!"))).reason_name == "ARTIFACT_STATE_CONFLICT"


@pytest.mark.parametrize("announced", [{"size": 4}, {"size": 0}, {"sha256": sha256(b"other")}])
async def test_what_was_announced_must_come(shelf: Shelf, announced: dict[str, Any]) -> None:
    task = await shelf.task("task_a")
    begun = await shelf.begin(task, **announced)
    await shelf.store.write(begun.artifact_id, 0, b"three")

    found = await refused(shelf.store.complete(begun.artifact_id, sha256(b"three")))

    assert found.reason_name == "ARTIFACT_CHECKSUM_MISMATCH"


async def test_an_empty_file_is_an_artifact(shelf: Shelf) -> None:
    ready = await shelf.keep(await shelf.task("task_a"), b"", size=0)

    assert (ready.state, ready.size) == (ARTIFACT_STATE_READY, 0)
    await shelf.restart()
    assert await shelf.store.read(ready, 0, 10) == b""


async def test_nothing_is_begun_for_a_task_that_is_not_there(shelf: Shelf) -> None:
    assert (await refused(shelf.begin("task_nothing"))).reason_name == "TASK_NOT_FOUND"
    assert (await refused(shelf.names("task_nothing"))).reason_name == "TASK_NOT_FOUND"
    assert (await refused(shelf.store.get("artifact_nothing"))).reason_name == "ARTIFACT_NOT_FOUND"
    assert (await refused(shelf.store.write("artifact_nothing", 0, b"x"))).reason_name == "ARTIFACT_NOT_FOUND"
    assert (await refused(shelf.delete("artifact_nothing"))).reason_name == "ARTIFACT_NOT_FOUND"


@pytest.mark.parametrize("is_announced", [True, False])
async def test_no_more_bytes_than_allowed(shelf: Shelf, is_announced: bool) -> None:
    async def add(task_id: str, count: int) -> None:
        size = {"size": count} if is_announced else {}
        artifact = await shelf.begin(task_id, **size)
        try:
            await shelf.store.write(artifact.artifact_id, 0, b"x" * count)
        except KapellError:
            await shelf.delete(artifact.artifact_id)
            raise
        await shelf.store.complete(artifact.artifact_id, sha256(b"x" * count))

    one, two = await shelf.task("task_a"), await shelf.task("task_b")
    assert (await refused(add(one, 101))).metadata == {"setting": "max_artifact_mib", "limit": "100"}
    await add(one, 100)
    await add(one, 100)
    assert (await refused(add(one, 51))).metadata["setting"] == "max_task_artifacts_mib"
    await add(one, 50)
    await shelf.restart()
    await add(two, 100)
    assert (await refused(add(two, 51))).metadata["setting"] == "max_artifacts_mib"
    await add(two, 50)
    last, *_ = (await shelf.store.list(ListArtifactsRequest(task_id=two)))[0]
    await shelf.delete(last.artifact_id)
    await add(two, 50)


async def test_open_uploads_take_the_room_they_announced(shelf: Shelf) -> None:
    one = await shelf.task("task_a")
    first = await shelf.begin(one, size=100)
    await shelf.begin(one, size=100)

    for _ in range(2):
        assert (await refused(shelf.begin(one, size=51))).reason_name == "ARTIFACT_LIMIT"
        await shelf.restart()

    await shelf.delete(first.artifact_id)
    await shelf.begin(one, size=51)


async def test_no_more_artifacts_than_allowed(shelf: Shelf) -> None:
    one, two = await shelf.task("task_a"), await shelf.task("task_b")
    for _ in range(5):
        await shelf.begin(one)

    assert (await refused(shelf.begin(one))).metadata == {"setting": "task_artifacts", "limit": "5"}
    for _ in range(3):
        await shelf.begin(two)
    assert (await refused(shelf.begin(two))).metadata["setting"] == "open_uploads"


async def test_a_request_id_makes_one_artifact_and_one_deletion(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    request = CreateArtifactRequest(task_id=task, name="a", request_id="once")
    writer = Writer(task, 0, "")

    first = await shelf.store.create(request, writer, USER, revision=7)
    again = await shelf.store.create(request, writer, USER, revision=8)
    assert (first.replayed, again.replayed) == (False, True)
    assert (again.artifact, again.revision) == (first.artifact, 7)
    request.name = "b"
    assert (await refused(shelf.store.create(request, writer, USER))).reason_name == "REQUEST_ID_REUSED"

    deletion = DeleteArtifactRequest(artifact_id=first.artifact.artifact_id, request_id="gone")
    answers = [await shelf.store.delete(deletion, USER, revision=revision) for revision in (8, 9)]
    assert [(answer.revision, answer.replayed) for answer in answers] == [(8, False), (8, True)]


async def test_lists_are_paged_and_filtered(shelf: Shelf) -> None:
    one, two = await shelf.task("task_a"), await shelf.task("task_b")
    for name in ("a", "b", "c", "a"):
        await shelf.begin(one, name=name)
    await shelf.begin(two, name="z")
    lease = CreateArtifactRequest(name="by an agent")
    await shelf.store.create(lease, Writer(one, 2, "agent_a"), USER)

    assert await shelf.names(one) == ["by an agent", "a", "c", "b", "a"]
    assert await shelf.names(one, order=LIST_ORDER_OLDEST_FIRST, page_size=2) == ["a", "b"]
    assert await shelf.names(one, attempt=2) == ["by an agent"]
    assert await shelf.names(one, attempt=0, name="a") == ["a", "a"]
    _, token = await shelf.store.list(ListArtifactsRequest(task_id=one, page_size=3))
    assert await shelf.names(one, page_size=3, page_token=token) == ["b", "a"]
    assert (await refused(shelf.names(two, page_token=token))).reason_name == "PAGE_TOKEN_INVALID"


async def test_concurrent_chunks_and_ends_agree(shelf: Shelf) -> None:
    begun = await shelf.begin(await shelf.task("task_a"))
    data = bytes(range(90))

    async def send() -> None:
        offset = 0
        while offset < len(data):
            offset = await shelf.store.write(begun.artifact_id, offset, data[offset : offset + 7])

    await asyncio.gather(*(send() for _ in range(5)))
    results = await asyncio.gather(*(shelf.store.complete(begun.artifact_id, sha256(data)) for _ in range(5)))

    assert {ready.sha256 for ready in results} == {sha256(data)}
    assert await shelf.store.read(results[0], 0, 100) == data


async def test_a_caller_who_leaves_leaves_nothing_half_done(shelf: Shelf) -> None:
    begun = await shelf.begin(await shelf.task("task_a"))
    await shelf.store.write(begun.artifact_id, 0, b"all of it")
    completing = asyncio.ensure_future(shelf.store.complete(begun.artifact_id, sha256(b"all of it")))
    await asyncio.sleep(0)
    completing.cancel()
    await asyncio.gather(completing, return_exceptions=True)

    ready = await shelf.store.complete(begun.artifact_id, sha256(b"all of it"))

    assert ready.state == ARTIFACT_STATE_READY
    assert await shelf.store.read(ready, 0, 99) == b"all of it"


async def test_deleting_a_task_deletes_its_artifacts_and_uploads(shelf: Shelf) -> None:
    one, two = await shelf.task("task_a"), await shelf.task("task_b")
    await shelf.keep(one, b"one")
    begun = await shelf.begin(one)
    kept = await shelf.keep(two, b"two")

    await shelf.store.delete_task(one)
    await shelf.store.delete_task("task_unknown")

    assert await shelf.names(one) == []
    assert shelf.on_disk() == [kept.artifact_id]
    assert (await refused(shelf.store.write(begun.artifact_id, 0, b"x"))).reason_name == "ARTIFACT_NOT_FOUND"


async def test_uploads_that_earlier_attempts_left_make_room_for_the_next(shelf: Shelf) -> None:
    one, two = await shelf.task("task_a"), await shelf.task("task_b")
    kept = [
        await shelf.keep(one, b"ready", writer=Writer(one, 1, "agent_a")),
        await shelf.begin(one, writer=Writer(one, 0, "")),
        await shelf.begin(two, writer=Writer(two, 1, "agent_a")),
    ]
    begun = await shelf.begin(one, writer=Writer(one, 1, "agent_a"), size=100)
    await shelf.store.write(begun.artifact_id, 0, b"half")
    await shelf.restart()
    other = await shelf.begin(one, writer=Writer(one, 2, "agent_a"), size=100)
    await shelf.store.write(other.artifact_id, 0, b"half")

    last = await shelf.begin(one, writer=Writer(one, 3, "agent_a"), size=100)
    more = await shelf.begin(one, writer=Writer(one, 3, "agent_a"), size=100)

    assert await shelf.ids(one) == {kept[0].artifact_id, kept[1].artifact_id, last.artifact_id, more.artifact_id}
    assert await shelf.ids(two) == {kept[2].artifact_id}
    assert not {begun.artifact_id, other.artifact_id} & set(shelf.on_disk())
    assert not {begun.artifact_id, other.artifact_id} & shelf.store._room.uploads.keys()
    assert (await refused(shelf.store.write(other.artifact_id, 4, b"!"))).reason_name == "ARTIFACT_NOT_FOUND"


async def test_a_full_task_is_not_locked_by_uploads_of_dead_attempts(shelf: Shelf) -> None:
    one = await shelf.task("task_a")
    for _ in range(5):
        await shelf.begin(one, writer=Writer(one, 1, "agent_a"))
    found = await refused(shelf.begin(one, writer=Writer(one, 1, "agent_a")))
    assert found.metadata["setting"] == "task_artifacts"

    assert await shelf.begin(one, writer=Writer(one, 2, "agent_a"))


async def test_uploads_of_attempts_that_are_over_are_swept(shelf: Shelf) -> None:
    agent_id = await shelf.live.register(slots=2)
    await shelf.task("task_a")
    await shelf.task("task_b")
    over, live = await shelf.live.lease(agent_id, max_tasks=2)
    for offer in (over, live):
        writer = Writer(offer.task.task_id, offer.attempt, agent_id)
        await shelf.keep(offer.task.task_id, b"whole", name="whole", writer=writer)
        await shelf.begin(offer.task.task_id, name="begun", writer=writer)
    await shelf.begin(over.task.task_id, name="of a user")
    await shelf.live.complete(over)

    await shelf.store.sweep()

    assert await shelf.names(over.task.task_id) == ["of a user", "whole"]
    assert await shelf.names(live.task.task_id) == ["begun", "whole"]


@pytest.mark.parametrize(("size", "setting"), [(51, "max_task_artifacts_mib"), (101, "max_artifact_mib")])
async def test_nobody_is_told_to_delete_what_they_may_not(shelf: Shelf, size: int, setting: str) -> None:
    one = await shelf.task("task_a")
    await shelf.begin(one, size=100)
    await shelf.begin(one, size=100)

    found = await refused(shelf.begin(one, size=size, writer=Writer(one, 1, "agent_a")))

    assert found.metadata["setting"] == setting
    assert "delete" not in str(found).lower()


async def test_artifacts_whose_task_is_gone_are_swept(shelf: Shelf) -> None:
    await shelf.keep(await shelf.task("task_a"), b"one")
    kept = await shelf.keep(await shelf.task("task_b"), b"two")
    await shelf.live.call(CancelTaskRequest(task_id="task_a"))
    await shelf.live.call(DeleteTaskRequest(task_id="task_a"))

    await shelf.store.sweep()

    assert shelf.on_disk() == [kept.artifact_id]
    assert not list(shelf.root.rglob("task_a*"))


async def test_files_without_a_row_are_swept_at_the_start(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    lost, kept = await shelf.keep(task, b"one"), await shelf.keep(task, b"two")
    statement = sa.delete(table).where(table.c.artifact_id == lost.artifact_id)
    await shelf.live.database.write(lambda connection: connection.execute(statement))

    await shelf.restart()
    await shelf.store.sweep()

    assert shelf.on_disk() == [kept.artifact_id]


async def test_unfinished_uploads_live_a_day_and_artifacts_their_age(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    ready = await shelf.keep(task, b"one", name="ready")
    begun = await shelf.begin(task, name="begun")
    await shelf.store.write(begun.artifact_id, 0, b"half")

    shelf.live.clock.advance(DAY - 1)
    await shelf.store.sweep()
    assert await shelf.names(task) == ["begun", "ready"]
    shelf.live.clock.advance(2)
    await shelf.store.sweep()
    assert await shelf.names(task) == ["ready"]
    assert (await refused(shelf.store.write(begun.artifact_id, 4, b"!"))).reason_name == "ARTIFACT_NOT_FOUND"
    shelf.live.clock.advance(9 * DAY)
    await shelf.store.sweep()

    assert await shelf.names(task) == []
    assert shelf.on_disk() == []
    assert (await refused(shelf.store.read(ready, 0, 1))).reason_name == "ARTIFACT_NOT_FOUND"


async def test_a_step_of_the_housekeeping_is_small(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapell_server.store.artifacts._SWEEP", 2)
    task = await shelf.task("task_a")
    for number in range(5):
        await shelf.keep(task, b"x", name=str(number))
    shelf.live.clock.advance(11 * DAY)

    left = []
    for _ in range(3):
        left.append((await shelf.store.sweep(), len(await shelf.names(task))))

    assert left == [(True, 3), (True, 1), (False, 0)]


async def test_a_creation_whose_answer_was_lost_is_found_again(shelf: Shelf) -> None:
    task = await shelf.task("task_a")
    shelf.database.faults.append(Fault(busy(), "committed"))
    assert (await refused(shelf.begin(task, request_id="once"))).reason_name == "STORAGE_BUSY"

    begun = await shelf.begin(task, request_id="once")
    await asyncio.gather(*(shelf.store.write(begun.artifact_id, 0, b"all") for _ in range(3)))

    assert (await shelf.store.complete(begun.artifact_id, sha256(b"all"))).size == 3


@pytest.mark.parametrize("when", ["before", "uncommitted", "committed"])
async def test_an_end_that_could_not_be_written_is_repeated(shelf: Shelf, when: Any) -> None:
    begun = await shelf.begin(await shelf.task("task_a"))
    await shelf.store.write(begun.artifact_id, 0, b"all")
    shelf.database.faults.append(Fault(busy(), when))
    assert (await refused(shelf.store.complete(begun.artifact_id, sha256(b"all")))).reason_name == "STORAGE_BUSY"

    ready = await shelf.store.complete(begun.artifact_id, sha256(b"all"))

    assert await shelf.store.get(begun.artifact_id) == ready
    assert await shelf.store.read(ready, 0, 9) == b"all"
