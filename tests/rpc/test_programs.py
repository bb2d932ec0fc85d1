"""The token of an attempt: what programs may do with it and for how long, and that it stays in there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from kapell.v1 import (
    agent_pb2,
    approval_pb2,
    artifact_pb2,
    event_pb2,
    lock_pb2,
    task_pb2,
    token_pb2,
    usage_pb2,
    worker_pb2,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED
from kapell.v1.task_pb2 import TaskFailure, TaskProgress

from tests.rpc.scene import Ask, Running, Scene
from tests.support.server_process import ServerProcess


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with ServerProcess(tmp_path_factory.mktemp("programs") / "data") as server:
        scene = Scene(server)
        yield scene
        scene.close()


def call(scene: Scene, mine: Running, name: str, request: Message) -> object:
    return scene.call(name, Ask(request, mine.offer.attempt_token))


def refused(scene: Scene, mine: Running, name: str, request: Message) -> tuple[str, ...]:
    return scene.refusal(name, Ask(request, mine.offer.attempt_token)).reasons


def usage(record_id: str, **fields: object) -> usage_pb2.UsageRecord:
    tokens = usage_pb2.TokenCounts(uncached_input_tokens=5)
    return usage_pb2.UsageRecord(record_id=record_id, provider="p", model="m", tokens=tokens, **fields)  # type: ignore[arg-type]


def test_it_reads_its_own_task_and_says_how_far_it_is(scene: Scene) -> None:
    mine, other = scene.running(), scene.running()

    call(
        scene,
        mine,
        "ReportProgress",
        worker_pb2.ReportProgressRequest(
            lease_token=mine.offer.attempt_token, progress=TaskProgress(step=f"with {mine.offer.attempt_token} in it")
        ),
    )
    task = call(scene, mine, "GetTask", task_pb2.GetTaskRequest(task_id=mine.task_id)).task  # type: ignore[attr-defined]

    assert task.progress.step == "with [secret] in it"
    for lease_token in (other.lease_token, other.offer.attempt_token, mine.lease_token):
        request = worker_pb2.ReportProgressRequest(lease_token=lease_token, progress=TaskProgress(step="x"))
        assert refused(scene, mine, "ReportProgress", request) == ("NOT_OWNER",)
    for task_id in (other.task_id, scene.queued(parent_task_id=mine.task_id).task_id, "task_nothing"):
        assert refused(scene, mine, "GetTask", task_pb2.GetTaskRequest(task_id=task_id)) == ("NOT_OWNER",)


def test_what_it_has_used_is_its_attempts(scene: Scene) -> None:
    mine = scene.running()
    report = worker_pb2.ReportUsageRequest(lease_token=mine.offer.attempt_token, records=[usage("of-report")])

    call(scene, mine, "RecordUsage", usage_pb2.RecordUsageRequest(records=[usage("of-record")]))
    call(scene, mine, "ReportUsage", report)

    wanted = usage_pb2.UsageFilter(task_ids=[mine.task_id])
    records = scene.ask("ListUsageRecords", usage_pb2.ListUsageRecordsRequest(filter=wanted)).records
    found = {record.record_id: (record.task_id, record.attempt, record.agent_id) for record in records}
    own = (mine.task_id, 1, mine.worker.agent_id)
    assert found == {"of-record": own, "of-report": own}


def test_no_answer_is_that_of_a_task_of_the_same_id_before(scene: Scene) -> None:
    task_id = f"task_{scene.name('again')}"
    request = usage_pb2.RecordUsageRequest(records=[usage("of-the-first")], request_id="once")
    first = scene.running(task_id=task_id)
    call(scene, first, "RecordUsage", request)
    assert call(scene, first, "RecordUsage", request).replayed  # type: ignore[attr-defined]
    end = worker_pb2.CompleteTaskRequest(lease_token=first.lease_token)
    scene.call("CompleteTask", Ask(end, first.worker.token))
    scene.ask("DeleteTask", task_pb2.DeleteTaskRequest(task_id=task_id))

    anew = scene.running(task_id=task_id)

    assert not call(scene, anew, "RecordUsage", request).replayed  # type: ignore[attr-defined]


def test_it_asks_for_approvals_and_waits_for_them_but_decides_none(scene: Scene) -> None:
    mine, other = scene.running(), scene.running()
    wish = approval_pb2.RequestApprovalRequest(lease_token=mine.offer.attempt_token, title="May I?")
    approval = call(scene, mine, "RequestApproval", wish).approval  # type: ignore[attr-defined]
    theirs = scene.call(
        "RequestApproval",
        Ask(approval_pb2.RequestApprovalRequest(lease_token=other.lease_token, title="May I?"), other.worker.token),
    ).approval
    decide = approval_pb2.DecideApprovalRequest(
        approval_id=approval.approval_id, option="approve", shown_hash=approval.content_hash
    )

    assert (approval.task_id, approval.requested_by.id) == (mine.task_id, mine.worker.agent_id)
    assert refused(scene, mine, "DecideApproval", decide) == ("NOT_FOR_AGENTS",)
    for name, kind in (
        ("GetApproval", approval_pb2.GetApprovalRequest),
        ("WaitApproval", approval_pb2.WaitApprovalRequest),
    ):
        assert refused(scene, mine, name, kind(approval_id=theirs.approval_id)) == ("NOT_OWNER",)
        assert refused(scene, mine, name, kind(approval_id="approval_nothing")) == ("NOT_OWNER",)
    taken_back = approval_pb2.CancelApprovalRequest(approval_id=theirs.approval_id)
    assert refused(scene, mine, "CancelApproval", taken_back) == ("NOT_OWNER",)
    scene.ask("DecideApproval", decide)
    waited = call(scene, mine, "WaitApproval", approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id))
    assert waited.approval.state == APPROVAL_STATE_APPROVED  # type: ignore[attr-defined]


def test_it_keeps_artifacts_of_its_attempt(scene: Scene) -> None:
    mine = scene.running()
    begin = artifact_pb2.CreateArtifactRequest(task_id=mine.task_id, name="a.txt")
    artifact = call(scene, mine, "CreateArtifact", begin).artifact  # type: ignore[attr-defined]

    call(scene, mine, "UploadArtifact", artifact_pb2.UploadArtifactRequest(artifact_id=artifact.artifact_id, data=b"x"))
    done = call(
        scene,
        mine,
        "CompleteArtifact",
        artifact_pb2.CompleteArtifactRequest(artifact_id=artifact.artifact_id, sha256=sha256(b"x").hexdigest()),
    )

    assert (done.artifact.attempt, done.artifact.agent_id) == (1, mine.worker.agent_id)  # type: ignore[attr-defined]
    foreign = artifact_pb2.CreateArtifactRequest(task_id=scene.queued().task_id, name="a.txt")
    assert refused(scene, mine, "CreateArtifact", foreign) == ("NOT_OWNER",)


def test_it_sees_and_checks_the_locks_of_its_attempt(scene: Scene) -> None:
    path = scene.name("house")
    mine, other = (scene.running(locks=[lock_pb2.LockItem(path=f"{path}/{room}")]) for room in ("hall", "attic"))

    [lock] = call(scene, mine, "ListLocks", lock_pb2.ListLocksRequest()).locks  # type: ignore[attr-defined]
    good = lock_pb2.CheckFenceRequest(path=f"{path}/hall/door", fencing_token=lock.fencing_token)

    assert (lock.path, lock.owner.task_id) == (f"{path}/hall", mine.task_id)
    call(scene, mine, "CheckFence", good)
    for token in (other.offer.attempt_token, other.worker.token):
        found = scene.refusal("CheckFence", Ask(good, token))
        assert found.reasons == ("FENCING_TOKEN_STALE",)
        assert "is of another" in found.text
    scene.call("CheckFence", Ask(good, mine.worker.token))
    scene.ask("CheckFence", good)
    release = lock_pb2.ReleaseLocksRequest(lock_ids=[lock.lock_id])
    assert refused(scene, mine, "ReleaseLocks", release) == ("NOT_FOR_AGENTS",)
    theirs = lock_pb2.ListLocksRequest(filter=lock_pb2.LockFilter(task_id=other.task_id))
    assert refused(scene, mine, "ListLocks", theirs) == ("NOT_OWNER",)


@pytest.mark.parametrize("ending", ["CompleteTask", "FailTask", "ReleaseTask"])
def test_it_ends_with_the_attempt(scene: Scene, ending: str) -> None:
    mine = scene.running()
    whoami = Ask(token_pb2.GetCallerRequest(), mine.offer.attempt_token)
    assert scene.call("GetCaller", whoami).actor.id == mine.worker.agent_id
    wish = approval_pb2.RequestApprovalRequest(lease_token=mine.offer.attempt_token, title="May I?")
    approval = call(scene, mine, "RequestApproval", wish).approval  # type: ignore[attr-defined]
    wait = approval_pb2.WaitApprovalRequest(approval_id=approval.approval_id, wait=Duration(seconds=60))
    poll = scene.start("WaitApproval", Ask(wait, mine.offer.attempt_token), seconds=60)

    end = {
        "CompleteTask": worker_pb2.CompleteTaskRequest(lease_token=mine.lease_token),
        "FailTask": worker_pb2.FailTaskRequest(
            lease_token=mine.lease_token, failure=TaskFailure(reason="X", message="x", retryable=True)
        ),
        "ReleaseTask": worker_pb2.ReleaseTaskRequest(lease_token=mine.lease_token),
    }[ending]
    scene.call(ending, Ask(end, mine.worker.token))

    found = scene.refusal("GetCaller", whoami)
    assert (found.code, found.reasons) == (grpc.StatusCode.UNAUTHENTICATED, ("TOKEN_INVALID",))
    assert mine.offer.attempt_token not in found.text
    poll.exception()  # when it has ended, whichever came first: the withdrawn request, or the end of the token


def test_it_outlives_a_restart_with_its_attempt(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    mine = scene.running()
    ended = scene.succeeded()

    server_process.kill()
    server_process.start()

    whoami = token_pb2.GetCallerRequest()
    assert scene.call("GetCaller", Ask(whoami, mine.offer.attempt_token)).actor.id == mine.worker.agent_id
    assert scene.refusal("GetCaller", Ask(whoami, ended.offer.attempt_token)).reasons == ("TOKEN_INVALID",)
    events = scene.ask("ListEvents", event_pb2.ListEventsRequest(page_size=1000)).SerializeToString()
    server_process.stop()
    scene.close()
    proof = mine.offer.attempt_token.rpartition(".")[2].encode()
    kept = [file.read_bytes() for file in server_process.data_dir.rglob("*") if file.is_file()]
    assert not any(proof in content for content in [*kept, events, server_process.log.encode()])


@pytest.mark.parametrize("change", ["last", "attempt", "start", "task", "kind"])
def test_a_forged_one_opens_nothing(scene: Scene, change: str) -> None:
    mine = scene.running()
    subject, _, mac = mine.offer.attempt_token.removeprefix("kapell_attempt_").rpartition(".")
    task_id, attempt, start = subject.rsplit(".", 2)
    forged = {
        "last": f"kapell_attempt_{subject}.{mac[:-1]}{'0' if mac[-1] != '0' else '1'}",
        "attempt": f"kapell_attempt_{task_id}.{int(attempt) + 1}.{start}.{mac}",
        "start": f"kapell_attempt_{task_id}.{attempt}.{int(start, 16) + 1:x}.{mac}",
        "task": f"kapell_attempt_{scene.running().task_id}.{attempt}.{start}.{mac}",
        "kind": f"kapell_attempt_{mine.lease_token}",
    }[change]

    found = scene.refusal("GetCaller", Ask(token_pb2.GetCallerRequest(), forged))

    assert found.reasons == ("TOKEN_INVALID",)


def test_the_command_line_in_a_program_just_works_for_its_own(scene: Scene) -> None:
    agent = scene.spawned()
    kapell = Path(sys.executable).with_name("kapell")
    path, other = scene.name("house"), scene.queued().task_id
    script = f"""
        export HOME=$PWD; PATH={kapell.parent}:$PATH
        kapell task get "$KAPELL_TASK_ID" -o id
        kapell lock list | cut -f1 | grep {path}
        kapell task get {other} >&2 || echo "not $?"
        kapell approval list >&2 || echo "not $?"
        kapell auth whoami -o id
        echo "$KAPELL_TOKEN"
    """
    lock = lock_pb2.LockItem(path=path)
    task = scene.queued(agent_type="shell", prompt=script, locks=[lock])

    scene.ask("WaitTask", task_pb2.WaitTaskRequest(task_id=task.task_id, wait=Duration(seconds=19)))

    done = scene.ask("GetTask", task_pb2.GetTaskRequest(task_id=task.task_id)).task
    lines = done.result.string_value.splitlines()
    assert lines == [task.task_id, path, "not 4", "not 4", agent.agent_id, "[secret]"]


def test_an_agent_whose_programs_may_ask_nothing_gets_none_for_them(scene: Scene) -> None:
    spec = agent_pb2.AgentSpec(
        agent_types=[scene.name("quiet")],
        command=agent_pb2.CommandRuntime(argv=["sh", "-c", "printenv KAPELL_TOKEN || echo none"]),
        api_access=agent_pb2.API_ACCESS_NONE,
    )
    agent = scene.ask("SpawnAgent", agent_pb2.SpawnAgentRequest(spec=spec, wait=Duration(seconds=15))).agent
    task = scene.queued(agent_type=spec.agent_types[0])

    done = scene.ask("WaitTask", task_pb2.WaitTaskRequest(task_id=task.task_id, wait=Duration(seconds=15))).task

    content = scene.ask("GetTask", task_pb2.GetTaskRequest(task_id=done.task_id)).task
    assert content.result.string_value == "none"
    end = agent_pb2.TerminateAgentRequest(agent_id=agent.agent_id, mode=agent_pb2.TERMINATE_MODE_FORCE)
    scene.ask("TerminateAgent", end)
