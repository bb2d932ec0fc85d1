"""From changes to bytes: each resource is encoded once, for its row, its event and every watcher."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import Agent
from kapell.v1.approval_pb2 import Approval
from kapell.v1.event_pb2 import Event
from kapell.v1.task_pb2 import Task
from kapell.v1.template_pb2 import Template
from kapell.v1.usage_pb2 import UsageUpdate

from kapell_server.domain.access import Caller
from kapell_server.domain.pending import Change, Resource
from kapell_server.domain.standing import KINDS
from kapell_server.domain.times import stamp
from kapell_server.wire import field, varint

_EVENT = Event.DESCRIPTOR.fields_by_name


def _tag(name: str, wire_type: int) -> bytes:
    return varint(_EVENT[name].number << 3 | wire_type)


_REVISION = _tag("revision", 0)
_KIND = _tag("kind", 0)
_TIME = _EVENT["event_time"].number
_ACTOR = _EVENT["actor"].number
_PREVIOUS_TASK = _tag("previous_task_state", 0)
_PREVIOUS_AGENT = _tag("previous_agent_state", 0)
_CHANGED = _EVENT["changed_fields"].number
_RESOURCE: dict[type[Resource], bytes] = {
    Task: _tag("task", 2),
    Agent: _tag("agent", 2),
    Template: _tag("template", 2),
    UsageUpdate: _tag("usage", 2),
    Approval: _tag("approval", 2),
    **{kind.type: _tag(kind.name, 2) for kind in KINDS.values()},
}


def encode_time(now_ns: int) -> bytes:
    """The event_time field, the same for all events of a batch."""
    time = Timestamp()
    stamp(time, now_ns)
    return field(_TIME, time.SerializeToString())


def encode_event(change: Change, resource: bytes, time: bytes) -> bytes:
    """An encoded Event: a head of its own and the resource's bytes as they are."""
    is_agent = type(change.resource) is Agent
    head = _REVISION + varint(change.resource.revision) + _KIND + varint(change.kind) + time + _actor(change.caller)
    if change.previous_state:
        head += (_PREVIOUS_AGENT if is_agent else _PREVIOUS_TASK) + varint(change.previous_state)
    if change.changed:
        head += _changed(change.changed)
    return head + _RESOURCE[type(change.resource)] + varint(len(resource)) + resource


@lru_cache(maxsize=1024)
def _actor(caller: Caller) -> bytes:
    return field(_ACTOR, caller.actor().SerializeToString())


@lru_cache(maxsize=256)
def _changed(names: tuple[str, ...]) -> bytes:
    return b"".join(field(_CHANGED, name.encode()) for name in names)
