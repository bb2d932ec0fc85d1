"""Who holds which task: the live leases, by task and by agent.

A cache of the running attempts; the renewals are only here. After a restart every lease gets a
full duration of grace, so that the death of a server kills nobody's work.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kapell.v1.task_pb2 import TaskAttempt

from kapell_server.domain.access import LeaseId
from kapell_server.domain.times import timestamp_ns


@dataclass(slots=True)
class Lease:
    """One live lease. `expire_ns` moves with each renewal; `confirmed` once the agent has spoken of it.

    `news_ns` is when the attempt last had news, `waiting` the AttemptWaitKind it waits for, 0 for none,
    since `waiting_ns`, and `ended_ns` when its program was first said to have ended, 0 while it runs.
    """

    record: TaskAttempt
    expire_ns: int
    poll_id: str
    confirmed: bool = False
    news_ns: int = 0
    waiting: int = 0
    waiting_ns: int = 0
    ended_ns: int = 0

    @property
    def task_id(self) -> str:
        return self.record.task_id

    @property
    def agent_id(self) -> str:
        return self.record.agent_id

    @property
    def attempt(self) -> int:
        return self.record.attempt

    @property
    def start_ns(self) -> int:
        return timestamp_ns(self.record.start_time)

    @property
    def lease_id(self) -> LeaseId:
        return LeaseId(self.task_id, self.attempt, self.start_ns)

    def is_meant_by(self, lease_id: LeaseId) -> bool:
        """Whether a genuine token speaks of this very attempt."""
        return self.attempt == lease_id.attempt and self.start_ns == lease_id.start_ns


@dataclass(slots=True)
class LeaseTable:
    """Live leases under two keys. A task has at most one (T2)."""

    by_task: dict[str, Lease] = field(default_factory=dict)
    by_agent: dict[str, dict[str, Lease]] = field(default_factory=dict)

    def add(self, lease: Lease) -> None:
        assert lease.task_id not in self.by_task, "a task has at most one live lease"
        self.by_task[lease.task_id] = lease
        self.by_agent.setdefault(lease.agent_id, {})[lease.task_id] = lease

    def remove(self, lease: Lease) -> None:
        del self.by_task[lease.task_id]
        held = self.by_agent[lease.agent_id]
        del held[lease.task_id]
        if not held:
            del self.by_agent[lease.agent_id]

    def restore(self, lease: Lease) -> None:
        """Undoes `remove`: the lease is back in its place among those of its agent."""
        self.add(lease)
        held = self.by_agent[lease.agent_id].values()
        self.by_agent[lease.agent_id] = {one.task_id: one for one in sorted(held, key=lambda one: one.start_ns)}

    def meant_by(self, lease_id: LeaseId) -> Lease | None:
        """The live lease of an attempt; None where it has ended."""
        lease = self.by_task.get(lease_id.task_id)
        return lease if lease is not None and lease.is_meant_by(lease_id) else None

    def of_agent(self, agent_id: str) -> list[Lease]:
        """The agent's leases, oldest first."""
        return list(self.by_agent.get(agent_id, {}).values())

    def used(self, agent_id: str) -> int:
        """How many slots of the agent are taken."""
        return len(self.by_agent.get(agent_id, ()))
