"""One event as the ring and all watchers share it: decoded once, encoded once."""

from __future__ import annotations

from typing import NamedTuple

from kapell_server.domain.pending import Resource


class Record(NamedTuple):
    """An event of the log.

    `kind` is an EventKind; `resource` is the Task, Agent or Template after the change (without large
    content) and must not be altered; `data` is the encoded `kapell.v1.Event`, which is also a
    valid TaskEvent or AgentEvent where it is one of these.
    """

    revision: int
    kind: int
    resource_id: str
    resource: Resource
    data: bytes
