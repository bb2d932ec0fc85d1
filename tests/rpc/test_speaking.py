"""Who may speak for an agent: its own token and whoever has registered it; nobody else, whatever they know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from kapell.v1 import agent_pb2, approval_pb2, artifact_pb2, lock_pb2, secret_pb2, token_pb2, usage_pb2, worker_pb2
from kapell.v1.common_pb2 import SCOPE_READ, SCOPE_WORKER, LogEntry
from kapell.v1.task_pb2 import TaskFailure, TaskProgress

from tests.rpc.scene import Ask, Running, Scene, Worker
from tests.support.server_process import ServerProcess

KEY = "the-key-of-alice"
SECRET = "canary-1f0c7a9e"


@dataclass
class Cast:
    """Alice, whose agent has a task with a secret, and Bob, who knows all that is no token."""

    scene: Scene
    alice: str
    bob: str
    mine: Running
    lock_id: str
    session_id: str
    approval_id: str


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    with ServerProcess(tmp_path_factory.mktemp("speaking") / "data") as server:
        scene = Scene(server)
        yield _cast(scene)
        scene.close()


def user(scene: Scene, principal: str) -> str:
    request = token_pb2.CreateTokenRequest(principal=principal, scopes=[SCOPE_READ, SCOPE_WORKER])
    secret: str = scene.ask("CreateToken", request).secret
    return secret


def register(scene: Scene, token: str, agent_type: str) -> worker_pb2.RegisterWorkerResponse:
    request = worker_pb2.RegisterWorkerRequest(instance_key=KEY, agent_types=[agent_type], slots=4)
    answer: worker_pb2.RegisterWorkerResponse = scene.call("RegisterWorker", Ask(request, token))
    return answer


def _cast(scene: Scene) -> Cast:
    alice, bob = user(scene, "alice"), user(scene, "bob")
    scene.ask("SetSecret", secret_pb2.SetSecretRequest(name="door", value=SECRET))
    agent = register(scene, alice, "of-alice").agent
    worker = Worker(agent.agent_id, "of-alice", alice)
    mine = scene.running(worker, secrets={"DOOR": "door"})
    assert mine.offer.secrets == {"DOOR": SECRET}
    lock = lock_pb2.AcquireLocksRequest(items=[lock_pb2.LockItem(path="house")], lease_token=mine.lease_token)
    lock_id = scene.call("AcquireLocks", Ask(lock, alice)).locks[0].lock_id
    session_id = scene.call("OpenSession", Ask(lock_pb2.OpenSessionRequest(), alice)).session.session_id
    wish = approval_pb2.RequestApprovalRequest(lease_token=mine.lease_token, title="May I?")
    approval_id = scene.call("RequestApproval", Ask(wish, alice)).approval.approval_id
    return Cast(scene, alice, bob, mine, lock_id, session_id, approval_id)


def calls_about(cast: Cast) -> dict[str, Message]:
    """Each call that a worker makes about its agent, its attempt or its locks."""
    agent_id, lease_token = cast.mine.worker.agent_id, cast.mine.lease_token
    return {
        "LeaseTasks": worker_pb2.LeaseTasksRequest(agent_id=agent_id, wait=Duration()),
        "Heartbeat": worker_pb2.HeartbeatRequest(agent_id=agent_id),
        "WatchDirectives": worker_pb2.WatchDirectivesRequest(agent_id=agent_id),
        "ReportProgress": worker_pb2.ReportProgressRequest(lease_token=lease_token, progress=TaskProgress(step="x")),
        "ReportUsage": worker_pb2.ReportUsageRequest(
            lease_token=lease_token, records=[usage_pb2.UsageRecord(record_id="r", model="m")]
        ),
        "AppendTaskLogs": worker_pb2.AppendTaskLogsRequest(lease_token=lease_token, entries=[LogEntry(text="x")]),
        "CreateChildTasks": worker_pb2.CreateChildTasksRequest(lease_token=lease_token, tasks=[cast.scene.spec()]),
        "WaitChildTasks": worker_pb2.WaitChildTasksRequest(lease_token=lease_token, wait=Duration()),
        "RequestApproval": approval_pb2.RequestApprovalRequest(lease_token=lease_token, title="May I?"),
        "CancelApproval": approval_pb2.CancelApprovalRequest(approval_id=cast.approval_id),
        "CreateArtifact": artifact_pb2.CreateArtifactRequest(lease_token=lease_token, name="a.txt"),
        "AcquireLocks": lock_pb2.AcquireLocksRequest(items=[lock_pb2.LockItem(path="shed")], lease_token=lease_token),
        "RenewLocks": lock_pb2.RenewLocksRequest(lock_ids=[cast.lock_id]),
        "ReleaseLocks": lock_pb2.ReleaseLocksRequest(lock_ids=[cast.lock_id]),
        "RenewSession": lock_pb2.RenewSessionRequest(session_id=cast.session_id),
        "CloseSession": lock_pb2.CloseSessionRequest(session_id=cast.session_id),
        "FailTask": worker_pb2.FailTaskRequest(lease_token=lease_token, failure=TaskFailure(reason="X", message="x")),
        "CompleteTask": worker_pb2.CompleteTaskRequest(lease_token=lease_token),
        "ReleaseTask": worker_pb2.ReleaseTaskRequest(lease_token=lease_token),
        "Deregister": worker_pb2.DeregisterRequest(agent_id=agent_id),
    }


def _is_shut_out(cast: Cast) -> None:
    for name, request in calls_about(cast).items():
        found = cast.scene.refusal(name, Ask(request, cast.bob))
        assert found.code is grpc.StatusCode.PERMISSION_DENIED, (name, found)
        assert found.reasons == ("NOT_OWNER",), name
        assert SECRET not in found.text


def test_nobody_speaks_for_the_agent_of_another(cast: Cast) -> None:
    _is_shut_out(cast)

    found = cast.scene.refusal("Heartbeat", Ask(calls_about(cast)["Heartbeat"], cast.bob))
    assert "registered by alice, not by bob" in found.text
    assert "register an agent of your own" in found.text


def test_the_key_of_an_instance_gives_nobody_elses_token(cast: Cast) -> None:
    again, other = (register(cast.scene, token, "of-alice") for token in (cast.alice, cast.bob))
    owners = cast.scene.call(
        "RegisterWorker", Ask(worker_pb2.RegisterWorkerRequest(instance_key=KEY, agent_types=["t"]))
    )

    assert again.agent.agent_id == cast.mine.worker.agent_id
    assert len({again.agent.agent_id, other.agent.agent_id, owners.agent.agent_id}) == 3
    assert other.agent.creator.id == "bob"


def test_its_user_its_own_token_and_an_administrator_speak_for_it(cast: Cast) -> None:
    own = register(cast.scene, cast.alice, "of-alice").agent_token

    for token in (cast.alice, user(cast.scene, "alice"), own, ""):
        cast.scene.call("Heartbeat", Ask(calls_about(cast)["Heartbeat"], token))
        cast.scene.call("ReportProgress", Ask(calls_about(cast)["ReportProgress"], token))


def test_a_spawned_agent_speaks_for_itself_alone(cast: Cast) -> None:
    agent = cast.scene.spawned()
    asks = (
        ("Heartbeat", worker_pb2.HeartbeatRequest(agent_id=agent.agent_id)),
        ("LeaseTasks", worker_pb2.LeaseTasksRequest(agent_id=agent.agent_id, wait=Duration())),
        ("WatchDirectives", worker_pb2.WatchDirectivesRequest(agent_id=agent.agent_id)),
        ("Deregister", worker_pb2.DeregisterRequest(agent_id=agent.agent_id)),
    )

    for name, request in asks:
        for token in ("", cast.alice):
            found = cast.scene.refusal(name, Ask(request, token))
            assert found.reasons == ("NOT_OWNER",)
            assert "speaks for itself alone" in found.text
    end = agent_pb2.TerminateAgentRequest(agent_id=agent.agent_id, mode=agent_pb2.TERMINATE_MODE_FORCE)
    cast.scene.ask("TerminateAgent", end)


def test_a_restart_does_not_open_it(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    cast = _cast(scene)

    server_process.kill()
    server_process.start()

    _is_shut_out(cast)
    scene.call("Heartbeat", Ask(calls_about(cast)["Heartbeat"], cast.alice))
    scene.close()
