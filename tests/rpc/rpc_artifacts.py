"""The part of rpc_table about artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from kapell.v1.artifact_pb2 import (
    ARTIFACT_STATE_READY,
    ARTIFACT_STATE_UPLOADING,
    Artifact,
    CompleteArtifactRequest,
    CreateArtifactRequest,
    DeleteArtifactRequest,
    DownloadArtifactRequest,
    GetArtifactRequest,
    ListArtifactsRequest,
    UploadArtifactRequest,
)

from tests.rpc.rpc_cases import NOTHING, Case, Make, of_lease
from tests.rpc.scene import Ask, Running, Scene

DATA = b"the report"
SHA256 = hashlib.sha256(DATA).hexdigest()
_GONE = "artifact_nothing"
_TOO_MUCH = 1 << 40


def uploading(scene: Scene, running: Running | None = None) -> Artifact:
    """An artifact with all its bytes but not complete: a user's, or that of a running attempt."""
    if running is None:
        request = CreateArtifactRequest(task_id=scene.queued().task_id, name="report.txt")
    else:
        request = CreateArtifactRequest(lease_token=running.lease_token, name="report.txt")
    artifact: Artifact = scene.ask("CreateArtifact", request).artifact
    scene.ask("UploadArtifact", UploadArtifactRequest(artifact_id=artifact.artifact_id, data=DATA))
    return artifact


def ready(scene: Scene, running: Running | None = None) -> Artifact:
    """An artifact that is READY."""
    begun = uploading(scene, running)
    request = CompleteArtifactRequest(artifact_id=begun.artifact_id, sha256=SHA256)
    done: Artifact = scene.ask("CompleteArtifact", request).artifact
    return done


def _of_other_agents(request: Callable[[Artifact], Any]) -> Make:
    """An agent asks for what belongs to a task it does not have."""
    return lambda scene: Ask(request(ready(scene)), scene.worker().token)


def _of_uploads(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusals of every step of an upload."""

    def of_another_attempt(scene: Scene) -> Ask:
        mine, other = scene.running(), scene.running()
        artifact = uploading(scene, other)
        asked = request(artifact_id=artifact.artifact_id, lease_token=mine.lease_token, **fields)
        return Ask(asked, mine.worker.token)

    def without_a_lease(scene: Scene) -> Ask:
        running = scene.running()
        return Ask(request(artifact_id=uploading(scene, running).artifact_id, **fields), running.worker.token)

    return {
        **of_lease(request, artifact_id=_GONE, **fields),
        "ARTIFACT_NOT_FOUND": lambda scene: Ask(request(artifact_id=_GONE, **fields)),
        "NOT_OWNER: of another attempt": of_another_attempt,
        "SCOPE_MISSING: an agent without a lease": without_a_lease,
    }


def _page_of_another_task(scene: Scene) -> Ask:
    task_id = scene.queued().task_id
    for name in ("a", "b"):
        scene.ask("CreateArtifact", CreateArtifactRequest(task_id=task_id, name=name))
    page = scene.ask("ListArtifacts", ListArtifactsRequest(task_id=task_id, page_size=1))
    return Ask(ListArtifactsRequest(task_id=scene.queued().task_id, page_token=page.next_page_token))


ARTIFACTS: dict[str, Case] = {
    "CreateArtifact": Case(
        works=lambda scene: Ask(CreateArtifactRequest(task_id=scene.queued().task_id, name="report/index.html")),
        holds=lambda answer: answer.artifact.state == ARTIFACT_STATE_UPLOADING and answer.revision > 0,
        refused={
            **of_lease(CreateArtifactRequest, name="a"),
            "TASK_NOT_FOUND": lambda scene: Ask(CreateArtifactRequest(task_id=NOTHING, name="a")),
            "SCOPE_MISSING: an agent without a lease": lambda scene: Ask(
                CreateArtifactRequest(task_id=scene.queued().task_id, name="a"), scene.worker().token
            ),
            "ARTIFACT_LIMIT": lambda scene: Ask(
                CreateArtifactRequest(task_id=scene.queued().task_id, name="a", size=_TOO_MUCH)
            ),
        },
        malformed=({"taskId": "task_1", "name": "../passwd"}, "name"),
    ),
    "UploadArtifact": Case(
        works=lambda scene: Ask(
            UploadArtifactRequest(artifact_id=uploading(scene).artifact_id, offset=len(DATA), data=b" and more")
        ),
        holds=lambda answer: answer.next_offset == len(DATA) + 9,
        refused={
            **_of_uploads(UploadArtifactRequest, data=b"x"),
            "ARTIFACT_OFFSET_GAP": lambda scene: Ask(
                UploadArtifactRequest(artifact_id=uploading(scene).artifact_id, offset=11, data=b"x")
            ),
            "ARTIFACT_STATE_CONFLICT": lambda scene: Ask(
                UploadArtifactRequest(artifact_id=ready(scene).artifact_id, data=b"x")
            ),
        },
        malformed=({"artifactId": "artifact_1"}, "data"),
    ),
    "CompleteArtifact": Case(
        works=lambda scene: Ask(CompleteArtifactRequest(artifact_id=uploading(scene).artifact_id, sha256=SHA256)),
        holds=lambda answer: answer.artifact.state == ARTIFACT_STATE_READY and answer.artifact.size == len(DATA),
        refused={
            **_of_uploads(CompleteArtifactRequest, sha256=SHA256),
            "ARTIFACT_CHECKSUM_MISMATCH": lambda scene: Ask(
                CompleteArtifactRequest(artifact_id=uploading(scene).artifact_id, sha256="0" * 64)
            ),
            "ARTIFACT_STATE_CONFLICT": lambda scene: Ask(
                CompleteArtifactRequest(artifact_id=ready(scene).artifact_id, sha256="0" * 64)
            ),
        },
        malformed=({"artifactId": "artifact_1", "sha256": "abc"}, "sha256"),
    ),
    "GetArtifact": Case(
        works=lambda scene: Ask(GetArtifactRequest(artifact_id=uploading(scene).artifact_id)),
        holds=lambda answer: answer.artifact.upload_offset == len(DATA),
        refused={
            "ARTIFACT_NOT_FOUND": lambda scene: Ask(GetArtifactRequest(artifact_id=_GONE)),
            "NOT_OWNER": _of_other_agents(lambda found: GetArtifactRequest(artifact_id=found.artifact_id)),
        },
        malformed=({}, "artifact_id"),
    ),
    "ListArtifacts": Case(
        works=lambda scene: Ask(ListArtifactsRequest(task_id=ready(scene).task_id)),
        holds=lambda answer: [artifact.name for artifact in answer.artifacts] == ["report.txt"],
        refused={
            "TASK_NOT_FOUND": lambda scene: Ask(ListArtifactsRequest(task_id=NOTHING)),
            "NOT_OWNER": _of_other_agents(lambda found: ListArtifactsRequest(task_id=found.task_id)),
            "PAGE_TOKEN_INVALID: of another task": _page_of_another_task,
        },
        malformed=({"taskId": "task_1", "pageSize": 1001}, "page_size"),
    ),
    "DownloadArtifact": Case(
        works=lambda scene: Ask(DownloadArtifactRequest(artifact_id=ready(scene).artifact_id, offset=4)),
        holds=lambda answer: answer.artifact.sha256 == SHA256 and answer.offset == 4,
        refused={
            "ARTIFACT_NOT_FOUND": lambda scene: Ask(DownloadArtifactRequest(artifact_id=_GONE)),
            "NOT_OWNER": _of_other_agents(lambda found: DownloadArtifactRequest(artifact_id=found.artifact_id)),
            "ARTIFACT_STATE_CONFLICT": lambda scene: Ask(
                DownloadArtifactRequest(artifact_id=uploading(scene).artifact_id)
            ),
            "ARTIFACT_OFFSET_GAP": lambda scene: Ask(
                DownloadArtifactRequest(artifact_id=ready(scene).artifact_id, offset=11)
            ),
        },
        malformed=({"artifactId": "artifact_1", "offset": "-1"}, "offset"),
    ),
    "DeleteArtifact": Case(
        works=lambda scene: Ask(DeleteArtifactRequest(artifact_id=ready(scene).artifact_id)),
        holds=lambda answer: answer.revision > 0,
        refused={"ARTIFACT_NOT_FOUND": lambda scene: Ask(DeleteArtifactRequest(artifact_id=_GONE))},
        malformed=({}, "artifact_id"),
    ),
}

# Requests that pass validation, for the tests of the pipeline.
VALID_OF_ARTIFACTS: dict[str, dict[str, Any]] = {
    "CreateArtifact": {"task_id": "task_1", "name": "report.txt"},
    "UploadArtifact": {"artifact_id": "artifact_1", "data": "eA=="},
    "CompleteArtifact": {"artifact_id": "artifact_1", "sha256": "0" * 64},
    "GetArtifact": {"artifact_id": "artifact_1"},
    "DownloadArtifact": {"artifact_id": "artifact_1"},
    "DeleteArtifact": {"artifact_id": "artifact_1"},
}
