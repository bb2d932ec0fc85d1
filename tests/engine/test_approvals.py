"""Approvals on the real engine and both databases: races, restarts, failed commits, reads, the audit."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.approval_pb2 import (
    APPROVAL_ORDER_NEWEST_FIRST,
    APPROVAL_ORDER_OLDEST_FIRST,
    RULE_EFFECT_APPROVE,
    RULE_EFFECT_DENY,
    Approval,
    ApprovalContent,
    ApprovalFilter,
    ApprovalRuleSpec,
    CreateApprovalRuleRequest,
    DecideApprovalRequest,
    ListApprovalAuditRequest,
    ListApprovalRulesRequest,
    ListApprovalsRequest,
    ListApprovalsResponse,
    RequestApprovalRequest,
)
from kapell.v1.approval_policy_pb2 import (
    APPROVAL_STATE_APPROVED,
    APPROVAL_STATE_CANCELLED,
    APPROVAL_STATE_EXPIRED,
    APPROVAL_STATE_PENDING,
    APPROVAL_STATE_REJECTED,
    EXPIRY_ACTION_DENY,
    ApprovalPolicy,
)
from kapell.v1.event_pb2 import EventFilter, ListEventsRequest, ListEventsResponse
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    ApproveTaskRequest,
    CancelTaskRequest,
    DeleteTaskRequest,
    Task,
)
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT
from kapell_server.domain.access import user
from kapell_server.domain.errors import KapellError
from kapell_server.engine.facts import InboxQuestion

from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import LiveEngine

ALICE, BOB = user("alice"), user("bob")
ASK = ApprovalPolicy()
SHORT = ApprovalPolicy(timeout=Duration(seconds=60), on_expiry=EXPIRY_ACTION_DENY)


async def awaiting(live: LiveEngine, policy: ApprovalPolicy = ASK, **spec: Any) -> tuple[Task, Approval]:
    """A task that waits, and its approval with what it shows."""
    task = await live.create(**{"prompt": "make deploy", **spec}, approval=policy)
    assert task.state == TASK_STATE_AWAITING_APPROVAL
    return task, await get(live, task.approval.approval_id)


async def get(live: LiveEngine, approval_id: str) -> Approval:
    return (await live.engine.reads.approvals.get(approval_id)).approval


def decision(approval: Approval, option: str = "approve", **rest: Any) -> DecideApprovalRequest:
    shown = {"shown_hash": approval.content_hash, **rest}
    return DecideApprovalRequest(approval_id=approval.approval_id, option=option, **shown)


async def inbox(live: LiveEngine, **wanted: Any) -> ListApprovalsResponse:
    request = ListApprovalsRequest(**wanted)
    answer = await live.engine.submit(InboxQuestion(request, 0, 50), ALICE)
    return ListApprovalsResponse.FromString(answer)


def refused(answers: list[Any]) -> list[str]:
    return [answer.reason_name for answer in answers if isinstance(answer, KapellError)]


async def test_of_two_deciders_one_wins_and_the_other_is_told(live: LiveEngine) -> None:
    task, approval = await awaiting(live)

    first, second = await asyncio.gather(
        live.call(decision(approval, "deny", comment="no"), ALICE),
        live.call(decision(approval), BOB),
        return_exceptions=True,
    )

    assert first.approval.state == APPROVAL_STATE_REJECTED
    assert isinstance(second, KapellError)
    assert (second.reason_name, second.metadata["decider"]) == ("APPROVAL_ALREADY_DECIDED", "alice")
    assert (await live.task(task.task_id)).state == TASK_STATE_FAILED
    assert (await live.event_names()).count("approval.decided") == 1


async def test_a_decision_and_an_expiry_have_one_outcome(live: LiveEngine) -> None:
    _, approval = await awaiting(live, SHORT)
    live.clock.advance(61)

    found = await live.refusal(decision(approval), ALICE)

    assert found.metadata["state"] == "EXPIRED"
    assert (await get(live, approval.approval_id)).state == APPROVAL_STATE_EXPIRED


async def test_a_decision_before_the_time_is_over_stands(live: LiveEngine) -> None:
    task, approval = await awaiting(live, SHORT)
    live.clock.advance(59)
    await live.call(decision(approval), ALICE)

    await live.advance(10)

    assert (await get(live, approval.approval_id)).state == APPROVAL_STATE_APPROVED
    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_decision_and_a_cancel_have_one_outcome(live: LiveEngine, cancel_first: bool) -> None:
    task, approval = await awaiting(live)
    requests: list[Any] = [CancelTaskRequest(task_id=task.task_id), decision(approval)]

    answers = await live.together(*(requests if cancel_first else reversed(requests)))

    found = await get(live, approval.approval_id)
    if cancel_first:
        assert refused(answers) == ["APPROVAL_ALREADY_DECIDED"]
        assert found.state == APPROVAL_STATE_CANCELLED
    else:
        assert refused(answers) == []
        assert found.state == APPROVAL_STATE_APPROVED
    assert (await live.task(task.task_id)).state == TASK_STATE_CANCELLED


async def test_what_waits_survives_a_crash_and_expires_in_its_time(live: LiveEngine) -> None:
    kept, approval = await awaiting(live)
    short, expiring = await awaiting(live, SHORT)
    await live.crash()

    assert {one.approval_id for one in (await inbox(live)).approvals} == {
        approval.approval_id,
        expiring.approval_id,
    }
    await live.advance(61)
    await live.call(decision(approval), ALICE)

    assert (await live.task(kept.task_id)).state == TASK_STATE_QUEUED
    assert (await live.task(short.task_id)).failure.reason == "APPROVAL_EXPIRED"


async def test_what_was_decided_stays_decided_through_a_crash(live: LiveEngine) -> None:
    _, approval = await awaiting(live)
    await live.call(decision(approval, comment="yes", request_id="once"), ALICE)
    await live.crash()

    again = await live.call(decision(approval, comment="yes", request_id="once"), ALICE)
    other = await live.refusal(decision(approval, "deny"), BOB)

    assert again.replayed
    assert (other.metadata["decider"], other.metadata["comment"]) == ("alice", "yes")


async def test_an_agent_that_waits_finds_its_answer_after_a_crash(live: LiveEngine) -> None:
    agent_id = await live.register("shell")
    task = await live.create("shell")
    offer = await live.offer(agent_id)
    ask = RequestApprovalRequest(
        lease_token=offer.lease_token, title="Run make", content=ApprovalContent(command="make"), request_id="ask"
    )
    asked = await live.call(ask)
    await live.crash()

    again = await live.call(ask)
    await live.beat(agent_id, offer)
    await live.call(decision(asked.approval), ALICE)

    assert again.approval.approval_id == asked.approval.approval_id
    assert not (await live.task(task.task_id)).HasField("waiting")
    await live.complete(offer)


async def test_a_parked_task_comes_back_after_a_crash(live: LiveEngine) -> None:
    agent_id = await live.register("shell")
    await live.create("shell")
    offer = await live.offer(agent_id)
    ask = RequestApprovalRequest(lease_token=offer.lease_token, title="Run make", park=True)
    ask.resume_data.update({"step": 3})
    asked = await live.call(ask)
    assert asked.parked
    await live.crash()

    await live.call(ApproveTaskRequest(task_id=offer.task.task_id, comment="go on"), ALICE)
    again = await live.offer(agent_id)

    assert again.task.parked.state == APPROVAL_STATE_APPROVED
    assert (again.task.parked.comment, again.task.parked.resume_data["step"]) == ("go on", 3)


@pytest.mark.parametrize("when", ["before", "uncommitted"])
async def test_a_decision_that_could_not_be_written_leaves_no_trace(live: LiveEngine, when: Any) -> None:
    task, approval = await awaiting(live)
    cast(FaultyDatabase, live.database).faults.append(Fault(busy(), when))

    assert (await live.refusal(decision(approval), ALICE)).reason_name == "STORAGE_BUSY"

    assert (await live.task(task.task_id)).state == TASK_STATE_AWAITING_APPROVAL
    assert (await inbox(live)).total == 1
    await live.call(decision(approval, "deny"), BOB)
    assert (await get(live, approval.approval_id)).decisions[0].decider.id == "bob"


async def test_lists_come_by_state_by_task_and_in_order(live: LiveEngine) -> None:
    first, one = await awaiting(live)
    _, two = await awaiting(live)
    await live.call(decision(one), ALICE)

    async def ids(**wanted: Any) -> list[str]:
        page = await live.engine.reads.approvals.list(ListApprovalsRequest(**wanted))
        return [found.approval_id for found in page.approvals]

    assert await ids(order=APPROVAL_ORDER_NEWEST_FIRST) == [two.approval_id, one.approval_id]
    assert await ids(order=APPROVAL_ORDER_OLDEST_FIRST) == [one.approval_id, two.approval_id]
    pending = ApprovalFilter(states=[APPROVAL_STATE_PENDING])
    assert await ids(order=APPROVAL_ORDER_NEWEST_FIRST, filter=pending) == [two.approval_id]
    assert await ids(order=APPROVAL_ORDER_NEWEST_FIRST, filter=ApprovalFilter(task_ids=[first.task_id])) == [
        one.approval_id
    ]
    by_id = ApprovalFilter(approval_ids=[one.approval_id], states=[APPROVAL_STATE_PENDING])
    assert await ids(order=APPROVAL_ORDER_NEWEST_FIRST, filter=by_id) == []
    page = await live.engine.reads.approvals.list(ListApprovalsRequest(order=APPROVAL_ORDER_NEWEST_FIRST, page_size=1))
    rest = await ids(order=APPROVAL_ORDER_NEWEST_FIRST, page_size=1, page_token=page.next_page_token)
    assert rest == [one.approval_id]


async def test_the_audit_keeps_all_that_was_done_beyond_the_life_of_the_task(live: LiveEngine) -> None:
    task, approval = await awaiting(live)
    await live.call(decision(approval, "deny"), ALICE)
    await live.call(DeleteTaskRequest(task_id=task.task_id))
    await live.restart()

    request = ListApprovalAuditRequest(approval_id=approval.approval_id, include_content=True)
    found = await live.engine.reads.approvals.audit(request)

    assert [entry.actor.id for entry in found.entries] == ["alice", "admin"]
    assert all(entry.content.prompt == "make deploy" for entry in found.entries)
    assert all(entry.shown_hash == approval.content_hash for entry in found.entries)


async def test_rules_survive_and_count_through_a_crash(live: LiveEngine) -> None:
    spec = ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, commands=["make*"], max_uses=2)
    await live.call(CreateApprovalRuleRequest(spec=spec), ALICE)
    agent_id = await live.register("shell")
    await live.create("shell")
    offer = await live.offer(agent_id)

    async def ask() -> int:
        content = ApprovalContent(command="make test")
        request = RequestApprovalRequest(lease_token=offer.lease_token, title="Run make", content=content)
        return int((await live.call(request)).approval.state)

    before = await ask()
    await live.crash()
    await live.beat(agent_id, offer)
    after = [await ask(), await ask()]

    assert [before, *after] == [APPROVAL_STATE_APPROVED, APPROVAL_STATE_APPROVED, APPROVAL_STATE_PENDING]
    [rule] = (await live.engine.reads.approvals.list_rules(ListApprovalRulesRequest())).rules
    assert rule.uses == 2


async def test_a_preview_tells_what_a_rule_would_have_decided(live: LiveEngine) -> None:
    for number in range(60):
        _, approval = await awaiting(live, prompt=f"p{number}", agent_type="deploy" if number % 2 else "shell")
        if number < 10:
            await live.call(decision(approval, "deny" if number % 4 == 1 else "approve"), ALICE)

    spec = ApprovalRuleSpec(effect=RULE_EFFECT_DENY, agent_type="dep*")
    found = await live.engine.reads.approvals.preview(spec)

    assert (found.looked_at, found.matched, len(found.examples)) == (60, 30, 20)
    assert (found.precedent.approved, found.precedent.rejected) == (2, 3)


async def test_how_others_went_is_counted_by_signature(live: LiveEngine) -> None:
    for option in ("approve", "approve", "deny"):
        _, approval = await awaiting(live)
        await live.call(decision(approval, option), ALICE)
    _, approval = await awaiting(live)

    found = (await live.engine.reads.approvals.get(approval.approval_id)).precedent

    assert (found.approved, found.rejected, found.expired) == (2, 1, 0)


async def test_events_and_snapshots_have_approvals(live: LiveEngine) -> None:
    _, approval = await awaiting(live)
    await live.call(decision(approval), ALICE)

    request = ListEventsRequest(filter=EventFilter(approval_ids=[approval.approval_id]))
    listed = ListEventsResponse.FromString(await live.engine.reads.list_events(request))
    records, _ = await live.engine.reads.snapshot("approval", 0, live.engine.revision, 10)

    assert [event.approval.state for event in listed.events] == [APPROVAL_STATE_APPROVED, APPROVAL_STATE_PENDING]
    assert [(record.kind, record.resource_id) for record in records] == [(EVENT_KIND_SNAPSHOT, approval.approval_id)]


async def test_a_bulk_creation_waits_as_a_whole_and_is_given_out_one_by_one(live: LiveEngine) -> None:
    agent_id = await live.register("shell")
    approvals = [(await awaiting(live, prompt=f"p{number}"))[1] for number in range(5)]
    assert await live.lease(agent_id) == []

    await live.call(decision(approvals[3]), ALICE)
    offer = await live.offer(agent_id)

    assert offer.task.task_id == approvals[3].task_id
