"""A bare rpc server: the real pipeline and grpc server, with servicers that a test chooses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from kapell_server.domain.access import Caller, Keyring
from kapell_server.rpc.auth import Authenticator
from kapell_server.rpc.calls import OpenCalls
from kapell_server.rpc.methods import Method, methods, services
from kapell_server.rpc.pipeline import Pipeline
from kapell_server.rpc.server import RpcServer
from kapell_server.telemetry import Telemetry
from kapell_server.testing import TestServer, serve

from tests.rpc.services import Services, bearer

ADMIN_TOKEN = "kapell_admin_for_tests_0123456789"
KEYRING = Keyring(b"k" * 32, admin_token=ADMIN_TOKEN)
METHODS = {method.name: method for method in methods()}

Answer = Callable[[Any, Caller], Any]


class Servicer:
    """Answers every method of a service with an empty response, or with what `answers` has for it."""

    def __init__(self, service: str, answers: dict[str, Any]) -> None:
        for method in methods():
            if method.service == service:
                setattr(self, method.name, answers.get(method.name) or empty(method))


def empty(method: Method) -> Answer:
    """The answer that is an empty response."""

    async def stream(request: Message, caller: Caller) -> AsyncGenerator[Message, None]:
        yield method.response()

    async def unary(request: Message, caller: Caller) -> Message:
        return method.response()

    return stream if method.streams else unary


@dataclass
class Rpc:
    """A running server and a channel to it."""

    server: RpcServer
    calls: OpenCalls
    telemetry: Telemetry
    address: str
    channel: grpc.aio.Channel
    extra: dict[str, Any] = field(default_factory=dict)

    async def call(
        self, method: str, data: bytes = b"", *, token: str | None = ADMIN_TOKEN, timeout: float | None = 10
    ) -> bytes:
        """The raw answer of a method; for a stream its first message."""
        return await raw_call(self.channel, METHODS[method], data, token=token, timeout=timeout)


async def raw_call(
    channel: grpc.aio.Channel,
    method: Method,
    data: bytes,
    *,
    token: str | None = ADMIN_TOKEN,
    timeout: float | None = 10,
) -> bytes:
    if method.streams:
        async for message in channel.unary_stream(method.path)(data, metadata=bearer(token), timeout=timeout):
            return bytes(message)
        return b""
    return bytes(await channel.unary_unary(method.path)(data, metadata=bearer(token), timeout=timeout))


@asynccontextmanager
async def running(answers: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Rpc]:
    """A server whose methods answer as `answers` says, by method name."""
    calls, telemetry = OpenCalls(), Telemetry()
    authenticator = Authenticator(KEYRING, required=options.pop("auth", True))
    server = RpcServer(Pipeline(authenticator, calls, telemetry, **options), calls)
    address = server.bind("127.0.0.1:0")
    await server.start({s.name: Servicer(s.full_name, answers or {}) for s in services()})
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Rpc(server, calls, telemetry, address, channel)
    finally:
        await server.drain()
        await server.stop(5)


@pytest.fixture
async def rpc() -> AsyncIterator[Rpc]:
    async with running() as server:
        yield server


@dataclass
class Failure:
    """A failed call, unpacked."""

    code: grpc.StatusCode
    text: str
    info: error_details_pb2.ErrorInfo
    violations: dict[str, str]
    details: list[str]


def unpack(error: grpc.aio.AioRpcError) -> Failure:
    """The parts of a failure; fails where there is not exactly one ErrorInfo of ours."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    infos = [d for d in status.details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
    assert len(infos) == 1, f"{error.code()} {error.details()} has {len(infos)} ErrorInfo"
    info = error_details_pb2.ErrorInfo.FromString(infos[0].value)
    assert info.domain == "kapell.dev"
    violations: dict[str, str] = {}
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            violations.update({v.field: v.description for v in bad.field_violations})
    kinds = [detail.type_url.rpartition(".")[2] for detail in status.details]
    return Failure(error.code(), error.details() or "", info, violations, kinds)


async def failure(call: Any) -> Failure:
    """Awaits a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return unpack(caught.value)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[TestServer]:
    """A whole server, agents included."""
    async with serve(tmp_path) as running_server:
        yield running_server


@pytest.fixture
async def channel(server: TestServer) -> AsyncIterator[grpc.aio.Channel]:
    """A connection to it."""
    async with grpc.aio.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def owner(server: TestServer, channel: grpc.aio.Channel) -> Services:
    """Its services with the owner's token."""
    return Services(channel, server.admin_token)
