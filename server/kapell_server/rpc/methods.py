"""What the descriptors say of every rpc: path, scope, message types, unary or stream.

The surprise: this walk is the registration. There is no second list of methods anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from kapell.v1 import (
    admin_pb2,
    agent_pb2,
    alert_pb2,
    approval_pb2,
    artifact_pb2,
    audit_pb2,
    budget_pb2,
    common_pb2,
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
    task_pb2,
    queue_pb2,
    agent_pb2,
    artifact_pb2,
    template_pb2,
    schedule_pb2,
    budget_pb2,
    alert_pb2,
    webhook_pb2,
    usage_pb2,
    price_pb2,
    secret_pb2,
    worker_pb2,
    approval_pb2,
    lock_pb2,
    event_pb2,
    admin_pb2,
    token_pb2,
    audit_pb2,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One rpc as the protos declare it."""

    path: str
    """As on the wire: "/kapell.v1.TaskService/CreateTask"."""
    service: str
    """The full name: "kapell.v1.TaskService"."""
    name: str
    scope: common_pb2.Scope.ValueType
    agent_access: common_pb2.AgentAccess.ValueType
    program_access: common_pb2.AgentAccess.ValueType
    request: type[Message]
    response: type[Message]
    streams: bool
    """Whether the server answers with a stream. No method takes one."""


def services() -> Sequence[ServiceDescriptor]:
    """All services of kapell.v1, in a fixed order."""
    return [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]


def methods() -> tuple[Method, ...]:
    """All rpcs of kapell.v1, in the order of the protos."""
    return tuple(_method(method) for service in services() for method in service.methods)


def _method(descriptor: MethodDescriptor) -> Method:
    service = descriptor.containing_service
    assert service is not None
    options = descriptor.GetOptions().Extensions
    scope = options[common_pb2.scope]
    assert scope != common_pb2.SCOPE_UNSPECIFIED, f"{descriptor.full_name} names no scope in its proto"
    assert not descriptor.client_streaming, f"{descriptor.full_name}: client streams have no pipeline yet"
    return Method(
        path=f"/{service.full_name}/{descriptor.name}",
        service=service.full_name,
        name=descriptor.name,
        scope=scope,
        agent_access=options[common_pb2.agent_access],
        program_access=options[common_pb2.program_access],
        request=GetMessageClass(descriptor.input_type),
        response=GetMessageClass(descriptor.output_type),
        streams=descriptor.server_streaming,
    )
