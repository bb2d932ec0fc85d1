"""The API as `buf build` sees it: descriptors with their comments, which generated Python drops."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.api import annotations_pb2 as _registers_http  # noqa: F401
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
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

from tests.tidy.sources import ROOT

BIN = Path(sys.executable).parent
BUF = str(BIN / "buf")


@functools.cache
def files() -> tuple[FileDescriptorProto, ...]:
    """The files of kapell.v1."""
    with tempfile.TemporaryDirectory() as directory:
        image = Path(directory) / "image.binpb"
        subprocess.run([BUF, "build", "--as-file-descriptor-set", "-o", image], cwd=ROOT, check=True)
        found = FileDescriptorSet.FromString(image.read_bytes()).file
    return tuple(file for file in found if file.package == "kapell.v1")


def services() -> list[ServiceDescriptor]:
    """All services of the generated stubs."""
    modules = (
        admin_pb2,
        agent_pb2,
        approval_pb2,
        alert_pb2,
        artifact_pb2,
        budget_pb2,
        audit_pb2,
        event_pb2,
        price_pb2,
        lock_pb2,
        queue_pb2,
        schedule_pb2,
        secret_pb2,
        task_pb2,
        template_pb2,
        webhook_pb2,
        usage_pb2,
        token_pb2,
        worker_pb2,
    )
    return [service for module in modules for service in module.DESCRIPTOR.services_by_name.values()]


def messages() -> Iterator[Descriptor]:
    """All messages of the files that have services, nested ones included."""
    for file in {service.file.name: service.file for service in services()}.values():
        found = list(file.message_types_by_name.values())
        while found:
            message = found.pop()
            found += message.nested_types
            yield message


def methods() -> list[MethodDescriptor]:
    """All methods of all services."""
    return [method for service in services() for method in service.methods]


def qualified(method: MethodDescriptor) -> str:
    """As in "TaskService.CreateTask"."""
    return f"{method.containing_service.name}.{method.name}"


@dataclass(frozen=True)
class Element:
    """Something in a proto file that must have a comment."""

    name: str
    comment: str


def elements(file: FileDescriptorProto) -> Iterator[Element]:
    """Every file, service, method, message, field, enum, value, oneof and extension of the file."""
    comments = {tuple(location.path): location.leading_comments for location in file.source_code_info.location}

    def element(name: str, path: tuple[int, ...]) -> Element:
        return Element(name, comments.get(path, "").strip())

    # 12 is `syntax`: what stands above it speaks of the file.
    yield element(file.name, (12,))
    for number, service in enumerate(file.service):
        yield element(service.name, (6, number))
        for index, method in enumerate(service.method):
            yield element(f"{service.name}.{method.name}", (6, number, 2, index))
    for number, enum in enumerate(file.enum_type):
        yield element(enum.name, (5, number))
        for index, value in enumerate(enum.value):
            yield element(f"{enum.name}.{value.name}", (5, number, 2, index))
    for number, extension in enumerate(file.extension):
        yield element(extension.name, (7, number))
    for number, message in enumerate(file.message_type):
        yield element(message.name, (4, number))
        assert not [nested for nested in message.nested_type if not nested.options.map_entry], "no nested types"
        for index, field in enumerate(message.field):
            yield element(f"{message.name}.{field.name}", (4, number, 2, index))
        for index, oneof in enumerate(message.oneof_decl):
            if not oneof.name.startswith("_"):
                yield element(f"{message.name}.{oneof.name}", (4, number, 8, index))


def shape(message: Descriptor) -> dict[int, tuple[str, int, bool, str]]:
    """What of a message is on the wire: number to name, type, repeated, and name of the type."""
    return {
        field.number: (
            field.name,
            field.type,
            field.is_repeated,
            _type_name(field),
        )
        for field in message.fields
    }


def _type_name(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    return "" if named is None else named.name
