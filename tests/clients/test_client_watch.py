"""Watches against a server whose connections break, whose log is compacted, which restarts."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from kapell import Client, errors
from kapell.v1 import agent_pb2, watch_pb2

from tests.clients.client_fixtures import client, proxy, server
from tests.clients.fake_server import FakeServer, Log, refusal, serving
from tests.support.cutting_proxy import CuttingProxy
from tests.support.turns import reached

__all__ = ["client", "proxy", "server"]


async def test_a_watch_that_was_entered_misses_nothing_that_happens_afterwards(
    server: FakeServer, client: Client
) -> None:
    await server.create("task_before")

    async with client.watch() as events:
        await server.create("task_after")
        event = await anext(events)

    assert event.task.task_id == "task_after"
    assert events.revision == 2
    assert events.log_id == "log_a"


async def test_every_event_arrives_once_and_in_order_over_200_forced_disconnects(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    seen: list[int] = []

    async with client.watch() as events:
        number = 0
        while proxy.cuts < 200:
            number += 1
            if number % 3 == 1:
                proxy.cut_after(number % 89 * 10)
            for part in range(5):
                await server.create(f"task_{number}_{part}")
            if number % 3 == 2:
                proxy.cut()
            while len(seen) < number * 5:
                seen.append((await anext(events)).revision)
            if number % 3 == 0:
                proxy.cut()

    assert seen == list(range(1, number * 5 + 1))
    assert events.reconnects >= 150


async def test_a_watch_of_an_empty_log_resumes_without_a_gap(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    async with client.watch() as events:
        proxy.refuse()
        proxy.cut()
        await server.create("task_unseen_so_far")
        proxy.accept()
        event = await anext(events)

    assert event.revision == 1


async def test_a_cancelled_reader_loses_nothing(server: FakeServer, client: Client) -> None:
    async with client.watch() as events:
        reader = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await server.create("task_1")
        event = await anext(events)

    assert event.task.task_id == "task_1"


async def test_a_watch_goes_on_where_another_client_left_off(server: FakeServer, client: Client) -> None:
    async with client.watch() as events:
        await server.create("task_1")
        await anext(events)
    await server.create("task_2")

    async with (
        Client(server.address) as later,
        later.watch(after_revision=events.revision, log_id=events.log_id) as rest,
    ):
        event = await anext(rest)

    assert event.task.task_id == "task_2"


async def test_a_watch_outlives_a_restart_of_the_server(server: FakeServer) -> None:
    async with CuttingProxy(server.address) as proxy, Client(proxy.address) as client:
        async with serving(FakeServer()) as first:
            proxy.aim(first.address)
            events = client.watch()
            await events.ready()
            await first.create("task_1")
            assert (await anext(events)).revision == 1
        first.address = ""
        reading = asyncio.ensure_future(anext(events))
        await first.create("task_2")
        async with serving(first):
            proxy.aim(first.address)
            event = await reading
        events.close()

    assert event.task.task_id == "task_2"


async def test_a_cursor_of_another_log_is_refused_with_a_typed_error(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    async with client.watch() as events:
        await server.create("task_1")
        await anext(events)
        server.log = Log("log_of_the_backup")
        proxy.cut()
        with pytest.raises(errors.RevisionCompacted) as caught:
            await anext(events)

    assert caught.value.from_server
    assert caught.value.metadata["log_id"] == "log_of_the_backup"
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_compacted_watch_takes_a_new_snapshot_if_asked(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    known: set[str] = set()
    async with client.watch(initial_state=True, on_compacted="snapshot", on_reset=known.clear) as events:
        await server.create("task_gone")
        known.add((await anext(events)).task.task_id)
        server.log = Log("log_of_the_backup")
        for name in ("task_1", "task_2"):
            await server.create(name)
        proxy.cut()
        for _ in range(2):
            event = await anext(events)
            assert event.kind == watch_pb2.EVENT_KIND_SNAPSHOT
            known.add(event.task.task_id)

    assert known == {"task_1", "task_2"}
    assert events.resets == 1


async def test_a_snapshot_that_breaks_off_is_handed_out_once_and_whole(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    names = [f"task_{number:03}" for number in range(300)]
    for name in names:
        await server.create(name, prompt="p" * 100)
    proxy.cut_after(20_000)

    async with client.watch(initial_state=True) as events:
        snapshot = [await anext(events) for _ in names]
        await server.change("task_000", watch_pb2.EVENT_KIND_TASK_UPDATED)
        change = await anext(events)

    assert proxy.cuts == 1
    assert server.calls["Watch"] == 2
    assert [event.task.task_id for event in snapshot] == names
    assert (change.kind, change.revision) == (watch_pb2.EVENT_KIND_TASK_UPDATED, 301)


async def test_watches_of_tasks_and_agents_see_only_theirs(server: FakeServer, client: Client) -> None:
    async with client.tasks.watch(task_ids=["task_b"]) as tasks, client.agents.watch() as agents:
        await server.create("task_a")
        await server.log.put(watch_pb2.EVENT_KIND_AGENT_SPAWNED, agent_pb2.Agent(agent_id="agent_1"))
        await server.create("task_b")
        task_event, agent_event = await anext(tasks), await anext(agents)

    assert task_event.task.task_id == "task_b"
    assert agent_event.agent.agent_id == "agent_1"
    request = server.requests["WatchTasks"][0]
    assert list(request.filter.task_ids) == ["task_b"]


async def test_a_server_that_never_answers_is_told_soon() -> None:
    async with Client("127.0.0.1:1", token="") as client:
        with pytest.raises(errors.Unavailable, match="kapell up"):
            await anext(client.watch(connect_timeout=0.2))


@pytest.mark.parametrize(
    "failure",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        refusal("UNAVAILABLE", "SERVER_DRAINING"),
        refusal("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES"),
    ],
    ids=["unavailable", "cancelled", "draining", "too many watches"],
)
async def test_a_watch_that_has_begun_puts_up_with_passing_refusals(
    server: FakeServer, proxy: CuttingProxy, client: Client, failure: object
) -> None:
    async with client.watch() as events:
        server.fail("Watch", failure, failure)
        proxy.cut()
        await server.create("task_1")
        event = await anext(events)

    assert event.revision == 1
    assert not server.failures["Watch"]


async def test_too_many_watches_is_an_error_for_a_watch_that_has_not_begun(server: FakeServer, client: Client) -> None:
    server.fail("Watch", refusal("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHES", limit="5"))

    with pytest.raises(errors.Exhausted) as caught:
        await client.watch().ready()

    assert caught.value.reason == "TOO_MANY_WATCHES"


async def test_closing_a_watch_ends_its_waiting_reader(client: Client) -> None:
    events = client.watch()
    await events.ready()

    reader = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    events.close()

    with pytest.raises(StopAsyncIteration):
        await reader


async def test_a_silent_stream_is_given_up_and_resumed(server: FakeServer, proxy: CuttingProxy, client: Client) -> None:
    async with client.watch(silence_timeout=0.3) as events:
        proxy.freeze()
        await server.create("task_1")
        reading = asyncio.ensure_future(anext(events))
        await reached(lambda: not events.connected)
        proxy.thaw()
        event = await reading

    assert event.revision == 1
    assert events.reconnects >= 1


async def test_a_server_that_is_away_is_told_once_and_so_is_its_return(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    told: list[bool] = []

    async with client.watch(on_link=told.append) as events:
        proxy.refuse()
        proxy.cut()
        reading = asyncio.ensure_future(anext(events))
        await reached(lambda: told == [False])
        proxy.accept()
        await server.create("task_after")
        event = await reading

    assert event.task.task_id == "task_after"
    assert told == [False, True]
