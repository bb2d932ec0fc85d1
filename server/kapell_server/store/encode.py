"""From changes to bytes: each resource is encoded once, for its row, its event and every watcher."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import Agent
from kapell.v1.event_pb2 import Event

from kapell_server.domain.access import Caller
from kapell_server.domain.state import Change
from kapell_server.domain.times import stamp
from kapell_server.wire import field, int_field

_EVENT = Event.DESCRIPTOR.fields_by_name
_REVISION = _EVENT["revision"].number
_KIND = _EVENT["kind"].number
_TIME = _EVENT["event_time"].number
_ACTOR = _EVENT["actor"].number
_PREVIOUS_TASK = _EVENT["previous_task_state"].number
_PREVIOUS_AGENT = _EVENT["previous_agent_state"].number
_CHANGED = _EVENT["changed_fields"].number
_TASK = _EVENT["task"].number
_AGENT = _EVENT["agent"].number


def encode_time(now_ns: int) -> bytes:
    """The event_time field, the same for all events of a batch."""
    time = Timestamp()
    stamp(time, now_ns)
    return field(_TIME, time.SerializeToString())


def encode_event(change: Change, resource: bytes, time: bytes) -> bytes:
    """An encoded Event: a head of its own and the resource's bytes as they are."""
    is_agent = type(change.resource) is Agent
    previous = int_field(_PREVIOUS_AGENT if is_agent else _PREVIOUS_TASK, change.previous_state)
    return b"".join(
        (
            int_field(_REVISION, change.resource.revision),
            int_field(_KIND, change.kind),
            time,
            _actor(change.caller),
            previous,
            _changed(change.changed),
            field(_AGENT if is_agent else _TASK, resource),
        )
    )


@lru_cache(maxsize=1024)
def _actor(caller: Caller) -> bytes:
    return field(_ACTOR, caller.actor().SerializeToString())


@lru_cache(maxsize=256)
def _changed(names: tuple[str, ...]) -> bytes:
    return b"".join(field(_CHANGED, name.encode()) for name in names)
