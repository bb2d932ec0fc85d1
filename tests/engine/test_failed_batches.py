"""A batch that the database does not take leaves memory as it was; only the guilty command fails (D2)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    CancelTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    Task,
)
from kapell.v1.worker_pb2 import LeaseTasksRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND, stamp
from kapell_server.engine.batch import Outcome, PollOver, StaleMemoryError

from tests.support.faulty_database import Fault, FaultyDatabase, PoisonError, busy
from tests.support.live_engine import LiveEngine, live_engine, new_task, settled


def faults(live: LiveEngine) -> FaultyDatabase:
    return cast(FaultyDatabase, live.database)


def is_poisoned(outcome: Outcome) -> bool:
    """Whether a batch has put a task that carries the label `poison`."""
    return any(isinstance(one.resource, Task) and "poison" in one.resource.labels for one in outcome.records)


async def names(live: LiveEngine) -> list[str]:
    listed = ListTasksResponse.FromString(
        await live.engine.reads.list_tasks(ListTasksRequest(order=LIST_ORDER_OLDEST_FIRST))
    )
    return [task.display_name for task in listed.tasks]


async def test_only_the_guilty_command_of_a_batch_fails(live: LiveEngine) -> None:
    faults(live).poison = is_poisoned

    one, guilty, two = await live.together(
        new_task(display_name="one"), new_task(labels={"poison": "yes"}), new_task(display_name="two")
    )

    assert isinstance(guilty, PoisonError)
    assert [one.task.display_name, two.task.display_name] == await names(live) == ["one", "two"]
    assert [record.revision for record in await live.log()] == [1, 2]
    assert live.engine.revision == 2


async def test_a_guilty_command_alone_fails_alone(live: LiveEngine) -> None:
    faults(live).poison = is_poisoned

    [guilty] = await live.together(new_task(labels={"poison": "yes"}))

    assert isinstance(guilty, PoisonError)
    assert (await live.create()).revision == 1


@pytest.mark.parametrize("when", ["before", "uncommitted"])
async def test_a_database_that_could_not_refuses_the_batch_and_changes_nothing(live: LiveEngine, when: str) -> None:
    first = await live.create(display_name="first")
    faults(live).faults.append(Fault(busy(), when))  # type: ignore[arg-type]

    refused = await live.together(new_task(display_name="lost"), CancelTaskRequest(task_id=first.task_id))

    assert [cast(KapellError, error).reason_name for error in refused] == ["STORAGE_BUSY"] * 2
    assert (await live.task(first.task_id)).state == TASK_STATE_QUEUED
    assert (await live.create(display_name="second")).revision == 2
    assert await names(live) == ["first", "second"]


async def test_a_refused_request_id_may_be_used_again(live: LiveEngine) -> None:
    faults(live).faults.append(Fault(busy()))
    await live.together(new_task(request_id="r1"))

    answer = await live.call(new_task(request_id="r1"))

    assert not answer.replayed


async def test_a_task_that_was_to_be_cancelled_is_still_given_away(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create()
    faults(live).faults.append(Fault(busy()))

    await live.together(CancelTaskRequest(task_id=task.task_id), LeaseTasksRequest(agent_id=agent_id))

    assert (await live.offer(agent_id)).task.task_id == task.task_id


async def test_a_waiting_poll_is_served_after_a_failed_batch(live: LiveEngine) -> None:
    agent_id = await live.register()
    poll = await settled(live.call(LeaseTasksRequest(agent_id=agent_id)))
    await live.pulse()
    faults(live).faults.append(Fault(busy()))
    await live.together(new_task(display_name="lost"))

    await live.create(display_name="found")

    assert [offer.task.display_name for offer in (await poll).offers] == ["found"]


@pytest.mark.parametrize("refusal", [busy(), PoisonError("a row that no table takes")])
async def test_a_poll_whose_end_fails_ends_all_the_same(on_sqlite: LiveEngine, refusal: Exception) -> None:
    agent_id = await on_sqlite.register()
    faults(on_sqlite).poison = lambda outcome: any(type(one.request) is PollOver for one, _ in outcome.answers)
    faults(on_sqlite).refusal = refusal

    with pytest.raises(type(refusal)):
        await on_sqlite.call(LeaseTasksRequest(agent_id=agent_id, wait=Duration(nanos=1_000_000)))

    assert on_sqlite.engine.diagnostics().open_polls == 0


async def test_an_abandoned_poll_is_gone_even_if_its_end_fails(on_sqlite: LiveEngine) -> None:
    agent_id = await on_sqlite.register()
    poll = await settled(on_sqlite.call(LeaseTasksRequest(agent_id=agent_id)))
    await on_sqlite.pulse()
    faults(on_sqlite).faults.append(Fault(busy()))

    poll.cancel()
    await asyncio.wait([poll])
    await on_sqlite.pulse()

    assert on_sqlite.engine.diagnostics().open_polls == 0
    assert len(await on_sqlite.lease(agent_id)) == 0


async def test_what_was_due_stays_due(live: LiveEngine) -> None:
    later = Timestamp()
    stamp(later, live.clock.now_ns() + 5 * SECOND)
    task = await live.create(not_before_time=later)
    faults(live).faults.append(Fault(busy()))
    live.clock.advance(5)
    await live.together(new_task())

    await live.advance(1)

    assert (await live.task(task.task_id)).state == TASK_STATE_QUEUED


async def test_what_was_due_does_not_spoil_the_commands_of_its_batch(live: LiveEngine) -> None:
    later = Timestamp()
    stamp(later, live.clock.now_ns() + 5 * SECOND)
    await live.create(not_before_time=later, labels={"poison": "yes"})
    faults(live).poison = is_poisoned
    live.clock.advance(5)

    answers = await live.together(new_task(display_name="one"), new_task(display_name="two"))

    assert [answer.task.display_name for answer in answers] == ["one", "two"]


async def test_a_lease_that_could_not_be_written_was_never_given(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create()
    faults(live).faults.append(Fault(busy()))
    refusal = await live.refusal(LeaseTasksRequest(agent_id=agent_id))
    assert refusal.reason_name == "STORAGE_BUSY"

    offer = await live.offer(agent_id)

    assert (offer.task.task_id, offer.attempt) == (task.task_id, 1)
    assert (await live.task(task.task_id)).state == TASK_STATE_RUNNING


async def test_a_commit_whose_answer_was_lost_stops_the_engine_rather_than_diverging(
    database_url: str, tmp_path: Path
) -> None:
    async with live_engine(database_url, tmp_path, FaultyDatabase) as live:
        faults(live).faults.append(Fault(busy(), "committed"))
        first = await live.refusal(new_task(display_name="in doubt"))
        assert first.reason_name == "STORAGE_BUSY"

        [second] = await live.together(new_task(display_name="after"))

        assert cast(KapellError, second).reason_name == "SERVER_DRAINING"
        assert [type(crash) for crash in live.crashes] == [StaleMemoryError]
        live.crashes.clear()
        await live.restart()
        assert (await live.create(display_name="next")).revision == 2
        assert await names(live) == ["in doubt", "next"]
