"""The life of an attempt (T2 to T5)."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from kapell.v1.agent_pb2 import AGENT_STATE_FAILED, TerminateAgentRequest
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_CANCELLED,
    ATTEMPT_STATE_FAILED,
    ATTEMPT_STATE_LOST,
    ATTEMPT_STATE_RELEASED,
    ATTEMPT_STATE_RUNNING,
    ATTEMPT_STATE_SUCCEEDED,
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    RetryPolicy,
    TaskFailure,
    TaskProgress,
)
from kapell.v1.worker_pb2 import (
    BatchCompleteTasksRequest,
    DeregisterRequest,
    FailTaskRequest,
    HeartbeatRequest,
    RegisterWorkerRequest,
    ReportProgressRequest,
)
from kapell_server.engine.facts import AgentProcessExited

from tests.domain.world import World, as_agent, as_ticket

FAILURE = TaskFailure(reason="EXIT_CODE", message="it broke")
NEVER = RetryPolicy(max_attempts=1)


def test_a_lease_begins_an_attempt_that_is_recorded() -> None:
    world = World()
    task_id = world.running()

    task, record = world.task(task_id), world.attempt(task_id)
    assert (task.attempt, task.attempts_used, task.state) == (1, 1, TASK_STATE_RUNNING)
    assert (record.attempt, record.agent_id, record.state) == (1, task.lease.agent_id, ATTEMPT_STATE_RUNNING)
    assert task.lease.start_time == record.start_time == task.start_time


def test_a_result_completes_the_task_and_stands_beside_its_prompt() -> None:
    world = World()
    task_id = world.running(prompt="say hello")

    answer = world.complete(task_id, "hello")

    task = world.task(task_id)
    assert answer.state == task.state == TASK_STATE_SUCCEEDED
    assert answer.revision == task.revision
    assert (world.content(task_id).prompt, world.content(task_id).result.string_value) == ("say hello", "hello")
    assert task.content_bytes == len(world.rows.contents[task_id])
    assert task.progress.fraction == 1.0
    assert world.attempt(task_id).state == ATTEMPT_STATE_SUCCEEDED


def test_a_result_may_be_missing() -> None:
    world = World()
    task_id = world.running(prompt="just do it")

    world.complete(task_id)

    assert not world.content(task_id).HasField("result")


def test_a_success_forgets_the_failure_before() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(initial_backoff=Duration()))
    agent_id = world.task(task_id).lease.agent_id
    world.fail(task_id)
    assert world.lease(agent_id) == task_id

    world.complete(task_id)

    task = world.task(task_id)
    assert not task.HasField("failure")
    assert task.state_reason == ""
    assert world.attempt(task_id, 1).failure == FAILURE


def test_completing_again_is_answered_like_the_first_time() -> None:
    world = World()
    task_id = world.running()
    first = world.complete(task_id, "once")

    again = world.complete(task_id, "twice")

    assert again == first
    assert world.content(task_id).result.string_value == "once"


def test_completing_again_after_a_cancel_is_answered_like_the_first_time() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)
    first = world.complete(task_id)

    assert first.state == TASK_STATE_CANCELLED
    assert world.complete(task_id) == first


def test_a_cancel_that_came_first_wins_over_a_result() -> None:
    world = World()
    task_id = world.running(prompt="p")
    world.cancel(task_id, "not needed")

    world.complete(task_id, "too late")

    task = world.task(task_id)
    assert (task.state, task.state_reason) == (TASK_STATE_CANCELLED, "not needed")
    assert not world.content(task_id).HasField("result")
    assert world.attempt(task_id).state == ATTEMPT_STATE_CANCELLED


def test_too_large_a_result_is_refused_and_the_attempt_goes_on() -> None:
    world = World(max_content_bytes=100)
    task_id = world.running()

    with world.refuses("REQUEST_INVALID") as caught:
        world.complete(task_id, "x" * 101)

    assert caught[0].violations == (("result", "must be at most 100 bytes"),)
    assert world.complete(task_id, "short").state == TASK_STATE_SUCCEEDED


def test_attempts_end_at_the_maximum() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(max_attempts=3, initial_backoff=Duration()))
    agent_id = world.task(task_id).lease.agent_id

    states = [world.fail(task_id).state]
    while world.poll(agent_id).taken:
        states.append(world.fail(task_id).state)

    assert states == [TASK_STATE_QUEUED, TASK_STATE_QUEUED, TASK_STATE_FAILED]
    task = world.task(task_id)
    assert (task.attempt, task.attempts_used) == (3, 3)
    assert task.state_reason == task.failure.message == "it broke"


def test_a_failure_that_is_not_retryable_ends_the_task() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(max_attempts=100))

    assert world.fail(task_id, retryable=False).state == TASK_STATE_FAILED


def test_a_failure_said_to_be_retryable_still_ends_at_the_maximum() -> None:
    world = World()
    task_id = world.running(retry_policy=NEVER)

    assert world.fail(task_id, retryable=True).state == TASK_STATE_FAILED


def test_failing_again_is_answered_like_the_first_time() -> None:
    world = World()
    task_id = world.running()
    first = world.fail(task_id)
    before = world.picture()

    assert world.fail(task_id) == first
    assert world.picture() == before


def test_a_worker_may_ask_for_a_longer_pause() -> None:
    world = World()
    task_id = world.running()

    world.do(FailTaskRequest(lease_token=world.token(task_id), failure=FAILURE, retry_delay=Duration(seconds=60)))

    world.advance(59)
    assert world.task(task_id).state == TASK_STATE_PENDING
    world.advance(1)
    assert world.task(task_id).state == TASK_STATE_QUEUED


def test_releasing_costs_no_attempt() -> None:
    world = World()
    task_id = world.running(retry_policy=NEVER)
    agent_id = world.task(task_id).lease.agent_id

    for number in range(1, 6):
        assert world.release(task_id).state == TASK_STATE_QUEUED
        assert world.task(task_id).attempts_used == 0
        assert world.attempt(task_id, number).state == ATTEMPT_STATE_RELEASED
        assert world.lease(agent_id) == task_id

    assert world.task(task_id).attempt == 6
    assert world.complete(task_id).state == TASK_STATE_SUCCEEDED


def test_an_offer_not_spoken_of_returns_without_costing_an_attempt() -> None:
    world = World()
    agent_id = world.register()
    task_id = world.create(retry_policy=NEVER)
    world.lease(agent_id)

    world.advance(9)
    world.beat(agent_id)
    assert world.task(task_id).state == TASK_STATE_RUNNING
    world.advance(1)

    task = world.task(task_id)
    assert (task.state, task.attempts_used, task.attempt) == (TASK_STATE_QUEUED, 0, 1)
    assert task.state_reason == "the offer was not taken up"
    assert world.attempt(task_id).state == ATTEMPT_STATE_RELEASED


def test_an_offer_is_confirmed_by_any_word_of_it() -> None:
    world = World()
    agent_id = world.register()
    task_id = world.create(retry_policy=NEVER)
    world.lease(agent_id)
    world.advance(9)
    world.do(ReportProgressRequest(lease_token=world.token(task_id), progress=TaskProgress(step="begun")))

    world.advance(9)
    world.beat(agent_id, task_id)
    world.advance(9)

    assert world.task(task_id).state == TASK_STATE_RUNNING


def test_an_offer_of_a_cancelled_task_that_is_not_taken_up_is_cancelled() -> None:
    world = World()
    agent_id = world.register()
    task_id = world.create()
    world.lease(agent_id)
    world.cancel(task_id)

    world.advance(10)

    assert world.task(task_id).state == TASK_STATE_CANCELLED


def test_a_silent_agents_lease_expires_and_costs_an_attempt() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(max_attempts=2))

    world.advance(10)

    task = world.task(task_id)
    assert (task.state, task.attempts_used) == (TASK_STATE_QUEUED, 1)
    assert task.failure.reason == "LEASE_EXPIRED"
    assert world.attempt(task_id).state == ATTEMPT_STATE_LOST


def test_a_lease_that_expires_on_the_last_attempt_fails_the_task() -> None:
    world = World()
    task_id = world.running(retry_policy=NEVER)

    world.advance(10)

    assert world.task(task_id).state == TASK_STATE_FAILED
    assert world.task(task_id).failure.reason == "LEASE_EXPIRED"


def test_a_heartbeat_that_leaves_a_lease_out_does_not_renew_it() -> None:
    world = World()
    agent_id = world.register(slots=2)
    kept, dropped = world.create(), world.create()
    world.poll(agent_id, max_tasks=2)
    world.beat(agent_id, kept, dropped)

    for _ in range(4):
        world.advance(3)
        world.beat(agent_id, kept)

    assert world.task(kept).state == TASK_STATE_RUNNING
    assert world.task(dropped).state == TASK_STATE_QUEUED


def test_progress_is_recorded_once() -> None:
    world = World()
    task_id = world.running()
    report = ReportProgressRequest(lease_token=world.token(task_id), progress=TaskProgress(fraction=0.5, step="half"))
    world.do(report)
    seen = len(world.events)

    answer = world.do(report)

    assert world.events[seen:] == []
    assert answer.revision == world.task(task_id).revision
    assert world.task(task_id).progress.step == "half"


def test_progress_comes_with_heartbeats_too() -> None:
    world = World()
    task_id = world.running()
    request = HeartbeatRequest(agent_id=world.task(task_id).lease.agent_id)
    request.leases.add(lease_token=world.token(task_id), progress=TaskProgress(fraction=0.25))

    world.do(request)

    assert world.task(task_id).progress.fraction == 0.25


def test_progress_of_the_attempt_before_is_gone() -> None:
    world = World()
    task_id = world.running(retry_policy=RetryPolicy(initial_backoff=Duration()))
    agent_id = world.task(task_id).lease.agent_id
    world.do(ReportProgressRequest(lease_token=world.token(task_id), progress=TaskProgress(fraction=0.5)))
    world.fail(task_id)

    world.lease(agent_id)

    assert not world.task(task_id).HasField("progress")


def test_batched_completions_stand_each_for_itself() -> None:
    world = World(max_content_bytes=100)
    agent_id = world.register(slots=3)
    tasks = [world.create(prompt=str(number)) for number in range(3)]
    world.poll(agent_id, max_tasks=3)
    world.release(tasks[1])
    request = BatchCompleteTasksRequest()
    for task_id in tasks:
        request.completions.add(lease_token=world.token(task_id), result=Value(string_value=task_id))

    answer = world.do(request)

    assert [outcome.lease_lost for outcome in answer.outcomes] == [False, True, False]
    assert [outcome.state for outcome in answer.outcomes] == [TASK_STATE_SUCCEEDED, 0, TASK_STATE_SUCCEEDED]
    assert [world.task(task_id).state for task_id in tasks[::2]] == [TASK_STATE_SUCCEEDED] * 2
    assert world.content(tasks[2]).result.string_value == tasks[2]


def test_one_invalid_completion_refuses_the_batch() -> None:
    world = World(max_content_bytes=100)
    agent_id = world.register(slots=2)
    tasks = [world.create() for _ in range(2)]
    world.poll(agent_id, max_tasks=2)
    request = BatchCompleteTasksRequest()
    for task_id, size in zip(tasks, (1, 101), strict=True):
        request.completions.add(lease_token=world.token(task_id), result=Value(string_value="x" * size))

    with world.refuses("REQUEST_INVALID"):
        world.do(request)


def test_an_agent_that_leaves_hands_back_what_it_had() -> None:
    world = World()
    agent_id = world.register(slots=2)
    spoken, unspoken = world.create(), world.create()
    world.poll(agent_id, max_tasks=2)
    world.beat(agent_id, spoken)

    world.do(DeregisterRequest(agent_id=agent_id, reason="going home"))

    assert [world.task(task_id).state for task_id in (spoken, unspoken)] == [TASK_STATE_QUEUED] * 2
    assert [world.task(task_id).attempts_used for task_id in (spoken, unspoken)] == [1, 0]
    assert world.task(spoken).failure.reason == "AGENT_LOST"
    assert world.agent(agent_id).slots_used == 0


def test_a_cancelled_task_whose_agent_ends_is_cancelled() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)

    world.do(DeregisterRequest(agent_id=world.task(task_id).lease.agent_id))

    assert world.task(task_id).state == TASK_STATE_CANCELLED


def test_terminating_takes_nothing_away_until_the_agent_has_ended() -> None:
    world = World()
    task_id = world.running()
    agent_id = world.task(task_id).lease.agent_id

    world.do(TerminateAgentRequest(agent_id=agent_id))

    assert world.task(task_id).state == TASK_STATE_RUNNING
    assert world.complete(task_id).state == TASK_STATE_SUCCEEDED


def test_details_of_a_failure_reach_attempt_and_task() -> None:
    world = World()
    task_id = world.running(retry_policy=NEVER)
    details = Struct()
    details["exit_code"] = 3
    failure = TaskFailure(reason="EXIT_CODE", message="exited with 3", details=details)

    world.do(FailTaskRequest(lease_token=world.token(task_id), failure=failure))

    assert world.task(task_id).failure == world.attempt(task_id).failure == failure
    assert world.attempt(task_id).state == ATTEMPT_STATE_FAILED


def test_an_offer_not_taken_up_costs_nothing_even_if_its_agent_is_given_up_in_the_same_look() -> None:
    world = World()
    agent_id = world.register()
    task_id = world.create(retry_policy=NEVER)
    world.lease(agent_id)

    world.advance(700)

    assert world.agent(agent_id).state == AGENT_STATE_FAILED
    assert (world.task(task_id).state, world.task(task_id).attempts_used) == (TASK_STATE_QUEUED, 0)


def test_what_a_dying_process_was_offered_counts_as_an_attempt() -> None:
    world = World()
    agent_id = world.spawn()
    world.do(RegisterWorkerRequest(instance_key="the-host"), caller=as_ticket(agent_id))
    task_id = world.create(retry_policy=NEVER)
    world.lease(agent_id, caller=as_agent(world.agent(agent_id)))

    world.do(AgentProcessExited(agent_id, ProcessExit(signal=11)))

    assert (world.task(task_id).state, world.task(task_id).attempts_used) == (TASK_STATE_FAILED, 1)
