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
    AGENT_STATE_DRAINING,
    AGENT_STATE_TERMINATING,
    Agent,
    AgentProfile,
    SpawnAgentRequest,
    TerminateAgentRequest,
)

from kapell_server.domain.state import State
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.domain.workers import agent as agents
from kapell_server.domain.workers.pool import POOL, POOL_SUBJECT, idle_stop_ns, serves

_LEAVING = AGENT_FINAL | {AGENT_STATE_DRAINING, AGENT_STATE_TERMINATING}


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
        elif any(agent.agent_id in state.pools.idle_since for agent in members):
            # Tasks want others. When those are gone nobody says so.
            state.schedule(state.now_ns + idle_stop_ns(profile), subject_id)
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
    if room < missing:
        state.pools.cramped.add(profile.profile)
    for _ in range(min(missing, room)):
        agents.spawn(state, SpawnAgentRequest(profile=profile.profile), profile.profile, profile.spec)
    return True


def _lacking(state: State, profile: AgentProfile) -> int:
    """How many agents more the tasks need that could run now."""
    waiting = {agent_type: _runnable(state, agent_type) for agent_type in profile.spec.agent_types}
    if not any(waiting.values()):
        return 0
    able = (
        (agent, [agent_type for agent_type in agent.agent_types if agent_type in waiting])
        for agent in _living(state)
        if serves(agent)
    )
    # Who can take the fewest types first, so that the others are left for the rest.
    for agent, types in sorted(able, key=lambda pair: len(pair[1])):
        free = agent.slots_total - state.leases.used(agent.agent_id)
        for agent_type in types:
            taken = min(free, waiting[agent_type])
            waiting[agent_type] -= taken
            free -= taken
    return -(-sum(waiting.values()) // (profile.spec.slots or 1))


def _runnable(state: State, agent_type: str) -> int:
    """Tasks of a type that only an agent is missing for."""
    if not state.queues.is_open(agent_type):
        return 0
    return state.queues.ready.depth(agent_type) - state.queues.ready.blocked(agent_type)


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
