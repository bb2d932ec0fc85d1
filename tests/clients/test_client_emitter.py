"""Callbacks: every event of its kind, once, in order, whatever a handler does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kapell import Client, errors
from kapell.emitter import HandlerFailure
from kapell.v1 import watch_pb2
from kapell.v1.event_pb2 import Event

from tests.clients.client_fixtures import client, proxy, server
from tests.clients.fake_server import FakeServer, Log, refusal
from tests.support.cutting_proxy import CuttingProxy

__all__ = ["client", "proxy", "server"]

_COMPLETED = watch_pb2.EVENT_KIND_TASK_COMPLETED


class Heard:
    """A handler that keeps what it is given and can be waited for."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._more = asyncio.Condition()

    async def __call__(self, event: Any) -> None:
        self.events.append(event)
        async with self._more:
            self._more.notify_all()

    async def reaches(self, count: int) -> list[Any]:
        async with self._more:
            await self._more.wait_for(lambda: len(self.events) >= count)
        return self.events


async def test_a_handler_gets_its_kind_and_no_other(server: FakeServer, client: Client) -> None:
    heard = Heard()
    client.on("task.completed", heard)
    await client.listening()

    await server.create("task_1")
    await server.change("task_1", _COMPLETED)
    events = await heard.reaches(1)

    assert [event.kind for event in events] == [_COMPLETED]
    assert list(server.requests["Watch"][0].filter.kinds) == [_COMPLETED]


async def test_a_decorated_function_may_be_plain_or_async(server: FakeServer, client: Client) -> None:
    order: list[str] = []
    heard = Heard()

    @client.on("task.created")
    def plain(event: Event) -> None:
        order.append(f"plain {event.task.task_id}")

    @client.on("task.created")
    async def slow(event: Event) -> None:
        await asyncio.sleep(0)
        order.append(f"async {event.task.task_id}")

    client.on("task.created", heard)
    await client.listening()
    await server.create("task_1")
    await server.create("task_2")
    await heard.reaches(2)

    assert order == ["plain task_1", "async task_1", "plain task_2", "async task_2"]
    assert plain.__name__ == "plain"


async def test_the_star_gets_everything(server: FakeServer, client: Client) -> None:
    heard = Heard()
    client.on("*", heard)
    await client.listening()

    await server.create("task_1")
    await server.change("task_1", _COMPLETED)

    assert [event.revision for event in await heard.reaches(2)] == [1, 2]


async def test_a_handler_added_later_gets_only_what_happens_later(server: FakeServer, client: Client) -> None:
    first, second = Heard(), Heard()
    client.on("task.created", first)
    await client.listening()
    await server.create("task_1")
    await server.change("task_1", _COMPLETED)
    await first.reaches(1)

    client.on("task.completed", second)
    await client.listening()
    await server.create("task_2")
    await server.change("task_2", _COMPLETED)
    await second.reaches(1)

    assert [event.task.task_id for event in await first.reaches(2)] == ["task_1", "task_2"]
    assert [event.task.task_id for event in second.events] == ["task_2"]


async def test_nothing_is_lost_or_repeated_over_disconnects_and_new_handlers(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    everything, later = Heard(), Heard()
    client.on("task.created", everything)
    await client.listening()

    for number in range(30):
        await server.create(f"task_{number}")
        if number % 4 == 1:
            proxy.cut()
        if number % 5 == 2:
            client.on("task.failed" if number % 2 else "task.progress", later)
        await everything.reaches(number + 1)

    assert [event.task.task_id for event in everything.events] == [f"task_{number}" for number in range(30)]


async def test_off_takes_a_handler_back(server: FakeServer, client: Client) -> None:
    stays, goes = Heard(), Heard()
    client.on("task.created", goes)
    client.on("task.created", stays)
    await client.listening()

    client.off("task.created", goes)
    client.off("task.created", goes)
    await client.listening()
    await server.create("task_1")
    await stays.reaches(1)

    assert goes.events == []


async def test_a_failing_handler_is_reported_and_the_next_event_follows(server: FakeServer, client: Client) -> None:
    failures, heard = Heard(), Heard()
    mistake = ValueError("a mistake")

    @client.on("task.created")
    def broken(event: Event) -> None:
        raise mistake

    client.on("error", failures)
    client.on("task.created", heard)
    await client.listening()
    await server.create("task_1")
    await server.create("task_2")
    await heard.reaches(2)

    failure = failures.events[0]
    assert isinstance(failure, HandlerFailure)
    assert failure.__cause__ is mistake
    assert (failure.name, failure.handler, failure.event.revision) == ("task.created", broken, 1)
    assert len(failures.events) == 2


async def test_without_an_error_handler_the_loop_is_told(server: FakeServer, client: Client) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    heard = Heard()

    @client.on("task.created")
    async def broken(event: Event) -> None:
        raise ValueError("a mistake")

    client.on("task.created", heard)
    await client.listening()
    await server.create("task_1")
    await heard.reaches(1)

    assert told[0]["message"] == "the handler of 'task.created' failed on revision 1"
    assert isinstance(told[0]["exception"], HandlerFailure)


async def test_handlers_that_were_added_before_the_loop_listen_when_the_client_is_entered(
    server: FakeServer,
) -> None:
    client, heard = Client(server.address), Heard()
    await asyncio.to_thread(client.on, "task.created", heard)

    async with client:
        await client.listening()
        await server.create("task_1")
        events = await heard.reaches(1)

    assert len(events) == 1


async def test_a_name_that_no_event_has_is_refused_with_the_close_one(client: Client) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"did you mean 'task\.completed'"):
        client.on("task.complet", print)


async def test_what_stops_the_watch_is_raised_and_reported(server: FakeServer, client: Client) -> None:
    failures = Heard()
    client.on("error", failures)
    server.fail("Watch", refusal("PERMISSION_DENIED", "SCOPE_MISSING"))
    client.on("task.created", print)

    with pytest.raises(errors.PermissionDenied):
        await client.listening()

    assert [error.reason for error in await failures.reaches(1)] == ["SCOPE_MISSING"]


async def test_a_lost_log_is_reported_and_listening_goes_on(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    failures, heard = Heard(), Heard()
    client.on("error", failures)
    client.on("task.created", heard)
    await client.listening()
    await server.create("task_of_the_old_log")
    await heard.reaches(1)

    server.log = Log("log_of_the_backup")
    proxy.cut()
    await failures.reaches(1)
    await client.listening()
    await server.create("task_1")

    assert [event.task.task_id for event in await heard.reaches(2)] == ["task_of_the_old_log", "task_1"]
    assert [error.reason for error in failures.events] == ["REVISION_COMPACTED"]


async def test_a_handler_may_take_itself_back(server: FakeServer, client: Client) -> None:
    once, all_of_them = Heard(), Heard()

    async def first_only(event: Event) -> None:
        client.off("task.created", first_only)
        await once(event)

    client.on("task.created", first_only)
    client.on("task.created", all_of_them)
    await client.listening()
    for number in range(3):
        await server.create(f"task_{number}")
    await all_of_them.reaches(3)

    assert len(once.events) == 1
    assert [event.revision for event in all_of_them.events] == [1, 2, 3]
