"""The ring: what it keeps, who it wakes and when."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from kapell.v1.error_pb2 import ERROR_REASON_SERVER_DRAINING
from kapell.v1.queue_pb2 import ConcurrencyLimit, Queue
from kapell.v1.secret_pb2 import Secret
from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_PROGRESS
from kapell_server.domain.errors import KapellError
from kapell_server.store.record import Record
from kapell_server.watch.ring import Ring

LONG = 30.0
AT_ONCE = 0.0


def record(revision: int, task_id: str = "task_a", size: int = 10) -> Record:
    task = Task(task_id=task_id, revision=revision)
    return Record(revision, EVENT_KIND_TASK_PROGRESS, task_id, task, b"x" * size)


def revisions(records: list[Record] | None) -> list[int]:
    assert records is not None
    return [each.revision for each in records]


def test_records_are_read_in_order_from_any_cursor() -> None:
    ring = Ring(revision=100)

    ring.publish([record(101), record(102), record(103)])

    assert revisions(ring.after(100, 10)) == [101, 102, 103]
    assert revisions(ring.after(101, 1)) == [102]
    assert revisions(ring.after(103, 10)) == []
    assert (ring.oldest, ring.head) == (101, 103)


def test_an_empty_ring_serves_only_those_who_are_level() -> None:
    ring = Ring(revision=7)

    assert ring.after(7, 10) == []
    assert ring.after(6, 10) is None


def test_a_cursor_behind_the_ring_is_sent_to_the_log() -> None:
    ring = Ring(revision=0, capacity=4)

    ring.publish([record(n) for n in range(1, 11)])

    assert ring.oldest == 7
    assert ring.after(5, 10) is None
    assert revisions(ring.after(6, 10)) == [7, 8, 9, 10]


@pytest.mark.parametrize("cursor", range(6, 10))
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_reading_across_the_seam_keeps_order(cursor: int, limit: int) -> None:
    ring = Ring(revision=0, capacity=4)
    ring.publish([record(n) for n in range(1, 11)])

    found = revisions(ring.after(cursor, limit))

    assert found == list(range(cursor + 1, 11))[:limit]


def test_bytes_are_bounded_but_the_newest_record_stays() -> None:
    ring = Ring(revision=0, max_bytes=100)

    ring.publish([record(1, size=40), record(2, size=40), record(3, size=40)])
    assert ring.oldest == 2
    ring.publish([record(4, size=500)])

    assert (ring.oldest, ring.head) == (4, 4)


def test_a_gap_in_the_revisions_is_a_defect() -> None:
    ring = Ring(revision=1)

    with pytest.raises(AssertionError, match="revision 3 after 1"):
        ring.publish([record(3)])


async def test_a_waiter_is_woken_by_the_next_publish() -> None:
    ring = Ring(revision=0)
    waiting = asyncio.ensure_future(ring.wait_beyond(0, LONG))
    await asyncio.sleep(0)

    ring.publish([record(1)])

    assert await waiting is True
    assert ring.waiting == 0


async def test_waiting_for_what_is_there_returns_at_once() -> None:
    ring = Ring(revision=0)
    ring.publish([record(1)])

    assert await ring.wait_beyond(0, LONG) is True


async def test_waiting_in_vain_ends_with_false() -> None:
    ring = Ring(revision=0)

    assert await ring.wait_beyond(0, AT_ONCE) is False


async def test_one_publish_wakes_a_thousand_and_a_cancelled_one_hurts_none() -> None:
    ring = Ring(revision=0)
    waiting = [asyncio.ensure_future(ring.wait_beyond(0, LONG)) for _ in range(1000)]
    await asyncio.sleep(0)

    waiting[500].cancel()
    ring.publish([record(1)])
    told = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(told.pop(500), asyncio.CancelledError)
    assert told == [True] * 999


async def test_publishes_during_a_wave_are_told_together() -> None:
    ring = Ring(revision=0)
    wakes = 0

    async def follow(until: int) -> None:
        nonlocal wakes
        cursor = 0
        while cursor < until:
            await ring.wait_beyond(cursor, LONG)
            wakes += 1
            found = ring.after(cursor, 1000)
            assert found
            cursor = found[-1].revision

    followers = [asyncio.ensure_future(follow(200)) for _ in range(100)]
    await asyncio.sleep(0)
    for revision in range(1, 201):
        ring.publish([record(revision)])
        await asyncio.sleep(0)
    await asyncio.gather(*followers)

    assert wakes < 100 * 200 / 5


async def test_a_wave_lets_others_run_between_its_turns() -> None:
    ring = Ring(revision=0)
    woken = 0

    async def follow() -> None:
        nonlocal woken
        await ring.wait_beyond(0, LONG)
        woken += 1

    followers = [asyncio.ensure_future(follow()) for _ in range(500)]
    await asyncio.sleep(0)
    ring.publish([record(1)])
    seen = []
    while woken < 500:
        await asyncio.sleep(0)
        seen.append(woken)
    await asyncio.gather(*followers)

    steps = [later - earlier for earlier, later in itertools.pairwise(seen)]
    assert max(steps) <= 32


async def test_a_reader_that_saw_more_than_was_told_is_not_woken_for_it() -> None:
    ring = Ring(revision=0)
    ring.publish([record(1), record(2)])
    waiting = asyncio.ensure_future(ring.wait_beyond(2, LONG))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()

    ring.publish([record(3)])

    assert await waiting is True


async def test_records_published_before_anyone_waited_are_told() -> None:
    ring = Ring(revision=0)
    ring.publish([record(1)])
    ring.publish([record(2)])

    assert await ring.wait_beyond(1, LONG) is True


async def test_waiting_for_one_resource_ignores_all_others() -> None:
    ring = Ring(revision=0)
    waiting = asyncio.ensure_future(ring.wait_resource("task_a", 0, LONG))
    await asyncio.sleep(0)

    ring.publish([record(1, "task_b")])
    await asyncio.sleep(0)
    assert not waiting.done()
    ring.publish([record(2, "task_a")])

    found = await waiting
    assert found is not None
    assert found.revision == 2


@pytest.mark.parametrize(
    "other", [ConcurrencyLimit(key="task_a"), Queue(agent_type="task_a"), Secret(name="task_a")], ids=str
)
async def test_what_people_name_like_a_task_is_not_taken_for_it(other: ConcurrencyLimit | Queue | Secret) -> None:
    ring = Ring(revision=1)
    waiting = asyncio.ensure_future(ring.wait_resource("task_a", 1, LONG))
    await asyncio.sleep(0)

    other.revision = 2
    ring.publish([Record(2, EVENT_KIND_TASK_PROGRESS, "task_a", other, b"x")])
    assert await ring.wait_resource("task_a", 1, AT_ONCE) is None
    ring.publish([record(3, "task_a")])

    found = await waiting
    assert found is not None
    assert found.revision == 3


async def test_a_change_between_reading_and_waiting_is_not_missed() -> None:
    ring = Ring(revision=5)
    ring.publish([record(6, "task_a"), record(7, "task_a"), record(8, "task_b")])

    found = await ring.wait_resource("task_a", 5, LONG)

    assert found is not None
    assert found.revision == 7


async def test_waiting_for_a_resource_in_vain_ends_with_none_and_leaves_nothing_behind() -> None:
    ring = Ring(revision=0)

    assert await ring.wait_resource("task_a", 0, AT_ONCE) is None
    assert not ring._resource_waiters


async def test_a_resource_that_left_the_ring_is_forgotten() -> None:
    ring = Ring(revision=0, capacity=2)
    ring.publish([record(1, "task_a"), record(2, "task_b"), record(3, "task_c")])

    assert await ring.wait_resource("task_a", 0, AT_ONCE) is None
    assert set(ring._latest) == {"task_b", "task_c"}


async def test_all_waiters_of_a_resource_get_its_change() -> None:
    ring = Ring(revision=0)
    waiting = [asyncio.ensure_future(ring.wait_resource("task_a", 0, LONG)) for _ in range(3)]
    await asyncio.sleep(0)

    waiting[1].cancel()
    await asyncio.sleep(0)
    ring.publish([record(1, "task_a")])

    first, _, third = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(first, Record)
    assert first is third


async def test_closing_wakes_everybody_with_the_reason() -> None:
    ring = Ring(revision=0)
    ring.publish([record(1)])
    waiting = [
        asyncio.ensure_future(ring.wait_beyond(1, LONG)),
        asyncio.ensure_future(ring.wait_resource("task_a", 1, LONG)),
    ]
    await asyncio.sleep(0)

    ring.close()
    refused = await asyncio.gather(*waiting, ring.wait_beyond(0, LONG), return_exceptions=True)

    reasons = [error.reason for error in refused if isinstance(error, KapellError)]
    assert reasons == [ERROR_REASON_SERVER_DRAINING] * 3
    assert revisions(ring.after(0, 10)) == [1]
