"""Retention of tasks: what is finished goes by age and number, and what lives is left alone."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
import sqlalchemy as sa
from kapell.v1.event_pb2 import Event, EventFilter, WatchResponse
from kapell.v1.task_pb2 import CancelTaskRequest, RetryTaskRequest
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED, WatchOptions
from kapell_server.domain.errors import KapellError
from kapell_server.engine.retention import TASK_STEP
from kapell_server.store.schema import attempts, task_contents, tasks
from kapell_server.watch.filters import for_events
from kapell_server.watch.follow import Watches

from tests.support.faulty_database import Fault, busy
from tests.support.live_engine import LiveEngine, new_task
from tests.support.watch_checker import WatchChecker

DAY = 86_400.0


async def finished(live: LiveEngine, *names: str) -> None:
    """Creates tasks and cancels them, all in one batch."""
    await live.together(*[new_task(task_id=name) for name in names])
    await live.together(*[CancelTaskRequest(task_id=name) for name in names])


async def ids(live: LiveEngine) -> set[str]:
    """All tasks there are."""
    found = await live.database.read(lambda connection: connection.scalars(sa.select(tasks.c.task_id)).all())
    return set(found)


async def test_finished_tasks_go_when_they_are_old_enough(live: LiveEngine) -> None:
    await finished(live, "task_old")
    live.clock.advance(2 * DAY)
    await finished(live, "task_young")
    await live.create("nobody", task_id="task_waits")
    live.keep(keep_tasks_for=3 * DAY)

    live.clock.advance(DAY - 1)
    await live.retention.round()
    assert await ids(live) == {"task_old", "task_young", "task_waits"}
    live.clock.advance(2)
    await live.retention.round()

    assert await ids(live) == {"task_young", "task_waits"}


async def test_a_task_goes_with_its_content_its_attempts_and_its_files(live: LiveEngine) -> None:
    agent_id = await live.register()
    task = await live.create(prompt="p", labels={"a": "b"})
    await live.complete(await live.offer(agent_id))
    live.clock.advance(DAY)
    live.keep(keep_tasks_for=DAY)

    await live.retention.round()

    def rest(connection: sa.Connection) -> list[int]:
        tables = (tasks, task_contents, attempts)
        return [connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0 for table in tables]

    assert await live.database.read(rest) == [0, 0, 0]
    assert live.files_deleted == [task.task_id]
    event = Event.FromString((await live.log())[-1].data)
    assert (event.kind, event.actor.id, event.task.labels["a"]) == (EVENT_KIND_TASK_DELETED, "retention", "b")
    with pytest.raises(KapellError, match="was not found"):
        await live.task(task.task_id)


async def test_the_tasks_that_ended_first_go_first_however_old_they_are(live: LiveEngine) -> None:
    for name in "abcd":
        await live.create("nobody", task_id=f"task_{name}")
    for name in "dbac":
        live.clock.advance(1)
        await live.call(CancelTaskRequest(task_id=f"task_{name}"))
    live.keep(keep_tasks=2)

    await live.retention.round()

    assert await ids(live) == {"task_a", "task_c"}


async def test_without_limits_everything_stays(live: LiveEngine) -> None:
    await finished(live, "task_a", "task_b")
    live.clock.advance(10_000 * DAY)
    before = live.engine.revision

    await live.retention.round()

    assert await ids(live) == {"task_a", "task_b"}
    assert [record.revision for record in await live.log()] == list(range(1, before + 1))


async def test_any_number_of_tasks_that_ended_at_one_time_goes(live: LiveEngine) -> None:
    names = [f"task_{number}" for number in range(3 * TASK_STEP + 1)]
    await finished(live, *names)
    live.clock.advance(DAY)
    live.keep(keep_tasks_for=DAY)

    await live.retention.round()

    assert await ids(live) == set()
    assert sorted(live.files_deleted) == sorted(names)


async def test_a_task_that_was_retried_does_not_go(live: LiveEngine) -> None:
    await finished(live, "task_a", "task_b")
    await live.call(RetryTaskRequest(task_id="task_a"))
    live.clock.advance(DAY)
    await finished(live, "task_c")
    live.keep(keep_tasks_for=DAY)

    await live.retention.round()

    assert await ids(live) == {"task_a", "task_c"}


async def test_a_task_that_is_needed_stays_and_holds_up_nobody(
    live: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [f"task_needed_{number}" for number in range(2 * TASK_STEP)]
    await finished(live, *needed)
    live.clock.advance(1)
    await finished(live, "task_a", "task_b")
    live.clock.advance(DAY)
    monkeypatch.setattr(
        "kapell_server.domain.tasks.retention.is_needed", lambda state, task, families: "needed" in task.task_id
    )

    live.keep(keep_tasks_for=DAY)
    await live.retention.round()

    assert await ids(live) == set(needed)


async def test_a_family_goes_when_all_of_it_has_ended(live: LiveEngine) -> None:
    await live.create("nobody", task_id="task_root")
    for name in ("task_one", "task_two"):
        await live.create("nobody", task_id=name, parent_task_id="task_root")
    await live.call(CancelTaskRequest(task_id="task_one"))
    live.clock.advance(DAY)
    live.keep(keep_tasks_for=DAY)
    await live.retention.round()
    assert await ids(live) == {"task_root", "task_one", "task_two"}

    await live.call(CancelTaskRequest(task_id="task_root", leave_children=True))
    live.clock.advance(DAY)
    await live.retention.round()
    assert await ids(live) == {"task_root", "task_one", "task_two"}, "its child lives"
    await live.call(CancelTaskRequest(task_id="task_two"))
    await live.retention.round()
    assert await ids(live) == {"task_two"}, "it has only just ended"
    live.clock.advance(DAY)
    await live.retention.round()

    assert await ids(live) == set()


async def test_a_watcher_sees_the_tasks_go(live: LiveEngine) -> None:
    checker = WatchChecker()
    watches = Watches(live.engine.ring, live.engine.reads, log_id=live.engine.log_id)
    async with aclosing(watches.follow(for_events(EventFilter()), WatchOptions(send_initial_state=True))) as stream:
        await finished(live, "task_a", "task_b", "task_c")
        live.clock.advance(DAY)
        live.keep(keep_tasks_for=DAY)
        await live.retention.round()
        while (checker.cursor or 0) < live.engine.revision:
            checker.take(WatchResponse.FromString(await anext(stream)))

    assert checker.state == {}


async def test_new_tasks_do_not_wait_until_the_old_ones_have_gone(live: LiveEngine) -> None:
    for group in range(4):
        await finished(live, *[f"task_{group}_{number}" for number in range(3 * TASK_STEP)])
    live.clock.advance(DAY)
    live.keep(keep_tasks_for=DAY)

    going = asyncio.ensure_future(live.retention.round())
    created = []
    while not going.done():
        created.append(await live.create("nobody"))

    gaps = [later.revision - earlier.revision for earlier, later in pairwise(created)]
    assert len(created) > 4
    assert max(gaps) <= 2 * TASK_STEP + 1
    assert await ids(live) == {task.task_id for task in created}


async def test_files_that_a_crash_left_behind_are_removed_after_the_start(live: LiveEngine) -> None:
    await finished(live, "task_a", "task_b")
    live.clock.advance(DAY)
    live.keep(keep_tasks_for=DAY)
    await live.retention.round()
    await live.create("nobody", task_id="task_b")
    live.files_deleted.clear()

    await live.crash()
    await live.retention.round()
    await live.retention.round()

    assert live.files_deleted == ["task_a"]


async def test_retention_goes_on_where_the_database_refused(on_sqlite: LiveEngine) -> None:
    live = on_sqlite
    await finished(live, "task_a")
    live.clock.advance(DAY)
    live.keep(keep_tasks_for=DAY)
    live.database.faults.append(Fault(busy()))  # type: ignore[attr-defined]

    with pytest.raises(KapellError):
        await live.retention.round()
    assert await ids(live) == {"task_a"}
    await live.retention.round()

    assert await ids(live) == set()
