"""What agents ask for in the middle of their work: waiting, parking, and asking again after a loss."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from kapell.v1.agent_pb2 import AGENT_ACTIVITY_WAITING_FOR_APPROVAL
from kapell.v1.approval_pb2 import APPROVAL_KIND_QUESTION, ApprovalContent, ApprovalOption, RequestApprovalRequest
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, APPROVAL_STATE_EXPIRED, APPROVAL_STATE_REJECTED
from kapell.v1.task_pb2 import ATTEMPT_STATE_RELEASED, ATTEMPT_WAIT_KIND_APPROVAL, TaskTimeouts

from tests.domain.asking import ALICE, ask, ask_whole, decide, get, how, lasting, seen, state_of
from tests.domain.world import World, as_program


def resume(**values: object) -> Struct:
    made = Struct()
    made.update(values)
    return made


def test_an_attempt_that_asks_waits_and_does_not_stall() -> None:
    world = World()
    task_id = world.running(timeouts=TaskTimeouts(stall_timeout=Duration(seconds=30)))
    agent_id = world.task(task_id).lease.agent_id

    approval = ask(world, task_id)
    for _ in range(10):
        world.beat(agent_id, task_id)
        world.advance(5)

    assert world.task(task_id).waiting.kind == ATTEMPT_WAIT_KIND_APPROVAL
    assert world.rows.agents[agent_id].activity == AGENT_ACTIVITY_WAITING_FOR_APPROVAL
    assert state_of(world, task_id) == "RUNNING"
    decide(world, approval, by=ALICE)
    assert not world.task(task_id).HasField("waiting")


def test_what_is_shown_comes_back_with_its_hash_and_its_risk() -> None:
    world = World()
    task_id = world.running()

    approval = ask(world, task_id, command="sudo rm -rf /")

    assert approval.content.command == "sudo rm -rf /"
    assert len(approval.content_hash) == 64
    assert approval.risk.reasons[0].code == "destructive-command"
    assert not get(world, approval.approval_id).HasField("content"), "lists and events do not carry it"


def test_a_parked_attempt_frees_its_agent_and_costs_nothing() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id

    answer = ask_whole(world, task_id, park=True, resume_data=resume(step=3))

    assert answer.parked
    task = world.task(task_id)
    assert (state_of(world, task_id), task.attempts_used, task.HasField("lease")) == ("AWAITING_APPROVAL", 0, False)
    assert world.attempt(task_id).state == ATTEMPT_STATE_RELEASED
    assert world.state.leases.used(agent_id) == 0
    assert "make" in world.explain(task_id).summary or "Run" in world.explain(task_id).summary


def test_a_program_asks_but_does_not_end_the_attempt_by_parking_it() -> None:
    world = World()
    task_id = world.running()
    wish = RequestApprovalRequest(lease_token=world.token(task_id), title="Go on?", park=True)

    with world.refuses("REQUEST_INVALID"):
        world.do(wish, caller=as_program(world, task_id))

    assert state_of(world, task_id) == "RUNNING"


@pytest.mark.parametrize(("option", "state"), [("approve", APPROVAL_STATE_APPROVED), ("deny", APPROVAL_STATE_REJECTED)])
def test_a_parked_task_comes_back_with_the_decision(option: str, state: int) -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id
    approval = ask_whole(world, task_id, park=True, resume_data=resume(step=3)).approval

    decide(world, approval, option, by=ALICE, comment="because")
    assert world.lease(agent_id) == task_id

    parked = world.task(task_id).parked
    assert (parked.state, parked.option, parked.comment) == (state, option, "because")
    assert parked.resume_data["step"] == 3
    again = ask(world, task_id)
    assert again.approval_id == approval.approval_id, "the answer is taken up"
    assert not world.task(task_id).HasField("parked")
    assert ask(world, task_id).approval_id != approval.approval_id, "once"


def test_a_parked_task_whose_time_is_over_learns_of_it() -> None:
    world = World()
    task_id = world.running()
    ask_whole(world, task_id, park=True, policy=lasting(60))

    world.advance(61)

    assert state_of(world, task_id) == "QUEUED"
    assert world.task(task_id).parked.state == APPROVAL_STATE_EXPIRED


def test_an_offer_that_is_not_taken_up_keeps_the_decision() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id
    decide(world, ask_whole(world, task_id, park=True).approval, by=ALICE)
    world.lease(agent_id)

    world.advance(11)
    world.beat(agent_id)
    assert world.lease(agent_id) == task_id

    assert world.task(task_id).parked.state == APPROVAL_STATE_APPROVED


def test_an_attempt_that_ends_forgets_the_decision_it_was_parked_for() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id
    decide(world, ask_whole(world, task_id, park=True).approval, by=ALICE)
    world.lease(agent_id)

    world.fail(task_id)

    assert not world.task(task_id).HasField("parked")


def test_a_lost_attempt_leaves_its_request_to_the_next_one() -> None:
    world = World()
    task_id = world.running()
    first = ask(world, task_id)
    other = ask(world, task_id, title="Another")
    agent_id = world.register("only-0")
    world.advance(11)
    assert state_of(world, task_id) == "QUEUED"
    assert world.lease(agent_id) == task_id

    again = ask(world, task_id)

    assert again.approval_id == first.approval_id
    assert (again.attempt, get(world, again.approval_id).agent_id) == (1, agent_id) or again.attempt == 1
    assert how(world, other.approval_id) == "PENDING"
    world.complete(task_id)
    assert (how(world, first.approval_id), how(world, other.approval_id)) == ("CANCELLED", "CANCELLED")


def test_who_takes_over_a_request_has_asked_for_it_too() -> None:
    world = World()
    task_id = world.running()
    first = ask(world, task_id)
    agent_id = world.register("only-0")
    world.advance(11)
    assert world.lease(agent_id) == task_id
    request = RequestApprovalRequest(
        lease_token=world.token(task_id), title="Run make", content=world.rows.approval_contents[first.approval_id]
    )

    again = world.do(request, caller=ALICE).approval

    assert again.approval_id == first.approval_id
    with world.refuses("SELF_APPROVAL"):
        decide(world, again, by=ALICE)


def test_a_name_gives_the_same_answer_in_every_attempt() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id
    approval = ask(world, task_id, request_key="deploy")
    assert ask(world, task_id, request_key="deploy").approval_id == approval.approval_id
    decide(world, approval, by=ALICE)
    world.fail(task_id)
    world.advance(3)
    world.lease(agent_id)

    again = ask(world, task_id, request_key="deploy")

    assert (again.approval_id, again.state) == (approval.approval_id, APPROVAL_STATE_APPROVED)


def test_something_else_under_the_same_name_is_asked_anew() -> None:
    world = World()
    task_id = world.running()
    before = ask(world, task_id, request_key="deploy", command="make a")

    after = ask(world, task_id, request_key="deploy", command="make b")

    assert how(world, before.approval_id) == "SUPERSEDED"
    assert get(world, before.approval_id).superseded_by == after.approval_id
    assert ask(world, task_id, command="make b").approval_id != after.approval_id, "another without a name"


def test_a_retry_by_hand_begins_anew() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id
    approval = ask(world, task_id, request_key="deploy")
    decide(world, approval, by=ALICE)
    world.fail(task_id, retryable=False)
    world.retry(task_id)
    world.lease(agent_id)

    assert ask(world, task_id, request_key="deploy").approval_id != approval.approval_id


def test_a_task_that_is_being_cancelled_asks_for_nothing() -> None:
    world = World()
    task_id = world.running()
    approval = ask(world, task_id)

    world.cancel(task_id)

    assert how(world, approval.approval_id) == "CANCELLED"
    with world.refuses("TASK_STATE_CONFLICT"):
        ask(world, task_id)


def test_a_superseded_attempt_asks_for_nothing() -> None:
    world = World()
    task_id = world.running()
    token = world.token(task_id)
    ask_whole(world, task_id, park=True)

    assert world.token(task_id) == token
    with world.refuses("LEASE_LOST"):
        ask(world, task_id)


def test_a_parked_task_that_is_cancelled_takes_its_request_along() -> None:
    world = World()
    task_id = world.running()
    approval = ask_whole(world, task_id, park=True).approval

    world.cancel(task_id)

    assert (state_of(world, task_id), how(world, approval.approval_id)) == ("CANCELLED", "CANCELLED")


@pytest.mark.parametrize(
    "said",
    [
        {"free_text": True},
        {"resume_data": resume(a=1)},
        {"content": ApprovalContent(prompt="x")},
        {"content": ApprovalContent(diff="x" * 262_140, command="y" * 60_000)},
        {
            "kind": APPROVAL_KIND_QUESTION,
            "options": [ApprovalOption(option_id="a"), ApprovalOption(option_id="a")],
        },
    ],
)
def test_requests_that_cannot_be_meant_are_refused(said: dict[str, object]) -> None:
    world = World()
    task_id = world.running()

    with world.refuses("REQUEST_INVALID"):
        ask(world, task_id, **said)


def test_open_requests_of_a_task_have_a_limit() -> None:
    world = World()
    task_id = world.running()
    for number in range(64):
        ask(world, task_id, title=f"Request {number}")

    with world.refuses("REQUEST_INVALID"):
        ask(world, task_id, title="One more")


def test_a_parked_task_does_not_count_as_new_to_its_queue() -> None:
    world = World()
    task_id = world.running(concurrency_keys=["repo"])
    decide(world, ask_whole(world, task_id, park=True).approval, by=ALICE)

    assert world.state.queues.arrivals == []
    assert state_of(world, task_id) == "QUEUED"
    assert seen(world, "task.")[-2:] == ["task.requeued", "task.queued"]
