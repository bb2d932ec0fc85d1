"""Artifacts: who may write and read them, how much room they may take, and what is said to those refused.

Not decided by the writer, because bytes are kept beside the engine: the store asks these rules on
its own, and all of them read what is in memory.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kapell.v1.artifact_pb2 import (
    ARTIFACT_STATE_READY,
    ARTIFACT_STATE_UPLOADING,
    Artifact,
    ArtifactState,
    CreateArtifactRequest,
)
from kapell.v1.common_pb2 import SCOPE_WORKER, SCOPE_WRITE
from kapell.v1.error_pb2 import (
    ERROR_REASON_ARTIFACT_CHECKSUM_MISMATCH,
    ERROR_REASON_ARTIFACT_LIMIT,
    ERROR_REASON_ARTIFACT_NOT_FOUND,
    ERROR_REASON_ARTIFACT_OFFSET_GAP,
    ERROR_REASON_ARTIFACT_STATE_CONFLICT,
    ERROR_REASON_NOT_OWNER,
    ERROR_REASON_SCOPE_MISSING,
)
from kapell.v1.task_pb2 import Task

from kapell_server.domain.access import Caller
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import stamp
from kapell_server.domain.transitions import TASK_LEASED

MIB = 1024 * 1024
DEFAULT_MEDIA_TYPE = "application/octet-stream"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArtifactLimits:
    """How much artifacts may be. Bytes, and seconds; the defaults are those of the product."""

    artifact_bytes: int = 256 * MIB
    task_bytes: int = 1024 * MIB
    total_bytes: int = 20 * 1024 * MIB
    task_artifacts: int = 1_000
    """Most artifacts of a task, unfinished ones included."""
    open_uploads: int = 10_000
    """Most uploads that have not ended, of all tasks."""
    upload_lifetime: float = 86_400.0
    """How long an upload may take; then it is dropped."""
    max_age: float = 0.0
    """How long artifacts are kept; 0: as long as their task."""
    free_bytes: int = 64 * MIB
    """What artifacts leave free on the disk, so that the database can still be written."""


@dataclass(frozen=True, slots=True)
class Writer:
    """What a writer may write to: one attempt of one task, or, with `attempt` 0, whatever a user names."""

    task_id: str
    attempt: int
    agent_id: str


# -- who may ------------------------------------------------------------------------------------


def check_user(caller: Caller) -> None:
    """Writing without a lease is for those who may change tasks. Raises SCOPE_MISSING."""
    if SCOPE_WRITE not in caller.scopes:
        raise _scope_missing(
            "write", f"{caller.name} may upload for its own attempts only. Give the lease_token of a task it has."
        )


def check_worker(caller: Caller) -> None:
    """Writing under a lease is for those who may work. Raises SCOPE_MISSING."""
    if SCOPE_WORKER not in caller.scopes and caller.lease is None:
        raise _scope_missing(
            "worker", f"the token of {caller.name} does not allow working. Leave the lease_token out, or use another."
        )


def check_writer(writer: Writer, artifact: Artifact) -> None:
    """A lease opens the uploads of its own attempt. Raises NOT_OWNER."""
    if writer.attempt and (writer.task_id, writer.attempt) != (artifact.task_id, artifact.attempt):
        raise KapellError(
            ERROR_REASON_NOT_OWNER,
            f"Artifact {artifact.artifact_id} belongs to another attempt than the lease. Begin an upload of your own.",
            metadata={"agent_id": artifact.agent_id},
        )


def may_go_on(attempt: int, task: Task) -> bool:
    """Whether this attempt of the task has its lease still, and with it its uploads."""
    return task.state in TASK_LEASED and task.attempt == attempt


def _scope_missing(scope: str, why: str) -> KapellError:
    return KapellError(
        ERROR_REASON_SCOPE_MISSING, f"This upload needs the scope `{scope}`: {why}", metadata={"scope": scope}
    )


# -- what there may be --------------------------------------------------------------------------


@dataclass(slots=True)
class Room:
    """The bytes that artifacts take, or have announced. One object, in memory; rebuilt at the start.

    `ready` is the sum of all READY artifacts; `ready_of` that of the tasks that have an upload open.
    """

    limits: ArtifactLimits
    ready: int = 0
    ready_of: dict[str, int] = field(default_factory=dict)
    uploads: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Task and bytes of each upload that is open, by artifact."""
    _uploading_of: Counter[str] = field(default_factory=Counter)
    _open_of: Counter[str] = field(default_factory=Counter)
    _uploading: int = 0

    def check_new(self, task_id: str, ready_of_task: int, artifacts_of_task: int, size: int) -> None:
        """Whether another artifact of `size` bytes has room; 0 where it is not known. Raises ARTIFACT_LIMIT."""
        limits = self.limits
        if len(self.uploads) >= limits.open_uploads:
            text = f"{limits.open_uploads} uploads are open, of all tasks. Try again when some of them are complete."
            raise _limit("open_uploads", limits.open_uploads, text)
        if artifacts_of_task >= limits.task_artifacts:
            text = f"Task {task_id} has {artifacts_of_task} artifacts, as many as it may. Pack several files into one."
            raise _limit("task_artifacts", limits.task_artifacts, text)
        self._check_bytes(task_id, self.ready_of.get(task_id, ready_of_task), 0, size)

    def open(self, artifact_id: str, task_id: str, ready_of_task: int, size: int) -> None:
        """Counts a new upload that has announced `size` bytes."""
        # Where another upload of the task is open, memory knows better.
        self.ready_of.setdefault(task_id, ready_of_task)
        self._open_of[task_id] += 1
        self.uploads[artifact_id] = (task_id, size)
        self._add(task_id, size)

    def grow(self, artifact_id: str, size: int) -> None:
        """Lets an upload have `size` bytes. Raises ARTIFACT_LIMIT."""
        task_id, had = self.uploads[artifact_id]
        if size > had:
            self._check_bytes(task_id, self.ready_of[task_id], had, size)
            self.uploads[artifact_id] = (task_id, size)
            self._add(task_id, size - had)

    def close(self, artifact_id: str, ready_bytes: int = 0) -> None:
        """An upload is over: dropped, or READY with so many bytes. Unknown ones are left alone."""
        if artifact_id not in self.uploads:
            return
        task_id, had = self.uploads.pop(artifact_id)
        self._add(task_id, -had)
        self._open_of[task_id] -= 1
        self.ready += ready_bytes
        self.ready_of[task_id] += ready_bytes
        if not self._open_of[task_id]:
            del self._open_of[task_id], self._uploading_of[task_id], self.ready_of[task_id]

    def free(self, task_id: str, ready_bytes: int) -> None:
        """READY artifacts of the task were deleted."""
        self.ready -= ready_bytes
        if task_id in self.ready_of:
            self.ready_of[task_id] -= ready_bytes

    def _add(self, task_id: str, uploading: int) -> None:
        self._uploading += uploading
        self._uploading_of[task_id] += uploading

    def _check_bytes(self, task_id: str, ready_of_task: int, had: int, size: int) -> None:
        limits = self.limits
        if size > limits.artifact_bytes:
            text = f"An artifact may have {_bytes(limits.artifact_bytes)}. Split the file, or pack it tighter."
            raise _limit("max_artifact_mib", limits.artifact_bytes, text)
        if ready_of_task + self._uploading_of[task_id] - had + size > limits.task_bytes:
            text = (
                f"The artifacts of a task may have {_bytes(limits.task_bytes)}, and task {task_id} has no room for this"
                " one. Upload less, pack it tighter, or have a user make room."
            )
            raise _limit("max_task_artifacts_mib", limits.task_bytes, text)
        if self.ready + self._uploading - had + size > limits.total_bytes:
            text = (
                f"All artifacts may have {_bytes(limits.total_bytes)}. Upload less, or have whoever runs the server"
                " make room or raise max_artifacts_mib."
            )
            raise _limit("max_artifacts_mib", limits.total_bytes, text)


def _bytes(count: int) -> str:
    return f"{count // MIB:,} MiB" if count >= MIB else f"{count:,} bytes"


def _limit(setting: str, limit: int, text: str) -> KapellError:
    return KapellError(ERROR_REASON_ARTIFACT_LIMIT, text, metadata={"setting": setting, "limit": str(limit)})


# -- what becomes of one ------------------------------------------------------------------------


def new_artifact(artifact_id: str, request: CreateArtifactRequest, writer: Writer, now_ns: int) -> Artifact:
    """An artifact whose upload begins."""
    artifact = Artifact(
        artifact_id=artifact_id,
        task_id=writer.task_id,
        attempt=writer.attempt,
        agent_id=writer.agent_id,
        name=request.name,
        media_type=request.media_type or DEFAULT_MEDIA_TYPE,
        state=ARTIFACT_STATE_UPLOADING,
        size=request.size,
        sha256=request.sha256,
        labels=request.labels,
    )
    stamp(artifact.create_time, now_ns)
    return artifact


def completed(artifact: Artifact, size: int, sha256: str, now_ns: int) -> Artifact:
    """The artifact as READY, with what its bytes are."""
    ready = Artifact()
    ready.CopyFrom(artifact)
    ready.state = ARTIFACT_STATE_READY
    ready.size = ready.upload_offset = size
    ready.sha256 = sha256
    stamp(ready.complete_time, now_ns)
    return ready


def check_bytes(artifact: Artifact, said: str, size: int, sha256: str, *, size_announced: bool) -> None:
    """Whether the bytes are what was announced and what is `said` now. Raises ARTIFACT_CHECKSUM_MISMATCH."""
    if size_announced and size != artifact.size:
        raise mismatch(artifact.artifact_id, f"{artifact.size} bytes", f"{size} bytes")
    for expected in filter(None, (artifact.sha256, said)):
        if expected != sha256:
            raise mismatch(artifact.artifact_id, expected, sha256)


def mismatch(artifact_id: str, expected: str, actual: str) -> KapellError:
    """What was uploaded is not what was meant."""
    return KapellError(
        ERROR_REASON_ARTIFACT_CHECKSUM_MISMATCH,
        f"Artifact {artifact_id} is not whole: expected {expected}, got {actual}."
        " What was uploaded is dropped; upload it again from offset 0.",
        metadata={"artifact_id": artifact_id, "expected": expected, "actual": actual},
    )


def artifact_not_found(artifact_id: str) -> KapellError:
    """Nobody has this id, or no longer."""
    return KapellError(
        ERROR_REASON_ARTIFACT_NOT_FOUND,
        f"There is no artifact {artifact_id}. It may have been deleted; list those of the task.",
        metadata={"artifact_id": artifact_id},
    )


def offset_gap(artifact_id: str, offset: int, expected: int) -> KapellError:
    """An offset beyond what is there."""
    return KapellError(
        ERROR_REASON_ARTIFACT_OFFSET_GAP,
        f"Offset {offset} lies beyond the {expected} bytes of artifact {artifact_id} that are there."
        f" Go on at {expected}.",
        metadata={"artifact_id": artifact_id, "expected": str(expected)},
    )


def state_conflict(artifact_id: str, state: ArtifactState.ValueType) -> KapellError:
    """READY and to be uploaded, or not READY and to be downloaded."""
    name = ArtifactState.Name(state).removeprefix("ARTIFACT_STATE_")
    advice = (
        "It never changes again; begin a new upload."
        if state == ARTIFACT_STATE_READY
        else "It can be downloaded once its upload is complete."
    )
    return KapellError(
        ERROR_REASON_ARTIFACT_STATE_CONFLICT,
        f"Artifact {artifact_id} is {name}. {advice}",
        metadata={"artifact_id": artifact_id, "state": name},
    )
