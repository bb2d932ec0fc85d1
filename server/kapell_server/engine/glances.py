"""What the engine answers from memory, past the writer: a lease, a fence, a count.

A glance sees what the batches so far have decided, the one under way included, whose commit may still fail.
So nothing here tells a client what is; it says what may be done now, or fills in a number that moves anyway.
Belongs to the event loop, between two batches or beside the commit of one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from kapell.rules.redaction import Redactor
from kapell.v1.budget_pb2 import Budget
from kapell.v1.lock_pb2 import CheckFenceRequest, CheckFenceResponse
from kapell.v1.task_pb2 import Task
from kapell.v1.token_pb2 import Token
from kapell.v1.usage_pb2 import RepriceUsageRequest, UsageRecord
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_CONTINUE

from kapell_server.clock import Clock
from kapell_server.domain.access import Caller, LeaseId
from kapell_server.domain.locks import lock
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.domain.usage import reprice
from kapell_server.domain.workers import attempt
from kapell_server.engine.facts import ChildrenAwaited
from kapell_server.store.reads import Reads


class Glances(ABC):
    """The part of the engine that only looks."""

    _state: State
    _clock: Clock
    reads: Reads

    @abstractmethod
    async def submit(self, request: Any, caller: Caller) -> bytes:
        """Decides and commits one command."""

    def check_lease(self, token: str, caller: Caller, *, renew: bool = True) -> tuple[str, int, int]:
        """Task, attempt and LeaseDirective of a live lease, which is renewed by it. Raises LEASE_LOST.

        For what does not pass the writer: logs, artifacts, waiting for children. `renew` only where the
        agent has just spoken, which is news.
        """
        lease = attempt.check_token(self._state, token, caller)
        if renew and attempt.renew(self._state, lease, caller, self._clock.now_ns()):
            lease.news_ns = self._clock.now_ns()
        task = self._state.cached_task(lease.task_id)
        directive = attempt.directive(task) if task is not None else LEASE_DIRECTIVE_CONTINUE
        return lease.task_id, lease.attempt, directive

    def check_fence(self, request: CheckFenceRequest, caller: Caller) -> CheckFenceResponse:
        """The lock that covers the path with this token. Raises FENCING_TOKEN_STALE. Does not pass the writer."""
        return lock.check_fence(self._state, request, caller, self._clock.now_ns())

    def awaiting_children(self, task_id: str) -> AbstractContextManager[None]:
        """While the attempt of the task waits for its children, so that a deadlock by locks is seen."""
        return self._state.locks.awaiting_children(task_id)

    async def check_children_awaited(self, task_id: str, caller: Caller) -> None:
        """Raises DEADLOCK where a child waits for what the task, or who waits for it, holds."""
        if self._state.locks.held:
            await self.submit(ChildrenAwaited(task_id), caller)

    def sealed_values(self) -> list[bytes]:
        """The values of secrets as they are stored."""
        return list(self._state.secret_values.values())

    async def redactor(self, task_id: str) -> Redactor:
        """Masks what the attempt of a leased task says that does not pass the writer."""
        task = self._state.cached_task(task_id)
        if task is None:
            task = Task.FromString(await self.reads.get_task(task_id))
        lease = self._state.leases.by_task.get(task_id)
        return use.redactor(self._state, task, lease.agent_id if lease is not None else "")

    def key_use(self, key: str) -> tuple[int, int]:
        """How many tasks of a concurrency key run, and how many are QUEUED."""
        return self._state.queues.keys.count(key)

    def fill_in_budget(self, budget: Budget) -> None:
        """Puts what is spent and reserved right now into a budget; one that is gone stays as it is."""
        tally = self._state.budgets.tallies.get(budget.budget_id)
        if tally is not None:
            budget.status.CopyFrom(self._state.budgets.status(tally))

    def costed_anew(
        self, request: RepriceUsageRequest, records: Sequence[UsageRecord]
    ) -> list[tuple[UsageRecord, UsageRecord]]:
        """Those of these records whose cost would differ by the prices as they are, each with what it would be."""
        found = ((record, reprice.costed_anew(self._state, record, request)) for record in records)
        return [(before, after) for before, after in found if after is not None]

    def held_tasks(self, agent_id: str) -> list[str]:
        """The tasks that the agent has a live lease on, the oldest lease first."""
        return [lease.task_id for lease in self._state.leases.of_agent(agent_id)]

    def lives(self, caller: Caller) -> bool:
        """Whether this instance of the agent, or the program's attempt, has not ended. For calls past the writer."""
        if caller.lease is not None:
            return self.holder(caller.lease) == caller.agent_id
        agent = self._state.agents.get(caller.agent_id)
        return agent is not None and agent.instance == caller.instance and agent.state not in AGENT_FINAL

    def holder(self, lease_id: LeaseId) -> str:
        """The agent that has the attempt; empty where it has ended."""
        lease = self._state.leases.meant_by(lease_id)
        return lease.agent_id if lease is not None else ""

    def find_token(self, token_id: str) -> tuple[Token, bytes] | None:
        """A token of a user and what proves it; None where there is none. For calls that do not pass the writer."""
        token, digest = self._state.standing.find(Token, token_id), self._state.token_digests.get(token_id)
        return None if token is None or digest is None else (token, digest)
