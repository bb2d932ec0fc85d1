"""A1: nothing runs before its approval, on whatever path a task comes to its queue."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.approval_pb2 import RULE_EFFECT_REQUIRE
from kapell.v1.approval_policy_pb2 import EXPIRY_ACTION_ESCALATE, ApprovalPolicy
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.task_pb2 import (
    ApproveTaskRequest,
    BatchCreateTasksRequest,
    CreateTaskRequest,
    Task,
    TaskSpec,
    TaskTimeouts,
    UpdateTaskRequest,
)
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_STRING,
    CreateTemplateRequest,
    TemplateParameter,
    TemplateSpec,
    TemplateStep,
    ValueRules,
)
from kapell.v1.worker_pb2 import CreateChildTasksRequest
from kapell_server.domain.times import SECOND, stamp

from tests.domain.asking import ALICE, ASK, BOB, FOUR_EYES, decide, get, how, rule, seen, state_of, waiting
from tests.domain.scheduling import make
from tests.domain.world import START_NS, USER, World


def struct(**values: object) -> Struct:
    made = Struct()
    made.update(values)
    return made


def template(world: World, template_id: str = "greet", **spec: object) -> None:
    says = TemplateSpec(agent_type="shell", prompt="Greet {name}.", **spec)  # type: ignore[arg-type]
    says.parameters.append(TemplateParameter(name="name", rules=ValueRules(type=PARAMETER_TYPE_STRING), required=True))
    world.do(CreateTemplateRequest(template_id=template_id, spec=says))


def test_a_task_with_a_policy_waits_and_no_agent_gets_it() -> None:
    world = World()
    agent_id = world.register("shell")

    task_id = world.create(prompt="rm -rf build", approval=ASK)

    assert state_of(world, task_id) == "AWAITING_APPROVAL"
    assert world.poll(agent_id).taken == []
    approval = waiting(world, task_id)
    assert world.task(task_id).approval.approval_id == approval.approval_id
    assert world.rows.approval_contents[approval.approval_id].prompt == "rm -rf build"
    assert seen(world, "approval.", "task.") == ["task.created", "approval.required"]


def test_an_approved_task_is_given_to_the_agent_that_waits() -> None:
    world = World()
    agent_id = world.register("shell")
    task_id = world.create(prompt="p", approval=ASK)
    world.poll(agent_id)

    decide(world, waiting(world), comment="go on")

    assert state_of(world, task_id) == "RUNNING"
    assert seen(world, "task.")[-2:] == ["task.queued", "task.started"]


def test_a_refused_task_fails_with_the_reason_as_data() -> None:
    world = World()
    task_id = world.create(prompt="p", approval=ASK)

    decide(world, waiting(world), "deny", comment="too dear")

    failure = world.task(task_id).failure
    assert (state_of(world, task_id), failure.reason) == ("FAILED", "APPROVAL_REJECTED")
    assert dict(failure.details)["comment"] == "too dear"
    assert dict(failure.details)["decided_by"] == "admin"
    assert not failure.retryable


def test_explain_names_the_approval() -> None:
    world = World()
    task_id = world.create(prompt="p", approval=ASK)

    [blocker] = world.explain(task_id).blockers

    assert list(blocker.blocked_by) == [waiting(world).approval_id]
    assert "approve" in blocker.message


@pytest.mark.parametrize("path", ["batch", "schedule", "dependency", "time", "child", "parent"])
def test_every_path_to_a_queue_asks(path: str) -> None:
    world = World()
    spec = TaskSpec(agent_type="shell", prompt="p", approval=ASK)

    match path:
        case "batch":
            world.do(BatchCreateTasksRequest(tasks=[spec] * 3))
        case "schedule":
            make(world, task=spec)
            world.advance(61)
        case "dependency":
            first = world.create()
            spec.dependencies.append(TaskDependency(task_id=first))
            world.do(CreateTaskRequest(task=spec))
            assert list(world.state.approvals.pending()) == []
            agent_id = world.register("shell")
            assert world.lease(agent_id) == first
            world.complete(first)
        case "time":
            stamp(spec.not_before_time, START_NS + 5 * SECOND)
            world.do(CreateTaskRequest(task=spec))
            assert list(world.state.approvals.pending()) == []
            world.advance(6)
        case "child":
            parent = world.running()
            world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[spec]))
        case "parent":
            policy = ApprovalPolicy(include_children=True)
            agent_id = world.register("shell")
            parent = world.create(approval=policy)
            decide(world, waiting(world))
            assert world.lease(agent_id) == parent
            child = TaskSpec(agent_type="shell", prompt="child")
            world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[child]))

    held = [one for one in world.rows.tasks.values() if one.HasField("approval") and one.prompt != "x"]
    open_ones = list(world.state.approvals.pending())
    assert open_ones, path
    for approval in open_ones:
        assert state_of(world, approval.task_id) == "AWAITING_APPROVAL"
    assert len(open_ones) == len([one for one in held if not one.approval.approved_hash])


def test_a_template_demands_and_a_task_cannot_overrule_it() -> None:
    world = World()
    template(world, approval=ApprovalPolicy(quorum=2))

    task: Task = world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    assert state_of(world, task.task_id) == "AWAITING_APPROVAL"
    assert task.approval.demanded_by == "template"
    with world.refuses("REQUEST_INVALID"):
        world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"), approval=ASK)))


def test_each_step_of_a_template_asks() -> None:
    world = World()
    template(world, approval=ASK, steps=[TemplateStep(name="first", prompt="one")])

    task: Task = world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    approval = waiting(world)
    assert approval.task_id != task.task_id, "the step comes first"
    assert state_of(world, approval.task_id) == "AWAITING_APPROVAL"


def test_a_rule_may_demand_approvals_of_an_agent_type() -> None:
    world = World()
    made = rule(world, effect=RULE_EFFECT_REQUIRE, agent_type="dep*", policy=FOUR_EYES)

    free, held = world.create("shell"), world.create("deploy")

    assert (state_of(world, free), state_of(world, held)) == ("QUEUED", "AWAITING_APPROVAL")
    assert world.task(held).approval.demanded_by == made.rule_id


def test_a_policy_of_its_own_is_no_way_around_a_rule() -> None:
    world = World()
    made = rule(world, by=BOB, effect=RULE_EFFECT_REQUIRE, agent_type="deploy", policy=ApprovalPolicy(quorum=2))
    mine = ApprovalPolicy(allow_requester=True, on_expiry=EXPIRY_ACTION_ESCALATE)

    task_id = world.create("deploy", approval=mine)

    assert world.task(task_id).approval.demanded_by == made.rule_id
    approval = waiting(world, task_id)
    assert (approval.policy.quorum, approval.policy.on_expiry) == (2, EXPIRY_ACTION_ESCALATE)
    with world.refuses("SELF_APPROVAL"):
        decide(world, approval)


def test_a_stricter_policy_of_its_own_stays_under_a_rule() -> None:
    world = World()
    rule(world, effect=RULE_EFFECT_REQUIRE, agent_type="deploy")

    task_id = world.create("deploy", approval=ApprovalPolicy(approvers=["user:bob"], allow_requester=False))

    for caller, reason in ((ALICE, "NOT_APPROVER"), (USER, "SELF_APPROVAL")):
        with world.refuses(reason):
            decide(world, waiting(world, task_id), by=caller)


def test_a_rule_that_comes_later_leaves_what_is_queued() -> None:
    world = World()
    task_id = world.create("deploy")

    rule(world, effect=RULE_EFFECT_REQUIRE, agent_type="deploy")
    world.do(UpdateTaskRequest(task=Task(task_id=task_id, priority=7), update_mask=FieldMask(paths=["priority"])))

    assert state_of(world, task_id) == "QUEUED"


def test_an_edit_supersedes_what_was_asked_for() -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK)
    before = waiting(world)

    world.do(UpdateTaskRequest(task=Task(task_id=task_id, prompt="two"), update_mask=FieldMask(paths=["prompt"])))

    after = waiting(world)
    assert how(world, before.approval_id) == "SUPERSEDED"
    assert get(world, before.approval_id).superseded_by == after.approval_id
    assert after.content_hash != before.content_hash
    with world.refuses("APPROVAL_CHANGED") as errors:
        decide(world, before)
    assert errors[0].metadata["superseded_by"] == after.approval_id


def test_an_edit_of_an_approved_task_asks_again() -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK)
    decide(world, waiting(world))
    assert state_of(world, task_id) == "QUEUED"

    world.do(UpdateTaskRequest(task=Task(task_id=task_id, prompt="two"), update_mask=FieldMask(paths=["prompt"])))

    assert state_of(world, task_id) == "AWAITING_APPROVAL"


def test_a_new_name_or_priority_asks_nobody() -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK)
    before = waiting(world)

    changed = Task(task_id=task_id, priority=9, display_name="other")
    world.do(UpdateTaskRequest(task=changed, update_mask=FieldMask(paths=["priority", "display_name"])))

    assert waiting(world) == before


def test_another_start_time_keeps_the_request() -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK)
    later = Timestamp()
    stamp(later, START_NS + 60 * SECOND)

    world.do(
        UpdateTaskRequest(
            task=Task(task_id=task_id, not_before_time=later), update_mask=FieldMask(paths=["not_before_time"])
        )
    )
    assert state_of(world, task_id) == "PENDING"
    decide(world, waiting(world))
    assert state_of(world, task_id) == "PENDING", "approved in advance, but its time has not come"
    world.advance(61)

    assert state_of(world, task_id) == "QUEUED"


def test_a_retry_asks_again_only_for_other_content() -> None:
    world = World()
    agent_id = world.register("shell")
    task_id = world.create(prompt="one", approval=ASK)
    decide(world, waiting(world))
    assert world.lease(agent_id) == task_id
    world.fail(task_id, retryable=False)

    world.retry(task_id)
    assert state_of(world, task_id) == "QUEUED", "the same was approved"
    world.cancel(task_id)
    world.retry(task_id, prompt="two")

    assert state_of(world, task_id) == "AWAITING_APPROVAL"


def test_a_refused_task_that_is_retried_asks_again() -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK)
    decide(world, waiting(world), "deny")

    world.retry(task_id)

    assert state_of(world, task_id) == "AWAITING_APPROVAL"
    assert waiting(world).retry == 1


def test_attempts_that_fail_are_tried_again_without_asking() -> None:
    world = World()
    agent_id = world.register("shell")
    task_id = world.create(prompt="one", approval=ASK)
    decide(world, waiting(world))
    world.lease(agent_id)
    world.fail(task_id)

    world.advance(3)

    assert state_of(world, task_id) == "QUEUED"


@pytest.mark.parametrize("end", ["cancel", "delete", "timeout"])
def test_what_ends_the_task_ends_the_request(end: str) -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK, timeouts=TaskTimeouts(total_timeout=Duration(seconds=50)))
    approval = waiting(world)

    match end:
        case "cancel":
            world.cancel(task_id)
        case "delete":
            world.delete(task_id)
        case "timeout":
            world.advance(51)
            assert world.task(task_id).failure.reason == "TOTAL_TIMEOUT"

    assert how(world, approval.approval_id) == "CANCELLED"
    with world.refuses("APPROVAL_ALREADY_DECIDED"):
        decide(world, approval)


def test_parameters_may_be_edited_with_the_decision() -> None:
    world = World()
    template(world, approval=ASK)
    task: Task = world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    world.do(ApproveTaskRequest(task_id=task.task_id, parameters=struct(name="Bob"), comment="not her"))

    assert state_of(world, task.task_id) == "QUEUED"
    assert world.content(task.task_id).prompt == "Greet Bob."
    [edit] = world.edits(task.task_id)
    assert (edit.prompt, list(edit.changed_fields)) == ("Greet Ann.", ["prompt", "input"])
    approval = get(world, task.approval.approval_id)
    assert approval.decisions[0].edited_input["name"] == "Bob"
    assert world.task(task.task_id).approval.approved_hash == approval.decisions[0].edited_hash


def test_an_edit_that_cannot_be_leaves_the_task_waiting() -> None:
    world = World()
    template(world, approval=ASK)
    task: Task = world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    with world.refuses("TEMPLATE_PARAMETERS_INVALID"):
        world.do(ApproveTaskRequest(task_id=task.task_id, parameters=struct(nome="Bob")))
    with world.refuses("REQUEST_INVALID"):
        world.do(ApproveTaskRequest(task_id=task.task_id, prompt="whatever"))
    with world.refuses("REQUEST_INVALID"):
        world.do(ApproveTaskRequest(task_id=task.task_id, decision="deny", parameters=struct(name="Bob")))

    assert state_of(world, task.task_id) == "AWAITING_APPROVAL"


def test_approve_task_checks_the_hash_where_one_is_given() -> None:
    world = World()
    task_id = world.create(prompt="one", approval=ASK)

    with world.refuses("APPROVAL_CHANGED"):
        world.do(ApproveTaskRequest(task_id=task_id, shown_hash="0" * 64))
    world.do(ApproveTaskRequest(task_id=task_id, shown_hash=waiting(world).content_hash))

    assert state_of(world, task_id) == "QUEUED"


def test_a_task_that_waits_for_nothing_cannot_be_approved() -> None:
    world = World()
    task_id = world.create()
    asked = world.create(prompt="p", approval=ASK)
    decide(world, waiting(world))

    with world.refuses("APPROVAL_NOT_FOUND"):
        world.do(ApproveTaskRequest(task_id=task_id))
    with world.refuses("APPROVAL_ALREADY_DECIDED") as errors:
        world.do(ApproveTaskRequest(task_id=asked))

    assert errors[0].metadata["decider"] == "admin"


def test_in_an_installation_of_one_its_user_may_approve_what_they_have_demanded() -> None:
    world = World()
    template(world, approval=ASK)
    world.create(prompt="p", approval=ASK)
    world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    for approval in list(world.state.approvals.pending()):
        decide(world, approval)

    assert list(world.state.approvals.pending()) == []


def test_nobody_approves_their_own_task_where_others_demand_it() -> None:
    world = World()
    template(world, approval=ASK)
    task: Task = world.do(
        CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))), caller=ALICE
    )

    with world.refuses("SELF_APPROVAL") as errors:
        decide(world, waiting(world), by=ALICE)
    decide(world, waiting(world), by=BOB)

    assert errors[0].metadata["requester"] == "user:alice"
    assert state_of(world, task.task_id) == "QUEUED"


def test_a_policy_may_demand_four_eyes_of_its_own_author() -> None:
    world = World()
    world.create(prompt="p", approval=FOUR_EYES)

    with world.refuses("SELF_APPROVAL"):
        decide(world, waiting(world))
    decide(world, waiting(world), by=ALICE)
