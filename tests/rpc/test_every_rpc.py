"""Every rpc of every service on a real server process: what works, what is refused, and what a broken call leaves.

Driven by rpc_table; an rpc that is not in it fails `test_the_table_has_every_rpc_and_no_other`.
"""

from __future__ import annotations

import functools
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from kapell.v1 import task_pb2, worker_pb2
from kapell.v1.common_pb2 import SCOPE_READ, SCOPE_WORKER, Scope
from kapell_server.rpc.methods import Method

from tests.rpc import (
    rpc_approvals,
    rpc_budgets,
    rpc_locks,
    rpc_queues,
    rpc_schedules,
    rpc_secrets,
    rpc_tokens,
    rpc_usage,
)
from tests.rpc.rpc_table import CASES, NEVER_REFUSED, SHORT_STREAMS
from tests.rpc.scene import METHODS, Ask, Scene
from tests.support.server_process import ServerProcess
from tests.tidy.api import files

pytestmark = pytest.mark.timeout(120)

REPEATABLE = [name for name, method in METHODS.items() if "request_id" in method.request.DESCRIPTOR.fields_by_name]
LASTING = [name for name, case in CASES.items() if case.lasts is not None]
LONG_POLLS = [name for name in LASTING if not METHODS[name].streams]
REFUSALS = [(name, reason) for name, case in CASES.items() for reason in case.refused]
# Artifacts are no events; that a repeat makes one artifact only is shown by tests/store/test_artifacts.py. Nor is
# the beginning of the log, which tests/engine/test_compaction.py moves, or a key, of which tests/domain/test_secrets.py
# tells; of usage only totals are, now and then.
WITHOUT_EVENTS = {"CompactEvents", "CreateArtifact", "DeleteArtifact", "RotateSecretKey", "RecordUsage", "RepriceUsage"}
# What happened before to the budget of a reservation, which the request does not name: created, drawn from.
OF_RESERVATIONS = dict.fromkeys(("SettleReservation", "ReleaseReservation"), 2)
MALFORMED = [name for name, case in CASES.items() if case.malformed is not None]

every_rpc = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """One server for all tests of this file."""
    with ServerProcess(tmp_path_factory.mktemp("every-rpc") / "data") as server:
        scene = Scene(server)
        yield scene
        scene.close()


@functools.cache
def documented() -> dict[str, tuple[str, list[set[str]]]]:
    """Of each reason what error.proto says: its code, and sets of metadata keys of which one must be there."""
    [file] = [file for file in files() if file.name.endswith("error.proto")]
    comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
    table = {}
    for index, value in enumerate(file.enum_type[0].value):
        text = " ".join(comments[5, 0, 2, index].split())
        stated = re.search(r"Metadata: ([a-z_, ]+)", text)
        alternatives = stated.group(1).split(" or ") if stated else [""]
        keys = [set(filter(None, re.split(r"[, ]+", choice))) for choice in alternatives]
        table[value.name.removeprefix("ERROR_REASON_")] = (text.partition(":")[0], keys)
    return table


def test_the_table_has_every_rpc_and_no_other() -> None:
    assert CASES.keys() == METHODS.keys(), "add the rpc to tests/rpc/rpc_table.py"


def test_the_table_has_a_refusal_of_every_rpc_that_can_be_refused() -> None:
    without = {name for name, case in CASES.items() if not case.refused}

    assert without == NEVER_REFUSED.keys()


def test_the_table_has_a_malformed_request_of_every_rpc_with_fields() -> None:
    assert set(MALFORMED) == {name for name, method in METHODS.items() if method.request.DESCRIPTOR.fields}


def test_the_table_has_a_lasting_call_of_every_stream() -> None:
    assert {name for name, method in METHODS.items() if method.streams} - SHORT_STREAMS <= set(LASTING)


@every_rpc
def test_it_works(scene: Scene, name: str) -> None:
    case = CASES[name]

    answer = scene.call(name, case.works(scene))

    assert case.holds(answer), answer


@pytest.mark.parametrize(("name", "refusal"), REFUSALS, ids=[f"{name}-{reason}" for name, reason in REFUSALS])
def test_it_is_refused_as_documented(scene: Scene, name: str, refusal: str) -> None:
    ask = CASES[name].refused[refusal](scene)
    reason = refusal.partition(":")[0]
    code, keys = documented()[reason]

    found = scene.refusal(name, ask)

    assert (found.reasons, found.code.name) == ((reason,), code)
    assert any(choice <= found.metadata.keys() for choice in keys) or "never minted" in refusal, found.metadata
    assert len(found.text) > 20
    assert found.text.rstrip().endswith((".", "?", "…")) or "; " in found.text, f"does not say what to do: {found.text}"


@every_rpc
def test_its_comment_names_every_reason_of_the_table(name: str) -> None:
    """Reasons that every rpc has in common are left out of comments."""
    comments = dict(_rpc_comments())
    comment = comments[name]
    if other := re.search(r"Errors: as (\w+)", comment):
        comment += comments[other.group(1)]
    general = {"REQUEST_INVALID", "TOKEN_INVALID"}

    raised = {reason.partition(":")[0] for reason in CASES[name].refused} - general
    assert {reason for reason in raised if reason not in comment} == set()


def _rpc_comments() -> Iterator[tuple[str, str]]:
    for file in files():
        comments = {tuple(place.path): place.leading_comments for place in file.source_code_info.location}
        for number, service in enumerate(file.service):
            for index, method in enumerate(service.method):
                yield method.name, comments[6, number, 2, index]


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_refused_with_the_path_of_the_field(scene: Scene, name: str) -> None:
    malformed = CASES[name].malformed
    assert malformed is not None
    body, field = malformed
    request = json_format.ParseDict(body, METHODS[name].request())

    found = scene.refusal(name, Ask(request))

    assert (found.code, found.reasons) == (grpc.StatusCode.INVALID_ARGUMENT, ("REQUEST_INVALID",))
    assert any(path.startswith(field) for path in found.fields), found.fields
    assert field in found.text


@every_rpc
def test_without_a_token_or_with_a_forged_one_it_does_nothing(scene: Scene, name: str) -> None:
    ask = CASES[name].works(scene)
    before = _revision(scene)

    missing = scene.refusal(name, ask, token="")
    forged = scene.refusal(name, ask, token=scene.keyring.agent_token("agent_1", 1)[:-1] + "z")

    assert (missing.code, missing.reasons) == (grpc.StatusCode.UNAUTHENTICATED, ("TOKEN_MISSING",))
    assert (forged.code, forged.reasons) == (grpc.StatusCode.UNAUTHENTICATED, ("TOKEN_INVALID",))
    assert _changes_by(scene, ask, before) == []


@every_rpc
def test_with_a_token_of_another_scope_it_does_nothing(scene: Scene, name: str) -> None:
    method = METHODS[name]
    ask = CASES[name].works(scene)
    before = _revision(scene)
    for token in _tokens_without(scene, method):
        found = scene.refusal(name, ask, token=token)

        assert (found.code, found.reasons) == (grpc.StatusCode.PERMISSION_DENIED, ("SCOPE_MISSING",))
        assert found.metadata["scope"] == Scope.Name(method.scope).removeprefix("SCOPE_").lower()
    assert _changes_by(scene, ask, before) == []


def _tokens_without(scene: Scene, method: Method) -> list[str]:
    """Genuine tokens that must not open the method. A spawn ticket opens RegisterWorker and nothing else."""
    tickets = [] if method.name == "RegisterWorker" else [scene.keyring.ticket("agent_1")]
    return tickets if method.scope in (SCOPE_READ, SCOPE_WORKER) else [*tickets, scene.worker().token]


def _revision(scene: Scene) -> int:
    revision: int = scene.call("GetLogInfo", CASES["GetLogInfo"].works(scene)).revision
    return revision


def _changes_by(scene: Scene, ask: Ask, after: int) -> list[Any]:
    """Events since the revision, of whatever resource the request names; new ones where it names none."""
    ids = [
        str(getattr(ask.request, field))
        for field in ("task_id", "agent_id", "template_id", "schedule_id", "approval_id")
        if field in ask.request.DESCRIPTOR.fields_by_name and getattr(ask.request, field)
    ]
    parts = (rpc_queues, rpc_secrets, rpc_tokens, rpc_budgets)
    ids += [subject for part in parts if (subject := part.subject_of(ask.request))]
    return [event for resource_id in ids for event in scene.changes_of(resource_id) if event.revision > after]


@pytest.mark.parametrize("name", REPEATABLE)
def test_the_same_request_id_gives_the_same_answer_and_one_effect(scene: Scene, name: str) -> None:
    ask = CASES[name].works(scene)
    _set_request_id(scene, ask)

    first = scene.call(name, ask)
    done = len(scene.changes_of(_subject(first, ask)))
    second = scene.call(name, ask)

    assert (first.replayed, second.replayed) == (False, True)
    assert _comparable(second) == _comparable(first)
    assert len(scene.changes_of(_subject(first, ask))) == done


# RotateSecretKey has no other body.
@pytest.mark.parametrize("name", [name for name in REPEATABLE if name != "RotateSecretKey"])
def test_the_same_request_id_with_another_body_is_refused(scene: Scene, name: str) -> None:
    ask = CASES[name].works(scene)
    _set_request_id(scene, ask)
    scene.call(name, ask)
    _alter(ask.request)

    found = scene.refusal(name, ask)

    assert (found.code, found.reasons) == (grpc.StatusCode.INVALID_ARGUMENT, ("REQUEST_ID_REUSED",))
    assert found.metadata == {"request_id": ask.request.request_id}  # type: ignore[attr-defined]


def _set_request_id(scene: Scene, ask: Ask) -> None:
    ask.request.request_id = scene.name("request-")  # type: ignore[attr-defined]


def _subject(answer: Any | None, ask: Ask) -> str:
    """The id of the resource that a call was about; without an answer, empty where the call makes it."""
    if answer is not None and hasattr(answer, "tasks"):
        return str(answer.tasks[0].task_id)
    for message in (answer, ask.request):
        if rpc_locks.is_one(message):
            return rpc_locks.subject_of(answer, ask.request)
    if hasattr(ask.request, "filter"):
        return str(ask.request.filter.task_ids[0]) if ask.request.filter.task_ids else ""
    for message in (answer, ask.request):
        for part in (rpc_queues, rpc_secrets, rpc_schedules, rpc_approvals, rpc_tokens, rpc_usage, rpc_budgets):
            if subject := part.subject_of(message):
                return subject
    for message in (answer, ask.request):
        resource = getattr(message, "task", None) or getattr(message, "agent", None) or message
        if hasattr(answer, "template") and message is answer:
            resource = message.template
        if hasattr(answer, "artifact") and message is answer:
            resource = message.artifact
        for field in ("task_id", "agent_id", "template_id"):
            if hasattr(resource, field) and getattr(resource, field):
                return str(getattr(resource, field))
    return ""


def _comparable(answer: Any) -> Any:
    """The answer without what says how it came about: the mark, and the moment of a wait."""
    copy = type(answer)()
    copy.CopyFrom(answer)
    copy.ClearField("replayed")
    if hasattr(copy, "agent"):
        copy.agent.ClearField("last_heartbeat_time")
        copy.ClearField("revision")
    return copy


def _alter(request: Any) -> None:
    if any(
        part.alter(request)
        for part in (rpc_queues, rpc_locks, rpc_secrets, rpc_approvals, rpc_tokens, rpc_usage, rpc_budgets)
    ):
        return
    if hasattr(request, "tasks"):
        request.tasks[0].prompt = "another"
    elif hasattr(request, "schedule_id"):
        request.schedule_id = "schedule_another"
    elif hasattr(request, "filter"):
        request.filter.task_ids.append("task_another")
    elif hasattr(request, "template_id"):
        request.template_id = "another-template"
    elif hasattr(request, "task"):
        request.task.display_name = "another"
    elif hasattr(request, "agent"):
        request.agent.labels["another"] = "one"
    elif hasattr(request, "profile"):
        request.display_name = "another"
    elif hasattr(request, "task_id"):
        request.task_id = "task_another"
    elif hasattr(request, "artifact_id"):
        request.artifact_id = "artifact_another"
    elif hasattr(request, "before_revision"):
        request.before_revision += 1
    else:
        request.agent_id = "agent_another"


@pytest.mark.parametrize("name", LONG_POLLS)
def test_a_long_call_is_answered_within_its_clients_deadline(scene: Scene, name: str) -> None:
    lasts = CASES[name].lasts
    assert lasts is not None
    ask = lasts(scene)

    try:
        answer = scene.call(name, ask, seconds=1.0)
    except grpc.RpcError as error:
        assert name == "TerminateAgent", "a long poll answers empty rather than fail"
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        assert name != "TerminateAgent"
        assert not getattr(answer, "offers", ()), "there was nothing to offer"


@pytest.mark.parametrize("name", [name for name in LASTING if METHODS[name].streams])
def test_a_stream_ends_with_its_clients_deadline(scene: Scene, name: str) -> None:
    lasts = CASES[name].lasts
    assert lasts is not None

    stream = scene.start(name, lasts(scene), seconds=0.5)

    with pytest.raises(grpc.RpcError):
        assert sum(1 for _ in stream) >= 0
    assert stream.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_call_that_is_cancelled_leaves_nothing_open(scene: Scene, name: str) -> None:
    lasts = CASES[name].lasts
    assert lasts is not None
    before = _diagnostics(scene).open_watches
    call = scene.start(name, lasts(scene))
    if METHODS[name].streams:
        next(call)

    call.cancel()

    # Each look is a call of its own; the time limit of the test is the deadline.
    while _diagnostics(scene).open_watches > before:
        assert not call.is_active()
    assert CASES[name].holds(scene.call(name, CASES[name].works(scene)))


def _diagnostics(scene: Scene) -> Any:
    return scene.call("GetDiagnostics", CASES["GetDiagnostics"].works(scene))


def test_a_cancelled_poll_takes_no_task_with_it(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    worker = scene.worker()
    poll = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait=Duration(seconds=60), poll_id="first")
    first = scene.start("LeaseTasks", Ask(poll, worker.token))
    while not _diagnostics(scene).open_polls:
        assert first.is_active()

    first.cancel()
    task = scene.queued(agent_type=worker.agent_type)
    again = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait=Duration(seconds=10), poll_id="second")

    [offer] = scene.call("LeaseTasks", Ask(again, worker.token)).offers
    scene.close()
    assert offer.task.task_id == task.task_id
    assert offer.task.attempts_used == 1


class Broken:
    """One call of every rpc that ended on the client's side while the server stood still."""

    def __init__(self, scene: Scene, *, cancel: bool) -> None:
        self.asks = {name: case.works(scene) for name, case in CASES.items()}
        for name in REPEATABLE:
            _set_request_id(scene, self.asks[name])
        self.changes_before = {
            name: len(scene.changes_of(subject)) if (subject := _subject(None, self.asks[name])) else 0
            for name in REPEATABLE
        }
        os.kill(scene.server.pid, signal.SIGSTOP)
        try:
            calls = {name: scene.start(name, ask, seconds=20 if cancel else 0.3) for name, ask in self.asks.items()}
            if cancel:
                for call in calls.values():
                    call.cancel()
            self.codes = {name: call.code() for name, call in calls.items()}
        finally:
            os.kill(scene.server.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def overdue(scene: Scene) -> Broken:
    """The calls ran into their deadline."""
    return Broken(scene, cancel=False)


@pytest.fixture(scope="module")
def abandoned(scene: Scene) -> Broken:
    """The calls were cancelled by their client."""
    return Broken(scene, cancel=True)


@every_rpc
def test_a_call_that_is_not_answered_in_time_ends_with_deadline_exceeded(overdue: Broken, name: str) -> None:
    assert overdue.codes[name] == grpc.StatusCode.DEADLINE_EXCEEDED


@every_rpc
def test_a_call_that_is_cancelled_ends_at_once(abandoned: Broken, name: str) -> None:
    assert abandoned.codes[name] == grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("name", REPEATABLE)
@pytest.mark.parametrize("way", ["overdue", "abandoned"])
def test_a_broken_call_repeated_with_its_request_id_has_one_effect(
    scene: Scene, request: pytest.FixtureRequest, way: str, name: str
) -> None:
    broken: Broken = request.getfixturevalue(way)
    ask = broken.asks[name]

    answer = scene.call(name, ask)

    assert CASES[name].holds(answer)
    before = broken.changes_before[name] + OF_RESERVATIONS.get(name, 0)
    assert len(scene.changes_of(_subject(answer, ask))) == before + (name not in WITHOUT_EVENTS)


def test_after_all_of_this_the_server_works(scene: Scene, overdue: Broken, abandoned: Broken) -> None:
    done = scene.succeeded()

    task = scene.ask("GetTask", task_pb2.GetTaskRequest(task_id=done.task_id)).task
    assert task.state == task_pb2.TASK_STATE_SUCCEEDED
