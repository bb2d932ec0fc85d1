"""Changes of many tasks on a real database: whole answers, one effect (D3), crashes and stops in the middle (D2)."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_QUEUED,
    BatchCreateTasksRequest,
    CancelTasksRequest,
    CountTasksRequest,
    ReprioritizeTasksRequest,
    RetryTasksRequest,
    TaskFilter,
    TaskSpec,
)
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_CANCELLED
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks import bulk
from kapell_server.engine.batch import Outcome
from kapell_server.store.schema import bulk_jobs, bulk_steps

from tests.support.faulty_database import Fault, FaultyDatabase, PoisonError, busy
from tests.support.live_engine import LiveEngine, new_task, settled

COUNT = 10
CANCEL = CancelTasksRequest(filter=TaskFilter(states=[TASK_STATE_QUEUED]), request_id="r1")


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tasks take four steps."""
    monkeypatch.setattr(bulk, "STEP", 3)


def faults(live: LiveEngine) -> FaultyDatabase:
    return cast(FaultyDatabase, live.database)


def after(steps: int) -> Callable[[Outcome], bool]:
    """Poison for every batch that changes something, once so many have been taken."""
    taken = 0

    def refuses(outcome: Outcome) -> bool:
        nonlocal taken
        taken += bool(outcome.records)
        return taken > steps and bool(outcome.records)

    return refuses


def fail_after(live: LiveEngine, steps: int) -> None:
    """The database does not answer any more after so many batches with changes."""
    faults(live).poison = after(steps)
    faults(live).refusal = busy()


async def create_many(live: LiveEngine, count: int = COUNT, **spec: Any) -> list[str]:
    spec.setdefault("agent_type", "shell")
    answer = await live.call(BatchCreateTasksRequest(tasks=[TaskSpec(**spec)] * count))
    return [task.task_id for task in answer.tasks]


async def cancelled(live: LiveEngine) -> Counter[str]:
    """How often each task was cancelled, by the log."""
    return Counter(record.resource_id for record in await live.log() if record.kind == EVENT_KIND_TASK_CANCELLED)


async def counts(live: LiveEngine) -> dict[int, int]:
    answer = await live.engine.reads.count_tasks(CountTasksRequest())
    return {entry.state: entry.count for entry in answer.counts}


async def until_all_are_cancelled(live: LiveEngine) -> None:
    """The server goes on by itself; the time limit of the test is the deadline."""
    while set(await counts(live)) != {TASK_STATE_CANCELLED}:
        await live.pulse()


async def rows_of_jobs(live: LiveEngine) -> int:
    def rows(connection: Any) -> int:
        return len(connection.execute(bulk_jobs.select()).all()) + len(connection.execute(bulk_steps.select()).all())

    return await live.database.read(rows)


async def test_all_that_match_are_changed_and_answered_for(live: LiveEngine) -> None:
    ids = await create_many(live)
    other = (await live.create("other")).task_id
    request = CancelTasksRequest(filter=TaskFilter(agent_types=["shell"]), reason="enough")

    answer = await live.call(request)

    assert (answer.matched, answer.affected, answer.revision) == (COUNT, COUNT, live.engine.revision)
    assert [item.task_id for item in answer.items] == ids
    assert await cancelled(live) == Counter(ids)
    assert (await live.task(other)).state == TASK_STATE_QUEUED
    assert (await live.task(ids[-1])).state_reason == "enough"
    assert await rows_of_jobs(live) == 0


@pytest.mark.parametrize("count", [2, COUNT])
async def test_a_repeat_gets_the_first_answer_whatever_matches_by_then(live: LiveEngine, count: int) -> None:
    await create_many(live, count)
    first = await live.call(CANCEL)
    late = await live.create()

    again = await live.call(CANCEL)
    await live.restart()
    after_a_restart = await live.call(CANCEL)

    assert (first.affected, first.replayed, again.replayed) == (count, False, True)
    assert again == after_a_restart
    again.replayed = False
    assert again == first
    assert (await live.task(late.task_id)).state == TASK_STATE_QUEUED


async def test_a_repeat_in_the_middle_joins_the_first_call(live: LiveEngine) -> None:
    ids = await create_many(live)
    first = await settled(live.call(CANCEL))

    one, two, three = await asyncio.gather(first, live.call(CANCEL), live.call(CANCEL))

    assert sorted([one.replayed, two.replayed, three.replayed]) == [False, True, True]
    assert list(one.items) == list(two.items) == list(three.items)
    assert await cancelled(live) == Counter(ids)


async def test_another_body_under_the_request_id_of_a_change_in_the_making_is_refused(live: LiveEngine) -> None:
    await create_many(live)

    answers = await live.together(CANCEL, ReprioritizeTasksRequest(all=True, priority=1, request_id="r1"))

    [refusal] = [answer for answer in answers if isinstance(answer, KapellError)]
    assert refusal.reason_name == "REQUEST_ID_REUSED"


async def test_others_are_served_between_the_steps(live: LiveEngine) -> None:
    await create_many(live)
    request = CancelTasksRequest(filter=TaskFilter(agent_types=["shell"]))

    change, created = await live.together(request, new_task("other"))

    assert created.revision < change.revision
    assert (change.matched, change.affected) == (COUNT, COUNT)


async def test_too_many_change_nothing(live: LiveEngine) -> None:
    await create_many(live)
    before = live.engine.revision

    refusal = await live.refusal(CancelTasksRequest(all=True, max_affected=COUNT - 1))

    assert (refusal.reason_name, refusal.metadata["matched"]) == ("TOO_MANY_MATCHES", str(COUNT))
    assert live.engine.revision == before


async def test_a_preview_counts_and_changes_nothing(live: LiveEngine) -> None:
    ids = await create_many(live, labels={"team": "a"})
    before = live.engine.revision
    wanted = TaskFilter(labels={"team": "a"})

    answer = await live.call(RetryTasksRequest(filter=wanted, preview=True, max_affected=4, request_id="r1"))
    again = await live.call(RetryTasksRequest(filter=wanted, preview=True, max_affected=4, request_id="r1"))

    assert (answer.matched, answer.affected, answer.revision) == (COUNT, 0, before)
    assert list(answer.preview_task_ids) == ids[: len(answer.preview_task_ids)]
    assert answer == again
    assert live.engine.revision == before


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_after_a_crash_in_the_middle_a_repeat_is_answered_for_all(live: LiveEngine, steps: int) -> None:
    ids = await create_many(live)
    fail_after(live, steps)

    refusal = await live.refusal(CANCEL)
    done_before = (await counts(live))[TASK_STATE_CANCELLED]
    await live.crash()
    answer = await live.call(CANCEL)

    assert refusal.reason_name == "STORAGE_BUSY"
    assert done_before == steps * bulk.STEP
    assert (answer.matched, answer.affected, [item.task_id for item in answer.items]) == (COUNT, COUNT, ids)
    assert answer.replayed
    assert await cancelled(live) == Counter(ids)
    assert await rows_of_jobs(live) == 0


async def test_after_a_crash_in_the_middle_the_server_finishes_by_itself(live: LiveEngine) -> None:
    ids = await create_many(live)
    request = CancelTasksRequest(all=True, reason="enough")
    fail_after(live, 2)
    await live.refusal(request)

    await live.crash()
    await until_all_are_cancelled(live)

    assert await cancelled(live) == Counter(ids)
    assert (await live.task(ids[-1])).state_reason == "enough"
    assert await rows_of_jobs(live) == 0


async def test_what_matched_later_is_not_touched_by_what_is_left_after_a_crash(live: LiveEngine) -> None:
    ids = await create_many(live)
    fail_after(live, 1)
    await live.refusal(CANCEL)
    await live.crash()
    late = await live.create()

    answer = await live.call(CANCEL)

    assert [item.task_id for item in answer.items] == ids
    assert (await live.task(late.task_id)).state == TASK_STATE_QUEUED


async def test_an_answer_that_was_lost_with_its_commit_is_found_again(live: LiveEngine) -> None:
    ids = await create_many(live)
    faults(live).faults.extend([Fault(busy(), "committed")])

    await live.refusal(CANCEL)
    await live.crash()
    live.crashes.clear()
    answer = await live.call(CANCEL)

    assert (answer.matched, answer.affected) == (COUNT, COUNT)
    assert await cancelled(live) == Counter(ids)


async def test_a_stop_in_the_middle_leaves_the_rest_to_the_next_start(live: LiveEngine) -> None:
    ids = await create_many(live)
    call = await settled(live.call(CANCEL))
    while TASK_STATE_CANCELLED not in await counts(live):
        assert not call.done()

    await live.restart()
    with contextlib.suppress(KapellError):
        await call
    answer = await live.call(CANCEL)

    assert answer.affected == COUNT
    assert await cancelled(live) == Counter(ids)


async def test_a_caller_that_goes_away_takes_nothing_back(live: LiveEngine) -> None:
    ids = await create_many(live)
    call = await settled(live.call(CANCEL))

    call.cancel()
    answer = await live.call(CANCEL)

    assert answer.affected == COUNT
    assert await cancelled(live) == Counter(ids)


async def test_a_step_that_fails_by_a_defect_is_tried_again_by_a_repeat(live: LiveEngine) -> None:
    await create_many(live)
    faults(live).poison = after(1)

    [failed] = await live.together(CANCEL)
    await live.pulse()
    faults(live).poison = lambda outcome: False
    answer = await live.call(CANCEL)

    assert isinstance(failed, PoisonError)
    assert (answer.affected, answer.replayed) == (COUNT, True)


async def test_two_changes_at_once_are_both_done(live: LiveEngine) -> None:
    await create_many(live)

    moved, ended = await live.together(ReprioritizeTasksRequest(all=True, priority=7), CancelTasksRequest(all=True))

    assert (moved.matched, ended.matched, ended.affected) == (COUNT, COUNT, COUNT)
    assert sum(bool(item.reason) for item in moved.items) == COUNT - moved.affected
