"""Several demands for the approval of one start: all are met, or it does not begin (A1)."""

from __future__ import annotations

from typing import Any

import protovalidate
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell.v1.approval_pb2 import APPROVAL_KIND_TASK_START, RULE_EFFECT_APPROVE, RULE_EFFECT_REQUIRE
from kapell.v1.approval_policy_pb2 import (
    EXPIRY_ACTION_DENY,
    EXPIRY_ACTION_ESCALATE,
    EXPIRY_ACTION_HOLD,
    EXPIRY_ACTION_UNSPECIFIED,
    ApprovalDemand,
    ApprovalGroup,
    ApprovalPolicy,
)
from kapell.v1.task_pb2 import CreateTaskRequest, TaskSpec
from kapell.v1.template_pb2 import TemplateStep
from kapell.v1.watch_pb2 import ACTOR_KIND_AGENT, ACTOR_KIND_SYSTEM, ACTOR_KIND_USER, Actor
from kapell.v1.worker_pb2 import CreateChildTasksRequest
from kapell_server.domain.approvals.demands import combined, missing
from kapell_server.domain.times import duration_ns

from tests.domain.asking import ALICE, ASK, BOB, decide, rule, state_of, waiting
from tests.domain.test_approval_starts import struct, template
from tests.domain.world import USER, World

PEOPLE = [Actor(kind=ACTOR_KIND_USER, id=name) for name in ("ann", "bob", "cleo")]
VOTERS = [*PEOPLE, Actor(kind=ACTOR_KIND_AGENT, id="agent_a")]
NAMES = ["user:ann", "user:bob", "user:cleo", "agent:agent_a"]
ACTIONS = [EXPIRY_ACTION_UNSPECIFIED, EXPIRY_ACTION_DENY, EXPIRY_ACTION_HOLD, EXPIRY_ACTION_ESCALATE]

named = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)


@st.composite
def demanded(draw: Any) -> ApprovalDemand:
    approvers = draw(named)
    policy = ApprovalPolicy(
        approvers=approvers,
        quorum=draw(st.integers(0, min(2, len(approvers)) if approvers else 3)),
        allow_requester=draw(st.sampled_from([None, False, True])),
        on_expiry=draw(st.sampled_from(ACTIONS)),
        escalate_to=draw(named),
        reason=draw(st.sampled_from(["", "why", "x" * 400])),
    )
    seconds = draw(st.sampled_from([0, 60, 600]))
    if seconds:
        policy.timeout.CopyFrom(Duration(seconds=seconds))
    author = draw(st.sampled_from([*PEOPLE, Actor(kind=ACTOR_KIND_SYSTEM, id="templates")]))
    return ApprovalDemand(policy=policy, author=author)


def is_met(policy: ApprovalPolicy, votes: list[Actor], *, escalated: bool) -> bool:
    """What one policy says by itself, in other words than the rules."""
    everyone, names = not policy.approvers, {*policy.approvers}
    if escalated and policy.on_expiry == EXPIRY_ACTION_ESCALATE:
        everyone = everyone or not policy.escalate_to
        names |= {*policy.escalate_to}
    kinds = {ACTOR_KIND_USER: "user", ACTOR_KIND_AGENT: "agent"}
    count = 0
    for vote in {(one.kind, one.id): one for one in votes}.values():
        is_named = f"{kinds[vote.kind]}:{vote.id}" in names
        count += is_named or (everyone and vote.kind == ACTOR_KIND_USER)
    return count >= max(policy.quorum, 1)


@given(
    st.lists(demanded(), min_size=1, max_size=4),
    st.lists(st.sampled_from(VOTERS), max_size=4),
    st.booleans(),
    st.sampled_from(PEOPLE),
)
@settings(deadline=None, max_examples=400)
def test_all_demands_together_are_met_just_where_each_is(
    found: list[ApprovalDemand], votes: list[Actor], late: bool, creator: Actor
) -> None:
    policy = combined(found, creator)
    escalated = late and policy.on_expiry == EXPIRY_ACTION_ESCALATE

    together = not missing(policy, votes, escalated=escalated)

    assert together == all(is_met(one.policy, votes, escalated=escalated) for one in found)


@given(st.lists(demanded(), min_size=1, max_size=4), st.sampled_from(PEOPLE), st.randoms())
@settings(deadline=None, max_examples=200)
def test_together_they_are_never_laxer_than_one_of_them(
    found: list[ApprovalDemand], creator: Actor, random: Any
) -> None:
    policy = combined(found, creator)
    shuffled = [*found]
    random.shuffle(shuffled)
    other = combined(shuffled, creator)

    day = Duration(seconds=86_400)
    times = [duration_ns(one.policy.timeout if one.policy.HasField("timeout") else day) for one in found]
    assert duration_ns(policy.timeout if policy.HasField("timeout") else day) == min(times)
    for one in found:
        if policy.allow_requester:
            own = one.policy.HasField("allow_requester") and one.policy.allow_requester
            unsaid = not one.policy.HasField("allow_requester")
            assert own or (unsaid and (one.author == creator or one.author.kind == ACTOR_KIND_SYSTEM))
        if one.policy.on_expiry == EXPIRY_ACTION_DENY:
            assert policy.on_expiry == EXPIRY_ACTION_DENY
    assert (policy.on_expiry, policy.allow_requester) == (other.on_expiry, other.allow_requester)
    again = combined([*found, *found], creator)
    assert again == policy
    assert len(policy.reason) <= 500


# -- in the life of tasks ---------------------------------------------------------------------


def child_of(world: World, parent: str, **spec: Any) -> str:
    made = world.do(
        CreateChildTasksRequest(
            lease_token=world.token(parent), tasks=[TaskSpec(agent_type="shell", prompt="child", **spec)]
        )
    )
    return str(made[0].task_id)


def running_under(world: World, policy: ApprovalPolicy) -> str:
    agent_id = world.register("shell")
    parent = world.create("shell", prompt="parent", approval=policy)
    for caller in (ALICE, BOB):
        if waiting_of(world, parent):
            decide(world, waiting(world, parent), by=caller)
    assert world.lease(agent_id) == parent
    return str(parent)


def waiting_of(world: World, task_id: str) -> bool:
    return any(one.task_id == task_id for one in world.state.approvals.pending())


FOR_ALICE = ApprovalPolicy(approvers=["user:alice"], include_children=True)


def test_a_child_cannot_get_round_its_parent_by_a_policy_of_its_own() -> None:
    world = World()
    parent = running_under(world, FOR_ALICE)

    child = child_of(world, parent, approval=ApprovalPolicy(approvers=["user:bob"], allow_requester=True))

    decide(world, waiting(world, child), by=BOB)
    found = waiting(world, child)
    assert found.state_reason == "1 vote; still wanted: 1 more of user:alice"
    decide(world, found, by=ALICE)
    assert state_of(world, child) == "QUEUED"


def test_the_demand_of_a_parent_does_not_get_round_that_of_a_child_or_template() -> None:
    world = World()
    template(world, approval=ApprovalPolicy(approvers=["user:bob"]))
    parent = running_under(world, FOR_ALICE)
    spec = TaskSpec(template="greet", parameters=struct(name="Ann"))
    [child] = world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[spec]))

    decide(world, waiting(world, child.task_id), by=ALICE)

    assert state_of(world, child.task_id) == "AWAITING_APPROVAL"
    with world.refuses("NOT_APPROVER") as errors:
        decide(world, waiting(world, child.task_id), by=USER)
    assert errors[0].metadata["approvers"] == "user:bob; user:alice"
    decide(world, waiting(world, child.task_id), by=BOB)
    assert state_of(world, child.task_id) == "QUEUED"


def test_a_laxer_policy_of_a_child_changes_nothing() -> None:
    world = World()
    parent = running_under(world, ApprovalPolicy(approvers=["user:alice", "user:bob"], quorum=2, include_children=True))

    child = child_of(world, parent, approval=ASK)

    policy = waiting(world, child).policy
    assert (list(policy.approvers), policy.quorum, len(policy.also)) == (["user:alice", "user:bob"], 2, 0)


def test_grandchildren_stand_under_all_that_is_above_them_and_only_that() -> None:
    world = World()
    parent = running_under(world, FOR_ALICE)
    child = child_of(world, parent, approval=ApprovalPolicy(approvers=["user:bob"]))
    for caller in (BOB, ALICE):
        decide(world, waiting(world, child), by=caller)
    assert world.lease(world.register("shell")) == child

    below = child_of(world, child)

    policy = waiting(world, below).policy
    assert (list(policy.approvers), list(policy.also)) == (["user:alice"], [])
    assert world.task(below).approval.demanded_by == "parent"


def test_one_refusal_of_any_group_is_enough() -> None:
    world = World()
    parent = running_under(world, FOR_ALICE)
    child = child_of(world, parent, approval=ApprovalPolicy(approvers=["user:bob"]))

    decide(world, waiting(world, child), "deny", by=BOB)

    assert world.task(child).failure.reason == "APPROVAL_REJECTED"


def test_an_edit_needs_one_who_alone_decides() -> None:
    world = World()
    parent = running_under(world, FOR_ALICE)
    child = child_of(world, parent, approval=ApprovalPolicy(approvers=["user:bob"]))
    decide(world, waiting(world, child), by=BOB)

    with world.refuses("REQUEST_INVALID"):
        decide(world, waiting(world, child), by=ALICE, edited_input=struct(a=1))


def test_every_rule_that_matches_demands() -> None:
    world = World()
    rule(world, effect=RULE_EFFECT_REQUIRE, agent_type="dep*", policy=ApprovalPolicy(approvers=["user:alice"]))
    rule(world, effect=RULE_EFFECT_REQUIRE, agent_type="deploy", policy=ApprovalPolicy(approvers=["user:bob"]))

    task_id = world.create("deploy")
    decide(world, waiting(world, task_id), by=ALICE)
    assert state_of(world, task_id) == "AWAITING_APPROVAL"
    decide(world, waiting(world, task_id), by=BOB)

    assert state_of(world, task_id) == "QUEUED"


def test_the_steps_of_a_template_stand_under_the_rule_for_it() -> None:
    world = World()
    template(world, steps=[TemplateStep(name="first", prompt="one")])
    policy = ApprovalPolicy(approvers=["user:alice"], include_children=True)
    rule(world, effect=RULE_EFFECT_REQUIRE, template_id="greet", policy=policy)

    world.do(CreateTaskRequest(task=TaskSpec(template="greet", parameters=struct(name="Ann"))))

    assert list(waiting(world).policy.approvers) == ["user:alice"]


def test_a_rule_speaks_only_where_its_author_alone_decides() -> None:
    world = World()
    rule(world, by=BOB, effect=RULE_EFFECT_APPROVE, kinds=[APPROVAL_KIND_TASK_START], agent_type="shell")
    parent = running_under(world, FOR_ALICE)

    child = child_of(world, parent, approval=ApprovalPolicy(approvers=["user:bob"]))

    assert state_of(world, child) == "AWAITING_APPROVAL"


def test_more_demands_than_can_be_kept_are_refused() -> None:
    world = World()
    for number in range(64):
        policy = ApprovalPolicy(include_children=True, reason=str(number))
        rule(world, effect=RULE_EFFECT_REQUIRE, agent_type="top", policy=policy)
    top = world.create("top")
    decide(world, waiting(world, top))
    assert world.lease(world.register("top")) == top

    with world.refuses("REQUEST_INVALID"):
        child_of(world, top, approval=ASK)


@pytest.mark.parametrize("name", ["user:alice", "user:bob"])
def test_clients_do_not_say_what_the_server_puts_together(name: str) -> None:
    spec = TaskSpec(agent_type="shell", prompt="p", approval=ApprovalPolicy(also=[ApprovalGroup(approvers=[name])]))

    with pytest.raises(protovalidate.ValidationError):
        protovalidate.validate(CreateTaskRequest(task=spec))
