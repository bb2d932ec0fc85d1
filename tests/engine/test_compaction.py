"""Compaction of the log: by age, by number and when asked; what is kept has no gap, who is behind is told."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from kapell.v1.admin_pb2 import CompactEventsRequest
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.event_pb2 import EventFilter, ListEventsRequest, ListEventsResponse, WatchResponse
from kapell.v1.task_pb2 import CancelTaskRequest, RetryTaskRequest
from kapell.v1.watch_pb2 import WatchOptions
from kapell_server.domain.errors import KapellError
from kapell_server.engine.retention import EVENT_STEP
from kapell_server.store.retention import drop_events
from kapell_server.store.schema import events
from kapell_server.watch.filters import for_events
from kapell_server.watch.follow import Watches

from tests.support.faulty_database import Fault, busy
from tests.support.live_engine import LiveEngine, new_task
from tests.support.watch_checker import WatchChecker


async def revisions(live: LiveEngine) -> list[int]:
    """What the log still holds, rows that were compacted but not removed included."""
    statement = sa.select(events.c.revision).order_by(events.c.revision)
    return list(await live.database.read(lambda connection: connection.scalars(statement).all()))


async def oldest(live: LiveEngine) -> int:
    return (await live.engine.reads.log_info()).oldest_revision


async def some_events(live: LiveEngine, count: int) -> None:
    """Appends so many events, one a second."""
    for _ in range(count):
        live.clock.advance(1)
        await live.create("nobody")


async def test_the_newest_events_are_kept_by_number(live: LiveEngine) -> None:
    await some_events(live, 10)
    live.keep(keep_events=3)

    await live.retention.round()

    assert await revisions(live) == [8, 9, 10]
    assert await oldest(live) == 7


async def test_events_are_kept_by_age(live: LiveEngine) -> None:
    await some_events(live, 10)
    live.clock.advance(5)
    live.keep(keep_events_for=8)

    await live.retention.round()

    assert await revisions(live) == [7, 8, 9, 10]


async def test_the_newest_event_stays_so_that_revisions_go_on(live: LiveEngine) -> None:
    await some_events(live, 5)
    live.clock.advance(100)
    live.keep(keep_events_for=1, keep_events=1)
    await live.retention.round()
    assert await revisions(live) == [5]

    await live.restart()

    assert await oldest(live) == 4
    assert (await live.create()).revision == 6


async def test_many_events_go_in_steps(live: LiveEngine) -> None:
    for _ in range(5):
        await live.together(*[new_task("nobody") for _ in range(EVENT_STEP // 2)])
    before = live.engine.revision
    live.keep(keep_events=10)

    await live.retention.round()

    assert await revisions(live) == list(range(before - 9, before + 1))


async def test_a_crash_between_steps_leaves_no_gap_and_the_rest_goes_later(live: LiveEngine) -> None:
    await some_events(live, 20)
    await live.call(CompactEventsRequest(before_revision=16))
    for _ in range(2):
        assert await live.database.write(partial(drop_events, limit=3)) == 3

    await live.crash()

    assert await revisions(live) == list(range(7, 21))
    assert await oldest(live) == 15
    live.keep()
    await live.retention.round()
    assert await revisions(live) == [16, 17, 18, 19, 20]


# -- CompactEvents -------------------------------------------------------------------------------


async def test_compacting_is_in_force_at_once(live: LiveEngine) -> None:
    await some_events(live, 10)

    answer = await live.call(CompactEventsRequest(before_revision=5))

    assert (answer.oldest_revision, answer.revision) == (4, 10)
    assert await oldest(live) == 4
    assert len(await revisions(live)) == 10, "the rows go later"
    assert await listed(live) == [10, 9, 8, 7, 6, 5]
    assert await listed(live, order=LIST_ORDER_OLDEST_FIRST) == [5, 6, 7, 8, 9, 10]


async def test_compacting_by_age(live: LiveEngine) -> None:
    await some_events(live, 10)

    assert (await live.call(CompactEventsRequest(older_than=Duration(seconds=6)))).oldest_revision == 3
    assert (await live.call(CompactEventsRequest(older_than=Duration(seconds=60)))).oldest_revision == 3
    live.clock.advance(1)
    assert (await live.call(CompactEventsRequest(older_than=Duration()))).oldest_revision == 9


async def test_what_was_compacted_does_not_come_back(live: LiveEngine) -> None:
    await some_events(live, 10)
    await live.call(CompactEventsRequest(before_revision=8))

    assert (await live.call(CompactEventsRequest(before_revision=2))).oldest_revision == 7


async def test_a_repeat_gets_the_first_answer(live: LiveEngine) -> None:
    await some_events(live, 10)
    request = CompactEventsRequest(before_revision=5, request_id="r1")
    first = await live.call(request)
    await live.call(CompactEventsRequest(before_revision=8))

    again = await live.call(request)

    assert (again.oldest_revision, again.replayed, first.replayed) == (4, True, False)
    assert await oldest(live) == 7


async def test_a_revision_of_the_future_is_refused(live: LiveEngine) -> None:
    await some_events(live, 3)

    refusal = await live.refusal(CompactEventsRequest(before_revision=4))

    assert refusal.reason_name == "REVISION_IN_FUTURE"
    assert refusal.metadata == {"current": "3", "log_id": live.engine.log_id}
    assert (await live.call(CompactEventsRequest(before_revision=3))).oldest_revision == 2


async def test_compacting_that_could_not_be_written_has_not_happened(on_sqlite: LiveEngine) -> None:
    live = on_sqlite
    await some_events(live, 3)
    live.database.faults.append(Fault(busy()))  # type: ignore[attr-defined]

    assert (await live.refusal(CompactEventsRequest(before_revision=3))).reason_name == "STORAGE_BUSY"

    assert await oldest(live) == 0
    assert (await live.call(CompactEventsRequest(before_revision=2))).oldest_revision == 1


# -- reading behind it ---------------------------------------------------------------------------


async def listed(live: LiveEngine, **request: int) -> list[int]:
    """The revisions of a list, page by page."""
    found: list[int] = []
    token = ""
    while True:
        page = await events_page(live, page_size=2, page_token=token, **request)
        found += [event.revision for event in page.events]
        token = page.next_page_token
        if not token:
            return found


async def events_page(live: LiveEngine, **request: object) -> ListEventsResponse:
    answer = await live.engine.reads.list_events(ListEventsRequest(**request))  # type: ignore[arg-type]
    return ListEventsResponse.FromString(answer)


async def test_a_list_that_compaction_overtook_is_refused_where_it_would_have_a_gap(live: LiveEngine) -> None:
    await some_events(live, 10)
    oldest_first = await events_page(live, page_size=2, order=LIST_ORDER_OLDEST_FIRST)
    newest_first = await events_page(live, page_size=2)
    await live.call(CompactEventsRequest(before_revision=8))

    with pytest.raises(KapellError) as caught:
        await events_page(live, order=LIST_ORDER_OLDEST_FIRST, page_token=oldest_first.next_page_token)

    assert caught.value.reason_name == "REVISION_COMPACTED"
    assert caught.value.metadata == {"oldest": "7", "current": "10", "log_id": live.engine.log_id}
    rest = await events_page(live, page_token=newest_first.next_page_token)
    assert [event.revision for event in rest.events] == [8]
    assert rest.next_page_token == ""


async def test_the_history_of_a_resource_ends_where_the_log_does(live: LiveEngine) -> None:
    await live.create("nobody", task_id="task_a")
    for _ in range(3):
        await live.call(CancelTaskRequest(task_id="task_a"))
        await live.call(RetryTaskRequest(task_id="task_a"))
    wanted = EventFilter(task_ids=["task_a"])
    first = await events_page(live, filter=wanted, page_size=2)
    assert [event.revision for event in first.events] == [7, 6]

    await live.call(CompactEventsRequest(before_revision=4))
    for _ in range(2):
        rest = await events_page(live, filter=wanted, page_token=first.next_page_token)
        assert [event.revision for event in rest.events] == [5, 4]
        assert rest.next_page_token == ""
        live.keep()
        await live.retention.round()

    await some_events(live, 3)
    await live.call(CompactEventsRequest(before_revision=9))
    await live.retention.round()
    assert (await events_page(live, filter=wanted)).events == []
    assert (await live.task("task_a")).revision == 7


async def test_a_watch_begins_where_the_log_does_and_not_before(live: LiveEngine) -> None:
    await some_events(live, 10)
    await live.call(CompactEventsRequest(before_revision=8))
    watches = Watches(live.engine.ring, live.engine.reads, log_id=live.engine.log_id)

    for start in (1, 6):
        with pytest.raises(KapellError) as caught:
            await anext(watches.follow(for_events(EventFilter()), WatchOptions(start_after_revision=start)))
        assert caught.value.reason_name == "REVISION_COMPACTED"
        assert caught.value.metadata == {"oldest": "7", "current": "10", "log_id": live.engine.log_id}
    beginning = WatchOptions(log_id=live.engine.log_id)
    with pytest.raises(KapellError):
        await anext(watches.follow(for_events(EventFilter()), beginning))

    checker = WatchChecker()
    options = WatchOptions(start_after_revision=7)
    async with aclosing(watches.follow(for_events(EventFilter()), options)) as stream:
        while (checker.cursor or 0) < 10:
            checker.take(WatchResponse.FromString(await anext(stream)))
    assert checker.revisions == [8, 9, 10]


async def test_a_watcher_that_reads_the_log_is_told_when_compaction_overtakes_it(
    live: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapell_server.watch.cursor.READ_LIMIT", 3)
    await some_events(live, 20)
    await live.restart()  # so that the ring is empty
    watches = Watches(live.engine.ring, live.engine.reads, log_id=live.engine.log_id)
    checker = WatchChecker()

    options = WatchOptions(start_after_revision=2)
    with pytest.raises(KapellError) as caught:
        async with aclosing(watches.follow(for_events(EventFilter()), options)) as stream:
            while True:
                checker.take(WatchResponse.FromString(await anext(stream)))
                if checker.cursor == 8:
                    await live.call(CompactEventsRequest(before_revision=15))
                    live.keep()
                    await live.retention.round()

    assert caught.value.reason_name == "REVISION_COMPACTED"
    assert caught.value.metadata["oldest"] == "14"
    assert checker.revisions == [3, 4, 5, 6, 7, 8]
