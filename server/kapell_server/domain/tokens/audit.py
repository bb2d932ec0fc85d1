"""The audit log: which commands are recorded, and what of them.

An entry is written with what it tells of, in one transaction. Of what was refused only attempts at what is for
administrators are recorded, and these at a bounded pace (`rpc/refusals`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from kapell.v1 import common_pb2
from kapell.v1.audit_pb2 import AuditEntry

from kapell_server.domain.access import CallerKind
from kapell_server.domain.copied import copied
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell_server.domain.state import State

MOST_BYTES = 2048
_LEFT_OUT = frozenset(
    {"request_id", "prompt", "input", "result", "parameters", "env", "secret", "value", "lease_token"}
)
"""Fields that are content or may be secret, whatever message has them; also those with debug_redact."""


def note(state: State, request: Any) -> None:
    """Records a command that was done just now, if it is one of those that are recorded."""
    method = audited_method(type(request))
    if not method or state.caller.kind is CallerKind.SYSTEM:
        return
    entry = AuditEntry(
        actor=state.caller.actor(),
        token_id=state.caller.token_id,
        peer=state.caller.peer,
        method=method,
        request=summary(request),
        revision=state.revision,
    )
    stamp(entry.audit_time, state.now_ns)
    _append(state, entry)


def note_refusals(state: State, entries: Iterable[AuditEntry]) -> None:
    """Records attempts that were refused a while ago."""
    for entry in entries:
        numbered = copied(entry)
        numbered.revision = state.revision
        _append(state, numbered)


def _append(state: State, entry: AuditEntry) -> None:
    state.audit_number += 1
    entry.number = state.audit_number
    state.pending.audit.append(entry)
    state.on_rollback(_take_back, state)


def _take_back(state: State) -> None:
    state.pending.audit.pop()
    state.audit_number -= 1


def audited_method(request: type) -> str:
    """The method of a request message, as "TokenService.CreateToken", if its calls are recorded; else empty."""
    return _audited(request.DESCRIPTOR) if issubclass(request, Message) else ""


@lru_cache(maxsize=1024)
def _audited(descriptor: Any) -> str:
    """A service stands in one file with its requests."""
    for service in descriptor.file.services_by_name.values():
        for method in service.methods:
            if method.input_type.full_name == descriptor.full_name:
                options = method.GetOptions().Extensions
                changes = "request_id" in descriptor.fields_by_name
                by_scope = changes and options[common_pb2.scope] == common_pb2.SCOPE_ADMIN
                return f"{service.name}.{method.name}" if by_scope or options[common_pb2.audited] else ""
    return ""


def summary(request: Message) -> str:
    """The request as JSON without content and secrets, shortened."""
    shown = type(request)()
    shown.CopyFrom(request)
    _leave_out(shown)
    try:
        text = json.dumps(json_format.MessageToDict(shown), ensure_ascii=False, sort_keys=True)
    except json_format.SerializeToJsonError:
        return "a request that cannot be shown"
    encoded = text.encode()
    return text if len(encoded) <= MOST_BYTES else encoded[: MOST_BYTES - 3].decode(errors="ignore") + "…"


def _leave_out(message: Message) -> None:
    for field, value in message.ListFields():
        if field.name in _LEFT_OUT or field.GetOptions().debug_redact or field.type == FieldDescriptor.TYPE_BYTES:
            message.ClearField(field.name)
        elif field.message_type is not None and not field.message_type.GetOptions().map_entry:
            for each in value if field.is_repeated else (value,):
                _leave_out(each)
