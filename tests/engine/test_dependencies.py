"""Dependencies on a real database: they outlive a restart and a failed batch, and large fans stay within their caps."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_STARTED,
    DEPENDENCY_FAILURE_ACTION_SKIP,
    TaskDependency,
)
from kapell.v1.queue_pb2 import CONCURRENCY_STRATEGY_CANCEL_NEWEST, ConcurrencyLimit, SetConcurrencyLimitRequest
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_DEPENDENCY,
    WAIT_KIND_NOT_BEFORE,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    ExplainTaskRequest,
    ExplainTaskResponse,
    RetryTaskRequest,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import CreateChildTasksRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks import dependency
from kapell_server.domain.times import SECOND, stamp
from kapell_server.engine.facts import TasksOutlived
from kapell_server.store.schema import task_edges

from tests.support.faulty_database import Fault, FaultyDatabase, busy
from tests.support.live_engine import USER, LiveEngine


def after(*task_ids: str, **fields: Any) -> list[TaskDependency]:
    return [TaskDependency(task_id=task_id, **fields) for task_id in task_ids]


async def edges(live: LiveEngine) -> set[tuple[str, str]]:
    """The rows of open edges and kept results, which must be what memory has."""
    rows = await live.database.read(lambda connection: connection.execute(sa.select(task_edges)).all())
    memory = live.engine._state.edges
    known = {(parent, child) for table in (memory.unmet, memory.keeps) for child in table for parent in table[child]}
    assert known == {(row[0], row[1]) for row in rows}
    return {(row[0], row[1]) for row in rows}


async def fan(live: LiveEngine, size: int, **fields: Any) -> tuple[str, list[str]]:
    """One task of type "first", and so many that wait for it."""
    first = await live.create("first")
    request = BatchCreateTasksRequest()
    for _ in range(size):
        request.tasks.add(agent_type="shell", **fields).dependencies.add(task_id=first.task_id, name="first")
    return first.task_id, [task.task_id for task in (await live.call(request)).tasks]


async def queued(live: LiveEngine, task_ids: list[str]) -> None:
    """Waits until all are QUEUED, with nobody asking the engine for anything."""
    for task_id in task_ids:
        async with asyncio.timeout(20):
            while (task := await live.task(task_id)).state != TASK_STATE_QUEUED:
                await live.engine.ring.wait_resource(task_id, task.revision, 1)


async def test_a_kept_result_survives_a_restart(live: LiveEngine) -> None:
    one, two = await live.create("one"), await live.create("two")
    named = [TaskDependency(task_id=one.task_id, name="o"), TaskDependency(task_id=two.task_id, name="t")]
    waits = await live.create(prompt="{deps.o.result}", dependencies=named)
    agent_id = await live.register("one")
    await live.complete(await live.offer(agent_id))
    await live.crash()

    await live.call(TasksOutlived((one.task_id,), live.clock.now_ns()))

    assert await live.task(one.task_id)
    assert (one.task_id, waits.task_id) in await edges(live)


async def test_edges_survive_a_restart(live: LiveEngine) -> None:
    one, two = await live.create("one"), await live.create("two")
    waits = await live.create(prompt="{deps.o.result}", dependencies=[TaskDependency(task_id=one.task_id, name="o")])
    started = await live.create(dependencies=after(two.task_id, condition=DEPENDENCY_CONDITION_STARTED))
    skipped = await live.create(dependencies=after(two.task_id, on_failure=DEPENDENCY_FAILURE_ACTION_SKIP))
    assert len(await edges(live)) == 3

    await live.crash()
    assert len(await edges(live)) == 3
    await live.complete(await live.offer(await live.register("one")), "R")
    await live.call(CancelTaskRequest(task_id=two.task_id))

    assert (await live.task(waits.task_id)).prompt == "R"
    assert (await live.task(started.task_id)).failure.reason == "DEPENDENCY_FAILED"
    assert (await live.task(skipped.task_id)).state == TASK_STATE_CANCELLED
    assert await edges(live) == set()


async def test_a_total_timeout_strikes_after_a_restart(live: LiveEngine) -> None:
    one = await live.create("one")
    limits = TaskTimeouts(total_timeout=Duration(seconds=30))
    waits = await live.create(dependencies=after(one.task_id), timeouts=limits)

    await live.crash()
    await live.advance(31)

    assert (await live.task(waits.task_id)).state == TASK_STATE_FAILED
    assert await edges(live) == set()


async def test_a_task_dropped_and_parked_again_in_one_batch_keeps_its_edge(live: LiveEngine) -> None:
    one = await live.create("one")
    waits = await live.create(dependencies=after(one.task_id))

    await live.together(CancelTaskRequest(task_id=waits.task_id), RetryTaskRequest(task_id=waits.task_id))

    assert await edges(live) == {(one.task_id, waits.task_id)}
    await live.crash()
    assert (await live.task(waits.task_id)).state == TASK_STATE_PENDING
    assert len(await edges(live)) == 1


async def test_2000_wake_in_one_batch(live: LiveEngine) -> None:
    first, others = await fan(live, 2000, prompt="do {deps.first.result}")
    offer = await live.offer(await live.register("first"))
    commits = live.engine.diagnostics().commits

    await live.complete(offer, "it")

    assert live.engine.diagnostics().commits == commits + 1
    assert live.engine.diagnostics().ready_tasks == {"shell": 2000}
    assert (await live.task(others[-1])).prompt == "do it"
    assert (await live.task(first)).result.string_value == "it"
    assert await edges(live) == set()


async def test_a_batch_that_fails_leaves_all_edges(live: LiveEngine) -> None:
    _, others = await fan(live, 3)
    offer = await live.offer(await live.register("first"))
    assert isinstance(live.database, FaultyDatabase)

    live.database.faults.append(Fault(busy()))
    with pytest.raises(KapellError, match="did not answer"):
        await live.complete(offer)
    assert len(await edges(live)) == 3
    await live.complete(offer)

    assert {(await live.task(task_id)).state for task_id in others} == {TASK_STATE_QUEUED}
    assert await edges(live) == set()


async def test_what_one_batch_leaves_the_next_one_does_by_itself(
    live: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependency, "MOST_AT_ONCE", 4)
    _, others = await fan(live, 10)
    offer = await live.offer(await live.register("first"))

    await live.complete(offer)

    await queued(live, others)
    assert await edges(live) == set()


async def test_what_a_batch_has_left_is_done_after_a_restart(live: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependency, "MOST_AT_ONCE", 0)
    first, others = await fan(live, 10)
    offer = await live.offer(await live.register("first"))
    await live.complete(offer)
    await live.crash()
    assert await edges(live) == {(first, other) for other in others}

    monkeypatch.undo()

    await queued(live, others)
    assert await edges(live) == set()


async def test_children_and_their_caps_survive_a_restart(live: LiveEngine) -> None:
    await live.create("first")
    agent_id = await live.register("first")
    offer = await live.offer(agent_id)
    await live.beat(agent_id, offer)
    request = CreateChildTasksRequest(lease_token=offer.lease_token, request_id="same")
    for _ in range(100):
        request.tasks.add(agent_type="shell")
    created = await live.call(request)

    await live.crash()
    again = await live.call(request)
    for _ in range(9):
        request.request_id = ""
        await live.call(request)
    refusal = await live.refusal(request)

    assert again.replayed
    assert [task.task_id for task in again.tasks] == [task.task_id for task in created.tasks]
    assert (refusal.reason_name, refusal.metadata["limit"]) == ("CHILD_LIMIT", "max_tasks_per_root")
    await live.crash()
    await live.call(CancelTaskRequest(task_id=offer.task.task_id))
    assert live.engine.diagnostics().ready_tasks == {}


async def explained(live: LiveEngine, task_id: str) -> ExplainTaskResponse:
    answer: ExplainTaskResponse = await live.call(ExplainTaskRequest(task_id=task_id))
    return answer


async def test_explain_names_the_tasks_that_are_waited_for(live: LiveEngine) -> None:
    one, two = (await live.create("other")).task_id, (await live.create("other")).task_id
    later = Timestamp()
    stamp(later, live.clock.now_ns() + 60 * SECOND)
    build = TaskDependency(task_id=one, name="build")
    waits = await live.create(dependencies=[build, TaskDependency(task_id=two)], not_before_time=later)

    first, second = (await explained(live, waits.task_id)).blockers
    await live.advance(61)
    [only] = (await explained(live, waits.task_id)).blockers

    assert only == first
    assert first.kind == WAIT_KIND_DEPENDENCY
    assert first.message == f"It waits for build ({one}), which is QUEUED, and 1 more task."
    assert list(first.blocked_by) == [one, two]
    assert second.kind == WAIT_KIND_NOT_BEFORE
    await live.call(CancelTaskRequest(task_id=two))
    assert (await explained(live, waits.task_id)).summary.startswith("It has ended: FAILED")


async def test_a_woken_task_obeys_its_concurrency_key_in_the_same_batch(on_sqlite: LiveEngine) -> None:
    live = on_sqlite
    limit = ConcurrencyLimit(key="k", max_running=1, strategy=CONCURRENCY_STRATEGY_CANCEL_NEWEST)
    await live.engine.submit(SetConcurrencyLimitRequest(limit=limit), USER)
    holder = await live.create("holder", concurrency_keys=["k"])
    await live.offer(await live.register("holder"))
    first, [newest, other] = await fan(live, 2, concurrency_keys=["k"])
    follows = await live.create(dependencies=after(newest))

    await live.complete(await live.offer(await live.register("first")))

    assert (await live.task(holder.task_id)).state == TASK_STATE_RUNNING
    assert {(await live.task(task_id)).state for task_id in (newest, other)} == {TASK_STATE_CANCELLED}
    assert (await live.task(follows.task_id)).failure.reason == "DEPENDENCY_FAILED"
    assert (await live.task(first)).state == TASK_STATE_SUCCEEDED


async def test_waiting_for_children_keeps_no_lease_of_a_dead_agent(on_sqlite: LiveEngine) -> None:
    await on_sqlite.create("parent")
    agent_id = await on_sqlite.register("parent")
    offer = await on_sqlite.offer(agent_id)
    caller = on_sqlite.keyring.authenticate(on_sqlite.keyring.agent_token(agent_id, 1))
    assert caller is not None
    await on_sqlite.beat(agent_id, offer)

    await on_sqlite.advance(9)
    on_sqlite.engine.check_lease(offer.lease_token, caller, renew=False)
    await on_sqlite.advance(2)

    with pytest.raises(KapellError, match="lease is lost"):
        on_sqlite.engine.check_lease(offer.lease_token, caller, renew=False)
