"""The grpc.aio server: its settings, its handlers, health, reflection, and an end without losses.

Bound before anything else of the process begins, so that a port in use is refused while nothing
was done; it answers only from `start` on. Reflection is v1alpha, the only one there is for
Python; google.rpc's detail types are imported so that it can serve them.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Mapping
from socket import AF_INET, AF_INET6
from typing import Any

import grpc
from google.rpc import error_details_pb2 as _served_by_reflection  # noqa: F401
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kapell_server.rpc import intake, methods
from kapell_server.rpc.calls import Context, OpenCalls
from kapell_server.rpc.methods import Method
from kapell_server.rpc.pipeline import MAX_MESSAGE_BYTES, Pipeline, UnaryCall, Welcome, draining
from kapell_server.rpc.status import UNKNOWN_METHOD
from kapell_server.rpc.tls import Tls

# Messages up to this size reach the pipeline, which refuses those over its own cap with a proper
# error; beyond it grpc itself refuses, in its own words.
RECEIVE_LIMIT = 4 * MAX_MESSAGE_BYTES

OPTIONS: tuple[tuple[str, Any], ...] = (
    # A second server on the port must fail, not share it in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", RECEIVE_LIMIT),
    ("grpc.max_send_message_length", -1),
    # Without these, thousands of calls begun at once are answered with a bare CANCELLED.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Keepalive's own timeout does not end a frozen client's connection; this does.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
)


# What is answered last still has to leave, seconds.
FLUSH = 0.1


class AddressUnusableError(Exception):
    """The server cannot listen there; the text says why."""


class RpcServer:
    """Serves the given servicers, keyed by service name ("TaskService"), through the pipeline."""

    def __init__(self, pipeline: Pipeline, calls: OpenCalls, *, calls_of_connection: int = 5_000) -> None:
        self._pipeline = pipeline
        self._calls = calls
        self._server = intake.server((*OPTIONS, ("grpc.max_concurrent_streams", calls_of_connection)))
        self._health = health.aio.HealthServicer()
        self.unary_calls: dict[str, UnaryCall] = {}
        """The unary rpcs by path, as they pass the pipeline: for other doors than gRPC. There from `start` on."""
        self.welcomes: dict[str, Welcome] = {}
        """Of each of them: whether the caller may call it at all."""

    def bind(self, address: str, tls: Tls | None = None) -> str:
        """Takes the address ("host:port", port 0 for any); the address with its real port. Without `tls` in plain text.

        Raises AddressUnusableError.
        """
        host = address.rpartition(":")[0]
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, tls.credentials())
        except RuntimeError:
            port = 0
        if port == 0:
            raise AddressUnusableError(_why_unusable(address))
        return address if address.startswith("unix:") else f"{host}:{port}"

    async def start(self, servicers: Mapping[str, object]) -> None:
        """Serves. An rpc of the protos without a method in its servicer is an assertion."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in methods.methods():
            call = _wrapped(self._pipeline, method, servicers[method.service.rpartition(".")[2]])
            if method.streams:
                handlers[method.path] = grpc.unary_stream_rpc_method_handler(call)
            else:
                self.unary_calls[method.path] = call
                self.welcomes[method.path] = self._pipeline.welcome(method)
                handlers[method.path] = grpc.unary_unary_rpc_method_handler(call)
        self._server.add_generic_rpc_handlers((_Handlers(handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.full_name for service in methods.services()]
        reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        self._server.add_generic_rpc_handlers((_UnknownMethod(),))
        for name in names:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    @property
    def is_draining(self) -> bool:
        """Whether new calls are refused, except those of agents."""
        return self._pipeline.draining

    async def drain(self) -> None:
        """Says NOT_SERVING and refuses new calls, except those of agents."""
        await self._health.enter_graceful_shutdown()
        self._pipeline.draining = True

    async def stop(self, grace: float) -> None:
        """Ends streams and long polls, lets other calls end for up to `grace` seconds, and cuts the rest.

        Call `drain` first. Stopping twice, or before the start, is not an error.
        """
        self._calls.end_long_calls(draining())
        await self._calls.until_none(grace)
        await self._server.stop(FLUSH)
        # The tasks of calls that were cut end one turn of the loop later.
        await asyncio.sleep(0)


class _Handlers(grpc.GenericRpcHandler):
    """All our methods in one dictionary."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._find = handlers.get

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._find(handler_call_details.method)


class _UnknownMethod(grpc.GenericRpcHandler):
    """Answers calls of methods that nobody has, with more than grpc's "Method not found!"."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = handler_call_details.method

        async def refuse(_: Any, context: Context) -> None:
            await context.abort(
                UNKNOWN_METHOD,
                f"This server has no method {path[:200]}. Reflection lists those it has; a newer client"
                " may know more than this server.",
            )

        return grpc.stream_stream_rpc_method_handler(refuse)


def _wrapped(pipeline: Pipeline, method: Method, servicer: object) -> Any:
    """The servicer's method behind the pipeline: a UnaryCall, or a StreamCall where it streams."""
    handle = getattr(servicer, method.name, None)
    assert handle is not None, f"{type(servicer).__name__} has no {method.name}"
    if method.streams:
        return pipeline.stream(method, handle)
    if getattr(handle, "bounds_its_wait", False):
        return pipeline.waiting(method, handle)
    return pipeline.unary(method, handle)


def _why_unusable(address: str) -> str:
    """Why grpc could not listen; it does not say, so the attempt is repeated by hand."""
    choose = "choose another address with --grpc-address (port 0 takes a free port)"
    if address.startswith("unix:"):
        return f"Cannot listen on {address}: the path cannot be used; {choose}."
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        with socket.create_server((host, int(port)), family=AF_INET6 if ":" in host else AF_INET):
            return f"Cannot listen on {address}; try again, or {choose}."
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                return f"Cannot listen on {address}: the port is in use. Stop the program that has it, or {choose}."
            case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
                return f"Cannot listen on {address}: the address is not one of this machine; {choose}."
            case errno.EACCES | errno.EPERM:
                return f"Cannot listen on {address}: this user may not use port {port}; {choose}."
            case _:
                return f"Cannot listen on {address}: {error}; {choose}."


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address ("host:port", "[::1]:port", "unix:path")."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
