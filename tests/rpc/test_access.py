"""Every rpc with every kind of token, on a real server: what each opens, and that a refused call changes nothing.

An rpc that lets agents in (agent_access OWN) is called with the token of an agent it does not concern;
who adds one gets this test with the entry in rpc_table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1 import agent_pb2, audit_pb2, event_pb2, queue_pb2, task_pb2, token_pb2, usage_pb2, worker_pb2
from kapell.v1.common_pb2 import (
    AGENT_ACCESS_ANY,
    AGENT_ACCESS_OWN,
    SCOPE_ADMIN,
    SCOPE_READ,
    SCOPE_SPAWN,
    SCOPE_SPAWN_INLINE,
    Scope,
)
from kapell.v1.watch_pb2 import ACTOR_KIND_SYSTEM
from kapell_server.domain.access import AGENT_SCOPES
from kapell_server.rpc.access_table import table
from kapell_server.rpc.fence import BY_RULE, carries_proof, unknown_subject

from tests.rpc.rpc_table import CASES
from tests.rpc.scene import METHODS, Ask, Running, Scene, Worker
from tests.support.server_process import ServerProcess
from tests.tidy.sources import ROOT

pytestmark = pytest.mark.timeout(120)

every_rpc = pytest.mark.parametrize("name", METHODS)
SCOPES = [scope for scope in Scope.values() if scope]
SUBJECTS = {"agent_id", "task_id", "artifact_id"}
FENCED = [name for name, method in METHODS.items() if method.agent_access == AGENT_ACCESS_OWN]
# What a foreign agent is answered where its request is of itself rather than of what it names.
OF_WHOEVER_ASKS = {
    "RegisterWorker": {"TOKEN_INVALID"},
    "GetApproval": {"NOT_OWNER"},
    "WaitApproval": {"NOT_OWNER"},
    "CheckFence": {"FENCING_TOKEN_STALE"},
    "BatchCompleteTasks": set(),  # every attempt has an outcome of its own: LEASE_LOST
    **{
        name: {"NOT_OWNER"}
        for name in ("RenewLocks", "ReleaseLocks", "CancelLockTicket", "RenewSession", "CloseSession")
    },
}
MAKES_ITS_OWN = {"AcquireLocks", "OpenSession"}
"""What an agent makes by these is its own from the start."""
NAMES_ITS_CALLER = {"GetCaller", "GetServerInfo", "CreateArtifact", "UploadArtifact", "CompleteArtifact"}
"""Rpcs whose answer, or whose need of a scope, depends on who calls."""
FOREIGN = {"NOT_OWNER", "LEASE_LOST"}


@dataclass
class Tokens:
    """Tokens of every kind."""

    of_scope: dict[int, str]
    expired: str
    revoked: str
    agent: Worker


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    arguments = ("--max-failed-logins", "1000000")
    with ServerProcess(tmp_path_factory.mktemp("access") / "data", arguments=arguments) as server:
        scene = Scene(server)
        yield scene
        scene.close()


def token(
    scene: Scene, *scopes: int, ttl: float | None = None, principal: str = "alice"
) -> token_pb2.CreateTokenResponse:
    request = token_pb2.CreateTokenRequest(principal=principal, scopes=scopes)  # type: ignore[arg-type]
    if ttl is not None:
        request.ttl.FromNanoseconds(int(ttl * 1e9))
    answer: token_pb2.CreateTokenResponse = scene.ask("CreateToken", request)
    return answer


@pytest.fixture(scope="module")
def tokens(scene: Scene) -> Tokens:
    short, gone = token(scene, SCOPE_ADMIN, ttl=1), token(scene, SCOPE_ADMIN)
    scene.ask("RevokeToken", token_pb2.RevokeTokenRequest(token_id=gone.token.token_id))
    # A stream of the short one ends with it: that is the signal that its time is over.
    stream = scene.start("Watch", Ask(event_pb2.WatchRequest()), token=short.secret)
    with pytest.raises(grpc.RpcError):
        list(stream)
    return Tokens(
        # Of the user whose scene it is: agents, locks and approvals are their user's.
        of_scope={scope: token(scene, scope, principal="admin").secret for scope in SCOPES},
        expired=short.secret,
        revoked=gone.secret,
        agent=scene.worker(),
    )


def revision(scene: Scene) -> int:
    found: int = scene.ask("GetLogInfo", event_pb2.GetLogInfoRequest()).revision
    return found


def changes(scene: Scene, after: int) -> list[event_pb2.Event]:
    """What users and agents have done since; what time does goes on beside."""
    events = scene.ask("ListEvents", event_pb2.ListEventsRequest(page_size=100)).events
    return [event for event in events if event.revision > after and event.actor.kind != ACTOR_KIND_SYSTEM]


def test_the_page_of_the_reference_is_fresh() -> None:
    assert (ROOT / "server/docs/reference/access.md").read_text() == table(), "run `make gen`"


@pytest.mark.parametrize("name", FENCED)
def test_the_fence_knows_whom_a_request_concerns(name: str) -> None:
    method = METHODS[name]

    named = SUBJECTS & set(method.request.DESCRIPTOR.fields_by_name)
    assert named or carries_proof(method.request.DESCRIPTOR) or name in BY_RULE, unknown_subject(method)
    assert method.scope in AGENT_SCOPES, f"{name} says OWN, but agents do not hold its scope"


@pytest.mark.parametrize("name", FENCED)
def test_what_agents_change_is_proven_by_a_lease_or_their_name(name: str) -> None:
    """`task_id` and `artifact_id` are looked at as something to read."""
    descriptor = METHODS[name].request.DESCRIPTOR
    if "request_id" in descriptor.fields_by_name:
        proven = carries_proof(descriptor) or "agent_id" in descriptor.fields_by_name or name in BY_RULE
        assert proven, f"{name} changes what it may read"


@every_rpc
def test_a_scope_opens_its_rpcs_and_no_other(scene: Scene, tokens: Tokens, name: str) -> None:
    method = METHODS[name]
    ask = CASES[name].works(scene)
    before = revision(scene)

    for scope, secret in tokens.of_scope.items():
        if scope not in (method.scope, SCOPE_ADMIN):
            found = scene.refusal(name, ask, token=secret)
            assert (found.code.name, found.reasons) == ("PERMISSION_DENIED", ("SCOPE_MISSING",)), Scope.Name(scope)  # type: ignore[arg-type]
    assert changes(scene, before) == []
    assert CASES[name].holds(scene.call(name, CASES[name].works(scene), token=_opening(scene, tokens, name)))


def _opening(scene: Scene, tokens: Tokens, name: str) -> str | None:
    """A token with the rpc's scope alone, where that is enough and the call needs no agent's own."""
    if CASES[name].works(scene).token or name in NAMES_ITS_CALLER:
        return None
    return tokens.of_scope[METHODS[name].scope]


@every_rpc
def test_a_bad_token_opens_nothing(scene: Scene, tokens: Tokens, name: str) -> None:
    ask = CASES[name].works(scene)
    before = revision(scene)
    good = tokens.of_scope[SCOPE_ADMIN]
    wrong = {
        "": "TOKEN_MISSING",
        "garbage": "TOKEN_INVALID",
        "kapell_token_": "TOKEN_INVALID",
        f"{good[:-1]}{'0' if good[-1] != '0' else '1'}": "TOKEN_INVALID",
        tokens.revoked: "TOKEN_INVALID",
        tokens.expired: "TOKEN_EXPIRED",
    }

    for secret, reason in wrong.items():
        found = scene.refusal(name, ask, token=secret)
        assert found.code == grpc.StatusCode.UNAUTHENTICATED
        assert found.reasons == (reason,)
        assert not secret or secret not in found.text
    assert changes(scene, before) == []


@every_rpc
def test_a_program_is_kept_to_its_attempt(scene: Scene, name: str) -> None:
    method = METHODS[name]
    ask = CASES[name].works(scene)
    mine = scene.running()
    before = revision(scene)

    if method.program_access == AGENT_ACCESS_ANY:
        scene.call(name, ask, token=mine.offer.attempt_token)
    elif name == "ListLocks":
        assert not scene.call(name, ask, token=mine.offer.attempt_token).locks
    elif name == "RecordUsage":
        answer = scene.call(name, Ask(_of_another(scene)), token=mine.offer.attempt_token)
        assert [outcome.reason for outcome in answer.outcomes] == ["NOT_OWNER"], answer
    else:
        found = scene.refusal(name, ask, token=mine.offer.attempt_token)
        assert found.code.name in ("PERMISSION_DENIED", "ABORTED"), found
        if method.program_access != AGENT_ACCESS_OWN:
            assert found.reasons == ("NOT_FOR_AGENTS",)
        else:
            assert found.reasons == ("FENCING_TOKEN_STALE" if name == "CheckFence" else "NOT_OWNER",)
    assert changes(scene, before) == []


def _of_another(scene: Scene) -> usage_pb2.RecordUsageRequest:
    tokens = usage_pb2.TokenCounts(uncached_input_tokens=1)
    named = {"provider": "p", "model": "m", "task_id": "task_another"}
    record = usage_pb2.UsageRecord(record_id=scene.name("r"), tokens=tokens, **named)
    return usage_pb2.RecordUsageRequest(records=[record])


@every_rpc
def test_an_agent_is_kept_to_its_own(scene: Scene, tokens: Tokens, name: str) -> None:
    method = METHODS[name]
    ask = CASES[name].works(scene)
    before = revision(scene)

    if method.agent_access == AGENT_ACCESS_ANY:
        assert CASES[name].holds is not None
        scene.call(name, ask, token=tokens.agent.token)
    elif name == "BatchCompleteTasks":
        answer = scene.call(name, ask, token=tokens.agent.token)
        assert all(outcome.lease_lost for outcome in answer.outcomes)
    elif name in MAKES_ITS_OWN:
        made = scene.call(name, ask, token=tokens.agent.token)
        actor = made.session.actor if name == "OpenSession" else made.locks[0].owner.actor
        assert actor.id == tokens.agent.agent_id
        return
    else:
        found = scene.refusal(name, ask, token=tokens.agent.token)
        if method.scope not in AGENT_SCOPES:
            assert found.reasons == ("SCOPE_MISSING",)
        elif method.agent_access != AGENT_ACCESS_OWN:
            assert found.reasons == ("NOT_FOR_AGENTS",)
        elif name in BY_RULE:
            assert set(found.reasons) <= OF_WHOEVER_ASKS[name]
        else:
            # Without a lease an upload is a user's, and needs what users hold.
            assert set(found.reasons) <= FOREIGN | {"SCOPE_MISSING"}
    assert changes(scene, before) == []


def test_an_agent_reads_its_tasks_what_these_made_and_what_they_waited_for(scene: Scene) -> None:
    parent = scene.running()
    mine = _child_run(scene, parent)
    child = _children(scene, mine)
    sibling, stranger = _children(scene, parent), scene.queued().task_id
    reads = {mine.task_id: True, child: True, parent.task_id: False, sibling: False, stranger: False, "task_x": False}

    for task_id, allowed in reads.items():
        for name, request in (
            ("GetTask", task_pb2.GetTaskRequest(task_id=task_id)),
            ("GetTaskTree", task_pb2.GetTaskTreeRequest(task_id=task_id)),
            ("ListTaskAttempts", task_pb2.ListTaskAttemptsRequest(task_id=task_id)),
            ("WaitTask", task_pb2.WaitTaskRequest(task_id=task_id, wait=Duration())),
            ("StreamTaskLogs", task_pb2.StreamTaskLogsRequest(task_id=task_id)),
        ):
            ask = Ask(request, mine.worker.token)
            if allowed:
                scene.call(name, ask)
            else:
                assert scene.refusal(name, ask).reasons == ("NOT_OWNER",), (name, task_id)


def test_of_a_dependency_an_agent_reads_the_outcome_and_no_more(scene: Scene) -> None:
    before = scene.running()
    scene.call("CompleteTask", Ask(worker_pb2.CompleteTaskRequest(lease_token=before.lease_token), before.worker.token))
    mine = scene.running(dependencies=[{"task_id": before.task_id}])

    scene.call("GetTask", Ask(task_pb2.GetTaskRequest(task_id=before.task_id), mine.worker.token))
    found = scene.refusal(
        "ListTaskAttempts", Ask(task_pb2.ListTaskAttemptsRequest(task_id=before.task_id), mine.worker.token)
    )
    assert found.reasons == ("NOT_OWNER",)


def _children(scene: Scene, running: Running) -> str:
    request = worker_pb2.CreateChildTasksRequest(lease_token=running.lease_token, tasks=[scene.spec()])
    child: str = scene.call("CreateChildTasks", Ask(request, running.worker.token)).tasks[0].task_id
    return child


def _child_run(scene: Scene, parent: Running) -> Running:
    worker = scene.worker()
    spec = scene.spec(agent_type=worker.agent_type)
    request = worker_pb2.CreateChildTasksRequest(lease_token=parent.lease_token, tasks=[spec])
    child = scene.call("CreateChildTasks", Ask(request, parent.worker.token)).tasks[0]
    lease = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait=Duration(seconds=10))
    [offer] = scene.call("LeaseTasks", Ask(lease, worker.token)).offers
    return Running(child.task_id, offer, worker)


def test_a_profile_needs_spawn_and_a_command_of_ones_own_spawn_inline_as_well(scene: Scene) -> None:
    inline = agent_pb2.SpawnAgentRequest(
        spec=agent_pb2.AgentSpec(command=agent_pb2.CommandRuntime(argv=["true"]), agent_types=["a"])
    )
    spawn = token(scene, SCOPE_SPAWN).secret
    both = token(scene, SCOPE_SPAWN, SCOPE_SPAWN_INLINE).secret

    found = scene.refusal("SpawnAgent", Ask(inline, spawn))
    assert (found.reasons, found.metadata) == (("SCOPE_MISSING",), {"scope": "spawn_inline"})
    for ask in (Ask(agent_pb2.SpawnAgentRequest(profile="shell"), spawn), Ask(inline, both)):
        agent_id = scene.call("SpawnAgent", ask).agent.agent_id
        end = agent_pb2.TerminateAgentRequest(agent_id=agent_id, mode=agent_pb2.TERMINATE_MODE_FORCE)
        scene.ask("TerminateAgent", end)


def test_a_revoked_tokens_streams_and_long_polls_end_within_seconds(scene: Scene) -> None:
    made = token(scene, SCOPE_READ)
    waiting = scene.queued()
    stream = scene.start("Watch", Ask(event_pb2.WatchRequest()), token=made.secret)
    next(stream)
    wait = task_pb2.WaitTaskRequest(task_id=waiting.task_id, wait=Duration(seconds=60))
    poll = scene.start("WaitTask", Ask(wait), token=made.secret)

    scene.ask("RevokeToken", token_pb2.RevokeTokenRequest(token_id=made.token.token_id, reason="lost"))

    found = scene.refusal("GetLogInfo", Ask(event_pb2.GetLogInfoRequest()), token=made.secret)
    assert found.reasons == ("TOKEN_INVALID",)
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert (stream.code(), poll.code()) == (grpc.StatusCode.UNAUTHENTICATED,) * 2


def test_the_owners_token_is_replaced_by_replacing_its_file(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    old = server_process.admin_token
    stream = scene.start("Watch", Ask(event_pb2.WatchRequest()), token=old)
    next(stream)
    fresh = server_process.data_dir / "fresh"
    fresh.write_text("kapell_admin_another_one_of_some_length\n")

    fresh.replace(server_process.data_dir / "admin.token")

    with pytest.raises(grpc.RpcError):
        list(stream)
    assert stream.code() == grpc.StatusCode.UNAUTHENTICATED
    assert scene.refusal("GetLogInfo", Ask(event_pb2.GetLogInfoRequest()), token=old).reasons == ("TOKEN_INVALID",)
    assert revision(scene) >= 0
    scene.close()


def _restart(scene: Scene) -> None:
    made, gone = token(scene, SCOPE_READ), token(scene, SCOPE_READ)
    scene.ask("RevokeToken", token_pb2.RevokeTokenRequest(token_id=gone.token.token_id))
    log = Ask(event_pb2.GetLogInfoRequest())
    scene.call("GetLogInfo", log, token=made.secret)
    entries = scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest()).entries

    scene.server.stop()
    scene.server.start()

    scene.call("GetLogInfo", log, token=made.secret)
    assert scene.refusal("GetLogInfo", log, token=gone.secret).reasons == ("TOKEN_INVALID",)
    [kept] = scene.ask("ListTokens", token_pb2.ListTokensRequest()).tokens
    assert kept.token_id == made.token.token_id
    assert kept.HasField("last_used_time")
    assert list(scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest()).entries) == list(entries)
    token(scene, SCOPE_READ)
    newest = scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest()).entries[0]
    assert newest.number == entries[0].number + 1


def test_tokens_and_audit_log_survive_a_restart(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    _restart(scene)
    scene.close()


def test_tokens_and_audit_log_survive_a_restart_on_postgresql(tmp_path: Path, postgres_url: str) -> None:
    with ServerProcess(tmp_path / "data", arguments=("--database-url", postgres_url)) as server:
        scene = Scene(server)
        _restart(scene)
        scene.close()


def test_no_secret_is_stored_or_logged(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    request = token_pb2.CreateTokenRequest(principal="canary", scopes=[SCOPE_READ], request_id="once")
    secret = scene.ask("CreateToken", request).secret
    assert scene.ask("CreateToken", request).secret == secret, "a repeat is answered alike"
    scene.refusal("GetLogInfo", Ask(event_pb2.GetLogInfoRequest()), token=secret[:-1] + "x")
    events = scene.ask("ListEvents", event_pb2.ListEventsRequest(page_size=1000)).SerializeToString()
    audit = scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest()).SerializeToString()
    scene.close()
    server_process.stop()

    proof = secret.rpartition(".")[2].encode()[:-1]
    kept = [file.read_bytes() for file in server_process.data_dir.rglob("*") if file.is_file()]
    assert not any(proof in content for content in [*kept, events, audit, server_process.log.encode()])
    assert "a login failed" in server_process.log


def test_who_tries_what_is_for_administrators_is_recorded(scene: Scene, tokens: Tokens) -> None:
    mallory = token(scene, SCOPE_READ, principal="mallory")
    make = Ask(token_pb2.CreateTokenRequest(principal="mallory", scopes=[SCOPE_ADMIN]))
    pause = Ask(queue_pb2.PauseQueueRequest(agent_type="shell"))
    read = Ask(task_pb2.GetTaskTreeRequest(task_id="task_x"))
    before = _newest(scene)

    for ask, name in ((make, "CreateToken"), (pause, "PauseQueue"), (read, "ListTasks")):
        for secret in (mallory.secret, tokens.agent.token, "garbage"):
            scene.refusal(name, ask, token=secret)

    entries = _entries_after(scene, before, 4)
    assert {(entry.actor.id, entry.method, entry.refusal) for entry in entries} == {
        ("mallory", "TokenService.CreateToken", "SCOPE_MISSING"),
        ("mallory", "QueueService.PauseQueue", "SCOPE_MISSING"),
        (tokens.agent.agent_id, "TokenService.CreateToken", "SCOPE_MISSING"),
        (tokens.agent.agent_id, "QueueService.PauseQueue", "SCOPE_MISSING"),
    }
    assert all(entry.times == 1 and entry.peer.startswith("ipv4:") and not entry.request for entry in entries)
    assert {entry.token_id for entry in entries if entry.actor.id == "mallory"} == {mallory.token.token_id}


def _newest(scene: Scene) -> int:
    request = audit_pb2.ListAuditEntriesRequest(page_size=1)
    return max((entry.number for entry in scene.ask("ListAuditEntries", request).entries), default=0)


def _entries_after(scene: Scene, number: int, least: int) -> list[audit_pb2.AuditEntry]:
    """The entries of mallory and agents after this one, once there are so many."""
    while True:
        listed = scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(page_size=100)).entries
        found = [entry for entry in listed if entry.number > number and entry.refusal]
        if len(found) >= least:
            return found


def test_what_administrators_do_is_recorded(scene: Scene) -> None:
    made = token(scene, SCOPE_ADMIN, principal="root")
    request = token_pb2.CreateTokenRequest(principal="bob", scopes=[SCOPE_READ], request_id="not recorded")
    scene.call("CreateToken", Ask(request), token=made.secret)
    scene.call("CreateToken", Ask(request), token=made.secret)
    nothing = token_pb2.RevokeTokenRequest(token_id="token_nothing")
    scene.refusal("RevokeToken", Ask(nothing), token=made.secret)

    wanted = audit_pb2.AuditFilter(principals=["root"])
    [entry] = scene.ask("ListAuditEntries", audit_pb2.ListAuditEntriesRequest(filter=wanted)).entries
    assert (entry.method, entry.token_id) == ("TokenService.CreateToken", made.token.token_id)
    assert entry.request == '{"principal": "bob", "scopes": ["SCOPE_READ"]}'
    assert entry.peer.startswith("ipv4:127.0.0.1:")
