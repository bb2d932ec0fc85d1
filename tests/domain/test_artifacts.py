"""The rules of artifacts: who may, how much there may be, what must match."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell.v1.artifact_pb2 import Artifact, CreateArtifactRequest
from kapell.v1.common_pb2 import SCOPE_READ, SCOPE_WORKER, SCOPE_WRITE
from kapell_server.domain.access import AGENT_SCOPES, Caller, CallerKind, user
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.artifact import (
    ArtifactLimits,
    Room,
    Writer,
    check_bytes,
    check_user,
    check_worker,
    check_writer,
    completed,
    new_artifact,
)

READER = Caller(kind=CallerKind.USER, name="reader", scopes=frozenset({SCOPE_READ}))
AGENT = Caller(kind=CallerKind.AGENT, name="agent_1", scopes=AGENT_SCOPES, agent_id="agent_1", instance=1)
LIMITS = ArtifactLimits(artifact_bytes=100, task_bytes=250, total_bytes=400, task_artifacts=1000, open_uploads=1000)


def test_scopes_are_those_of_the_way_of_writing() -> None:
    check_user(user("admin"))
    check_user(replace(READER, scopes=frozenset({SCOPE_READ, SCOPE_WRITE})))
    check_worker(AGENT)
    check_worker(replace(READER, scopes=frozenset({SCOPE_READ, SCOPE_WORKER})))
    for check, caller, scope in (
        (check_user, AGENT, "write"),
        (check_user, READER, "write"),
        (check_worker, READER, "worker"),
    ):
        with pytest.raises(KapellError) as caught:
            check(caller)
        assert (caught.value.reason_name, caught.value.metadata) == ("SCOPE_MISSING", {"scope": scope})


def test_a_lease_opens_its_own_attempt_only() -> None:
    artifact = Artifact(artifact_id="artifact_1", task_id="task_a", attempt=2)

    check_writer(Writer("task_a", 2, "agent_1"), artifact)
    check_writer(Writer("", 0, ""), artifact)
    for task_id, attempt in (("task_a", 1), ("task_a", 3), ("task_b", 2)):
        with pytest.raises(KapellError, match="another attempt"):
            check_writer(Writer(task_id, attempt, "agent_1"), artifact)


def test_the_bytes_must_be_those_that_were_announced() -> None:
    artifact = new_artifact(
        "artifact_1", CreateArtifactRequest(name="a", size=3, sha256="aa"), Writer("task_a", 0, ""), 10**9
    )

    check_bytes(artifact, "aa", 3, "aa", size_announced=True)
    for said, size, digest in (("aa", 4, "aa"), ("bb", 3, "aa"), ("bb", 3, "bb")):
        with pytest.raises(KapellError) as caught:
            check_bytes(artifact, said, size, digest, size_announced=True)
        assert caught.value.reason_name == "ARTIFACT_CHECKSUM_MISMATCH"
    ready = completed(artifact, 3, "aa", 2 * 10**9)
    assert (ready.size, ready.upload_offset, ready.media_type) == (3, 3, "application/octet-stream")


@given(seed=st.integers(0, 2**32))
def test_room_adds_up_whatever_happens(seed: int) -> None:
    """Against plain sums: no limit is ever passed, nothing is refused that fits, and all of it comes back."""
    random = Random(seed)
    room = Room(LIMITS)
    ready: dict[str, tuple[str, int]] = {}
    sizes: dict[str, tuple[str, int]] = {}

    def total(task_id: str | None = None) -> int:
        return sum(size for task, size in [*ready.values(), *sizes.values()] if task_id in (None, task))

    for number in range(60):
        task_id = random.choice(["task_a", "task_b", "task_c"])
        count = random.choice([0, 1, 30, 60, 100, 101])
        of_task = sum(size for task, size in ready.values() if task == task_id)
        match random.choice(["open", "grow", "complete", "drop", "free"]):
            case "open":
                fits = count <= 100 and total(task_id) + count <= 250 and total() + count <= 400
                try:
                    room.check_new(task_id, of_task, 0, count)
                except KapellError:
                    assert not fits
                else:
                    assert fits
                    room.open(f"artifact_{number}", task_id, of_task, count)
                    sizes[f"artifact_{number}"] = (task_id, count)
            case "grow" if sizes:
                artifact_id = random.choice(sorted(sizes))
                task, had = sizes[artifact_id]
                more = max(0, count - had)
                fits = not more or (count <= 100 and total(task) + more <= 250 and total() + more <= 400)
                try:
                    room.grow(artifact_id, count)
                except KapellError:
                    assert not fits
                else:
                    assert fits
                    sizes[artifact_id] = (task, max(had, count))
            case "complete" if sizes:
                artifact_id = random.choice(sorted(sizes))
                task, had = sizes.pop(artifact_id)
                room.close(artifact_id, had)
                ready[artifact_id] = (task, had)
            case "drop" if sizes:
                artifact_id = random.choice(sorted(sizes))
                del sizes[artifact_id]
                room.close(artifact_id)
                room.close(artifact_id)
            case "free" if ready:
                task, had = ready.pop(random.choice(sorted(ready)))
                room.free(task, had)

    for artifact_id in sizes:
        room.close(artifact_id)
    for task, had in ready.values():
        room.free(task, had)
    assert (room.ready, room.uploads, room.ready_of) == (0, {}, {})
