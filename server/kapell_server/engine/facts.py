"""Commands that no client sends: what the server's own parts have seen, and resolved requests."""

from __future__ import annotations

from dataclasses import dataclass, field

from kapell.v1.agent_pb2 import AgentSpec, SpawnAgentRequest
from kapell.v1.approval_pb2 import ListApprovalsRequest
from kapell.v1.audit_pb2 import AuditEntry
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.template_pb2 import TemplateSpec
from kapell.v1.usage_pb2 import RecordUsageRequest


@dataclass(frozen=True, slots=True)
class SpawnCommand:
    """A SpawnAgentRequest whose profile, if it names one, has been looked up."""

    request: SpawnAgentRequest
    profile: str
    spec: AgentSpec

    @property
    def request_id(self) -> str:
        return self.request.request_id


@dataclass(frozen=True, slots=True)
class AgentProcessStarted:
    """The process of a spawned agent runs."""

    agent_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class AgentProcessExited:
    """The whole process tree of a spawned agent is gone."""

    agent_id: str
    exit: ProcessExit
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AgentStartFailed:
    """The process of a spawned agent could not be started."""

    agent_id: str
    reason: str
    exit: ProcessExit = field(default_factory=ProcessExit)


@dataclass(frozen=True, slots=True)
class ChildrenAwaited:
    """The attempt of a task waits for its children, which is noted in the table of locks."""

    task_id: str


@dataclass(frozen=True, slots=True)
class TemplatesShipped:
    """The templates that this version of Kapell brings along, by id, in the order they are to be created."""

    specs: tuple[tuple[str, TemplateSpec], ...]
    digest: str
    """Remembered with them, so that the next start knows them by it."""


@dataclass(frozen=True, slots=True)
class UsageChunk:
    """Some of the records of a RecordUsage, under a request_id of their own; `request` tells the whole by a digest."""

    request: RecordUsageRequest
    request_id: str


@dataclass(frozen=True, slots=True)
class TasksOutlived:
    """Finished tasks that need not be kept any more, all of them ended by `ended_by_ns`."""

    task_ids: tuple[str, ...]
    ended_by_ns: int


@dataclass(frozen=True, slots=True)
class EventsOutlived:
    """Events up to this revision need not be kept any more."""

    revision: int


@dataclass(frozen=True, slots=True)
class InboxQuestion:
    """A page of the approvals that wait, by position."""

    request: ListApprovalsRequest
    first: int
    size: int


@dataclass(frozen=True, slots=True)
class RefusalsNoted:
    """Attempts at what is for administrators, by somebody who is none. Entries of the audit log without number."""

    entries: tuple[AuditEntry, ...]


@dataclass(frozen=True, slots=True)
class Termination:
    """How an agent that is TERMINATING is to be ended."""

    force: bool
    grace_seconds: float
    reason: str
