"""A real server that takes every method of the API, remembers the request and answers with nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from grpc import aio
from kapell.v1 import (
    admin_pb2,
    agent_pb2,
    alert_pb2,
    approval_pb2,
    artifact_pb2,
    audit_pb2,
    budget_pb2,
    event_pb2,
    lock_pb2,
    price_pb2,
    queue_pb2,
    schedule_pb2,
    secret_pb2,
    task_pb2,
    template_pb2,
    token_pb2,
    usage_pb2,
    webhook_pb2,
    worker_pb2,
)

FILES = (
    admin_pb2,
    agent_pb2,
    approval_pb2,
    artifact_pb2,
    audit_pb2,
    event_pb2,
    lock_pb2,
    alert_pb2,
    artifact_pb2,
    audit_pb2,
    budget_pb2,
    event_pb2,
    price_pb2,
    queue_pb2,
    schedule_pb2,
    secret_pb2,
    task_pb2,
    template_pb2,
    token_pb2,
    usage_pb2,
    webhook_pb2,
    worker_pb2,
)


def methods() -> Iterator[MethodDescriptor]:
    """Every method of every service."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


class Recorder(grpc.GenericRpcHandler):
    """Answers every method; `requests` has the latest request of each, `metadata` and `time_left` of all."""

    def __init__(self) -> None:
        self.requests: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.time_left: float | None = None
        self._handlers = {
            f"/{method.containing_service.full_name}/{method.name}": self._handler(method) for method in methods()
        }

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)

    def _handler(self, method: MethodDescriptor) -> Any:
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)

        def note(request: Any, context: Any) -> None:
            self.requests[method.name] = request
            self.metadata = dict(context.invocation_metadata())
            self.time_left = context.time_remaining()

        async def unary(request: Any, context: Any) -> Any:
            note(request, context)
            return response_class()

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            note(request, context)
            yield response_class()

        make = grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        return make(
            stream if method.server_streaming else unary,
            request_deserializer=request_class.FromString,
            response_serializer=response_class.SerializeToString,
        )


@asynccontextmanager
async def recording() -> AsyncIterator[tuple[str, Recorder]]:
    """Serves on a free port; gives its address."""
    server, recorder = aio.server(), Recorder()
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", recorder
    finally:
        await server.stop(None)
