"""Changes of many tasks: which are meant, what becomes of each, steps, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.error_pb2 import ERROR_REASON_TASK_NOT_FOUND, ERROR_REASON_TASK_STATE_CONFLICT
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    CancelTaskRequest,
    CancelTasksRequest,
    DeleteTaskRequest,
    ReprioritizeTasksRequest,
    RetryTasksRequest,
    TaskFilter,
)
from kapell_server.domain.tasks import bulk
from kapell_server.domain.tasks.bulk_job import BulkCommand, BulkJob, BulkRequest, BulkStep, Selection, resume_part
from kapell_server.domain.tasks.task_filter import task_test

from tests.domain.test_rollback import fail_commit
from tests.domain.world import USER, World

MANY = 2 * bulk.STEP + 1


def found(world: World, request: BulkRequest) -> BulkCommand:
    """The change with the selection that a read finds now."""
    test = task_test(request.filter)
    ids = [task.task_id for task in world.rows.tasks.values() if test(task)]
    limit = (request.max_affected or bulk.DEFAULT_AFFECTED) + 1
    return BulkCommand(request, Selection(world.state.revision, ids[:limit], len(ids)))


def change(world: World, request: BulkRequest) -> Any:
    """Does all of the change; its answer."""
    answer = world.do(found(world, request))
    while isinstance(answer, BulkJob):
        job = answer
        if job.done:
            return job.response(world.state.revision)
        answer = world.do(BulkStep(job))
    return answer


def outcomes(answer: Any) -> dict[str, tuple[int, int, str]]:
    return {item.task_id: (item.state, item.reason, item.message) for item in answer.items}


def test_cancel_takes_the_live_ones_and_leaves_the_ended_alone() -> None:
    world = World()
    queued, running, done = world.create(), world.running(), world.running()
    world.complete(done)

    answer = change(world, CancelTasksRequest(all=True, reason="enough"))

    assert outcomes(answer) == {
        queued: (TASK_STATE_CANCELLED, 0, ""),
        running: (TASK_STATE_CANCELLING, 0, ""),
        done: (TASK_STATE_SUCCEEDED, ERROR_REASON_TASK_STATE_CONFLICT, "it is SUCCEEDED"),
    }
    assert (answer.matched, answer.affected, answer.revision) == (3, 2, world.state.revision)
    assert world.task(queued).state_reason == "enough"


def test_retry_takes_failed_and_cancelled_ones() -> None:
    world = World()
    failed, cancelled, queued = world.running(), world.create(), world.create()
    world.fail(failed, retryable=False)
    world.cancel(cancelled)

    answer = change(world, RetryTasksRequest(all=True))

    assert [item.state for item in answer.items] == [TASK_STATE_QUEUED] * 3
    assert outcomes(answer)[queued][1] == ERROR_REASON_TASK_STATE_CONFLICT
    assert [world.task(task_id).retries for task_id in (failed, cancelled, queued)] == [1, 1, 0]


def test_another_priority_is_set_where_it_is_another() -> None:
    world = World()
    one, same = world.create(priority=1), world.create(priority=900)
    before = world.task(same).revision

    answer = change(world, ReprioritizeTasksRequest(all=True, priority=900))

    assert (answer.affected, [item.reason for item in answer.items]) == (1, [0, 0])
    assert (world.task(one).priority, world.task(same).revision) == (900, before)
    assert [world.lease(world.register()) for _ in range(2)] == [same, one]


def test_the_filter_says_which() -> None:
    world = World()
    mine, other = world.create(labels={"team": "a"}), world.create(labels={"team": "b"})

    answer = change(world, CancelTasksRequest(filter=TaskFilter(labels={"team": "a"})))

    assert list(outcomes(answer)) == [mine]
    assert world.task(other).state == TASK_STATE_QUEUED


def test_tasks_that_died_of_a_reason_are_found() -> None:
    world = World()
    lost, broken = world.running(), world.running()
    world.fail(lost, retryable=False, reason="AGENT_LOST")
    world.fail(broken, retryable=False, reason="EXIT_CODE")
    dead = TaskFilter(states=[TASK_STATE_FAILED], failure_reasons=["AGENT_LOST"])

    assert list(outcomes(change(world, RetryTasksRequest(filter=dead)))) == [lost]


def test_more_than_allowed_are_refused_with_their_count() -> None:
    world = World()
    for _ in range(3):
        world.create()

    with world.refuses("TOO_MANY_MATCHES") as refusals:
        change(world, CancelTasksRequest(all=True, max_affected=2))

    assert refusals[0].metadata == {"matched": "3", "limit": "2"}


def test_a_part_may_be_taken_and_the_oldest_come_first() -> None:
    world = World()
    ids = [world.create() for _ in range(3)]

    answer = change(world, CancelTasksRequest(all=True, max_affected=2, allow_partial=True))

    assert (answer.matched, answer.affected, list(outcomes(answer))) == (3, 2, ids[:2])


def test_what_has_changed_since_it_was_read_is_looked_at_again() -> None:
    world = World()
    gone, done, kept = world.create(), world.running(), world.create()
    command = found(world, CancelTasksRequest(filter=TaskFilter(states=[TASK_STATE_QUEUED, TASK_STATE_RUNNING])))
    world.cancel(gone)
    world.complete(done)
    late = world.create()

    answer = world.do(command)

    assert list(outcomes(answer)) == [kept, late]
    assert answer.matched == 2


def test_what_the_same_batch_has_done_counts() -> None:
    world = World()
    first, second = world.create(), world.create()
    command = found(world, CancelTasksRequest(filter=TaskFilter(states=[TASK_STATE_QUEUED])))

    answer = world.do(CancelTaskRequest(task_id=first), command)

    assert list(outcomes(answer)) == [second]


def test_many_are_changed_in_steps_between_which_others_come() -> None:
    world = World()
    ids = [world.create() for _ in range(MANY)]

    job = world.do(found(world, CancelTasksRequest(all=True)))
    assert isinstance(job, BulkJob)
    assert [world.task(task_id).state for task_id in (ids[0], ids[-1])] == [TASK_STATE_CANCELLED, TASK_STATE_QUEUED]
    world.do(DeleteTaskRequest(task_id=ids[0]))
    world.do(CancelTaskRequest(task_id=ids[-1]), DeleteTaskRequest(task_id=ids[-1]))
    while not job.done:
        job = world.do(BulkStep(job))

    answer = job.response(world.state.revision)
    assert (answer.matched, answer.affected, len(answer.items)) == (MANY, MANY - 1, MANY)
    assert outcomes(answer)[ids[-1]] == (0, ERROR_REASON_TASK_NOT_FOUND, "it was deleted")
    assert (world.state.bulk_jobs, world.rows.bulk_jobs, world.rows.bulk_steps) == ({}, {}, {})


def test_a_task_that_matches_no_longer_when_its_turn_comes_is_left_alone() -> None:
    world = World()
    ids = [world.create() for _ in range(MANY)]
    job = world.do(found(world, CancelTasksRequest(filter=TaskFilter(states=[TASK_STATE_QUEUED]))))
    agent_id = world.register(slots=1)
    taken = world.lease(agent_id)

    while not job.done:
        job = world.do(BulkStep(job))

    answer = outcomes(job.response(0))
    assert taken in ids
    assert answer[taken] == (TASK_STATE_RUNNING, ERROR_REASON_TASK_STATE_CONFLICT, "it is RUNNING by now")
    assert world.task(taken).state == TASK_STATE_RUNNING


def test_a_step_that_was_not_committed_is_done_again() -> None:
    world = World()
    for _ in range(MANY):
        world.create()
    job = world.do(found(world, CancelTasksRequest(all=True)))
    before = world.picture()

    fail_commit(world, BulkStep(job))

    assert world.picture() == before
    assert (job.next, job.affected, len(job.parts)) == (bulk.STEP, bulk.STEP, 1)
    while not job.done:
        job = world.do(BulkStep(job))
    assert len({item.task_id for item in job.response(0).items}) == job.affected == MANY


def test_a_first_step_that_was_not_committed_leaves_no_job() -> None:
    world = World()
    for _ in range(MANY):
        world.create()
    before = world.picture()

    fail_commit(world, found(world, CancelTasksRequest(all=True)))

    assert world.picture() == before


def test_a_job_goes_on_from_what_its_rows_tell() -> None:
    world = World()
    for _ in range(MANY):
        world.create()
    job = world.do(found(world, CancelTasksRequest(all=True)))
    job = world.do(BulkStep(job))

    again = BulkJob(key=job.key, request=job.request, caller=USER, task_ids=job.task_ids, matched=job.matched)
    for _, part in sorted(world.rows.bulk_steps.items()):
        resume_part(again, part)

    assert (again.next, again.affected) == (job.next, job.affected) == (2 * bulk.STEP, 2 * bulk.STEP)
    assert world.do(BulkStep(again)).response(7) == job.__class__.response(again, 7)


def test_only_so_many_changes_are_taken_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_MOST_JOBS", 1)
    world = World()
    for _ in range(MANY):
        world.create()
    world.do(found(world, CancelTasksRequest(all=True)))

    with world.refuses("QUEUE_FULL"):
        world.do(found(world, ReprioritizeTasksRequest(all=True, priority=1)))


def test_an_answer_about_ten_thousand_tasks_is_below_one_mebibyte() -> None:
    request = CancelTasksRequest(all=True)
    ids = [f"task_{number:059}" for number in range(10_000)]
    answer = bulk.RESPONSES[type(request)](matched=10_000, affected=10_000, revision=1 << 40)
    for task_id in ids:
        answer.items.add(task_id=task_id, state=TASK_STATE_SUCCEEDED, reason=13, message="it is SUCCEEDED by now")

    assert answer.ByteSize() < 1024 * 1024


def test_a_cancel_goes_down_the_tree_unless_told_otherwise() -> None:
    world = World()
    for leave in (True, False):
        top = world.create(labels={"n": str(leave)})
        child = world.create(parent_task_id=top)

        answer = change(world, CancelTasksRequest(filter=TaskFilter(labels={"n": str(leave)}), leave_children=leave))

        assert list(outcomes(answer)) == [top]
        assert world.task(child).state == (TASK_STATE_QUEUED if leave else TASK_STATE_CANCELLED)


def test_a_step_ends_early_where_a_cancel_makes_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_STEP_CHANGES", 4)
    world = World()
    tops = [world.create(labels={"top": "yes"}) for _ in range(3)]
    children = [world.create(parent_task_id=top) for top in tops for _ in range(4)]

    job = world.do(found(world, CancelTasksRequest(filter=TaskFilter(labels={"top": "yes"}))))

    assert isinstance(job, BulkJob)
    assert (job.next, job.done) == (1, False)
    while not job.done:
        job = world.do(BulkStep(job))
    assert list(outcomes(job.response(0))) == tops
    assert {world.task(task_id).state for task_id in (*tops, *children)} == {TASK_STATE_CANCELLED}


def test_who_was_cancelled_with_its_parent_is_as_was_asked_for() -> None:
    world = World()
    top = world.create()
    child = world.create(parent_task_id=top)

    answer = change(world, CancelTasksRequest(filter=TaskFilter(states=[TASK_STATE_QUEUED])))

    assert outcomes(answer) == {top: (TASK_STATE_CANCELLED, 0, ""), child: (TASK_STATE_CANCELLED, 0, "")}


def test_a_retry_takes_dependants_that_come_before_what_they_wait_for() -> None:
    world = World()
    first = world.running()
    last = world.create(task_id="task_a", dependencies=[TaskDependency(task_id=first)])
    end = world.create(task_id="task_b", dependencies=[TaskDependency(task_id=last)])
    world.fail(first, retryable=False)

    request = RetryTasksRequest(filter=TaskFilter(task_ids=[end, last, first]))
    command = BulkCommand(request, Selection(world.state.revision, [end, last, first], 3))
    answer = world.do(command)

    assert [item.reason for item in answer.items] == [0, 0, 0]
    assert answer.affected == 3
