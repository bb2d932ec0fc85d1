"""A whole event log in memory: the reads that following needs, and a writer that feeds a ring.

Stands in for the store where a test is about watching; tests/watch/test_follow.py runs
the same checks as on a real server.
"""

from __future__ import annotations

import copy
from collections.abc import Collection

from kapell.v1.agent_pb2 import Agent
from kapell.v1.alert_pb2 import Alert
from kapell.v1.approval_pb2 import Approval, ApprovalRule
from kapell.v1.budget_pb2 import Budget
from kapell.v1.event_pb2 import Event, GetLogInfoResponse
from kapell.v1.lock_pb2 import Lock, LockSession, LockTicket
from kapell.v1.price_pb2 import Price
from kapell.v1.queue_pb2 import ConcurrencyLimit, Queue
from kapell.v1.schedule_pb2 import Schedule
from kapell.v1.secret_pb2 import Secret
from kapell.v1.task_pb2 import Task
from kapell.v1.template_pb2 import Template
from kapell.v1.token_pb2 import Token
from kapell.v1.usage_pb2 import UsageUpdate
from kapell.v1.watch_pb2 import EVENT_KIND_SNAPSHOT, EVENT_KIND_TASK_DELETED, EventKind
from kapell.v1.webhook_pb2 import Webhook
from kapell_server.domain.pending import Resource
from kapell_server.store.record import Record
from kapell_server.store.writes import resource_id
from kapell_server.watch.filters import ResourceKind
from kapell_server.watch.ring import Ring


class MemoryLog:
    """Events from revision `first` on. Reads are counted in `pages_read`."""

    def __init__(self, *, first: int = 1, ring_capacity: int = 16384) -> None:
        self.log_id = "log_test"
        self.ring = Ring(revision=first - 1, capacity=ring_capacity)
        self.pages_read = 0
        self._first = first
        self._records: list[Record] = []
        self._resources: dict[str, Record] = {}

    @property
    def head(self) -> int:
        """The newest revision."""
        return self._first + len(self._records) - 1

    def put(self, kind: EventKind.ValueType, resource: Resource) -> Record:
        """Commits one change and publishes it."""
        revision = self.head + 1
        after = copy.deepcopy(resource)
        after.revision = revision
        record = _record(revision, kind, after)
        self._records.append(record)
        if kind == EVENT_KIND_TASK_DELETED:
            self._resources.pop(record.resource_id, None)
        else:
            self._resources[record.resource_id] = record
        self.ring.publish([record])
        return record

    def compact(self, oldest: int) -> None:
        """Forgets what came before revision `oldest`."""
        self._records = self._records[oldest - self._first :]
        self._first = oldest

    async def events_after(self, revision: int, limit: int) -> list[Record]:
        self.pages_read += 1
        begin = max(0, revision + 1 - self._first)
        return self._records[begin : begin + limit]

    async def snapshot(
        self, kind: ResourceKind, after: int, until_revision: int, limit: int, ids: Collection[str] = ()
    ) -> tuple[list[Record], int | None]:
        wanted = {
            "task": Task,
            "agent": Agent,
            "template": Template,
            "queue": Queue,
            "limit": ConcurrencyLimit,
            "schedule": Schedule,
            "budget": Budget,
            "alert": Alert,
            "webhook": Webhook,
            "price": Price,
            "usage": UsageUpdate,
            "approval": Approval,
            "approval_rule": ApprovalRule,
            "lock": Lock,
            "ticket": LockTicket,
            "session": LockSession,
            "secret": Secret,
            "token": Token,
        }[kind]
        self.pages_read += 1
        everything = [record for record in self._resources.values() if type(record.resource) is wanted]
        if ids:
            everything = [record for record in everything if record.resource_id in ids]
        page = everything[after : after + limit]
        found = [
            _record(record.revision, EVENT_KIND_SNAPSHOT, record.resource)
            for record in page
            if record.revision <= until_revision
        ]
        return found, after + limit if after + limit < len(everything) else None

    async def log_info(self) -> GetLogInfoResponse:
        return GetLogInfoResponse(log_id=self.log_id, revision=self.head, oldest_revision=max(0, self._first - 1))


def _record(revision: int, kind: EventKind.ValueType, resource: Resource) -> Record:
    event = Event(revision=revision, kind=kind)
    match resource:
        case Task():
            event.task.CopyFrom(resource)
        case Agent():
            event.agent.CopyFrom(resource)
        case Template():
            event.template.CopyFrom(resource)
        case Schedule():
            event.schedule.CopyFrom(resource)
        case Lock():
            event.lock.CopyFrom(resource)
        case LockTicket():
            event.ticket.CopyFrom(resource)
        case LockSession():
            event.session.CopyFrom(resource)
    return Record(revision, kind, resource_id(resource), resource, event.SerializeToString())
