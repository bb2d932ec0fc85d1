"""Waiting for tasks, running them, paging through them, reading their logs."""

from __future__ import annotations

import asyncio

import pytest
from kapell import Client, errors
from kapell.v1 import task_pb2, watch_pb2

from tests.clients.client_fixtures import client, proxy, server
from tests.clients.fake_server import FakeServer
from tests.support.cutting_proxy import CuttingProxy

__all__ = ["client", "proxy", "server"]

_DONE = task_pb2.TASK_STATE_SUCCEEDED


async def _end(server: FakeServer, task_id: str) -> None:
    await server.change(task_id, watch_pb2.EVENT_KIND_TASK_COMPLETED, state=_DONE)


async def test_wait_answers_when_the_task_has_ended(server: FakeServer, client: Client) -> None:
    await server.create("task_1")

    waiting = asyncio.ensure_future(client.tasks.wait("task_1"))
    await server.called("WaitTask")
    await _end(server, "task_1")

    assert (await waiting).state == _DONE


async def test_wait_outlives_a_lost_connection(server: FakeServer, proxy: CuttingProxy, client: Client) -> None:
    await server.create("task_1")
    await client.admin.server_info()

    waiting = asyncio.ensure_future(client.tasks.wait("task_1", connect_timeout=None))
    await server.called("WaitTask")
    proxy.refuse()
    proxy.cut()
    await _end(server, "task_1")
    await proxy.wait_until(lambda proxy: proxy.accepted > 3)
    proxy.accept()

    assert (await waiting).state == _DONE


async def test_wait_gives_up_with_the_task_as_it_stands(server: FakeServer, client: Client) -> None:
    await server.create("task_1")

    with pytest.raises(errors.WaitTimeout, match="queued and goes on") as caught:
        await client.tasks.wait("task_1", timeout=0.1)

    assert caught.value.task.task_id == "task_1"
    assert caught.value.reason == "WAIT_TIMEOUT"
    assert not caught.value.from_server


async def test_run_creates_and_waits(server: FakeServer, client: Client) -> None:
    running = asyncio.ensure_future(client.tasks.run("shell", "true", task_id="task_1", timeout=20))
    await server.called("WaitTask")
    await _end(server, "task_1")

    assert (await running).state == _DONE


async def test_iterating_goes_through_all_pages(server: FakeServer, client: Client) -> None:
    for number in range(7):
        await server.create(f"task_{number}")

    seen = [task.task_id async for task in client.tasks.iterate(page_size=3)]

    assert seen == [f"task_{number}" for number in range(7)]
    assert server.calls["ListTasks"] == 3


async def test_the_log_of_an_attempt_is_read_line_by_line(server: FakeServer, client: Client) -> None:
    await server.create("task_1", attempt=1)
    await server.write_log("task_1", 1, *"abcdefgh")

    async with client.tasks.logs("task_1", offset=2) as lines:
        places = [(line.text, lines.attempt, lines.offset) async for line in lines]

    assert places == [(text, 1, 3 + place) for place, text in enumerate("cdefgh")]


async def test_the_log_of_a_task_without_attempt_is_empty(server: FakeServer, client: Client) -> None:
    await server.create("task_1")

    assert [line async for line in client.tasks.logs("task_1")] == []


async def test_a_followed_log_resumes_by_offset_whatever_breaks(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    await server.create("task_1", attempt=1, state=task_pb2.TASK_STATE_RUNNING)
    seen: list[str] = []

    async with client.tasks.logs("task_1", follow=True) as lines:
        for number in range(40):
            await server.write_log("task_1", 1, f"{number} a", f"{number} b")
            if number % 2:
                proxy.cut()
            else:
                proxy.cut_after(number * 3)
            while len(seen) < (number + 1) * 2:
                seen.append((await anext(lines)).text)
        await _end(server, "task_1")
        await server.end_attempt("task_1", 1)
        rest = [line async for line in lines]

    assert seen == [f"{number} {part}" for number in range(40) for part in "ab"]
    assert rest == []
    assert proxy.cuts >= 30


async def test_a_followed_log_goes_on_with_later_attempts(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    await server.create("task_1", attempt=1, state=task_pb2.TASK_STATE_RUNNING)
    await server.write_log("task_1", 1, "first 0", "first 1")
    seen: list[str] = []

    async with client.tasks.logs("task_1", follow=True) as lines:
        seen.append((await anext(lines)).text)
        proxy.refuse()
        proxy.cut()
        await server.write_log("task_1", 1, "first 2")
        await server.end_attempt("task_1", 1)
        for attempt in (2, 3):
            await server.change("task_1", watch_pb2.EVENT_KIND_TASK_STARTED, attempt=attempt)
            await server.write_log("task_1", attempt, f"attempt {attempt}")
        await server.end_attempt("task_1", 2)
        proxy.accept()
        while seen[-1] != "attempt 3":
            seen.append((await anext(lines)).text)
        await server.end_attempt("task_1", 3)
        last = asyncio.ensure_future(anext(lines))
        await server.called("WatchTasks")
        proxy.cut()
        await server.change("task_1", watch_pb2.EVENT_KIND_TASK_STARTED, attempt=4)
        await server.write_log("task_1", 4, "attempt 4")
        seen.append((await last).text)
        assert (lines.attempt, lines.offset) == (4, 1)
        await _end(server, "task_1")
        await server.end_attempt("task_1", 4)
        assert await anext(lines, None) is None

    assert seen == ["first 0", "first 1", "first 2", "attempt 2", "attempt 3", "attempt 4"]


async def test_a_cancelled_reader_of_a_log_loses_nothing(server: FakeServer, client: Client) -> None:
    await server.create("task_1", attempt=1, state=task_pb2.TASK_STATE_RUNNING)
    await server.write_log("task_1", 1, "a")

    async with client.tasks.logs("task_1", follow=True) as lines:
        assert (await anext(lines)).text == "a"
        reader = asyncio.ensure_future(anext(lines))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await server.write_log("task_1", 1, "b")
        assert (await anext(lines)).text == "b"


async def test_the_log_of_an_unknown_task_is_refused(client: Client) -> None:
    with pytest.raises(errors.NotFound):
        await anext(client.tasks.logs("task_none"))


async def test_an_agents_log_resumes_by_offset(server: FakeServer, proxy: CuttingProxy, client: Client) -> None:
    await server.write_log("agent_1", 0, "a", "b")

    async with client.agents.logs("agent_1", follow=True) as lines:
        seen = [(await anext(lines)).text, (await anext(lines)).text]
        proxy.cut()
        await server.write_log("agent_1", 0, "c")
        await server.end_attempt("agent_1", 0)
        seen += [line.text async for line in lines]

    assert seen == ["a", "b", "c"]
