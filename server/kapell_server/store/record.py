"""One event as the ring and all watchers share it: decoded once, encoded once."""

from __future__ import annotations

from typing import NamedTuple

from kapell.v1.agent_pb2 import Agent
from kapell.v1.task_pb2 import Task


class Record(NamedTuple):
    """An event of the log.

    `kind` is an EventKind; `resource` is the Task or Agent after the change (without large
    content) and must not be altered; `data` is the encoded `kapell.v1.Event`, which is also a
    valid TaskEvent or AgentEvent.
    """

    revision: int
    kind: int
    resource_id: str
    resource: Task | Agent
    data: bytes
