"""Following: W1 and W2 under watchers of every pace, demotion, bookmarks, limits and ends."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import Agent, AgentFilter
from kapell.v1.error_pb2 import (
    ERROR_REASON_REVISION_COMPACTED,
    ERROR_REASON_REVISION_IN_FUTURE,
    ERROR_REASON_SERVER_DRAINING,
    ERROR_REASON_TOO_MANY_WATCHES,
)
from kapell.v1.event_pb2 import EventFilter, WatchResponse
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, Task, TaskFilter, WatchTasksResponse
from kapell.v1.watch_pb2 import (
    EVENT_KIND_AGENT_STATUS,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_DELETED,
    EVENT_KIND_TASK_PROGRESS,
    WatchOptions,
)
from kapell_server.domain.errors import KapellError
from kapell_server.watch.batches import MESSAGE_BYTES
from kapell_server.watch.filters import Filter, for_agents, for_events, for_tasks
from kapell_server.watch.follow import Watches

from tests.support.memory_log import MemoryLog
from tests.support.turns import reached
from tests.support.watch_checker import WatchChecker

EVERYTHING = for_events(EventFilter())
FROM_NOW = WatchOptions()
WITH_STATE = WatchOptions(send_initial_state=True)


def watches_of(log: MemoryLog, **settings: int) -> Watches:
    return Watches(log.ring, log, log_id=log.log_id, **settings)


def put_tasks(log: MemoryLog, count: int, *, size: int = 0) -> None:
    for number in range(count):
        log.put(EVENT_KIND_TASK_PROGRESS, Task(task_id=f"task_{number % 50}", state_reason="x" * size))


async def take(messages: AsyncIterator[bytes]) -> WatchResponse:
    return WatchResponse.FromString(await anext(messages))


async def follow_until(
    checker: WatchChecker,
    stream: AsyncGenerator[bytes, None],
    revision: int,
    *,
    pause: asyncio.Event | None = None,
) -> None:
    """Reads until `revision` was sent; with `pause`, only after it was set does it go on beyond the first message."""
    async with aclosing(stream):
        async for message in stream:
            checker.take(WatchResponse.FromString(message))
            if pause is not None:
                await pause.wait()
            if checker.cursor is not None and checker.cursor >= revision:
                return


async def test_the_first_message_is_a_bookmark_at_the_head() -> None:
    log = MemoryLog()
    put_tasks(log, 3)

    async with aclosing(watches_of(log).follow(EVERYTHING, FROM_NOW)) as stream:
        first = await take(stream)

    assert first.bookmark.revision == 3
    assert first.bookmark.log_id == "log_test"
    assert not first.bookmark.snapshot_complete


async def test_events_come_in_order_as_they_are_published() -> None:
    log = MemoryLog()
    checker = WatchChecker()
    stream = watches_of(log).follow(EVERYTHING, FROM_NOW)
    following = asyncio.ensure_future(follow_until(checker, stream, 30))
    while log.head < 30:
        put_tasks(log, 3)
        await asyncio.sleep(0)

    await following

    assert checker.revisions[-1] == 30


async def test_a_resumed_watch_misses_and_repeats_nothing() -> None:
    log = MemoryLog()
    put_tasks(log, 100)
    checker = WatchChecker()
    random_ = random.Random(7)

    watches = watches_of(log)
    cursor = 10
    while cursor < 100:
        checker.begin_stream()
        until = random_.randint(cursor + 1, 100)
        options = WatchOptions(start_after_revision=cursor, log_id="log_test")
        put_tasks(log, 1)
        await follow_until(checker, watches.follow(EVERYTHING, options), until)
        assert checker.cursor is not None
        cursor = checker.cursor

    assert checker.revisions == list(range(11, checker.revisions[-1] + 1))


async def test_watchers_of_every_pace_see_the_same_and_nobody_waits_for_the_slow() -> None:
    log = MemoryLog(ring_capacity=64)
    watches = watches_of(log)
    fast, slow, frozen = (WatchChecker() for _ in range(3))
    open_slow, open_frozen = asyncio.Event(), asyncio.Event()
    total = 2000
    runs = [
        asyncio.ensure_future(follow_until(fast, watches.follow(EVERYTHING, FROM_NOW), total)),
        asyncio.ensure_future(follow_until(slow, watches.follow(EVERYTHING, FROM_NOW), total, pause=open_slow)),
        asyncio.ensure_future(follow_until(frozen, watches.follow(EVERYTHING, FROM_NOW), total, pause=open_frozen)),
    ]
    await asyncio.sleep(0)

    for batch in range(total // 20):
        put_tasks(log, 20)
        if batch == 50:
            open_slow.set()
        await reached(lambda: runs[0].done() or fast.cursor == log.head)
    await runs[0]
    assert fast.revisions == list(range(1, total + 1))
    assert frozen.revisions == []
    assert not runs[2].done()
    open_frozen.set()
    await asyncio.gather(*runs)

    assert slow.revisions == frozen.revisions == fast.revisions
    assert log.pages_read > 0


async def test_a_watcher_level_with_the_ring_never_reads_the_store() -> None:
    log = MemoryLog()
    checker = WatchChecker()
    following = asyncio.ensure_future(follow_until(checker, watches_of(log).follow(EVERYTHING, FROM_NOW), 500))
    await asyncio.sleep(0)
    for _ in range(50):
        put_tasks(log, 10)
        await asyncio.sleep(0)

    await following

    assert log.pages_read == 0


async def test_a_watcher_behind_gets_many_events_in_few_messages() -> None:
    log = MemoryLog()
    put_tasks(log, 1000)
    checker = WatchChecker()

    options = WatchOptions(start_after_revision=1)
    await follow_until(checker, watches_of(log).follow(EVERYTHING, options), 1000)

    assert checker.messages <= 4


async def test_messages_stay_small_when_events_are_large() -> None:
    log = MemoryLog()
    put_tasks(log, 100, size=20_000)
    checker = WatchChecker()

    stream = watches_of(log).follow(EVERYTHING, WatchOptions(start_after_revision=1))
    async with aclosing(stream):
        async for message in stream:
            assert len(message) < MESSAGE_BYTES + 21_000
            checker.take(WatchResponse.FromString(message))
            if checker.cursor == 100:
                break

    assert checker.revisions == list(range(2, 101))


@pytest.mark.parametrize("seed", range(10))
async def test_a_snapshot_and_what_follows_make_the_current_state(seed: int) -> None:
    random_ = random.Random(seed)
    log = MemoryLog(ring_capacity=32)
    checker = WatchChecker()

    def change() -> None:
        if random_.random() < 0.1:
            log.put(EVENT_KIND_TASK_DELETED, Task(task_id=f"task_{random_.randint(0, 600)}"))
        elif random_.random() < 0.2:
            log.put(EVENT_KIND_AGENT_STATUS, Agent(agent_id=f"agent_{random_.randint(0, 5)}"))
        else:
            log.put(EVENT_KIND_TASK_PROGRESS, Task(task_id=f"task_{random_.randint(0, 600)}"))

    for _ in range(800):
        change()
    checker.begin_stream(snapshot=True)
    stream = watches_of(log).follow(EVERYTHING, WITH_STATE)
    async with aclosing(stream):
        async for message in stream:
            checker.take(WatchResponse.FromString(message))
            if log.head < 1000:
                change()
            elif checker.cursor == log.head:
                break

    assert checker.state == {key: record.revision for key, record in log._resources.items()}


async def test_the_snapshot_ends_with_its_bookmark_even_when_it_is_empty() -> None:
    log = MemoryLog()

    async with aclosing(watches_of(log).follow(EVERYTHING, WITH_STATE)) as stream:
        first, second = await take(stream), await take(stream)

    assert (first.bookmark.snapshot_complete, second.bookmark.snapshot_complete) == (False, True)


async def test_a_snapshot_holds_only_what_the_filter_wants() -> None:
    log = MemoryLog()
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_a", agent_type="shell"))
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_b", agent_type="other"))
    log.put(EVENT_KIND_AGENT_STATUS, Agent(agent_id="agent_a"))

    wanted = for_tasks(TaskFilter(agent_types=["shell"]))
    async with aclosing(watches_of(log).follow(wanted, WITH_STATE)) as stream:
        await anext(stream)
        snapshot = WatchTasksResponse.FromString(await anext(stream))
        complete = await take(stream)

    assert [event.task.task_id for event in snapshot.events] == ["task_a"]
    assert complete.bookmark.snapshot_complete


async def test_a_snapshot_of_one_among_many_takes_one_page() -> None:
    log = MemoryLog()
    put_tasks(log, 700)
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_one"))

    for wanted in (for_tasks(TaskFilter(task_ids=["task_one"])), for_events(EventFilter(task_ids=["task_one"]))):
        log.pages_read = 0
        async with aclosing(watches_of(log).follow(wanted, WITH_STATE)) as stream:
            await anext(stream)
            snapshot = WatchResponse.FromString(await anext(stream))
            complete = await take(stream)

        assert [event.task.task_id for event in snapshot.events] == ["task_one"]
        assert complete.bookmark.snapshot_complete
        assert log.pages_read == 1


async def test_a_filtered_watch_gets_what_matches_and_bookmarks_move_on() -> None:
    log = MemoryLog()
    wanted = for_tasks(TaskFilter(states=[TASK_STATE_QUEUED]))
    options = WatchOptions(start_after_revision=1, bookmark_interval=Duration(nanos=1))
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_a"))
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_b", state=TASK_STATE_QUEUED))
    put_tasks(log, 700)

    async with aclosing(watches_of(log).follow(wanted, options)) as stream:
        await anext(stream)
        messages = [await take(stream) for _ in range(6)]

    sent = [event.task.task_id for message in messages for event in message.events]
    assert sent == ["task_b"]
    assert messages[-1].bookmark.revision == log.head


async def test_watchers_with_equal_filters_share_one_encoded_message() -> None:
    log = MemoryLog()
    watches = watches_of(log)
    wanted: list[Filter] = [for_tasks(TaskFilter(agent_types=["x"])) for _ in range(2)]
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_0", agent_type="x"))
    log.put(EVENT_KIND_TASK_CREATED, Task(task_id="task_a", agent_type="x"))
    options = WatchOptions(start_after_revision=1)

    async with (
        aclosing(watches.follow(wanted[0], options)) as one,
        aclosing(watches.follow(wanted[1], options)) as other,
    ):
        await anext(one), await anext(other)
        first, second = await anext(one), await anext(other)

    assert first is second


async def test_a_quiet_watch_sends_bookmarks() -> None:
    log = MemoryLog()
    options = WatchOptions(bookmark_interval=Duration(nanos=1_000_000))

    async with aclosing(watches_of(log).follow(EVERYTHING, options)) as stream:
        for _ in range(3):
            assert (await take(stream)).bookmark.revision == 0


async def test_another_log_is_refused() -> None:
    log = MemoryLog()
    put_tasks(log, 5)

    with pytest.raises(KapellError) as refusal:
        await anext(watches_of(log).follow(EVERYTHING, WatchOptions(start_after_revision=3, log_id="log_old")))

    assert refusal.value.reason == ERROR_REASON_REVISION_COMPACTED
    assert refusal.value.metadata == {"oldest": "0", "current": "5", "log_id": "log_test"}


async def test_a_revision_that_does_not_exist_yet_is_refused() -> None:
    log = MemoryLog()
    put_tasks(log, 5)

    with pytest.raises(KapellError) as refusal:
        await anext(watches_of(log).follow(EVERYTHING, WatchOptions(start_after_revision=6)))

    assert refusal.value.reason == ERROR_REASON_REVISION_IN_FUTURE
    assert refusal.value.metadata == {"current": "5", "log_id": "log_test"}


async def test_a_revision_that_was_compacted_is_refused_and_the_oldest_usable_is_not() -> None:
    log = MemoryLog(ring_capacity=4)
    put_tasks(log, 20)
    log.compact(11)
    watches = watches_of(log)

    with pytest.raises(KapellError) as refusal:
        await anext(watches.follow(EVERYTHING, WatchOptions(start_after_revision=9)))

    assert refusal.value.reason == ERROR_REASON_REVISION_COMPACTED
    assert refusal.value.metadata["oldest"] == "10"
    checker = WatchChecker()
    await follow_until(checker, watches.follow(EVERYTHING, WatchOptions(start_after_revision=10)), 20)
    assert checker.revisions == list(range(11, 21))


async def test_a_watcher_that_compaction_overtook_is_told_so() -> None:
    log = MemoryLog(ring_capacity=4)
    put_tasks(log, 2)

    async with aclosing(watches_of(log).follow(EVERYTHING, WatchOptions(start_after_revision=1))) as stream:
        await anext(stream)
        put_tasks(log, 50)
        log.compact(30)
        with pytest.raises(KapellError) as refusal:
            await anext(stream)

    assert refusal.value.reason == ERROR_REASON_REVISION_COMPACTED


async def test_watches_are_counted_and_limited() -> None:
    log = MemoryLog()
    watches = watches_of(log, limit=2)
    streams = [watches.follow(EVERYTHING, FROM_NOW) for _ in range(3)]
    await anext(streams[0]), await anext(streams[1])

    with pytest.raises(KapellError) as refusal:
        await anext(streams[2])

    assert refusal.value.reason == ERROR_REASON_TOO_MANY_WATCHES
    assert refusal.value.metadata == {"limit": "2"}
    assert watches.open == 2
    for stream in streams[:2]:
        await stream.aclose()
    assert watches.open == 0


async def test_closing_the_ring_ends_every_watch_with_the_reason() -> None:
    log = MemoryLog()
    stream = watches_of(log).follow(EVERYTHING, FROM_NOW)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    log.ring.close()

    with pytest.raises(KapellError) as refusal:
        await waiting
    assert refusal.value.reason == ERROR_REASON_SERVER_DRAINING


async def test_agents_are_followed_by_the_same_engine() -> None:
    log = MemoryLog()
    put_tasks(log, 3)
    log.put(EVENT_KIND_AGENT_STATUS, Agent(agent_id="agent_a"))
    checker = WatchChecker(gapless=False)

    options = WatchOptions(start_after_revision=1)
    await follow_until(checker, watches_of(log).follow(for_agents(AgentFilter()), options), 4)

    assert checker.revisions == [4]


async def test_a_thousand_watchers_all_see_everything() -> None:
    log = MemoryLog()
    watches = watches_of(log)
    checkers = [WatchChecker() for _ in range(1000)]
    runs = [
        asyncio.ensure_future(follow_until(checker, watches.follow(EVERYTHING, FROM_NOW), 20)) for checker in checkers
    ]
    await reached(lambda: log.ring.waiting == 1000)

    for _ in range(20):
        put_tasks(log, 1)
        await asyncio.sleep(0)
    await asyncio.gather(*runs)

    assert all(checker.revisions == list(range(1, 21)) for checker in checkers)
    messages = list(itertools.chain(checker.messages for checker in checkers))
    assert sum(messages) < 1000 * 20
