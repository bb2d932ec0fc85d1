"""What every rpc passes through, asked of every rpc in the descriptors."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator
from time import perf_counter
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from kapell.v1 import task_pb2
from kapell.v1.common_pb2 import (
    SCOPE_ADMIN,
    SCOPE_APPROVE,
    SCOPE_READ,
    SCOPE_SPAWN,
    SCOPE_WORKER,
    SCOPE_WRITE,
    Scope,
)
from kapell_server.domain.access import Caller
from kapell_server.rpc.methods import Method, methods
from kapell_server.rpc.pipeline import MAX_MESSAGE_BYTES, waits
from kapell_server.telemetry import configure_logging

from tests.rpc.conftest import (
    ADMIN_TOKEN,
    KEYRING,
    METHODS,
    Rpc,
    failure,
    running,
    unpack,
)
from tests.rpc.rpc_bodies import INVALID, NO_ID, VALID
from tests.rpc.services import bearer
from tests.support.turns import reached

every_rpc = pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)


def encoded(method: str, body: dict[str, Any]) -> bytes:
    return json_format.ParseDict(body, METHODS[method].request()).SerializeToString()


def tokens_without(scope: Scope.ValueType) -> list[str]:
    """Genuine tokens that do not hold the scope."""
    agent, ticket = KEYRING.agent_token("agent_1", 1), KEYRING.ticket("agent_1")
    held = {SCOPE_READ: [ticket], SCOPE_WORKER: []}
    return held.get(scope, [agent, ticket])


@every_rpc
async def test_no_rpc_answers_without_a_token(rpc: Rpc, method: Method) -> None:
    failed = await failure(rpc.call(method.name, token=None))

    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert "admin.token" in failed.text


@every_rpc
async def test_no_rpc_answers_a_forged_token(rpc: Rpc, method: Method) -> None:
    forged = KEYRING.agent_token("agent_1", 1)[:-1] + "0"
    failed = await failure(rpc.call(method.name, token=forged))

    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


@every_rpc
async def test_no_rpc_answers_a_token_without_its_scope(rpc: Rpc, method: Method) -> None:
    for token in tokens_without(method.scope):
        failed = await failure(rpc.call(method.name, token=token))

        assert (failed.code, failed.info.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        assert failed.info.metadata["scope"] == Scope.Name(method.scope).removeprefix("SCOPE_").lower()


async def test_a_spawn_ticket_opens_register_worker_only(rpc: Rpc) -> None:
    ticket = KEYRING.ticket("agent_1")

    await rpc.call("RegisterWorker", encoded("RegisterWorker", VALID["RegisterWorker"]), token=ticket)

    failed = await failure(rpc.call("LeaseTasks", encoded("LeaseTasks", VALID["LeaseTasks"]), token=ticket))
    assert failed.info.reason == "SCOPE_MISSING"
    assert "agent_token" in failed.text


def test_every_request_with_fields_has_an_invalid_example() -> None:
    with_fields = {method.name for method in methods() if method.request.DESCRIPTOR.fields}

    assert with_fields == set(INVALID)


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_request_is_refused_with_the_path_of_the_field(rpc: Rpc, name: str) -> None:
    body, field = INVALID[name]
    failed = await failure(rpc.call(name, encoded(name, body)))

    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")
    assert field in failed.violations


@every_rpc
async def test_bytes_that_are_no_message_are_an_invalid_request(rpc: Rpc, method: Method) -> None:
    failed = await failure(rpc.call(method.name, b"\x0f\xff\xff"))

    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_INVALID")


@every_rpc
async def test_a_message_over_one_mebibyte_is_refused(rpc: Rpc, method: Method) -> None:
    failed = await failure(rpc.call(method.name, b"\0" * (MAX_MESSAGE_BYTES + 1)))

    assert (failed.code, failed.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")
    assert failed.info.metadata["limit"] == str(MAX_MESSAGE_BYTES)


async def test_a_valid_call_reaches_the_servicer_with_its_caller() -> None:
    seen: list[tuple[Message, Caller]] = []

    async def answer(request: Message, caller: Caller) -> bytes:
        seen.append((request, caller))
        return task_pb2.CreateTaskResponse(revision=7).SerializeToString()

    async with running({"CreateTask": answer}) as server:
        data = await server.call("CreateTask", encoded("CreateTask", VALID["CreateTask"]))

        assert task_pb2.CreateTaskResponse.FromString(data).revision == 7
        assert seen[0][0] == task_pb2.CreateTaskRequest(task={"agent_type": "shell"})
        assert seen[0][1].name == "admin"
        assert server.telemetry.summary()["/kapell.v1.TaskService/CreateTask"]["calls"] == 1


async def test_without_authentication_anyone_is_let_in_but_a_forged_agent() -> None:
    async with running(auth=False) as server:
        await server.call("GetServerInfo", token=None)
        await server.call("GetServerInfo", token="anything")

        forged = KEYRING.agent_token("agent_1", 1)[:-1] + "0"
        assert (await failure(server.call("GetServerInfo", token=forged))).info.reason == "TOKEN_INVALID"


async def test_an_unforeseen_exception_is_internal_and_logged_once_without_secrets() -> None:
    lines = io.StringIO()
    configure_logging("json", stream=lines)

    async def answer(request: Message, caller: Caller) -> bytes:
        raise RuntimeError(f"broke on {ADMIN_TOKEN}")

    async with running({"GetTask": answer}) as server:
        failed = await failure(server.call("GetTask", encoded("GetTask", VALID["GetTask"])))

    log = lines.getvalue()
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "broke" not in failed.text
    assert log.count(failed.info.metadata["request_id"]) == 1
    assert "RuntimeError: broke on [hidden]" in log
    assert ADMIN_TOKEN not in log


class Blocking:
    """A servicer method that never answers, and tells when it was entered and left."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()

    async def unary(self, request: Message, caller: Caller) -> bytes:
        return await self._block()

    @waits
    async def waiting(self, request: Message, caller: Caller, patience: float) -> bytes:
        return await self._block()

    async def stream(self, request: Message, caller: Caller) -> AsyncGenerator[bytes, None]:
        yield b""
        yield await self._block()

    async def _block(self) -> bytes:
        self.entered.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.left.set()
        raise AssertionError


@every_rpc
async def test_the_clients_deadline_ends_the_call_and_the_servicer(method: Method) -> None:
    blocking = Blocking()
    answer = blocking.stream if method.streams else blocking.unary
    body = INVALID.get(method.name, (NO_ID, ""))[0]
    request = make_valid(method, body)

    async with running({method.name: answer}) as server:
        kind = server.channel.unary_stream if method.streams else server.channel.unary_unary
        for timeout in (0.3, 3, 30):  # On a busy machine a short one is over before the call has arrived.
            call = kind(method.path)(request, metadata=bearer(ADMIN_TOKEN), timeout=timeout)
            code = await call.code()
            if blocking.entered.is_set():
                break
        await blocking.left.wait()

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


def make_valid(method: Method, invalid: dict[str, Any]) -> bytes:
    """A request that passes validation, whatever the method."""
    fields = method.request.DESCRIPTOR.fields_by_name
    body: dict[str, Any] = dict(VALID.get(method.name, {}))
    ids = [fields[name] for name in ("agent_id", "task_id", "lease_token") if name in fields]
    body.update({field.name: f"{field.name}_1" for field in ids if not field.containing_oneof})
    special: dict[str, dict[str, Any]] = {
        "SpawnAgent": {"profile": "shell", "agent_id": ""},
        "BatchCreateTasks": {"tasks": [{"agent_type": "shell"}]},
        "CreateChildTasks": {"tasks": [{"agent_type": "shell"}]},
        "UpdateTask": {"task": {"task_id": "task_1"}, "update_mask": "labels"},
        "CancelTasks": {"all": True},
        "RetryTasks": {"all": True},
        "ReprioritizeTasks": {"all": True, "priority": 1},
        "UpdateAgent": {"agent": {"agent_id": "agent_1"}, "update_mask": "labels"},
        "ReportProgress": {"progress": {}},
        "AppendTaskLogs": {"entries": [{}]},
        "BatchCompleteTasks": {"completions": [{"lease_token": "t"}]},
        "FailTask": {"failure": {"reason": "BROKEN"}},
        "CompactEvents": {"before_revision": 1},
    }
    body.update(special.get(method.name, {}))
    return json_format.ParseDict(body, method.request()).SerializeToString()


async def test_a_call_without_deadline_is_ended_after_thirty_seconds() -> None:
    blocking = Blocking()
    async with running({"GetTask": blocking.unary}) as server:
        request = encoded("GetTask", VALID["GetTask"])
        pending = asyncio.ensure_future(failure(server.call("GetTask", request, timeout=None)))
        await blocking.entered.wait()
        server.calls.end_overdue(perf_counter() + 29)
        assert not blocking.left.is_set()

        server.calls.end_overdue(perf_counter() + 31)

        failed = await pending
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert blocking.left.is_set()


async def test_a_call_with_a_longer_deadline_is_left_alone() -> None:
    blocking = Blocking()
    async with running({"GetTask": blocking.unary}) as server:
        request = encoded("GetTask", VALID["GetTask"])
        pending = asyncio.ensure_future(failure(server.call("GetTask", request, timeout=300)))
        await blocking.entered.wait()

        server.calls.end_overdue(perf_counter() + 100)

        await asyncio.sleep(0)
        assert not blocking.left.is_set()
        pending.cancel()
        await blocking.left.wait()


async def test_a_long_poll_is_told_how_long_its_client_waits() -> None:
    told: list[float] = []

    @waits
    async def answer(request: Message, caller: Caller, patience: float) -> bytes:
        told.append(patience)
        return b""

    async with running({"LeaseTasks": answer}) as server:
        request = encoded("LeaseTasks", VALID["LeaseTasks"])
        await server.call("LeaseTasks", request, timeout=5)
        await server.call("LeaseTasks", request, timeout=None)

    assert 4 < told[0] < 4.8
    assert told[1] == float("inf")


async def test_a_client_that_leaves_cancels_the_servicer() -> None:
    blocking = Blocking()
    async with running({"Watch": blocking.stream}) as server:
        call = server.channel.unary_stream(METHODS["Watch"].path)(b"", metadata=bearer(ADMIN_TOKEN))
        await call.read()
        await blocking.entered.wait()

        call.cancel()

        await blocking.left.wait()


async def test_a_stream_whose_client_takes_nothing_is_reset_after_a_minute() -> None:
    closed = asyncio.Event()

    async def flood(request: Message, caller: Caller) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"\0" * 500_000
        finally:
            closed.set()

    async with running({"Watch": flood}) as server:
        call = server.channel.unary_stream(METHODS["Watch"].path)(b"", metadata=bearer(ADMIN_TOKEN))
        await call.read()

        while not closed.is_set():
            await asyncio.sleep(0)
            server.calls.end_overdue(perf_counter() + 61)

        assert not server.calls.streams


async def test_streams_beyond_the_limit_are_refused() -> None:
    blocking = Blocking()
    async with running({"Watch": blocking.stream}, max_streams=1) as server:
        call = server.channel.unary_stream(METHODS["Watch"].path)(b"", metadata=bearer(ADMIN_TOKEN))
        await call.read()

        failed = await failure(server.call("WatchTasks"))

        assert failed.info.reason == "TOO_MANY_WATCHES"
        call.cancel()


async def test_streams_of_agents_leave_room_for_users() -> None:
    blocking = Blocking()
    agent = bearer(KEYRING.agent_token("agent_1", 1))
    answers = {"WatchDirectives": blocking.stream, "Watch": blocking.stream}
    async with running(answers, max_streams=4) as server:
        watch = server.channel.unary_stream(METHODS["WatchDirectives"].path)
        body = encoded("WatchDirectives", {"agent_id": "agent_1"})
        calls = [watch(body, metadata=agent) for _ in range(3)]
        for call in calls:
            await call.read()

        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch(body, metadata=agent).read()
        user = server.channel.unary_stream(METHODS["Watch"].path)(b"", metadata=bearer(ADMIN_TOKEN))
        await user.read()

        assert unpack(error.value).info.reason == "TOO_MANY_WATCHES"
        for call in (*calls, user):
            call.cancel()


async def test_draining_says_not_serving_and_lets_only_agents_in(rpc: Rpc) -> None:
    health = health_pb2_grpc.HealthStub(rpc.channel)
    ask = health_pb2.HealthCheckRequest(service="kapell.v1.TaskService")
    before = await health.Check(ask)

    await rpc.server.drain()

    after = await health.Check(ask)
    assert before.status == health_pb2.HealthCheckResponse.SERVING
    assert after.status == health_pb2.HealthCheckResponse.NOT_SERVING
    refused = await failure(rpc.call("GetTask", encoded("GetTask", VALID["GetTask"])))
    assert (refused.code, refused.info.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert "RetryInfo" in refused.details
    await rpc.call("LeaseTasks", encoded("LeaseTasks", VALID["LeaseTasks"]))


async def test_stopping_ends_streams_and_long_polls_with_server_draining() -> None:
    stream, poll = Blocking(), Blocking()
    async with running({"Watch": stream.stream, "LeaseTasks": poll.waiting}) as server:
        call = server.channel.unary_stream(METHODS["Watch"].path)(b"", metadata=bearer(ADMIN_TOKEN))
        await call.read()
        request = encoded("LeaseTasks", VALID["LeaseTasks"])
        polling = asyncio.ensure_future(failure(server.call("LeaseTasks", request)))
        await asyncio.gather(stream.entered.wait(), poll.entered.wait())

        await server.server.stop(5)

        assert (await failure(call.read())).info.reason == "SERVER_DRAINING"
        assert (await polling).info.reason == "SERVER_DRAINING"


async def test_a_stream_in_its_first_message_is_told_too_why_it_ends() -> None:
    async def flood(request: Message, caller: Caller) -> AsyncGenerator[bytes, None]:
        yield b"\0" * 20_000_000
        yield await asyncio.get_running_loop().create_future()

    async with running({"Watch": flood}) as server:
        options = (("grpc.max_receive_message_length", -1),)
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            call = channel.unary_stream(METHODS["Watch"].path)(b"", metadata=bearer(ADMIN_TOKEN))
            await reached(
                lambda: any(0 < s.blocked_since < perf_counter() - 0.1 for s in server.calls.streams.values())
            )

            stopping = asyncio.ensure_future(server.server.stop(5))
            failed = asyncio.ensure_future(failure(_to_the_end(call)))
            await stopping

            assert (await failed).info.reason == "SERVER_DRAINING"


async def _to_the_end(call: Any) -> None:
    while await call.read():
        pass


async def test_an_unknown_method_is_named(rpc: Rpc) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.channel.unary_unary("/kapell.v1.TaskService/Fly")(b"")

    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "/kapell.v1.TaskService/Fly" in (caught.value.details() or "")


async def test_reflection_needs_no_token_and_serves_services_and_error_details(rpc: Rpc) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(rpc.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="google.rpc.ErrorInfo"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="kapell.v1.TaskService"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="buf/validate/validate.proto"),
    ]
    answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]

    names = {service.name for service in answers[0].list_services_response.service}
    assert {method.service for method in methods()} <= names
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in answers[1:])


async def test_a_deeply_nested_value_is_refused_and_not_a_crash(rpc: Rpc) -> None:
    value = b""
    for _ in range(300):
        values = b"\x0a" + varint(len(value)) + value  # ListValue.values
        value = b"\x32" + varint(len(values)) + values  # Value.list_value
    data = b"\x0a\x01t\x12" + varint(len(value)) + value
    failed = await failure(rpc.call("CompleteTask", data))

    assert failed.info.reason == "REQUEST_INVALID"


def varint(number: int) -> bytes:
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


def test_every_scope_is_used() -> None:
    assert {method.scope for method in methods()} == {
        SCOPE_READ,
        SCOPE_WRITE,
        SCOPE_SPAWN,
        SCOPE_APPROVE,
        SCOPE_WORKER,
        SCOPE_ADMIN,
    }, "all but SPAWN_INLINE, which the rule of SpawnAgent asks for"


@pytest.mark.parametrize(
    ("duration", "fine"),
    [
        ({"seconds": 5, "nanos": 5}, True),
        ({"seconds": 50, "nanos": -(2**31)}, False),
        ({"seconds": 5, "nanos": -5}, False),
        ({"nanos": 2**31 - 1}, False),
    ],
)
async def test_what_is_no_duration_is_refused_wherever_it_stands(duration: dict[str, int], fine: bool) -> None:
    async def answer(request: Message, caller: Caller) -> bytes:
        return b""

    request = task_pb2.BatchCreateTasksRequest(tasks=[{"agent_type": "a"}, {"agent_type": "a"}])
    request.tasks[1].timeouts.run_timeout.MergeFrom(Duration(**duration))
    async with running({"BatchCreateTasks": answer}) as server:
        call = server.call("BatchCreateTasks", request.SerializeToString())
        if fine:
            await call
        else:
            failed = await failure(call)
            assert failed.info.reason == "REQUEST_INVALID"
            assert "tasks[1].timeouts.run_timeout" in failed.violations
