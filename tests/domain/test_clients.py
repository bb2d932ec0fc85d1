"""What clients ask of tasks and agents, and what is filled in, checked and refused."""

from __future__ import annotations

import re
from random import Random

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_SILENT,
    AGENT_ACTIVITY_UNSPECIFIED,
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATED,
    AGENT_STATE_TERMINATING,
    Agent,
    AgentSpec,
    CommandRuntime,
    SpawnAgentRequest,
    TerminateAgentRequest,
    UpdateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    Task,
    TaskSpec,
    UpdateTaskRequest,
)
from kapell.v1.watch_pb2 import ACTOR_KIND_USER
from kapell.v1.worker_pb2 import (
    HeartbeatRequest,
    LeaseBeat,
    LeaseTasksRequest,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
)
from kapell_server.domain.access import Keyring, LeaseId
from kapell_server.domain.ids import IdMinter
from kapell_server.domain.times import SECOND
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted, SpawnCommand

from tests.domain.world import SPEC, START_NS, World, as_agent, as_ticket, of_other_instance

# -- creating ------------------------------------------------------------------------------------


def test_a_task_gets_what_was_left_out() -> None:
    world = World()

    task = world.task(world.create(prompt="  \nfirst line\nsecond line"))

    assert task.task_id.startswith("task_")
    assert (task.priority, task.display_name) == (500, "first line")
    assert (task.retry_policy.max_attempts, task.attempt, task.attempts_used) == (3, 0, 0)
    assert (task.creator.kind, task.creator.id) == (ACTOR_KIND_USER, "admin")
    assert (task.etag, task.revision) == ("1", 1)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ({"display_name": "mine", "prompt": "p"}, "mine"),
        ({"prompt": "x" * 80}, "x" * 80),
        ({"prompt": "x" * 81}, "x" * 79 + "…"),
        ({"prompt": "\n \n"}, "shell"),
        ({}, "shell"),
    ],
)
def test_a_task_is_named_by_its_client_its_prompt_or_its_type(spec: dict[str, str], name: str) -> None:
    world = World()

    assert world.task(world.create(**spec)).display_name == name


def test_priority_zero_is_a_priority() -> None:
    world = World()

    assert world.task(world.create(priority=0)).priority == 0


def test_content_stands_beside_the_task() -> None:
    world = World()
    values = Struct()
    values["n"] = 1

    task_id = world.create(prompt="p", input=values)

    assert (world.task(task_id).prompt, world.task(task_id).HasField("input")) == ("", False)
    assert (world.content(task_id).prompt, world.content(task_id).input["n"]) == ("p", 1)
    assert world.task(task_id).content_bytes == len(world.rows.contents[task_id])


def test_too_large_an_input_is_refused() -> None:
    world = World(max_content_bytes=100)
    values = Struct()
    values["text"] = "x" * 101

    with world.refuses("REQUEST_INVALID") as caught:
        world.create(input=values)

    assert caught[0].violations == (("task.input", "must be at most 100 bytes"),)


def test_a_taken_id_is_refused() -> None:
    world = World()
    world.create(task_id="task_mine")

    with world.refuses("ID_TAKEN") as caught:
        world.create(task_id="task_mine")

    assert caught[0].metadata == {"task_id": "task_mine"}


def test_a_batch_creates_all_or_none() -> None:
    world = World()
    world.create(task_id="task_taken")
    specs = [TaskSpec(agent_type="shell", task_id=f"task_{name}") for name in ("a", "b", "taken")]

    with world.refuses("ID_TAKEN"):
        world.do(BatchCreateTasksRequest(tasks=specs))
    with world.refuses("ID_TAKEN"):
        world.do(BatchCreateTasksRequest(tasks=[specs[0], specs[0]]))

    created = world.do(BatchCreateTasksRequest(tasks=specs[:2]))
    assert [task.task_id for task in created] == ["task_a", "task_b"]


def test_a_check_creates_nothing() -> None:
    world = World()

    task = world.do(CreateTaskRequest(task=TaskSpec(agent_type="shell", prompt="p"), validate_only=True))

    assert (task.prompt, task.revision) == ("p", 0)
    assert (world.rows.tasks, world.events) == ({}, [])


# -- updating ------------------------------------------------------------------------------------


def test_an_update_sets_what_its_mask_names_and_nothing_else() -> None:
    world = World()
    task_id = world.create(display_name="old", labels={"a": "1"}, priority=5)
    new = Task(task_id=task_id, display_name="new", labels={"b": "2"}, priority=9)

    world.do(UpdateTaskRequest(task=new, update_mask=FieldMask(paths=["labels", "display_name", "labels"])))

    task = world.task(task_id)
    assert (task.display_name, dict(task.labels), task.priority) == ("new", {"b": "2"}, 5)


@pytest.mark.parametrize("kind", ["task", "agent"])
def test_an_update_of_what_has_changed_is_refused(kind: str) -> None:
    world = World()
    mask = FieldMask(paths=["labels"])
    request: UpdateTaskRequest | UpdateAgentRequest
    if kind == "task":
        task_id = world.create()
        request = UpdateTaskRequest(task=Task(task_id=task_id), update_mask=mask, etag=world.task(task_id).etag)
    else:
        agent_id = world.register()
        request = UpdateAgentRequest(agent=Agent(agent_id=agent_id), update_mask=mask, etag=world.agent(agent_id).etag)
    world.do(request)

    with world.refuses("ETAG_MISMATCH") as caught:
        world.do(request)

    assert set(caught[0].metadata) == {"expected", "current"}
    request.ClearField("etag")
    world.do(request)


def test_an_agent_is_given_labels_and_a_name() -> None:
    world = World()
    agent_id = world.register()
    new = Agent(agent_id=agent_id, display_name="Ada", labels={"a": "b"})

    world.do(UpdateAgentRequest(agent=new, update_mask=FieldMask(paths=["labels", "display_name"])))

    assert (world.agent(agent_id).display_name, dict(world.agent(agent_id).labels)) == ("Ada", {"a": "b"})


# -- agents --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "profile", "name"),
    [
        (SpawnAgentRequest(display_name="mine"), "profile", "mine"),
        (SpawnAgentRequest(), "profile", "profile"),
        (SpawnAgentRequest(), "", "sh"),
    ],
)
def test_a_spawned_agent_is_named(request_: SpawnAgentRequest, profile: str, name: str) -> None:
    world = World()
    spec = AgentSpec(agent_types=["shell"], command=CommandRuntime(argv=["/bin/sh"]))

    agent = world.do(SpawnCommand(request_, profile, spec))

    assert (agent.display_name, agent.profile, agent.slots_total, agent.runtime) == (name, profile, 1, "command")
    assert (agent.state, agent.spec) == (AGENT_STATE_PENDING, spec)


def test_an_agent_id_that_is_taken_is_refused() -> None:
    world = World()
    world.spawn("agent_mine")

    with world.refuses("ID_TAKEN"):
        world.spawn("agent_mine")


def test_no_more_agents_than_the_limit() -> None:
    world = World(max_agents=2)
    ended = world.spawn()
    world.do(AgentProcessExited(ended, ProcessExit()))
    world.register()
    world.spawn()

    with world.refuses("AGENT_LIMIT") as caught:
        world.spawn()
    assert caught[0].metadata == {"limit": "2"}
    with world.refuses("AGENT_LIMIT"):
        world.register()


def test_an_agent_that_does_not_register_is_given_up() -> None:
    world = World()
    agent_id = world.spawn()
    world.advance(3600)
    assert world.agent(agent_id).state == AGENT_STATE_PENDING
    world.do(AgentProcessStarted(agent_id, 41))

    world.advance(29)
    assert world.agent(agent_id).state == AGENT_STATE_STARTING
    world.advance(1)

    agent = world.agent(agent_id)
    assert (agent.state, agent.state_reason[:28]) == (AGENT_STATE_TERMINATING, "its process did not register")
    world.do(AgentProcessExited(agent_id, ProcessExit(signal=9, message="killed")))
    assert world.agent(agent_id).state == AGENT_STATE_FAILED
    assert world.agent(agent_id).exit.signal == 9


def test_a_terminated_agent_that_had_not_registered_is_terminated_not_failed() -> None:
    world = World()
    agent_id = world.spawn()
    world.do(TerminateAgentRequest(agent_id=agent_id, reason="enough"))

    world.advance(60)
    world.do(AgentProcessExited(agent_id, ProcessExit()))

    assert (world.agent(agent_id).state, world.agent(agent_id).state_reason) == (AGENT_STATE_TERMINATED, "enough")


def test_a_silent_agent_is_shown_so_and_then_lost_and_then_back() -> None:
    world = World()
    agent_id = world.register()

    world.advance(7)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_SILENT
    world.advance(3)
    assert (world.agent(agent_id).state, world.agent(agent_id).activity) == (
        AGENT_STATE_LOST,
        AGENT_ACTIVITY_UNSPECIFIED,
    )
    world.beat(agent_id)
    assert (world.agent(agent_id).state, world.agent(agent_id).state_reason) == (AGENT_STATE_ACTIVE, "")
    world.advance(7)
    assert world.agent(agent_id).activity == AGENT_ACTIVITY_SILENT
    world.do(LeaseTasksRequest(agent_id=agent_id))
    assert world.agent(agent_id).activity != AGENT_ACTIVITY_SILENT


def test_heartbeats_are_no_events() -> None:
    world = World()
    agent_id = world.register()
    seen = len(world.events)

    for _ in range(10):
        world.advance(3)
        world.beat(agent_id)

    assert world.events[seen:] == []


# -- registering ---------------------------------------------------------------------------------


def registration(key: str = "process-1", *agent_types: str) -> RegisterWorkerRequest:
    return RegisterWorkerRequest(instance_key=key, agent_types=agent_types)


def test_registering_again_finds_the_same_agent() -> None:
    world = World()
    first: RegisterWorkerResponse = world.do(registration("process-1", "shell"))

    again = world.do(registration("process-1", "shell"))

    assert (again.agent.agent_id, again.agent_token) == (first.agent.agent_id, first.agent_token)
    assert again.log_id == "log_world"
    assert (again.heartbeat_interval.seconds, again.lease_duration.seconds) == (3, 10)
    assert world.events == ["agent.spawned", "agent.status"]


def test_a_lost_agent_that_registers_again_is_back() -> None:
    world = World()
    agent_id = world.register("shell", key="process-1")
    world.advance(11)

    assert world.do(registration("process-1", "shell")).agent.agent_id == agent_id
    assert world.agent(agent_id).state == AGENT_STATE_ACTIVE


def test_a_process_whose_agent_has_ended_becomes_another_agent() -> None:
    world = World()
    agent_id = world.register("shell", key="process-1")
    world.advance(11)
    world.do(TerminateAgentRequest(agent_id=agent_id))
    assert world.agent(agent_id).state == AGENT_STATE_TERMINATED

    assert world.do(registration("process-1", "shell")).agent.agent_id != agent_id


def test_an_external_worker_must_say_what_it_serves() -> None:
    world = World()

    with world.refuses("REQUEST_INVALID") as caught:
        world.do(registration("process-1"))

    assert caught[0].violations[0][0] == "agent_types"


def test_a_ticket_makes_the_process_the_agent_that_was_spawned() -> None:
    world = World()
    agent_id = world.spawn()

    answer = world.do(registration("host-1"), caller=as_ticket(agent_id))

    assert (answer.agent.agent_id, answer.agent.instance, answer.agent.state) == (agent_id, 1, AGENT_STATE_ACTIVE)
    assert list(answer.agent.agent_types) == list(SPEC.agent_types)


def test_a_ticket_is_good_for_one_process() -> None:
    world = World()
    agent_id = world.spawn()
    first = world.do(registration("host-1"), caller=as_ticket(agent_id))

    assert world.do(registration("host-1"), caller=as_ticket(agent_id)).agent_token == first.agent_token
    with world.refuses("TOKEN_INVALID"):
        world.do(registration("host-2"), caller=as_ticket(agent_id))


def test_a_ticket_of_an_unknown_agent_is_worth_nothing() -> None:
    world = World()

    with world.refuses("TOKEN_INVALID"):
        world.do(registration("host-1"), caller=as_ticket("agent_unknown"))


def test_an_agent_speaks_for_itself_only() -> None:
    world = World()
    one, other = world.register(), world.register()

    with world.refuses("NOT_OWNER") as caught:
        world.beat(other, caller=as_agent(world.agent(one)))
    assert caught[0].metadata == {"agent_id": other}
    world.beat(one, caller=as_agent(world.agent(one)))


def test_the_token_of_another_instance_is_worth_nothing() -> None:
    world = World()
    agent_id = world.register()
    stale = of_other_instance(as_agent(world.agent(agent_id)))

    with world.refuses("TOKEN_INVALID"):
        world.beat(agent_id, caller=stale)


def test_a_heartbeat_of_an_ended_agent_tells_it_to_stop_and_that_all_is_lost() -> None:
    world = World()
    task_id = world.running()
    agent_id, token = world.task(task_id).lease.agent_id, world.token(task_id)
    world.advance(11)
    world.do(TerminateAgentRequest(agent_id=agent_id))

    answer = world.do(HeartbeatRequest(agent_id=agent_id, leases=[LeaseBeat(lease_token=token)]))

    assert (answer.directive, answer.leases[0].directive) == (3, 3), "STOP, LOST"


def test_a_heartbeat_does_not_fail_for_a_damaged_lease() -> None:
    world = World()
    agent_id = world.register()

    answer = world.do(HeartbeatRequest(agent_id=agent_id, leases=[LeaseBeat(lease_token="x.y.z")]))

    assert [(one.lease_token, one.directive) for one in answer.leases] == [("x.y.z", 3)]


# -- ids and tokens ------------------------------------------------------------------------------


def test_ids_rise_with_time_and_within_it() -> None:
    minter = IdMinter(Random(5))

    ids = [minter.mint("task", START_NS + number // 100 * 1_000_000) for number in range(1000)]

    assert ids == sorted(ids)
    assert len(set(ids)) == 1000
    assert all(len(one) == 31 and one.startswith("task_") for one in ids)


def test_ids_rise_even_if_the_clock_goes_back() -> None:
    minter = IdMinter(Random(5))

    assert minter.mint("task", START_NS) < minter.mint("task", START_NS - 3600 * SECOND)


def test_ids_fit_the_rule_for_the_ids_of_clients() -> None:
    minted = IdMinter(Random(5)).mint("agent", START_NS)

    assert re.fullmatch(r"agent_[a-z0-9][a-z0-9_-]{0,57}", minted)


KEYRING = Keyring(b"k" * 32, admin_token="admin-secret")


def test_a_lease_token_speaks_of_its_attempt() -> None:
    token = KEYRING.lease_token("task_a.b", 7, 123_456_789)

    assert KEYRING.parse_lease_token(token) == LeaseId("task_a.b", 7, 123_456_789)
    assert len(KEYRING.lease_token("task_" + "x" * 59, 2**31 - 1, 2**62)) <= 200


@pytest.mark.parametrize("token", ["", ".", "..", "task_a.1", "task_a.1.0.", "é", "task_a.x.y.z"])
def test_a_token_of_nobody_speaks_of_nothing(token: str) -> None:
    assert KEYRING.parse_lease_token(token) is None
    assert KEYRING.authenticate(token) is None


def test_a_token_of_another_key_or_purpose_speaks_of_nothing() -> None:
    other = Keyring(b"o" * 32, admin_token="admin-secret")

    assert KEYRING.parse_lease_token(other.lease_token("task_a", 1, 1)) is None
    assert KEYRING.authenticate(other.ticket("agent_a")) is None
    assert KEYRING.authenticate(other.agent_token("agent_a", 1)) is None
    assert KEYRING.authenticate(KEYRING.ticket("agent_a").replace("ticket", "agent")) is None
    assert KEYRING.authenticate(KEYRING.agent_token("agent_a", 1).replace("_a.1", "_a.2")) is None


def test_the_admins_token_is_a_users() -> None:
    caller = KEYRING.authenticate("admin-secret")

    assert caller is not None
    assert (caller.kind.value, caller.name) == ("user", "admin")
