"""The classes of liveness: what a live agent is doing, and how long an attempt may go without news or outcome.

What an agent says of its attempts is kept with their leases, in memory, like the renewals: after a
restart the next heartbeat says it again, and every time begins anew. An agent is looked at at
least every few seconds by the watch for its silence, which is often enough to notice the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_FINISHED_NOT_REPORTED,
    AGENT_ACTIVITY_IDLE,
    AGENT_ACTIVITY_NOT_POLLING,
    AGENT_ACTIVITY_RATE_LIMITED,
    AGENT_ACTIVITY_SILENT,
    AGENT_ACTIVITY_STALLED,
    AGENT_ACTIVITY_UNSPECIFIED,
    AGENT_ACTIVITY_WAITING_FOR_APPROVAL,
    AGENT_ACTIVITY_WAITING_FOR_BUDGET,
    AGENT_ACTIVITY_WAITING_FOR_LOCK,
    AGENT_ACTIVITY_WORKING,
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    Agent,
    AgentActivity,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_WAIT_KIND_APPROVAL,
    ATTEMPT_WAIT_KIND_BUDGET,
    ATTEMPT_WAIT_KIND_LOCK,
    ATTEMPT_WAIT_KIND_PROVIDER,
    Task,
)

from kapell_server.domain.settings import Settings
from kapell_server.domain.state import State
from kapell_server.domain.times import SECOND, duration_ns
from kapell_server.domain.workers.leases import Lease


@dataclass(frozen=True, slots=True)
class Wait:
    """What becomes of an attempt that waits for too long: the reason, why, and whether the task fails at once."""

    field: str
    reason: str
    message: str
    final: bool = False

    def timeout(self, task: Task) -> Duration:
        """How long it may be."""
        found: Duration = getattr(task.timeouts, self.field)
        return found


WAITS: dict[int, Wait] = {
    ATTEMPT_WAIT_KIND_APPROVAL: Wait(
        field="approval_wait_timeout",
        reason="APPROVAL_WAIT_TIMEOUT",
        message="nobody decided within its approval wait timeout",
        final=True,
    ),
    ATTEMPT_WAIT_KIND_LOCK: Wait(
        field="lock_wait_timeout",
        reason="LOCK_WAIT_TIMEOUT",
        message="it did not get its lock within its lock wait timeout",
    ),
    ATTEMPT_WAIT_KIND_PROVIDER: Wait(
        field="provider_wait_timeout",
        reason="PROVIDER_WAIT_TIMEOUT",
        message="its provider took no calls within its provider wait timeout",
    ),
}
_WAITING: dict[int, AgentActivity.ValueType] = {
    ATTEMPT_WAIT_KIND_APPROVAL: AGENT_ACTIVITY_WAITING_FOR_APPROVAL,
    ATTEMPT_WAIT_KIND_BUDGET: AGENT_ACTIVITY_WAITING_FOR_BUDGET,
    ATTEMPT_WAIT_KIND_LOCK: AGENT_ACTIVITY_WAITING_FOR_LOCK,
    ATTEMPT_WAIT_KIND_PROVIDER: AGENT_ACTIVITY_RATE_LIMITED,
}
_URGENCY = (
    AGENT_ACTIVITY_FINISHED_NOT_REPORTED,
    AGENT_ACTIVITY_STALLED,
    AGENT_ACTIVITY_WAITING_FOR_APPROVAL,
    AGENT_ACTIVITY_WAITING_FOR_BUDGET,
    AGENT_ACTIVITY_WAITING_FOR_LOCK,
    AGENT_ACTIVITY_RATE_LIMITED,
)


def activity(state: State, agent: Agent) -> AgentActivity.ValueType:
    """What the agent is doing right now."""
    if agent.state not in (AGENT_STATE_ACTIVE, AGENT_STATE_DRAINING):
        return AGENT_ACTIVITY_UNSPECIFIED
    settings = state.settings
    if state.agent_seen_ns.get(agent.agent_id, 0) + int(settings.silent_after * SECOND) <= state.now_ns:
        return AGENT_ACTIVITY_SILENT
    held = state.leases.by_agent.get(agent.agent_id)
    if held:
        of_leases = _of_leases(held.values(), state.now_ns, settings)
        if of_leases != AGENT_ACTIVITY_WORKING:
            return of_leases
    if _is_not_polling(state, agent, len(held or ())):
        return AGENT_ACTIVITY_NOT_POLLING
    return AGENT_ACTIVITY_WORKING if held else AGENT_ACTIVITY_IDLE


def _of_leases(leases: Iterable[Lease], now_ns: int, settings: Settings) -> AgentActivity.ValueType:
    """WORKING while work goes on at one of them, else the most urgent of what they are."""
    stalled_before = now_ns - int(settings.stalled_shown_after * SECOND)
    found: AgentActivity.ValueType = AGENT_ACTIVITY_UNSPECIFIED
    for lease in leases:
        if lease.ended_ns:
            one = AGENT_ACTIVITY_FINISHED_NOT_REPORTED
        elif lease.waiting:
            one = _WAITING[lease.waiting]
        elif lease.news_ns <= stalled_before:
            one = AGENT_ACTIVITY_STALLED
        else:
            return AGENT_ACTIVITY_WORKING
        if found == AGENT_ACTIVITY_UNSPECIFIED or _URGENCY.index(one) < _URGENCY.index(found):
            found = one
    return found


def _is_not_polling(state: State, agent: Agent, used: int) -> bool:
    if agent.state != AGENT_STATE_ACTIVE or used >= agent.slots_total or state.polls.of_agent(agent.agent_id):
        return False
    polled = state.agent_polled_ns.get(agent.agent_id, 0)
    return polled + int(state.settings.not_polling_after * SECOND) <= state.now_ns


def note_news(state: State, lease: Lease) -> None:
    """The attempt has said something new."""
    lease.news_ns = state.now_ns
    agent = state.agents.get(lease.agent_id)
    if agent is not None and agent.activity == AGENT_ACTIVITY_STALLED:
        state.busy_agents.add(agent.agent_id)


def note_waiting(state: State, lease: Lease, kind: int) -> None:
    """What the attempt waits for, 0 for nothing. Until it goes on, time does not count as stalled."""
    if kind or lease.waiting:
        lease.news_ns = state.now_ns
    if kind != lease.waiting:
        state.on_rollback(setattr, lease, "waiting", lease.waiting)
        lease.waiting = kind
        lease.waiting_ns = state.now_ns
        state.schedule(wait_deadline_ns(lease, state.task(lease.task_id)), lease.task_id)
        state.busy_agents.add(lease.agent_id)


def note_ended(state: State, lease: Lease) -> None:
    """The attempt's program has ended: its outcome is to come soon."""
    if not lease.ended_ns:
        state.on_rollback(setattr, lease, "ended_ns", 0)
        lease.ended_ns = state.now_ns
        state.busy_agents.add(lease.agent_id)
        state.schedule(report_deadline_ns(lease, state.settings), lease.task_id)


def report_deadline_ns(lease: Lease, settings: Settings) -> int:
    """When the outcome of an attempt whose program has ended must be there; 0 while it runs."""
    return lease.ended_ns + int(settings.report_within * SECOND) if lease.ended_ns else 0


def wait_deadline_ns(lease: Lease, task: Task) -> int:
    """When what the attempt says that it waits for has taken too long; 0 for never."""
    wait = WAITS.get(lease.waiting)
    timeout = duration_ns(wait.timeout(task)) if wait is not None and task.HasField("timeouts") else 0
    return lease.waiting_ns + timeout if timeout and not lease.ended_ns else 0


def stall_deadline_ns(lease: Lease, task: Task) -> int:
    """When the attempt has been without news for too long; 0 for never."""
    stall = duration_ns(task.timeouts.stall_timeout) if task.HasField("timeouts") else 0
    return lease.news_ns + stall if stall and not lease.waiting and not lease.ended_ns else 0
