"""Agents that wait for work: one poll is one LeaseTasks call that found nothing yet.

The board remembers which polls deserve a look at the end of the batch, so that a batch that
makes nothing runnable looks at none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kapell_server.domain.workers.leases import Lease

ALL = "*"
"""Stands for every agent type."""


@dataclass(slots=True, eq=False)
class Poll:
    """A waiting LeaseTasks call. `handle` is the engine's: whom to answer."""

    agent_id: str
    agent_types: list[str]
    max_tasks: int
    poll_id: str
    handle: Any
    taken: list[Lease] = field(default_factory=list)


class PollBoard:
    """Waiting polls by agent and by type, in order of arrival."""

    def __init__(self) -> None:
        self._by_agent: dict[str, dict[Poll, None]] = {}
        self._by_type: dict[str, dict[Poll, None]] = {}
        self._touched: dict[Poll, None] = {}
        self._touched_types: set[str] = set()
        self._woken: set[str] = set()

    def __len__(self) -> int:
        return sum(len(polls) for polls in self._by_agent.values())

    def add(self, poll: Poll) -> None:
        """A poll begins to wait."""
        self._by_agent.setdefault(poll.agent_id, {})[poll] = None
        for agent_type in poll.agent_types:
            self._by_type.setdefault(agent_type, {})[poll] = None
        self._touched[poll] = None

    def remove(self, poll: Poll) -> None:
        """A poll was answered or given up; not being there is not an error."""
        waiting = self._by_agent.get(poll.agent_id)
        if waiting is not None:
            waiting.pop(poll, None)
            if not waiting:
                del self._by_agent[poll.agent_id]
        for agent_type in poll.agent_types:
            self._by_type.get(agent_type, {}).pop(poll, None)
        self._touched.pop(poll, None)

    def contains(self, poll: Poll) -> bool:
        return poll in self._by_agent.get(poll.agent_id, ())

    def of_agent(self, agent_id: str) -> list[Poll]:
        """The agent's waiting polls."""
        return list(self._by_agent.get(agent_id, ()))

    def all(self) -> list[Poll]:
        """Every waiting poll."""
        return [poll for polls in self._by_agent.values() for poll in polls]

    def touch_type(self, agent_type: str) -> None:
        """Something of this type became runnable."""
        self._touched_types.add(agent_type)

    def touch_all(self) -> None:
        """Anything may have become runnable."""
        self._touched_types.update(self._by_type)
        self._woken.add(ALL)

    def touch_agent(self, agent_id: str) -> None:
        """The agent may have a slot free again."""
        for poll in self._by_agent.get(agent_id, ()):
            self._touched[poll] = None

    def take_touched(self) -> list[Poll]:
        """The polls to look at now, in order of arrival; clears the marks."""
        touched = self._touched
        for agent_type in self._touched_types:
            touched.update(self._by_type.get(agent_type, {}))
        self._touched = {}
        self._woken |= self._touched_types
        self._touched_types = set()
        return list(touched)

    def take_woken(self) -> set[str]:
        """The types that dispatch has been asked to look at since this was asked last; `ALL` stands for any."""
        woken, self._woken = self._woken, set()
        return woken
