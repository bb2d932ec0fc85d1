"""Calls that have come are begun together, not one in every five turns of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from kapell.v1.task_pb2 import CountTasksResponse
from kapell_server.rpc import intake
from kapell_server.rpc.intake import Intake, Prefetch
from kapell_server.rpc.server import RpcServer

from tests.rpc.conftest import running


class Core:
    """What grpc is for the intake: calls come, or asking for one fails."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[int | Exception] = asyncio.Queue()
        self.asked = 0

    def bring(self, calls: Iterable[int | Exception]) -> None:
        """Lets them come."""
        for call in calls:
            self._calls.put_nowait(call)

    async def request(self) -> int:
        """The next."""
        self.asked += 1
        call = await self._calls.get()
        if isinstance(call, Exception):
            raise call
        return call


async def _begin(calls: Prefetch, begun: list[int]) -> None:
    """Begins calls as the loop of grpc does."""
    asked = calls.next()
    while True:
        done, _ = await asyncio.wait([asked], return_when=asyncio.FIRST_COMPLETED)
        begun.append(done.pop().result())
        asked = calls.next()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_all_calls_that_have_come_are_begun_in_a_few_turns_and_in_order() -> None:
    core, begun = Core(), list[int]()
    loop = asyncio.create_task(_begin(Prefetch(core.request, slots=64), begun))
    await _turns(3)

    core.bring(range(64))
    await _turns(6)

    assert begun == list(range(64))
    loop.cancel()


async def test_more_than_the_open_requests_take_come_in_order_too() -> None:
    core, begun = Core(), list[int]()
    loop = asyncio.create_task(_begin(Prefetch(core.request, slots=4), begun))
    await _turns(3)

    core.bring(range(100))
    await _turns(200)

    assert begun == list(range(100))
    loop.cancel()


async def test_a_request_that_fails_is_told_once_and_opened_anew() -> None:
    core, begun = Core(), list[int]()
    calls = Prefetch(core.request, slots=3)
    asked = calls.next()
    await _turns(2)

    core.bring([OSError("gone")])
    with pytest.raises(OSError, match="gone"):
        await asked

    loop = asyncio.create_task(_begin(calls, begun))
    await _turns(2)
    core.bring(range(3))
    await _turns(6)
    assert begun == [0, 1, 2]
    assert core.asked >= 4, "the one that had failed is open again"
    loop.cancel()


async def test_once_it_stops_nothing_is_kept() -> None:
    core = Core()
    calls = Prefetch(core.request, slots=4)
    asked = calls.next()
    await _turns(2)

    core.bring(range(3))
    await _turns(4)
    calls.stop()
    core.bring([3])
    await _turns(4)

    assert await asked == 0
    assert not calls.next().done(), "a call nobody will begin keeps grpc from ending"


async def test_the_grpc_that_is_installed_takes_our_intake() -> None:
    async with running({}) as server:
        assert isinstance(_inner(server.server), Intake)


async def test_a_grpc_that_is_built_otherwise_serves_as_it_would_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(*arguments: object) -> None:
        raise TypeError("takes no such arguments")

    monkeypatch.setattr(intake, "_Server", other)
    async with running({"CountTasks": _count}) as server:
        assert not isinstance(_inner(server.server), Intake)
        assert await server.call("CountTasks")


async def _count(request: object, caller: object) -> bytes:
    return CountTasksResponse(revision=1).SerializeToString()


def _inner(server: RpcServer) -> object:
    return server._server._server
