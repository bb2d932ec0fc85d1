"""Deciding: one answer wins, by those who may, about what was shown; and what becomes of it when nobody does."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_BUDGET,
    APPROVAL_KIND_QUESTION,
    ApprovalContent,
    ApprovalOption,
    BatchDecideApprovalsRequest,
    BatchDecideApprovalsResponse,
    CancelApprovalRequest,
    ListApprovalsRequest,
    ShownApproval,
)
from kapell.v1.approval_policy_pb2 import (
    EXPIRY_ACTION_DENY,
    EXPIRY_ACTION_ESCALATE,
    EXPIRY_ACTION_HOLD,
    ApprovalPolicy,
)
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.watch_pb2 import ACTOR_KIND_SYSTEM, Actor
from kapell_server.domain.access import Caller, CallerKind, user
from kapell_server.domain.approvals import inbox, outcome
from kapell_server.domain.approvals.budget import request_budget_approval, withdraw_budget_approvals
from kapell_server.domain.state import State

from tests.domain.asking import (
    ALICE,
    ASK,
    BOB,
    ask,
    decide,
    get,
    how,
    lasting,
    seen,
    state_of,
    waiting,
)
from tests.domain.world import World, as_agent


def test_the_loser_is_told_who_decided_what() -> None:
    world = World()
    world.create(prompt="p", approval=ASK)
    approval = waiting(world)
    decide(world, approval, "deny", by=ALICE, comment="no")

    with world.refuses("APPROVAL_ALREADY_DECIDED") as errors:
        decide(world, approval, by=BOB)

    assert {key: errors[0].metadata[key] for key in ("decider", "option", "comment", "state")} == {
        "decider": "alice",
        "option": "deny",
        "comment": "no",
        "state": "REJECTED",
    }


def test_a_decision_about_something_else_is_refused() -> None:
    world = World()
    world.create(prompt="p", approval=ASK)

    with world.refuses("APPROVAL_CHANGED"):
        decide(world, waiting(world), shown="f" * 64)


def test_a_quorum_needs_different_voters_and_one_refusal_ends_it() -> None:
    world = World()
    task_id = world.create(prompt="p", approval=ApprovalPolicy(quorum=2))
    decide(world, waiting(world), by=ALICE)
    assert state_of(world, task_id) == "AWAITING_APPROVAL"

    with world.refuses("APPROVAL_ALREADY_DECIDED"):
        decide(world, waiting(world), by=ALICE)
    decide(world, waiting(world), by=BOB)

    assert state_of(world, task_id) == "QUEUED"
    assert seen(world, "approval.") == ["approval.required", "approval.voted", "approval.decided"]
    other = world.create(prompt="q", approval=ApprovalPolicy(quorum=3))
    decide(world, waiting(world, other), by=ALICE)
    decide(world, waiting(world, other), "deny", by=BOB)
    assert state_of(world, other) == "FAILED"


def test_only_those_who_are_named_decide() -> None:
    world = World()
    world.create(prompt="p", approval=ApprovalPolicy(approvers=["user:alice"]))

    with world.refuses("NOT_APPROVER") as errors:
        decide(world, waiting(world), by=BOB)
    decide(world, waiting(world), by=ALICE)

    assert errors[0].metadata["approvers"] == "user:alice"


def agent_caller(world: World, agent_id: str) -> Caller:
    return as_agent(world.rows.agents[agent_id])


def test_no_agent_decides_unless_it_is_named_and_never_in_its_own_tree() -> None:
    world = World()
    task_id = world.running()
    asker = world.task(task_id).lease.agent_id
    stranger = world.register("other")
    policy = ApprovalPolicy(approvers=[f"agent:{asker}", f"agent:{stranger}"], allow_requester=True)
    approval = ask(world, task_id, policy=policy)
    free = ask(world, task_id, title="Another thing")

    with world.refuses("SELF_APPROVAL"):
        decide(world, approval, by=agent_caller(world, asker))
    with world.refuses("NOT_APPROVER"):
        decide(world, free, by=agent_caller(world, stranger))
    decide(world, approval, by=agent_caller(world, stranger))

    assert how(world, approval.approval_id) == "APPROVED"


def test_an_agent_below_does_not_decide_for_the_one_above() -> None:
    world = World()
    parent = world.running()
    worker = world.register("shell")
    world.create(parent_task_id=parent)
    world.lease(worker)
    approval = ask(world, parent, policy=ApprovalPolicy(approvers=[f"agent:{worker}"]))

    with world.refuses("SELF_APPROVAL"):
        decide(world, approval, by=agent_caller(world, worker))


def test_the_user_whose_token_asked_does_not_decide() -> None:
    world = World()
    task_id = world.running()
    approval = ask(world, task_id)
    assert approval.asked_with.id == "admin", "the test's token is the user's"

    with world.refuses("SELF_APPROVAL"):
        decide(world, approval)
    decide(world, approval, by=ALICE)


@pytest.mark.parametrize(
    ("action", "state", "task_state"),
    [(EXPIRY_ACTION_DENY, "EXPIRED", "FAILED"), (EXPIRY_ACTION_HOLD, "PENDING", "AWAITING_APPROVAL")],
)
def test_an_expiry_is_nobodys_refusal(action: Any, state: str, task_state: str) -> None:
    world = World()
    task_id = world.create(prompt="p", approval=lasting(60, on_expiry=action))
    approval = waiting(world)

    world.advance(61)

    assert (how(world, approval.approval_id), state_of(world, task_id)) == (state, task_state)
    assert list(get(world, approval.approval_id).decisions) == []
    assert seen(world, "approval.")[-1] == "approval.expired"
    if action == EXPIRY_ACTION_HOLD:
        assert get(world, approval.approval_id).overdue
        world.advance(1_000)
        assert seen(world, "approval.").count("approval.expired") == 1
        decide(world, approval)
        assert state_of(world, task_id) == "QUEUED"
    else:
        assert world.task(task_id).failure.reason == "APPROVAL_EXPIRED"


def test_an_escalation_asks_others_and_then_ends() -> None:
    world = World()
    policy = lasting(60, on_expiry=EXPIRY_ACTION_ESCALATE, approvers=["user:alice"], escalate_to=["user:bob"])
    world.create(prompt="p", approval=policy)
    other = world.create(prompt="q", approval=policy)
    approval = waiting(world, other)
    with world.refuses("NOT_APPROVER"):
        decide(world, approval, by=BOB)

    world.advance(61)
    decide(world, approval, by=BOB)
    world.advance(61)

    assert seen(world, "approval.")[2:] == [
        "approval.escalated",
        "approval.escalated",
        "approval.decided",
        "approval.expired",
    ]


def test_a_decision_that_comes_late_loses_to_the_time() -> None:
    world = World()
    world.create(prompt="p", approval=lasting(60, on_expiry=EXPIRY_ACTION_DENY))
    approval = waiting(world)
    world.now_ns += 61_000_000_000

    with pytest.raises(Exception, match="EXPIRED"):
        decide(world, approval)

    assert how(world, approval.approval_id) == "EXPIRED"


def test_questions_take_their_options_or_a_text() -> None:
    world = World()
    task_id = world.running()
    colours = [ApprovalOption(option_id="red", label="Red"), ApprovalOption(option_id="blue")]
    choice = ask(world, task_id, title="Which?", kind=APPROVAL_KIND_QUESTION, options=colours)
    free = ask(world, task_id, title="What name?", kind=APPROVAL_KIND_QUESTION, free_text=True)

    with world.refuses("REQUEST_INVALID"):
        decide(world, choice, "green", by=ALICE)
    with world.refuses("REQUEST_INVALID"):
        decide(world, choice, "approve", by=ALICE)
    with world.refuses("REQUEST_INVALID"):
        decide(world, free, by=ALICE)
    decide(world, choice, "red", by=ALICE)
    answered = decide(world, free, by=ALICE, comment="Ada")

    assert get(world, choice.approval_id).decisions[0].option == "red"
    assert answered.decisions[0].comment == "Ada"


def test_the_input_of_a_tool_may_be_edited() -> None:
    world = World()
    task_id = world.running()
    given, other = Struct(), Struct()
    given.update({"path": "a"})
    other.update({"path": "b"})
    plain = ask(world, task_id)
    tool = ask(world, task_id, title="Write", content=ApprovalContent(tool="write", input=given))

    with world.refuses("REQUEST_INVALID"):
        decide(world, plain, by=ALICE, edited_input=other)
    with world.refuses("REQUEST_INVALID"):
        decide(world, tool, "deny", by=ALICE, edited_input=other)
    decide(world, tool, by=ALICE, edited_input=other)

    assert get(world, tool.approval_id).decisions[0].edited_input == other
    assert world.rows.approval_contents[tool.approval_id].input == given, "what was shown stays"


def test_a_batch_decides_what_is_of_one_kind_and_tells_of_each() -> None:
    world = World()
    ids = [world.create(prompt=f"ls p{number}", approval=ASK) for number in range(3)]
    approvals = [waiting(world, task_id) for task_id in ids]
    decide(world, approvals[1], "deny")
    shown = [ShownApproval(approval_id=one.approval_id, shown_hash=one.content_hash) for one in approvals]

    answer: BatchDecideApprovalsResponse = world.do(BatchDecideApprovalsRequest(approvals=shown, option="approve"))

    assert [bool(one.reason) for one in answer.outcomes] == [False, True, False]
    assert [state_of(world, task_id) for task_id in ids] == ["QUEUED", "FAILED", "QUEUED"]


def test_a_batch_decides_nothing_that_it_has_ended_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def decided(state: State, approval: Any) -> None:
        withdraw_budget_approvals(state, approval.budget_id, "it has room again")

    monkeypatch.setitem(outcome.WHEN_DECIDED, APPROVAL_KIND_BUDGET, decided)
    asker = Actor(kind=ACTOR_KIND_SYSTEM, id="budgets")
    ids = [world.create(prompt="p") for _ in range(2)]
    world.state.begin(world.now_ns, world.rows)
    content = ApprovalContent()
    approvals = [
        request_budget_approval(
            world.state, budget_id="budget_1", title="More", content=content, asker=asker, task=world.task(task_id)
        )
        for task_id in ids
    ]
    world._commit()
    shown = [ShownApproval(approval_id=one.approval_id, shown_hash=one.content_hash) for one in approvals]

    answer: BatchDecideApprovalsResponse = world.do(BatchDecideApprovalsRequest(approvals=shown, option="approve"))

    assert [bool(one.reason) for one in answer.outcomes] == [False, True]
    assert [how(world, one.approval_id) for one in approvals] == ["APPROVED", "CANCELLED"]


def test_votes_for_different_answers_are_no_quorum() -> None:
    world = World()
    options = [ApprovalOption(option_id=name, label=name) for name in ("red", "blue")]
    said = ApprovalPolicy(quorum=2)
    approval = ask(world, world.running(), kind=APPROVAL_KIND_QUESTION, options=options, policy=said)

    decide(world, approval, "red", by=ALICE)
    decide(world, approval, "blue", by=BOB)
    assert how(world, approval.approval_id) == "PENDING"
    decide(world, approval, "red", by=user("carol"))

    assert how(world, approval.approval_id) == "APPROVED"


def test_a_batch_of_different_kinds_or_of_high_risk_is_refused() -> None:
    world = World()
    task_id = world.running()
    make, ls = ask(world, task_id, command="make all"), ask(world, task_id, command="ls")
    grave = [ask(world, task_id, command=f"rm -rf {name}") for name in "ab"]

    def batch(*approvals: Any) -> None:
        shown = [ShownApproval(approval_id=one.approval_id, shown_hash=one.content_hash) for one in approvals]
        world.do(BatchDecideApprovalsRequest(approvals=shown, option="approve"), caller=ALICE)

    with world.refuses("REQUEST_INVALID"):
        batch(make, ls)
    with world.refuses("REQUEST_INVALID"):
        batch(*grave)
    with world.refuses("REQUEST_INVALID"):
        batch(make, make)


def test_the_inbox_puts_first_what_blocks_most_then_what_expires_first() -> None:
    world = World()
    late = world.create(prompt="a", approval=lasting(500))
    soon = world.create(prompt="b", approval=lasting(50))
    blocking = world.create(prompt="c", approval=lasting(900))
    world.create(prompt="d", dependencies=[TaskDependency(task_id=blocking)])

    found = inbox.listed(world.state, ListApprovalsRequest(), 0, 50)

    assert [one.task_id for one in found.approvals] == [blocking, soon, late]
    assert [one.blocks for one in found.approvals] == [2, 1, 1]
    assert found.total == 3
    assert inbox.listed(world.state, ListApprovalsRequest(), 1, 1).next_page_token == "2"


def test_every_change_is_audited_with_who_and_what_was_shown() -> None:
    world = World()
    world.create(prompt="p", approval=ASK)
    approval = waiting(world)
    decide(world, approval, by=Caller(kind=CallerKind.USER, name="alice", scopes=frozenset(), peer="ipv4:10.0.0.1:5"))

    asked, decided = world.rows.approval_audit.values()

    assert (asked.actor.id, decided.actor.id, decided.peer) == ("admin", "alice", "ipv4:10.0.0.1:5")
    assert decided.shown_hash == approval.content_hash
    assert decided.approval.decisions[0].peer == "ipv4:10.0.0.1:5"
    assert not decided.approval.HasField("content")


def test_a_request_may_be_withdrawn_by_its_agent_alone() -> None:
    world = World()
    task_id = world.running()
    stranger = world.register("other")
    approval = ask(world, task_id)
    cancel = CancelApprovalRequest(approval_id=approval.approval_id, reason="not needed")
    proven = CancelApprovalRequest(approval_id=approval.approval_id, lease_token=world.token(task_id))
    world.create(prompt="p", approval=ASK)
    start = next(one for one in world.state.approvals.pending() if one.approval_id != approval.approval_id)

    with world.refuses("NOT_OWNER"):
        world.do(proven, caller=agent_caller(world, stranger))
    with world.refuses("LEASE_LOST"):
        world.do(cancel, caller=agent_caller(world, world.task(task_id).lease.agent_id))
    with world.refuses("REQUEST_INVALID"):
        world.do(CancelApprovalRequest(approval_id=start.approval_id))
    world.do(proven, caller=agent_caller(world, world.task(task_id).lease.agent_id))
    with world.refuses("APPROVAL_ALREADY_DECIDED"):
        world.do(cancel)

    assert how(world, approval.approval_id) == "CANCELLED"


def test_a_budget_asks_once_and_is_told_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    told: list[str] = []

    def decided(state: State, approval: Any) -> None:
        told.append(f"{approval.budget_id} {approval.state}")

    monkeypatch.setitem(outcome.WHEN_DECIDED, APPROVAL_KIND_BUDGET, decided)
    asker = Actor(kind=ACTOR_KIND_SYSTEM, id="budgets")

    def request() -> Any:
        world.state.begin(world.now_ns, world.rows)
        found = request_budget_approval(
            world.state, budget_id="budget_1", title="Spend more", content=ApprovalContent(), asker=asker
        )
        world._commit()
        return found

    assert request() is request()
    decide(world, waiting(world), by=ALICE)
    request()
    withdraw_budget_approvals(world.state, "budget_1", "it was deleted")

    assert told == ["budget_1 2"]
    assert list(world.state.approvals.pending()) == []
