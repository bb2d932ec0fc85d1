"""What the writer remembers of pools: their profiles, who is idle since when, and starts that failed.

What is done about it is in `pooling`. Owned by State, and journalled as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_NOT_POLLING,
    AGENT_ACTIVITY_SILENT,
    AGENT_STATE_ACTIVE,
    AGENT_STATE_FAILED,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    Agent,
    AgentPool,
    AgentProfile,
)

from kapell_server.domain.access import system
from kapell_server.domain.queueing.polls import ALL
from kapell_server.domain.times import SECOND, duration_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

POOL = system("pool")
POOL_SUBJECT = "pool_"
_IDLE_STOP = 300 * SECOND
_FIRST_PAUSE = SECOND
_LONGEST_PAUSE = 60 * SECOND
_COMING = frozenset({AGENT_STATE_PENDING, AGENT_STATE_STARTING})
_DEAF = frozenset({AGENT_ACTIVITY_SILENT, AGENT_ACTIVITY_NOT_POLLING})


@dataclass(frozen=True, slots=True)
class Setback:
    """Agents of a pool that failed, one after the other: how many, until when none is started, and why the last did.

    Those that fail while none is started anyway were started together, and count once.
    """

    row: int
    until_ns: int
    reason: str


class Pools:
    """Pools by the name of their profile."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.profiles: dict[str, AgentProfile] = {}
        self._by_type: dict[str, list[str]] = {}
        self.idle_since: dict[str, int] = {}
        """Agents of pools that have nothing to do, by id."""
        self.setbacks: dict[str, Setback] = {}
        self.cramped: set[str] = set()
        """Pools that the server had no room for; a hint, which the next look corrects."""

    def load(self, profiles: Iterable[AgentProfile]) -> None:
        """Takes the profiles that are pools, looks at each at once, and counts what idles as idle from now on.

        What a pool has started that is in the configuration no more is kept as a pool that starts none.
        """
        for profile in profiles:
            if profile.HasField("pool"):
                self.profiles[profile.profile] = profile
                for agent_type in profile.spec.agent_types:
                    self._by_type.setdefault(agent_type, []).append(profile.profile)
                self._wake(profile.profile, self._state.now_ns)
        for agent in self._state.agents.values():
            if agent.creator == POOL.actor() and agent.profile not in self.profiles:
                self.profiles[agent.profile] = AgentProfile(profile=agent.profile, pool=AgentPool())
        for agent in self._state.agents.values():
            self.note(agent, None)

    def serving(self, agent_type: str) -> list[AgentProfile]:
        """The pools whose agents take tasks of a type."""
        return [self.profiles[name] for name in self._by_type.get(agent_type, ())]

    def demand_changed(self, agent_types: Iterable[str]) -> None:
        """Tasks of these types may be waiting for an agent; `ALL` stands for any."""
        for agent_type in agent_types if self.profiles else ():
            for name in self.profiles if agent_type == ALL else self._by_type.get(agent_type, ()):
                self._wake(name, self._state.now_ns)

    def note(self, agent: Agent, previous: Agent | None) -> None:
        """An agent has come, changed or ended; `previous` is what it was."""
        if previous is not None and self.profiles:
            self._note_loss(agent, previous)
        profile = self.profiles.get(agent.profile)
        if profile is None:
            return
        state, name = self._state, agent.profile
        idles = agent.state == AGENT_STATE_ACTIVE and not agent.slots_used
        if not idles:
            state.remove(self.idle_since, agent.agent_id)
        elif agent.agent_id not in self.idle_since:
            state.assign(self.idle_since, agent.agent_id, state.now_ns)
            self._wake(name, state.now_ns + idle_stop_ns(profile))
        if agent.state == AGENT_STATE_FAILED and previous is not None and previous.state != AGENT_STATE_FAILED:
            before = self.setbacks.get(name, Setback(0, 0, ""))
            row, until_ns = before.row, before.until_ns
            if until_ns <= state.now_ns:
                row += 1
                until_ns = state.now_ns + min(_FIRST_PAUSE << min(row - 1, 30), _LONGEST_PAUSE)
            state.assign(self.setbacks, name, Setback(row, until_ns, agent.state_reason))
            self._wake(name, until_ns)
        elif agent.state == AGENT_STATE_ACTIVE and agent.slots_used:
            state.remove(self.setbacks, name)
        if agent.HasField("end_time"):
            self._wake(name, state.now_ns)

    def _note_loss(self, agent: Agent, previous: Agent) -> None:
        """Others may have to make up for what an agent takes no more, or use the room that it leaves."""
        if agent.HasField("end_time") and not previous.HasField("end_time"):
            while self.cramped:
                self._wake(self.cramped.pop(), self._state.now_ns)
        is_lost = serves(previous) and not serves(agent)
        if is_lost and agent.profile in self.profiles:
            self._wake(agent.profile, self._state.now_ns)
        if is_lost or agent.slots_used > previous.slots_used:
            ready = self._state.queues.ready
            others = {name for one in agent.agent_types if ready.depth(one) for name in self._by_type.get(one, ())}
            # What an agent takes of its own pool's tasks leaves that as it was.
            for name in others - {agent.profile}:
                self._wake(name, self._state.now_ns)

    def _wake(self, name: str, at_ns: int) -> None:
        self._state.schedule(at_ns, POOL_SUBJECT + name)


def serves(agent: Agent) -> bool:
    """Whether the free slots of an agent can be counted on."""
    return agent.state in _COMING or (agent.state == AGENT_STATE_ACTIVE and agent.activity not in _DEAF)


def idle_stop_ns(profile: AgentProfile) -> int:
    """How long an agent of the pool may have nothing to do, in nanoseconds."""
    return duration_ns(profile.pool.idle_stop) or _IDLE_STOP
