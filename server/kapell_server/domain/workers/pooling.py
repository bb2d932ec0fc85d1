"""Keeps as many agents of a pool as its tasks need: starts some, ends those that have nothing to do.

A look is level-triggered: it compares what waits with who could take it, so it may come too often and does no harm.
It is asked for whenever dispatch has something new, an agent of the pool comes, ends or becomes idle, and when the
time of a setback or of an idle agent has come. An agent is ended in the change that finds it without a task, so
none can be given to it meanwhile. Agents that fail before they have done anything hold the pool back, for longer
each time.
"""

from __future__ import annotations

from collections.abc import Iterator

from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_IDLE,
    AGENT_ACTIVITY_WORKING,
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATING,
    Agent,
    AgentProfile,
    SpawnAgentRequest,
    TerminateAgentRequest,
)

from kapell_server.domain.access import system
from kapell_server.domain.state import State
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.domain.workers import agent as agents
from kapell_server.domain.workers.pool import POOL_SUBJECT, idle_stop_ns

POOL = system("pool")
_LEAVING = AGENT_FINAL | {AGENT_STATE_DRAINING, AGENT_STATE_TERMINATING}
_COMING = frozenset({AGENT_STATE_PENDING, AGENT_STATE_STARTING})


def look_at_pool(state: State, subject_id: str) -> None:
    """Does for a pool what its tasks and the time ask for."""
    profile = state.pools.profiles.get(subject_id.removeprefix(POOL_SUBJECT))
    if profile is None:
        return
    caller, state.caller = state.caller, POOL
    try:
        members = [agent for agent in _living(state) if agent.profile == profile.profile]
        if not _grow(state, profile, len(members)):
            _shrink(state, profile, members)
    finally:
        state.caller = caller


def _living(state: State) -> Iterator[Agent]:
    return (agent for agent in state.agents.values() if agent.state not in _LEAVING)


def _grow(state: State, profile: AgentProfile, members: int) -> bool:
    """Starts what is missing; whether anything is."""
    lacking = max(_lacking(state, profile), profile.pool.min_agents - members)
    missing = min(lacking, profile.pool.max_agents - members)
    if missing <= 0:
        return lacking > 0
    setback = state.pools.setbacks.get(profile.profile)
    if setback is not None and setback.until_ns > state.now_ns:
        state.schedule(setback.until_ns, POOL_SUBJECT + profile.profile)
        return True
    room = state.settings.max_agents - sum(agent.state not in AGENT_FINAL for agent in state.agents.values())
    for _ in range(min(missing, room)):
        agents.spawn(state, SpawnAgentRequest(profile=profile.profile), profile.profile, profile.spec)
    return True


def _lacking(state: State, profile: AgentProfile) -> int:
    """How many agents more the tasks need that could run now."""
    types = set(profile.spec.agent_types)
    waiting = sum(_runnable(state, agent_type) for agent_type in types)
    if not waiting:
        return 0
    free = sum(_free(state, agent) for agent in _living(state) if not types.isdisjoint(agent.agent_types))
    return -(-max(0, waiting - free) // (profile.spec.slots or 1))


def _runnable(state: State, agent_type: str) -> int:
    """Tasks of a type that only an agent is missing for."""
    if not state.queues.is_open(agent_type):
        return 0
    return state.queues.ready.depth(agent_type) - state.queues.ready.blocked(agent_type)


def _free(state: State, agent: Agent) -> int:
    """Slots of an agent that tasks will be given to."""
    if agent.state in _COMING:
        return agent.slots_total
    if agent.state != AGENT_STATE_ACTIVE or agent.activity not in (AGENT_ACTIVITY_IDLE, AGENT_ACTIVITY_WORKING):
        return 0
    return agent.slots_total - state.leases.used(agent.agent_id)


def _shrink(state: State, profile: AgentProfile, members: list[Agent]) -> None:
    """Ends agents that this pool has started and that have idled long enough, the longest first."""
    since = state.pools.idle_since
    idle = sorted(
        (since[agent.agent_id], agent.agent_id)
        for agent in members
        if agent.agent_id in since and agent.creator == POOL.actor() and not state.leases.used(agent.agent_id)
    )
    spare = len(members) - profile.pool.min_agents
    for since_ns, agent_id in idle[: max(0, spare)]:
        due_ns = since_ns + idle_stop_ns(profile)
        if due_ns > state.now_ns:
            state.schedule(due_ns, POOL_SUBJECT + profile.profile)
            return
        reason = "nothing to do, and its pool needs it no more"
        agents.terminate(state, TerminateAgentRequest(agent_id=agent_id, reason=reason))
