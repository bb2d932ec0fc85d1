"""Calls that fail: what is retried, and how the rest is told."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from kapell import Client, errors
from kapell.v1 import task_pb2

from tests.clients.client_fixtures import client, proxy, server
from tests.clients.fake_server import FakeServer, refusal
from tests.support.cutting_proxy import CuttingProxy

__all__ = ["client", "proxy", "server"]


async def test_unavailable_is_retried_until_it_works(server: FakeServer, client: Client) -> None:
    server.fail("GetServerInfo", *[grpc.StatusCode.UNAVAILABLE] * 4)

    info = await client.admin.server_info()

    assert info.version == "0.0.1"
    assert server.calls["GetServerInfo"] == 5


async def test_a_bare_cancelled_is_retried_like_unavailable(server: FakeServer, client: Client) -> None:
    server.fail("GetServerInfo", *[grpc.StatusCode.CANCELLED] * 2)

    await client.admin.server_info()

    assert server.calls["GetServerInfo"] == 3


async def test_a_full_queue_is_retried_after_the_time_it_names(server: FakeServer, client: Client) -> None:
    server.fail("CreateTask", refusal("RESOURCE_EXHAUSTED", "QUEUE_FULL", retry_after=0.05))

    await client.tasks.create("shell")

    assert server.calls["CreateTask"] == 2


async def test_a_limit_without_a_time_is_told_at_once(server: FakeServer, client: Client) -> None:
    server.fail("SpawnAgent", refusal("RESOURCE_EXHAUSTED", "AGENT_LIMIT", limit="3"))

    with pytest.raises(errors.Exhausted) as caught:
        await client.agents.spawn("shell")

    assert caught.value.metadata == {"limit": "3"}
    assert server.calls["SpawnAgent"] == 1


async def test_a_write_whose_answer_was_lost_has_one_effect(server: FakeServer, client: Client) -> None:
    server.fail("CreateTask after", grpc.StatusCode.UNAVAILABLE)

    task = await client.tasks.create("shell", "once")

    first, second = server.requests["CreateTask"]
    assert first.request_id == second.request_id
    assert list(server.log.resources) == [task.task_id]


async def test_calls_outlive_a_cut_connection(server: FakeServer, proxy: CuttingProxy, client: Client) -> None:
    for number in range(5):
        proxy.cut()
        await client.tasks.create("shell", task_id=f"task_{number}")

    assert len(server.log.resources) == 5


async def test_a_refusal_becomes_an_exception_with_everything_the_server_said(
    server: FakeServer, client: Client
) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await client.tasks.get("task_none")

    error = caught.value
    assert isinstance(error, errors.KapellError)
    assert error.reason == "TASK_NOT_FOUND"
    assert error.code == "NOT_FOUND"
    assert error.message == str(error) == "no task has the id 'task_none'"
    assert error.metadata == {"task_id": "task_none"}
    assert error.from_server


async def test_an_invalid_request_names_the_fields(server: FakeServer, client: Client) -> None:
    server.fail("CreateTask", refusal("INVALID_ARGUMENT", "REQUEST_INVALID"))

    with pytest.raises(errors.InvalidRequest) as caught:
        await client.tasks.create("")

    assert caught.value.violations == (errors.FieldViolation("task.agent_type", "is required"),)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("UNAUTHENTICATED", "TOKEN_INVALID", errors.Unauthenticated),
        ("PERMISSION_DENIED", "SCOPE_MISSING", errors.PermissionDenied),
        ("ALREADY_EXISTS", "ID_TAKEN", errors.AlreadyExists),
        ("FAILED_PRECONDITION", "TASK_STATE_CONFLICT", errors.PreconditionFailed),
        ("ABORTED", "ETAG_MISMATCH", errors.Aborted),
        ("ABORTED", "LEASE_LOST", errors.LeaseLost),
        ("OUT_OF_RANGE", "REVISION_IN_FUTURE", errors.OutOfRange),
        ("OUT_OF_RANGE", "REVISION_COMPACTED", errors.RevisionCompacted),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("INTERNAL", "INTERNAL", errors.Internal),
        ("UNIMPLEMENTED", "A_REASON_OF_TOMORROW", errors.Unsupported),
    ],
)
async def test_each_family_of_refusals_has_its_class(
    server: FakeServer, client: Client, code: str, reason: str, kind: type[errors.KapellError]
) -> None:
    server.fail("GetServerInfo", refusal(code, reason))

    with pytest.raises(errors.KapellError) as caught:
        await client.admin.server_info()

    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.from_server


def test_what_conflicts_can_be_caught_as_one_family() -> None:
    for kind in (errors.AlreadyExists, errors.PreconditionFailed, errors.Aborted, errors.LeaseLost):
        assert issubclass(kind, errors.Conflict)


async def test_a_server_that_is_not_there_is_told_with_what_to_do() -> None:
    async with Client("127.0.0.1:1", token="") as client:
        with pytest.raises(errors.Unavailable) as caught:
            await client.admin.server_info()

    assert str(caught.value) == (
        "the Kapell server at 127.0.0.1:1 cannot be reached - Connection refused - see whether it runs "
        "(`kapell up` starts one here) and whether the address is right (KAPELL_ADDRESS)"
    )
    assert caught.value.reason == "SERVER_UNREACHABLE"
    assert not caught.value.from_server


async def test_a_method_the_server_does_not_know_is_told_as_such(client: Client) -> None:
    with pytest.raises(errors.Unsupported, match="older than this client") as caught:
        await client.agents.drain("agent_1")

    assert not caught.value.from_server


async def test_a_call_that_takes_too_long_is_told_as_such(server: FakeServer, client: Client) -> None:
    await server.create("task_1")
    request = task_pb2.WaitTaskRequest(task_id="task_1")
    request.wait.FromSeconds(30)

    with pytest.raises(errors.DeadlineExceeded, match="did not answer in time"):
        await client.connection.call(client.tasks._stub.WaitTask, request, timeout=0.2)


async def test_a_failure_without_details_is_not_taken_for_the_servers_word(server: FakeServer, client: Client) -> None:
    server.fail("GetServerInfo", grpc.StatusCode.INTERNAL)

    with pytest.raises(errors.Internal, match="told to") as caught:
        await client.admin.server_info()

    assert not caught.value.from_server
    assert caught.value.reason == "INTERNAL"


async def test_a_cancelled_caller_is_not_retried(server: FakeServer, client: Client) -> None:
    await server.create("task_1")

    waiting = asyncio.ensure_future(client.tasks.wait("task_1"))
    await server.called("WaitTask")
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert server.calls["WaitTask"] == 1


async def test_an_answer_that_breaks_in_the_middle_is_asked_for_again(
    server: FakeServer, proxy: CuttingProxy, client: Client
) -> None:
    await client.admin.server_info()

    for size in range(0, 160, 4):
        proxy.cut_after(size)
        await client.tasks.create("shell", task_id=f"task_{size}")

    assert len(server.log.resources) == 40
    assert proxy.cuts > 10


async def test_closing_the_client_ends_what_is_under_way(server: FakeServer, client: Client) -> None:
    await server.create("task_1")
    events = client.watch()
    await events.ready()
    waiting = asyncio.ensure_future(client.tasks.wait("task_1"))
    reading = asyncio.ensure_future(anext(events))
    await server.called("WaitTask")

    await client.close()

    for ended in (waiting, reading, asyncio.ensure_future(client.tasks.get("task_1"))):
        with pytest.raises(errors.ClientClosed, match="make a new one"):
            await ended
