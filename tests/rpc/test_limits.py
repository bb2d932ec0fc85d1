"""Limits of one principal: its calls stand in line behind its own, and a flood is slowed down, others are not."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import islice
from typing import Any

import grpc
import pytest
from kapell.v1 import event_pb2, task_pb2
from kapell_server.domain.access import user
from kapell_server.domain.errors import KapellError
from kapell_server.rpc import limits
from kapell_server.rpc.limits import CallLimits, Share, Shares
from kapell_server.rpc.logins import FailedLogins, host_of
from kapell_server.rpc.pipeline import hold

from tests.rpc.conftest import ADMIN_TOKEN, KEYRING, METHODS, failure, raw_call, running
from tests.rpc.rpc_bodies import VALID
from tests.rpc.test_pipeline import Blocking, encoded

INVALID = KapellError(5, "wrong")  # type: ignore[arg-type]


async def test_calls_beyond_those_at_work_wait_in_order_behind_their_own() -> None:
    share, order = Share(CallLimits(at_once=1)), []

    async def call(number: int) -> None:
        if not share.enter():
            await share.line_up()
        order.append(number)

    assert share.enter()
    waiting = [asyncio.create_task(call(number)) for number in range(3)]
    await asyncio.sleep(0)
    assert order == []
    waiting[1].cancel()
    for _ in range(3):
        share.leave()
        await asyncio.sleep(0)

    await asyncio.wait(waiting)
    assert order == [0, 2]
    assert share.idle


async def test_a_call_that_is_cancelled_with_its_place_in_hand_gives_it_on() -> None:
    share = Share(CallLimits(at_once=1))
    assert share.enter()
    first, second = asyncio.create_task(share.line_up()), asyncio.create_task(share.line_up())
    await asyncio.sleep(0)

    share.leave()
    first.cancel()
    await asyncio.wait([first, second], timeout=5)

    assert second.done()
    share.leave()
    assert share.idle


async def test_too_long_a_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_WAITING", 0)
    share = Share(CallLimits(at_once=1))
    assert share.enter()

    with pytest.raises(KapellError) as refused:
        await share.line_up()

    assert refused.value.reason_name == "RATE_LIMITED"
    assert refused.value.retry_after, "or the SDK would not come again"


def test_calls_over_the_rate_are_put_off_and_then_refused() -> None:
    share = Share(CallLimits(a_second=10))
    delays = [share.delay(100.0) for _ in range(21)]

    assert delays[:11] == [0.0] * 11, "a second's worth may come at once"
    assert delays[-1] == pytest.approx(1.0)
    with pytest.raises(KapellError) as refused:
        share.delay(100.0)
    assert refused.value.reason_name == "RATE_LIMITED"
    assert refused.value.retry_after == pytest.approx(1.1)
    assert share.delay(103.0) == 0.0, "what was refused does not count"


def test_watches_and_polls_have_limits_of_their_own() -> None:
    share = Share(CallLimits(watches=1, polls=1))
    share.open_watch()
    share.open_poll()

    for again in (share.open_watch, share.open_poll):
        with pytest.raises(KapellError) as refused:
            again()
        assert refused.value.reason_name == "TOO_MANY_WATCHES"


def test_one_user_has_one_share_and_idle_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_PRINCIPALS", 4)
    shares = Shares(CallLimits())
    busy = shares.of(user("busy"))
    busy.enter()
    for number in range(50):
        shares.of(user(f"user{number}"))

    assert shares.of(user("busy")) is busy
    assert len(shares._shares) <= 5


async def test_a_flood_of_one_caller_does_not_keep_another_from_being_served() -> None:
    blocking = Blocking()
    other = KEYRING.agent_token("agent_1", 1)

    async def answer(request: Any, caller: Any) -> bytes:
        return event_pb2.GetLogInfoResponse(revision=7).SerializeToString()

    async with running({"GetTask": blocking.unary, "GetLogInfo": answer}, limits=CallLimits(at_once=2)) as server:
        request = encoded("GetTask", VALID["GetTask"])
        flood = [asyncio.ensure_future(server.call("GetTask", request, token=ADMIN_TOKEN)) for _ in range(50)]
        await blocking.entered.wait()

        data = await server.call("GetLogInfo", token=other)

        for call in flood:
            call.cancel()
        await asyncio.wait(flood)
    assert event_pb2.GetLogInfoResponse.FromString(data).revision == 7


async def test_a_flood_beyond_its_line_is_refused_while_another_gets_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_WAITING", 10)
    blocking = Blocking()

    async def answer(request: Any, caller: Any) -> bytes:
        return event_pb2.GetLogInfoResponse(revision=7).SerializeToString()

    async with (
        running({"GetTask": blocking.unary, "GetLogInfo": answer}, limits=CallLimits(at_once=2)) as server,
        AsyncExitStack() as stack,
    ):
        # Several connections are one principal.
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(3)
        ]
        request = encoded("GetTask", VALID["GetTask"])
        flood = [
            asyncio.ensure_future(raw_call(channels[number % 3], METHODS["GetTask"], request)) for number in range(20)
        ]

        refused = [await failure(first) for first in islice(asyncio.as_completed(flood), 8)]
        data = await server.call("GetLogInfo", token=KEYRING.agent_token("agent_1", 1))

        assert event_pb2.GetLogInfoResponse.FromString(data).revision == 7
        assert {(call.code, call.info.reason) for call in refused} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        }
        assert all("RetryInfo" in call.details for call in refused)
        waiting = [call for call in flood if not call.done()]
        assert len(waiting) == 12, "two at work, ten in line"
        for call in waiting:
            call.cancel()
        await asyncio.wait(waiting)


async def test_a_caller_that_is_too_fast_is_told_when_to_come_again() -> None:
    async def answer(request: Any, caller: Any) -> bytes:
        return task_pb2.CountTasksResponse().SerializeToString()

    async with running({"CountTasks": answer}, limits=CallLimits(a_second=1)) as server:
        calls = [server.call("CountTasks") for _ in range(6)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        failed = [error for error in results if isinstance(error, grpc.aio.AioRpcError)]

        again = await failure(_raise(failed[0]))
    assert 3 <= len(failed) < 6
    assert (again.code, again.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert "RetryInfo" in again.details


async def _raise(error: Exception) -> None:
    raise error


def test_the_more_is_refused_the_longer_it_is_held_back() -> None:
    assert hold(1) == hold(100) == 0.25
    assert hold(400) == 1.0, "so 400 come again in a second"
    assert hold(5_000) == 2.0


def test_failed_logins_are_limited_by_address_and_good_tokens_never_are() -> None:
    logins = FailedLogins(burst=3, a_second=1)
    answers = [logins.judge(INVALID, "ipv4:192.0.2.7:1", "GetTask", 100.0).reason_name for _ in range(6)]

    assert answers == ["TOKEN_INVALID"] * 4 + ["RATE_LIMITED"] * 2
    assert logins.judge(INVALID, "ipv4:192.0.2.7:2", "GetTask", 100.0).reason_name == "RATE_LIMITED", "any port"
    assert logins.judge(INVALID, "ipv4:192.0.2.8:1", "GetTask", 100.0).reason_name == "TOKEN_INVALID"
    assert logins.judge(INVALID, "ipv4:192.0.2.7:1", "GetTask", 101.5).reason_name == "TOKEN_INVALID"
    missing = KapellError(4, "missing")  # type: ignore[arg-type]
    assert logins.judge(missing, "ipv4:192.0.2.7:1", "GetTask", 101.5) is missing


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:51034", "ipv4:192.0.2.7"),
        ("ipv6:%5B::1%5D:51034", "ipv6:%5B::1%5D"),
        ("unix:", "unix:"),
        ("unix:/run/kapell/local.sock", "unix:/run/kapell/local.sock"),
    ],
)
def test_a_peer_is_known_without_its_port(peer: str, host: str) -> None:
    assert host_of(peer) == host
