"""Decisions against all that may happen at the same time: other decisions, time, cancels, crashes, other agents."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import DrainAgentRequest
from kapell.v1.approval_pb2 import (
    RULE_EFFECT_APPROVE,
    ApprovalContent,
    ApprovalRuleSpec,
    ListApprovalAuditRequest,
    RequestApprovalRequest,
)
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_CANCELLED,
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_PENDING,
    EXPIRY_ACTION_ESCALATE,
    ApprovalPolicy,
)
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    CancelTaskRequest,
    Task,
    TaskSpec,
)
from kapell.v1.worker_pb2 import CreateChildTasksRequest, Offer
from kapell_server.domain.access import user
from kapell_server.domain.errors import KapellError

from tests.engine.test_approvals import ALICE, ASK, BOB, SHORT, awaiting, decision, get, inbox, refused
from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import LiveEngine, settled


async def asking(live: LiveEngine, offer: Offer, *, park: bool, **said: Any) -> Any:
    request = RequestApprovalRequest(lease_token=offer.lease_token, title="Run make", park=park, **said)
    request.content.CopyFrom(ApprovalContent(command="make"))
    return await live.call(request)


async def test_of_twenty_deciders_exactly_one_wins_and_all_others_are_told_by_whom(live: LiveEngine) -> None:
    task, approval = await awaiting(live)
    names = [f"user{number}" for number in range(20)]

    answers = await asyncio.gather(
        *[
            live.call(decision(approval, "deny" if number % 2 else "approve", comment=name), user(name))
            for number, name in enumerate(names)
        ],
        return_exceptions=True,
    )

    [winner] = [answer.approval.decisions[0].decider.id for answer in answers if not isinstance(answer, BaseException)]
    told = {answer.metadata["decider"] for answer in answers if isinstance(answer, KapellError)}
    assert told == {winner}
    assert len(refused(answers)) == 19
    assert (await live.event_names()).count("approval.decided") == 1
    assert (await live.task(task.task_id)).state in (TASK_STATE_QUEUED, TASK_STATE_FAILED)


async def test_a_decision_ends_the_wait_for_it_by_its_commit_and_no_clock(live: LiveEngine) -> None:
    agent_id = await live.register("shell")
    await live.create("shell")
    approval = (await asking(live, await live.offer(agent_id), park=False)).approval
    waiting = await settled(live.engine.ring.wait_resource(approval.approval_id, approval.revision, 1e9))
    assert not waiting.done()

    await live.call(decision(approval), ALICE)

    record = await waiting
    assert record is not None
    assert record.resource.state == APPROVAL_STATE_APPROVED  # type: ignore[union-attr]


async def test_an_agent_that_polls_has_the_task_with_the_commit_of_its_approval(live: LiveEngine) -> None:
    agent_id = await live.register("shell")
    task, approval = await awaiting(live, agent_type="shell")
    before = live.clock.now_ns()

    await live.call(decision(approval), ALICE)
    offer = await live.offer(agent_id)

    assert offer.task.task_id == task.task_id
    assert live.clock.now_ns() == before


@pytest.mark.parametrize("when", ["before", "uncommitted", "committed"])
async def test_a_decision_that_a_crash_cuts_off_is_all_or_nothing(live: LiveEngine, when: Any) -> None:
    task, approval = await awaiting(live)
    cast(FaultyDatabase, live.database).faults.append(Fault(busy(), when))
    lost = await settled(live.call(decision(approval, comment="yes", request_id="once"), ALICE))
    await asyncio.wait((lost,))
    await live.crash()

    stands = (await get(live, approval.approval_id)).state
    queued = (await live.task(task.task_id)).state == TASK_STATE_QUEUED
    again = await live.call(decision(approval, comment="yes", request_id="once"), ALICE)

    assert (stands == APPROVAL_STATE_APPROVED) == queued
    assert again.approval.state == APPROVAL_STATE_APPROVED
    assert len((await get(live, approval.approval_id)).decisions) == 1
    assert (await live.event_names()).count("approval.decided") == 1


async def test_a_time_that_ends_while_the_server_is_down_is_an_expiry_and_nobodys_no(live: LiveEngine) -> None:
    task, approval = await awaiting(live, SHORT)
    await live.crash()
    live.clock.advance(61)

    late = await live.refusal(decision(approval, "deny"), ALICE)

    found = await get(live, approval.approval_id)
    assert (late.metadata["state"], found.state, list(found.decisions)) == ("EXPIRED", APPROVAL_STATE_EXPIRED, [])
    failure = (await live.task(task.task_id)).failure
    assert failure.reason == "APPROVAL_EXPIRED"
    request = ListApprovalAuditRequest(approval_id=approval.approval_id, order=LIST_ORDER_OLDEST_FIRST)
    entries = (await live.engine.reads.approvals.audit(request)).entries
    assert entries[-1].actor.id != "alice"


async def test_a_vote_before_an_escalation_counts_after_it(live: LiveEngine) -> None:
    policy = ApprovalPolicy(
        approvers=["user:alice", "user:carol"],
        quorum=2,
        on_expiry=EXPIRY_ACTION_ESCALATE,
        escalate_to=["user:bob"],
        timeout=Duration(seconds=60),
    )
    task, approval = await awaiting(live, policy)
    await live.call(decision(approval), ALICE)
    assert (await live.refusal(decision(approval), BOB)).reason_name == "NOT_APPROVER"

    await live.advance(61)
    await live.call(decision(approval), BOB)

    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED


async def test_a_quorum_is_of_two_even_when_both_come_at_once_or_one_comes_twice(live: LiveEngine) -> None:
    _, approval = await awaiting(live, ApprovalPolicy(quorum=2))

    first = await asyncio.gather(
        live.call(decision(approval), ALICE), live.call(decision(approval), ALICE), return_exceptions=True
    )
    assert refused(first) == ["APPROVAL_ALREADY_DECIDED"]
    assert (await get(live, approval.approval_id)).state == APPROVAL_STATE_PENDING
    await live.call(decision(approval), BOB)

    assert (await get(live, approval.approval_id)).state == APPROVAL_STATE_APPROVED


# -- agents ---------------------------------------------------------------------------------------


async def test_a_parked_task_goes_on_with_another_agent(live: LiveEngine) -> None:
    first = await live.register("shell")
    task = await live.create("shell")
    offer = await live.offer(first)
    request = RequestApprovalRequest(lease_token=offer.lease_token, title="Run make", park=True)
    request.content.CopyFrom(ApprovalContent(command="make"))
    request.resume_data.update({"step": 3})
    asked = await live.call(request)
    await live.call(DrainAgentRequest(agent_id=first))
    second = await live.register("shell")
    assert await live.lease(second) == []

    await live.call(decision(asked.approval, comment="go on"), ALICE)
    again = await live.offer(second)

    assert (again.task.task_id, again.task.attempt) == (task.task_id, offer.task.attempt + 1)
    assert (again.task.parked.comment, again.task.parked.resume_data["step"]) == ("go on", 3)
    answer = await asking(live, again, park=True)
    assert (answer.parked, answer.approval.approval_id) == (False, asked.approval.approval_id)
    assert answer.approval.state == APPROVAL_STATE_APPROVED
    stale = await live.refusal(RequestApprovalRequest(lease_token=offer.lease_token, title="Run make"))
    assert stale.reason_name == "LEASE_LOST"


async def test_a_parked_task_is_not_lost_by_a_crash_between_decision_and_offer(live: LiveEngine) -> None:
    first = await live.register("shell")
    await live.create("shell")
    asked = await asking(live, await live.offer(first), park=True)
    await live.call(decision(asked.approval, "deny", comment="no"), ALICE)
    await live.crash()

    again = await live.offer(await live.register("shell"))

    assert (again.task.parked.option, again.task.parked.comment) == ("deny", "no")


# -- families -------------------------------------------------------------------------------------


async def child_of(live: LiveEngine, offer: Offer) -> Task:
    spec = TaskSpec(agent_type="shell", prompt="child", approval=ASK)
    request = CreateChildTasksRequest(lease_token=offer.lease_token, tasks=[spec])
    made: Task = (await live.call(request)).tasks[0]
    return made


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_the_approval_of_a_child_whose_parent_is_cancelled_has_one_outcome(
    live: LiveEngine, cancel_first: bool
) -> None:
    agent_id = await live.register("shell", slots=2)
    await live.create("shell")
    offer = await live.offer(agent_id)
    child = await child_of(live, offer)
    approval = await get(live, child.approval.approval_id)
    cancel, decide = CancelTaskRequest(task_id=offer.task.task_id), decision(approval)

    answers = await live.together(*((cancel, decide) if cancel_first else (decide, cancel)), caller=ALICE)

    found = await get(live, approval.approval_id)
    if cancel_first:
        assert refused(answers) == ["APPROVAL_ALREADY_DECIDED"]
        assert found.state == APPROVAL_STATE_CANCELLED
    else:
        assert refused(answers) == []
        assert found.state == APPROVAL_STATE_APPROVED
    assert (await live.task(child.task_id)).state == TASK_STATE_CANCELLED
    assert (await inbox(live)).total == 0


async def test_a_child_that_is_left_when_its_parent_is_cancelled_may_still_be_approved(live: LiveEngine) -> None:
    agent_id = await live.register("shell", slots=2)
    await live.create("shell")
    offer = await live.offer(agent_id)
    child = await child_of(live, offer)
    approval = await get(live, child.approval.approval_id)
    await live.call(CancelTaskRequest(task_id=offer.task.task_id, leave_children=True))
    assert (await live.task(child.task_id)).state == TASK_STATE_AWAITING_APPROVAL

    await live.call(decision(approval), ALICE)

    assert (await get(live, approval.approval_id)).state == APPROVAL_STATE_APPROVED
    assert (await live.task(child.task_id)).state not in (TASK_STATE_CANCELLED, TASK_STATE_AWAITING_APPROVAL)


# -- reads ----------------------------------------------------------------------------------------


async def test_a_preview_tells_of_a_rule_that_keeps_nothing_out_and_of_what_is_too_risky(live: LiveEngine) -> None:
    agent_id = await live.register("shell")
    await live.create("shell")
    offer = await live.offer(agent_id)
    for command in ("git status", "rm -rf build", "rm -rf /"):
        content = ApprovalContent(command=command, tool="bash")
        await live.call(RequestApprovalRequest(lease_token=offer.lease_token, title="Run", content=content))

    spec = ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, tool="*", commands=["*"])
    found = await live.engine.reads.approvals.preview(spec)
    narrow = ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, commands=["git *"])

    assert (found.anything, found.matched, found.too_risky) == (True, 1, 2)
    assert not (await live.engine.reads.approvals.preview(narrow)).anything


async def test_the_audit_of_a_time_has_what_was_done_then_on_pages_of_any_size(live: LiveEngine) -> None:
    for _ in range(6):
        await awaiting(live)
        await live.advance(10)
    request = ListApprovalAuditRequest(order=LIST_ORDER_OLDEST_FIRST)
    times = [entry.action_time for entry in (await live.engine.reads.approvals.audit(request)).entries]
    request = ListApprovalAuditRequest(order=LIST_ORDER_OLDEST_FIRST, page_size=2)
    request.from_time.CopyFrom(times[1])
    request.until_time.CopyFrom(times[4])
    found = []

    while True:
        page = await live.engine.reads.approvals.audit(request)
        found += [entry.action_time for entry in page.entries]
        if not page.next_page_token:
            break
        assert len(page.entries) <= 2
        request.page_token = page.next_page_token

    assert found == times[1:4]
    request.until_time.CopyFrom(times[5])
    with pytest.raises(KapellError) as error:  # It was given for another time.
        await live.engine.reads.approvals.audit(request)
    assert error.value.reason_name == "PAGE_TOKEN_INVALID"
