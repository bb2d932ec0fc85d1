"""One channel to one server: options, bearer token, deadlines, retries, errors as exceptions.

What everything that talks to a server stands on: the client's faces, the worker and the agent
host. It knows no service. The one surprise: the channel is made at the first call, because it
belongs to the event loop that runs then; a connection cannot be shared between loops.

Retries: UNAVAILABLE is retried by gRPC itself for unary methods (service config), but not when
the connection broke in the middle of an answer; that is done here. A CANCELLED that nobody here
asked for is what an overrun server core answers, so it is retried too, and so is a refusal that
names a short time to wait (QUEUE_FULL). Streams are never retried here: who reads them knows
where to go on.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import grpc
from grpc import aio

from kapell.discovery import SYSTEM_CA, Endpoint, Tls, discover
from kapell.errors import ClientClosed, FieldViolation, InvalidRequest, KapellError, Unavailable, error_class

if TYPE_CHECKING:
    from google.protobuf.message import Message

DEFAULT_TIMEOUT = 30.0
"""Seconds a unary call may take, retries included, unless it says otherwise."""

MAX_ATTEMPTS = 5
"""Times a call is sent at most; gRPC itself allows no more."""

STREAMING_METHODS = (
    ("kapell.v1.AgentService", "StreamAgentLogs"),
    ("kapell.v1.AgentService", "WatchAgents"),
    ("kapell.v1.ApprovalService", "WatchApprovals"),
    ("kapell.v1.ArtifactService", "DownloadArtifact"),
    ("kapell.v1.EventService", "Watch"),
    ("kapell.v1.LockService", "WatchLockTicket"),
    ("kapell.v1.LockService", "WatchLocks"),
    ("kapell.v1.TaskService", "StreamTaskLogs"),
    ("kapell.v1.TaskService", "WatchTasks"),
    ("kapell.v1.UsageService", "WatchUsage"),
    ("kapell.v1.WorkerService", "WatchDirectives"),
)
"""Methods that gRPC does not retry; compared with the descriptors by a test."""

_DOMAIN = "kapell.dev"
_DETAILS_KEY = "grpc-status-details-bin"
_LONGEST_PAUSE = 5.0
_LOST_ANSWERS = 2

_Request = TypeVar("_Request", bound="Message")
_Response = TypeVar("_Response")
_Response_co = TypeVar("_Response_co", covariant=True)
_Stub = TypeVar("_Stub")


def service_config() -> str:
    """The retry policy as gRPC wants it: all methods but the streams."""
    retry = {
        "maxAttempts": MAX_ATTEMPTS,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    streams = [{"service": service, "method": method} for service, method in STREAMING_METHODS]
    return json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": retry}, {"name": streams}]})


def channel_options(*, local: bool) -> list[tuple[str, Any]]:
    """Options of every channel. A dead peer is noticed after 40 s; a lost one is dialled again at once."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", service_config()),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ("grpc.primary_user_agent", "kapell-python"),
    ]
    if local:
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    """The files as gRPC takes them. Raises InvalidRequest for one that cannot be read."""

    def content(path: str) -> bytes | None:
        if not path:
            return None
        try:
            return Path(path).expanduser().read_bytes()
        except OSError as error:
            raise InvalidRequest(
                f"the TLS file {path} cannot be read - {error.strerror} - mend the path",
                reason="ARGUMENT_INVALID",
            ) from None

    if bool(tls.cert) is not bool(tls.key):
        raise InvalidRequest(
            "a client's certificate and its key belong together - give both, or neither", reason="ARGUMENT_INVALID"
        )
    return grpc.ssl_channel_credentials(
        root_certificates=None if tls.ca == SYSTEM_CA else content(tls.ca),
        private_key=content(tls.key),
        certificate_chain=content(tls.cert),
    )


class Connection:
    """A channel to `endpoint`, found by `discover()` where none is given. Close it, or use `async with`."""

    def __init__(self, endpoint: Endpoint | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._endpoint = endpoint if endpoint is not None else discover()
        self._timeout = timeout
        self._channel: aio.Channel | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stubs: dict[Any, Any] = {}
        self._metadata: tuple[tuple[str, str], ...] = ()
        self.use_token(self._endpoint.token)

    @property
    def address(self) -> str:
        """Where the server is, as gRPC takes it."""
        return self._endpoint.address

    @property
    def is_local(self) -> bool:
        """Whether the server can only be on this machine."""
        return self._endpoint.is_local

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries: the bearer token, where there is one."""
        return self._metadata

    def use_token(self, token: str) -> None:
        """Sends `token` with every call from now on; open streams keep theirs. Empty sends none."""
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    @property
    def channel(self) -> aio.Channel:
        """The channel, made at the first use. Must be used in one event loop only. Raises ClientClosed."""
        if self._closed:
            raise ClientClosed("this client was closed - make a new one")
        loop = asyncio.get_running_loop()
        if self._channel is None:
            options = channel_options(local=self._endpoint.is_local)
            if self._endpoint.tls is None:
                self._channel = aio.insecure_channel(self.address, options=options)
            else:
                self._channel = aio.secure_channel(self.address, _credentials(self._endpoint.tls), options=options)
            self._loop = loop
        assert self._loop is loop, "a connection belongs to one event loop: make one for each loop"
        return self._channel

    def stub(self, stub_class: Callable[[aio.Channel], _Stub]) -> _Stub:
        """The one instance of a generated stub class on this channel, as in `stub(TaskServiceStub)`."""
        stub = self._stubs.get(stub_class)
        if stub is None:
            stub = self._stubs[stub_class] = stub_class(self.channel)
        return cast(_Stub, stub)

    async def call(
        self,
        method: aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> _Response:
        """Calls a unary method; `timeout` in seconds covers all retries (unset: the connection's).

        Raises a KapellError. Must be repeatable on the server's side, as every method of Kapell
        is with a request_id, poll_id or lease token in the request.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout if timeout is None else timeout)
        attempt = 1
        while True:
            try:
                left = max(0.0, deadline - loop.time())
                return await method(request, timeout=left, metadata=self._metadata)
            except asyncio.CancelledError:
                if self._closed and not _is_cancelled():
                    raise ClientClosed("this client was closed during the call - make a new one") from None
                raise
            except aio.AioRpcError as error:
                failure = translate(error, self.address)
                pause = self._pause_before_retry(failure, attempt)
                if pause is None or loop.time() + pause >= deadline:
                    raise failure from None
            await asyncio.sleep(pause)
            attempt += 1

    def stream(
        self,
        method: aio.UnaryStreamMultiCallable[_Request, _Response],
        request: _Request,
        *,
        timeout: float | None = None,
    ) -> Stream[_Response]:
        """Opens a server stream; it has no deadline unless `timeout` is set."""
        return Stream(method(request, timeout=timeout, metadata=self._metadata), self.address)

    def _pause_before_retry(self, failure: KapellError, attempt: int) -> float | None:
        """Seconds to wait before the call is sent again; None when it has failed for good."""
        if attempt >= MAX_ATTEMPTS:
            return None
        match failure.code:
            case "CANCELLED":
                return backoff(attempt)
            case "UNAVAILABLE" if not failure.from_server and self._is_reachable():
                return backoff(attempt) if attempt <= _LOST_ANSWERS else None
            case "RESOURCE_EXHAUSTED" if failure.retry_after is not None:
                return failure.retry_after if failure.retry_after <= _LONGEST_PAUSE else None
        return None

    def _is_reachable(self) -> bool:
        """False while dialling the server fails; then gRPC's own retries were all in vain."""
        if self._channel is None:
            return False
        return self._channel.get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def close(self) -> None:
        """Closes the channel for good: open calls raise ClientClosed, streams end. Closing twice is fine."""
        self._closed = True
        channel, self._channel = self._channel, None
        self._stubs.clear()
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Stream(Generic[_Response_co]):
    """The messages of one server stream, as an async iterator that ends with it.

    Raises a KapellError, Unavailable when the connection was lost. Cancelling the reader cancels
    the call. After `cancel()`, or when the connection is closed, a waiting reader sees the end.
    """

    def __init__(self, call: aio.UnaryStreamCall[Any, _Response_co], address: str) -> None:
        self._call = call
        self._address = address

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Response_co:
        try:
            message = await self._call.read()
        except aio.AioRpcError as error:
            raise translate(error, self._address) from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise StopAsyncIteration from None
        if message is aio.EOF:
            raise StopAsyncIteration
        return cast(_Response_co, message)

    def cancel(self) -> None:
        """Ends the call. Repeating it, or cancelling a call that has ended, does nothing."""
        self._call.cancel()

    async def aclose(self) -> None:
        """As `cancel`, for `contextlib.aclosing`."""
        self.cancel()


def _is_cancelled() -> bool:
    """Whether the running task itself is being cancelled, and not merely the call that it waits for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def backoff(attempt: int, *, first: float = 0.1, longest: float = 2.0) -> float:
    """Seconds to pause after the failed attempt number `attempt` (from 1): doubling, half of it by chance."""
    pause = min(longest, first * 2.0 ** min(attempt - 1, 16))
    return pause * random.uniform(0.5, 1.0)


def translate(error: grpc.RpcError, address: str = "") -> KapellError:
    """The exception for a failed call, of aio or of the blocking API. `address` is for the text."""
    code = error.code().name
    details = error.details() or ""
    said = _parse_details(error.trailing_metadata())
    if said.reason:
        return error_class(code, said.reason)(
            details,
            reason=said.reason,
            code=code,
            metadata=said.metadata,
            from_server=True,
            violations=said.violations,
            retry_after=said.retry_after,
        )
    return _without_reason(code, details, address)


def _without_reason(code: str, details: str, address: str) -> KapellError:
    """A failure that no Kapell server described: the network's, gRPC's own, or a stranger's."""
    where = f" at {address}" if address else ""
    match code:
        case "UNAVAILABLE":
            return Unavailable(
                f"the Kapell server{where} cannot be reached - {_network_cause(details)} - see whether it "
                "runs (`kapell up` starts one here) and whether the address is right (KAPELL_ADDRESS)",
                reason="SERVER_UNREACHABLE",
            )
        case "CANCELLED":
            return Unavailable(
                f"the Kapell server{where} dropped the call - it is overloaded or stopping - try again",
                reason="SERVER_UNREACHABLE",
                code=code,
            )
        case "DEADLINE_EXCEEDED":
            text = f"the Kapell server{where} did not answer in time - allow a longer timeout"
        case "RESOURCE_EXHAUSTED" if "larger than max" in details:
            return error_class(code, "")(
                f"the message is too large - the server{where} or this client takes no more - send less at a time",
                reason="PAYLOAD_TOO_LARGE",
                code=code,
            )
        case "UNIMPLEMENTED":
            text = f"the server{where} does not know this call - it is older than this client, or not Kapell"
        case _:
            text = f"the server{where} failed with {code}: {details or 'no details'}"
    return error_class(code, "")(text, code=code)


def _network_cause(details: str) -> str:
    """The useful end of gRPC's chain of causes, as in "Connection refused"."""
    return details.rpartition(": ")[2].strip()[:200] or "no connection"


@dataclass(kw_only=True, slots=True)
class _Details:
    """What a Kapell server attached to a failure; an empty reason when it attached nothing."""

    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    retry_after: float | None = None


def _parse_details(trailers: Any) -> _Details:
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2, status_pb2

    found = _Details()
    raw = next((value for key, value in trailers or () if key == _DETAILS_KEY), b"")
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    try:
        for detail in status_pb2.Status.FromString(raw).details:
            if detail.Unpack(info) and info.domain == _DOMAIN:
                found.reason, found.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                found.violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
            elif detail.Unpack(retry):
                found.retry_after = retry.retry_delay.ToMilliseconds() / 1000
    except DecodeError:
        return _Details()
    return found
