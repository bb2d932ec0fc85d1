"""Lists: pages in both orders, filters, tokens that belong to one list, windows on rare matches."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    AgentFilter,
    DrainAgentRequest,
    ListAgentsRequest,
)
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST, ListOrder
from kapell.v1.event_pb2 import EventFilter, ListEventsRequest, ListEventsResponse
from kapell.v1.queue_pb2 import ConcurrencyLimit, SetConcurrencyLimitRequest
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_QUEUED,
    CancelTaskRequest,
    CountTasksRequest,
    DeleteTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    Task,
    TaskFilter,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_LIMIT_UPDATED,
    EVENT_KIND_TASK_CANCELLED,
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_DELETED,
)
from kapell.v1.worker_pb2 import RegisterWorkerRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import timestamp_ns

from tests.support.live_engine import LiveEngine, new_task

NEWEST, OLDEST = LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST


async def page(live: LiveEngine, **request: Any) -> ListTasksResponse:
    return ListTasksResponse.FromString(await live.engine.reads.list_tasks(ListTasksRequest(**request)))


async def names(live: LiveEngine, **request: Any) -> list[str]:
    """The names of all tasks of a list, page by page."""
    found: list[str] = []
    token = ""
    while True:
        answer = await page(live, page_token=token, **request)
        found += [task.display_name for task in answer.tasks]
        token = answer.next_page_token
        if not token:
            return found


@pytest.fixture
async def seven(live: LiveEngine) -> AsyncIterator[LiveEngine]:
    """Seven tasks a to g in order of creation; c and e are cancelled, even ones labelled."""
    for index, name in enumerate("abcdefg"):
        live.clock.advance(1)
        await live.create(
            "shell" if name < "f" else "python",
            task_id=f"task_{name}",
            display_name=name,
            labels={"even": "yes"} if index % 2 else {"even": "no"},
        )
    await live.together(CancelTaskRequest(task_id="task_c"), CancelTaskRequest(task_id="task_e"))
    yield live


async def test_pages_of_every_size_join_to_the_whole_list(seven: LiveEngine) -> None:
    for order, expected in ((0, "gfedcba"), (NEWEST, "gfedcba"), (OLDEST, "abcdefg")):
        for size in (0, 1, 2, 3, 7, 8, 1000):
            assert "".join(await names(seven, order=order, page_size=size)) == expected, (order, size)


async def test_a_full_last_page_has_no_next_one(seven: LiveEngine) -> None:
    assert (await page(seven, page_size=7)).next_page_token == ""
    assert (await page(seven, page_size=6)).next_page_token != ""


async def test_a_page_tells_the_revision_it_was_read_at(seven: LiveEngine) -> None:
    assert (await page(seven, page_size=1)).revision == seven.engine.revision == 9


async def test_lists_carry_no_content(live: LiveEngine) -> None:
    await live.create(prompt="long text")

    [task] = (await page(live)).tasks

    assert (task.prompt, task.content_bytes) == ("", 11)


async def test_what_is_created_between_pages_does_not_move_them(seven: LiveEngine) -> None:
    first = await page(seven, page_size=3)
    await seven.create(display_name="h")

    second = await page(seven, page_size=4, page_token=first.next_page_token)

    assert [task.display_name for task in second.tasks] == list("dcba")


async def test_what_is_deleted_between_pages_does_not_move_them(seven: LiveEngine) -> None:
    first = await page(seven, page_size=3)
    assert [task.display_name for task in first.tasks] == list("gfe")
    await seven.call(DeleteTaskRequest(task_id="task_e"))

    second = await page(seven, page_size=4, page_token=first.next_page_token)

    assert [task.display_name for task in second.tasks] == list("dcba")


FILTERS: dict[str, tuple[Callable[[Task], TaskFilter], str]] = {
    "everything": (lambda d: TaskFilter(), "abcdefg"),
    "a state": (lambda d: TaskFilter(states=[TASK_STATE_CANCELLED]), "ce"),
    "some states": (lambda d: TaskFilter(states=[TASK_STATE_CANCELLED, TASK_STATE_QUEUED]), "abcdefg"),
    "ids": (lambda d: TaskFilter(task_ids=["task_g", "task_a", "task_unknown"]), "ag"),
    "a type": (lambda d: TaskFilter(agent_types=["python"]), "fg"),
    "some types": (lambda d: TaskFilter(agent_types=["python", "shell"]), "abcdefg"),
    "a label": (lambda d: TaskFilter(labels={"even": "yes"}), "bdf"),
    "a label with another value": (lambda d: TaskFilter(labels={"even": "maybe"}), ""),
    "an unknown label": (lambda d: TaskFilter(labels={"odd": ""}), ""),
    "created at or after": (lambda d: TaskFilter(created_after_time=d.create_time), "defg"),
    "created before": (lambda d: TaskFilter(created_before_time=d.create_time), "abc"),
    "all of it at once": (
        lambda d: TaskFilter(
            states=[TASK_STATE_QUEUED], agent_types=["shell"], labels={"even": "yes"}, created_before_time=d.create_time
        ),
        "b",
    ),
}


async def test_a_filter_keeps_what_matches(seven: LiveEngine) -> None:
    d = await seven.task("task_d")
    for name, (make, expected) in FILTERS.items():
        assert "".join(await names(seven, filter=make(d), order=OLDEST, page_size=2)) == expected, name
        assert "".join(await names(seven, filter=make(d), page_size=1)) == expected[::-1], name


async def test_a_rare_label_is_looked_for_in_windows(seven: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapell_server.store.listing.SCAN_ROWS", 2)
    monkeypatch.setattr("kapell_server.store.listing.WINDOW", 2)
    wanted = TaskFilter(labels={"even": "yes"})

    pages = [await page(seven, filter=wanted, order=OLDEST)]
    while pages[-1].next_page_token:
        pages.append(await page(seven, filter=wanted, order=OLDEST, page_token=pages[-1].next_page_token))

    assert ["".join(task.display_name for task in one.tasks) for one in pages] == ["b", "d", "f", ""]


async def test_no_filter_loses_or_repeats_a_row_however_small_the_windows(
    seven: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = await seven.task("task_d")
    for budget, window in ((1, 1), (2, 1), (3, 2), (5, 3)):
        monkeypatch.setattr("kapell_server.store.listing.SCAN_ROWS", budget)
        monkeypatch.setattr("kapell_server.store.listing.WINDOW", window)
        for name, (make, expected) in FILTERS.items():
            for size in (1, 2, 50):
                found = await names(seven, filter=make(d), order=OLDEST, page_size=size)
                assert "".join(found) == expected, (name, budget, size)
                found = await names(seven, filter=make(d), page_size=size)
                assert "".join(found) == expected[::-1], (name, budget, size)


async def test_what_no_index_serves_is_looked_for_in_windows(
    seven: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kapell_server.store.listing.SCAN_ROWS", 3)
    monkeypatch.setattr("kapell_server.store.listing.WINDOW", 2)
    g = await seven.task("task_g")
    for wanted in (TaskFilter(agent_types=["cobol"]), TaskFilter(created_after_time=Timestamp(seconds=1 << 33))):
        pages = [await page(seven, filter=wanted)]
        while pages[-1].next_page_token:
            pages.append(await page(seven, filter=wanted, page_token=pages[-1].next_page_token))

        assert [len(one.tasks) for one in pages] == [0, 0, 0], "seven tasks, three looked at for each page"
    by_index = [TaskFilter(states=[TASK_STATE_CANCELLED]), TaskFilter(task_ids=[g.task_id])]
    for wanted in by_index:
        assert (await page(seven, filter=wanted)).next_page_token == ""


@pytest.mark.parametrize(
    "filters", [{}, {"states": [TASK_STATE_QUEUED, TASK_STATE_CANCELLED]}, {"labels": {"even": "no"}}]
)
async def test_a_page_ends_where_its_rows_are_long(
    seven: LiveEngine, monkeypatch: pytest.MonkeyPatch, filters: dict[str, Any]
) -> None:
    wanted = TaskFilter(**filters)
    everything = (await page(seven, filter=wanted)).tasks
    two = max(task.ByteSize() for task in everything) * 2

    for most, count in ((1, 1), (two, 2), (1024 * 1024, len(everything))):
        monkeypatch.setattr("kapell_server.store.listing.ANSWER_BYTES", most)
        assert len((await page(seven, filter=wanted)).tasks) == count
        assert await names(seven, filter=wanted) == [task.display_name for task in everything]
        assert await names(seven, filter=wanted, page_size=1) == [task.display_name for task in everything]


async def test_a_token_belongs_to_one_filter_and_order(seven: LiveEngine) -> None:
    token = (await page(seven, order=OLDEST, page_size=2)).next_page_token
    others: list[dict[str, Any]] = [
        {"order": NEWEST},
        {"order": OLDEST, "filter": TaskFilter(agent_types=["shell"])},
        {"order": OLDEST, "filter": TaskFilter(labels={"a": "b"})},
    ]

    for other in others:
        with pytest.raises(KapellError, match="another filter or order") as caught:
            await page(seven, page_token=token, **other)
        assert caught.value.reason_name == "PAGE_TOKEN_INVALID"


async def test_a_token_may_be_used_with_another_size(seven: LiveEngine) -> None:
    token = (await page(seven, order=OLDEST, page_size=2)).next_page_token

    found = await page(seven, order=OLDEST, page_size=5, page_token=token)

    assert [task.display_name for task in found.tasks] == list("cdefg")


async def test_a_damaged_token_is_refused(live: LiveEngine) -> None:
    for token in ("x", "????", "AAAA", "é", base64.urlsafe_b64encode(b"x" * 17).decode(), " " * 22):
        with pytest.raises(KapellError) as caught:
            await page(live, page_token=token)
        assert caught.value.reason_name == "PAGE_TOKEN_INVALID"


async def test_counts_are_by_state(seven: LiveEngine) -> None:
    answer = await seven.engine.reads.count_tasks(CountTasksRequest())

    assert [(one.state, one.count) for one in answer.counts] == [(TASK_STATE_QUEUED, 5), (TASK_STATE_CANCELLED, 2)]
    assert answer.revision == 9


async def test_counts_take_filters(seven: LiveEngine) -> None:
    wanted = TaskFilter(agent_types=["shell"], states=[TASK_STATE_QUEUED])

    answer = await seven.engine.reads.count_tasks(CountTasksRequest(filter=wanted))

    assert [(one.state, one.count) for one in answer.counts] == [(TASK_STATE_QUEUED, 3)]


# -- agents --------------------------------------------------------------------------------------


@pytest.fixture
async def agents(live: LiveEngine) -> AsyncIterator[tuple[LiveEngine, dict[str, str]]]:
    """Three agents by name; the second is draining."""
    ids = {}
    for name, types in (("a", ["shell"]), ("b", ["shell", "python"]), ("c", ["python"])):
        live.clock.advance(1)
        request = RegisterWorkerRequest(
            instance_key=f"process-{name}", display_name=name, agent_types=types, labels={"name": name}
        )
        ids[name] = (await live.call(request)).agent.agent_id
    await live.call(DrainAgentRequest(agent_id=ids["b"]))
    yield live, ids


async def agent_names(live: LiveEngine, **request: Any) -> str:
    answer = await live.engine.reads.list_agents(ListAgentsRequest(**request))
    return "".join(agent.display_name for agent in answer.agents)


async def test_agents_are_listed_by_filter(agents: tuple[LiveEngine, dict[str, str]]) -> None:
    live, ids = agents

    assert await agent_names(live) == "cba"
    assert await agent_names(live, order=OLDEST) == "abc"
    assert await agent_names(live, filter=AgentFilter(states=[AGENT_STATE_DRAINING])) == "b"
    assert await agent_names(live, filter=AgentFilter(states=[AGENT_STATE_ACTIVE], agent_types=["shell"])) == "a"
    assert await agent_names(live, filter=AgentFilter(agent_ids=[ids["a"], ids["c"]])) == "ca"
    assert await agent_names(live, filter=AgentFilter(labels={"name": "c"})) == "c"
    assert await agent_names(live, filter=AgentFilter(agent_types=["cobol"])) == ""


async def test_agents_are_listed_with_the_time_they_were_last_heard_of(
    agents: tuple[LiveEngine, dict[str, str]],
) -> None:
    live, ids = agents
    await live.spawn("agent_never")
    live.clock.advance(1)
    await live.beat(ids["a"])

    answer = await live.engine.reads.list_agents(ListAgentsRequest(order=OLDEST, page_size=2))
    rest = await live.engine.reads.list_agents(
        ListAgentsRequest(order=OLDEST, page_size=2, page_token=answer.next_page_token)
    )

    a, b = answer.agents
    assert timestamp_ns(a.last_heartbeat_time) == live.clock.now_ns()
    assert timestamp_ns(b.last_heartbeat_time) < timestamp_ns(a.last_heartbeat_time)
    assert (await live.agent(ids["a"])).last_heartbeat_time == a.last_heartbeat_time
    assert not rest.agents[1].HasField("last_heartbeat_time")
    assert not (await live.agent("agent_never")).HasField("last_heartbeat_time")


async def test_a_token_of_tasks_is_none_of_agents(seven: LiveEngine) -> None:
    token = (await page(seven, page_size=2)).next_page_token

    with pytest.raises(KapellError, match="another filter"):
        await seven.engine.reads.list_agents(ListAgentsRequest(page_token=token))


# -- events --------------------------------------------------------------------------------------


async def revisions(live: LiveEngine, **request: Any) -> list[int]:
    """The revisions of all events of a list, page by page."""
    found: list[int] = []
    token = ""
    while True:
        encoded = await live.engine.reads.list_events(ListEventsRequest(page_token=token, **request))
        answer = ListEventsResponse.FromString(encoded)
        found += [event.revision for event in answer.events]
        token = answer.next_page_token
        if not token:
            return found


async def test_events_are_listed_by_filter(seven: LiveEngine) -> None:
    for size in (1, 2, 3, 50):
        await check_events(seven, size)


@pytest.mark.parametrize("order", [NEWEST, OLDEST])
async def test_events_of_a_resource_are_none_of_another_with_its_id(
    live: LiveEngine, order: ListOrder.ValueType
) -> None:
    await live.create(task_id="task_a")
    await live.call(SetConcurrencyLimitRequest(limit=ConcurrencyLimit(key="task_a", max_running=2)))
    await live.call(CancelTaskRequest(task_id="task_a"))
    await live.call(DeleteTaskRequest(task_id="task_a"))
    wanted = EventFilter(task_ids=["task_a"])

    encoded = await live.engine.reads.list_events(ListEventsRequest(filter=wanted, order=order))

    kinds = [event.kind for event in ListEventsResponse.FromString(encoded).events]
    assert sorted(kinds) == [EVENT_KIND_TASK_CREATED, EVENT_KIND_TASK_CANCELLED, EVENT_KIND_TASK_DELETED]
    other = EventFilter(task_ids=["task_a"], kinds=[EVENT_KIND_LIMIT_UPDATED])
    assert await revisions(live, filter=other, order=order) == []


async def test_a_page_of_events_ends_where_they_are_long(seven: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (1, 700):
        monkeypatch.setattr("kapell_server.store.listing.ANSWER_BYTES", most)
        monkeypatch.setattr("kapell_server.store.queries.ANSWER_BYTES", most)
        await check_events(seven, 50)
    for wanted in (EventFilter(), EventFilter(task_ids=["task_c"])):
        monkeypatch.setattr("kapell_server.store.listing.ANSWER_BYTES", 1)
        monkeypatch.setattr("kapell_server.store.queries.ANSWER_BYTES", 1)
        encoded = await seven.engine.reads.list_events(ListEventsRequest(filter=wanted))
        assert len(ListEventsResponse.FromString(encoded).events) == 1


async def check_events(seven: LiveEngine, size: int) -> None:
    async def found(**wanted: Any) -> list[int]:
        return await revisions(seven, page_size=size, filter=EventFilter(**wanted))

    assert await found() == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert await revisions(seven, page_size=size, order=OLDEST) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert await found(kinds=[EVENT_KIND_TASK_CANCELLED]) == [9, 8]
    assert await found(task_ids=["task_c"]) == [8, 3]
    assert await found(task_ids=["task_c"], kinds=[EVENT_KIND_TASK_CREATED]) == [3]
    assert await found(task_ids=["task_c"], labels={"even": "no"}) == [8, 3]
    assert await found(task_ids=["task_c"], labels={"even": "yes"}) == []
    assert await found(task_ids=["task_c", "task_d"]) == [8, 4, 3]
    assert await found(task_ids=["task_unknown"]) == []
    assert await found(task_ids=["task_c"], agent_ids=["agent_a"]) == []
    assert await found(labels={"even": "yes"}) == [6, 4, 2]
    assert await revisions(seven, page_size=size, order=OLDEST, filter=EventFilter(task_ids=["task_c"])) == [3, 8]


async def test_the_history_of_a_deleted_task_can_still_be_read(seven: LiveEngine) -> None:
    await seven.call(DeleteTaskRequest(task_id="task_c"))

    assert await revisions(seven, filter=EventFilter(task_ids=["task_c"]), page_size=1) == [10, 8, 3]


async def test_no_filter_of_events_loses_or_repeats_one_however_small_the_windows(
    seven: LiveEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seven.call(DeleteTaskRequest(task_id="task_c"))
    for budget, window in ((1, 1), (2, 1), (3, 2), (20, 3)):
        monkeypatch.setattr("kapell_server.store.listing.SCAN_ROWS", budget)
        monkeypatch.setattr("kapell_server.store.listing.WINDOW", window)
        monkeypatch.setattr("kapell_server.store.queries._CHAIN_STEPS", budget)
        for size in (1, 2, 50):
            for wanted, expected in (
                (EventFilter(), list(range(1, 11))),
                (EventFilter(task_ids=["task_a", "task_e"]), [1, 5, 9]),
                (EventFilter(task_ids=["task_e"]), [5, 9]),
                (EventFilter(task_ids=["task_c"]), [3, 8, 10]),
                (EventFilter(kinds=[EVENT_KIND_TASK_CANCELLED]), [8, 9]),
                (EventFilter(task_ids=["task_e"], kinds=[EVENT_KIND_TASK_CREATED]), [5]),
                (EventFilter(task_ids=["task_never"]), []),
                (EventFilter(labels={"even": "yes"}), [2, 4, 6]),
            ):
                found = await revisions(seven, filter=wanted, page_size=size)
                assert found == expected[::-1], (wanted, budget, size)
                found = await revisions(seven, filter=wanted, page_size=size, order=OLDEST)
                assert found == expected, (wanted, budget, size)


async def test_the_history_of_an_agent_is_its_own(live: LiveEngine) -> None:
    agent_id = await live.register()
    await live.create()
    await live.call(DrainAgentRequest(agent_id=agent_id))

    assert await revisions(live, filter=EventFilter(agent_ids=[agent_id]), page_size=1) == [4, 2, 1]
    assert await revisions(live, filter=EventFilter(agent_ids=["agent_unknown"])) == []


async def test_the_history_is_right_for_changes_of_one_batch(live: LiveEngine) -> None:
    await live.together(
        new_task(task_id="task_x"), CancelTaskRequest(task_id="task_x"), DeleteTaskRequest(task_id="task_x")
    )

    assert await revisions(live, filter=EventFilter(task_ids=["task_x"])) == [3, 2, 1]
