"""Secrets as rules: who may name them, what an agent is given, and what is masked."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from kapell.v1.agent_pb2 import AgentSpec, CommandRuntime
from kapell.v1.approval_pb2 import ApprovalContent
from kapell.v1.secret_pb2 import (
    SECRET_SOURCE_ENVIRONMENT,
    SECRET_SOURCE_STORED,
    DeleteSecretRequest,
    RotateSecretKeyRequest,
    Secret,
    SetSecretRequest,
)
from kapell.v1.task_pb2 import TaskFailure, TaskProgress, TaskSpec
from kapell.v1.template_pb2 import CreateTemplateRequest, TemplateSpec
from kapell.v1.worker_pb2 import CreateChildTasksRequest, FailTaskRequest, ReportProgressRequest
from kapell_server.domain.secrets import secret, use
from kapell_server.domain.secrets.secret import RotateKeyCommand, SetSecretCommand
from kapell_server.vault import Vault

from tests.domain.asking import ALICE, ask_whole, decide
from tests.domain.test_rollback import fail_commit
from tests.domain.world import World

VALUE = "correct horse battery"


@pytest.fixture
def world() -> World:
    world = World()
    world.state.vault = Vault([b"k" * 32], environ={"TOKEN": "from the environment"})
    return world


def put(world: World, name: str = "token", value: str = VALUE, **fields: Any) -> Secret:
    """Sets a secret as SetSecret does."""
    sealed = world.state.vault.seal(value, name)
    request = SetSecretRequest(name=name, value="a keyed hash", **fields)
    found: Secret = world.do(SetSecretCommand(request, sealed))
    return found


def given(world: World, task_id: str) -> tuple[dict[str, str], list[str]]:
    """What the agent of a task is given."""
    task = world.task(task_id)
    return use.values_for(world.state, task, task.lease.agent_id)


def test_setting_again_is_another_version(world: World) -> None:
    first = put(world, description="for pushing")
    second = put(world, value="another one")

    assert (first.version, first.source, second.version) == (1, SECRET_SOURCE_STORED, 2)
    assert second.create_time == first.create_time
    assert use.value_of(world.state, "token") == "another one"
    with world.refuses("ETAG_MISMATCH"):
        put(world, etag=first.etag)


def test_a_value_may_be_kept_elsewhere(world: World) -> None:
    found = world.do(SetSecretCommand(SetSecretRequest(name="theirs", environment_variable="TOKEN"), b""))

    assert (found.source, found.location) == (SECRET_SOURCE_ENVIRONMENT, "TOKEN")
    assert use.value_of(world.state, "theirs") == "from the environment"
    assert world.state.secret_values == {}


def test_an_agent_is_given_what_its_task_names(world: World) -> None:
    put(world)
    task_id = world.running(secrets={"GIT_TOKEN": "token"})

    assert given(world, task_id) == ({"GIT_TOKEN": VALUE}, [])
    assert dict(world.task(task_id).secrets) == {"GIT_TOKEN": "token"}
    assert given(world, world.running()) == ({}, [])


def test_a_secret_that_was_deleted_is_missing(world: World) -> None:
    put(world)
    task_id = world.running(secrets={"GIT_TOKEN": "token"})

    world.do(DeleteSecretRequest(name="token"))

    assert given(world, task_id) == ({}, ["token"])
    assert world.state.secret_values == {}
    with world.refuses("SECRET_NOT_FOUND"):
        world.do(DeleteSecretRequest(name="token"))


@pytest.mark.parametrize(
    ("named", "reason"),
    [({"A": "nobody-set-it"}, "SECRET_NOT_FOUND"), ({"LD_PRELOAD": "token"}, "REQUEST_INVALID")],
)
def test_what_cannot_be_given_is_refused_at_once(world: World, named: dict[str, str], reason: str) -> None:
    put(world)

    with world.refuses(reason):
        world.create(secrets=named)


def template(world: World) -> None:
    parameters = [{"name": "token", "required": True, "rules": {"type": "PARAMETER_TYPE_SECRET"}}]
    spec = TemplateSpec(agent_type="shell", prompt="push with {token}", parameters=parameters)
    world.do(CreateTemplateRequest(template_id="push", spec=spec))


def test_a_template_takes_the_name_and_shows_no_more(world: World) -> None:
    put(world)
    template(world)

    task_id = world.create("", template="push", parameters={"token": "secret:token"})

    content = world.content(task_id)
    assert content.prompt == "push with [secret token]"
    assert content.input["token"] == "secret:token"
    assert dict(world.task(task_id).secrets) == {"token": "token"}


def test_a_value_in_the_place_of_a_name_is_refused_without_repeating_it(world: World) -> None:
    template(world)

    with world.refuses("TEMPLATE_PARAMETERS_INVALID") as caught:
        world.create("", template="push", parameters={"token": VALUE})

    assert VALUE not in caught[0].message + str(caught[0].violations)
    assert "must name a secret" in caught[0].message


def test_a_retry_may_name_another_secret(world: World) -> None:
    put(world)
    put(world, "other", "another value")
    template(world)
    task_id = world.create("", template="push", parameters={"token": "secret:token"})
    world.cancel(task_id)

    world.retry(task_id, parameters={"token": "secret:other"})

    assert dict(world.task(task_id).secrets) == {"token": "other"}


def test_a_child_is_given_no_secret_that_its_parent_has_not(world: World) -> None:
    put(world)
    put(world, "other", "another value")
    task_id = world.running(secrets={"GIT_TOKEN": "token"})
    token = world.token(task_id)

    def child(name: str) -> Any:
        spec = TaskSpec(agent_type="shell", prompt="x", secrets={"MINE": name})
        return world.do(CreateChildTasksRequest(lease_token=token, tasks=[spec]))

    spec = TaskSpec(agent_type="shell", prompt=f"go on with {VALUE}")
    [told] = world.do(CreateChildTasksRequest(lease_token=token, tasks=[spec]))
    assert world.content(told.task_id).prompt == "go on with [secret]"
    assert dict(child("token")[0].secrets) == {"MINE": "token"}
    with world.refuses("NOT_OWNER"):
        child("other")


def test_results_failures_and_progress_are_masked(world: World) -> None:
    put(world)
    task_id = world.running(secrets={"GIT_TOKEN": "token"})

    progress = TaskProgress(fraction=0.5, message=f"pushing with {VALUE}")
    world.do(ReportProgressRequest(lease_token=world.token(task_id), progress=progress))
    world.complete(task_id, f"pushed with {VALUE}")

    assert world.task(task_id).progress.message == "pushing with [secret]"
    assert world.content(task_id).result.string_value == "pushed with [secret]"

    failing = world.running(secrets={"GIT_TOKEN": "token"})
    request = FailTaskRequest(
        lease_token=world.token(failing), failure=TaskFailure(reason="NO", message=f"401 for {VALUE}", retryable=False)
    )
    world.do(request)
    assert world.task(failing).failure.message == "401 for [secret]"
    before = world.state.revision
    world.do(request)
    assert world.state.revision == before


def test_what_an_agent_asks_for_is_masked_and_asked_for_once(world: World) -> None:
    put(world)
    task_id = world.running(secrets={"GIT_TOKEN": "token"})
    shown = ApprovalContent(command=f"git push --password {VALUE}", tool="bash")
    resume = Struct()
    resume.update({"remote": VALUE})

    asked = ask_whole(world, task_id, f"Push with {VALUE}", content=shown, park=True, resume_data=resume).approval

    assert (asked.title, asked.content.command) == ("Push with [secret]", "git push --password [secret]")
    assert world.task(task_id).parked.resume_data["remote"] == "[secret]"
    assert VALUE not in str(world.state.approvals.content(asked.approval_id))
    decide(world, asked, by=ALICE)
    world.poll(asked.agent_id)
    again = ask_whole(world, task_id, f"Push with {VALUE}", content=shown, park=True).approval
    assert again.approval_id == asked.approval_id


def test_agents_of_a_profile_get_its_secrets(world: World) -> None:
    put(world)
    command = CommandRuntime(argv=["sh"], env_from_secret={"MODEL_KEY": "token"})
    agent_id = world.spawn(spec=AgentSpec(agent_types=["shell"], command=command))

    assert use.values_for(world.state, world.task(world.create()), agent_id) == ({"MODEL_KEY": VALUE}, [])


def test_a_new_key_seals_every_value(world: World) -> None:
    put(world)
    before = dict(world.state.secret_values)
    vault = world.state.vault
    assert isinstance(vault, Vault)

    vault.begin_rotation()
    answer = world.do(RotateKeyCommand(RotateSecretKeyRequest()))
    vault.end_rotation(world.state.secret_values.values())

    assert answer.secrets == 1
    assert world.state.secret_values["token"] != before["token"]
    assert vault.open(before["token"], "token") is None
    assert use.value_of(world.state, "token") == VALUE


def test_what_was_not_committed_is_as_it_was(world: World) -> None:
    put(world)
    before = dict(world.state.secret_values)

    fail_commit(world, SetSecretCommand(SetSecretRequest(name="token", value="x"), b"sealed"))
    fail_commit(world, DeleteSecretRequest(name="token"))

    assert world.state.secret_values == before
    assert use.value_of(world.state, "token") == VALUE


def test_there_may_be_only_so_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret, "MAX_SECRETS", 2)
    put(world, "one")
    put(world, "two")

    with world.refuses("SECRET_LIMIT"):
        put(world, "three")
    assert put(world, "two").version == 2
