"""Budgets as a gate: a task starts only if every budget that applies has room for what it needs.

Tasks are parked under "budget/ID/CLASS", where the class stands for needs that are nearly alike, so that one which
needs little does not wait behind those that need much. The budget of an agent holds back that agent, not the task:
dispatch asks `Budgets.agent_lacks`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE
from kapell.v1.budget_pb2 import BUDGET_STATE_AWAITING_APPROVAL, Budget
from kapell.v1.task_pb2 import WAIT_KIND_BUDGET, Blocker, Task

from kapell_server.domain.budgets import waiting
from kapell_server.domain.budgets.amounts import words
from kapell_server.domain.budgets.tally import Tally
from kapell_server.domain.queueing.ready import ReadyEntry
from kapell_server.domain.times import stamp

if TYPE_CHECKING:
    from kapell_server.domain.budgets.budgets import Budgets
    from kapell_server.domain.state import State

_LOOK_AHEAD = 256
_ANY = 1 << 30
"""Nobody waits for a budget that is gone."""


class BudgetGate:
    """Holds back tasks that a budget has no room for."""

    kind = "budget"

    def __init__(self, state: State, budgets: Budgets) -> None:
        self._state = state
        self._budgets = budgets

    def join(self, entry: ReadyEntry) -> None:
        pass

    def leave(self, entry: ReadyEntry) -> None:
        pass

    def closed(self, entry: ReadyEntry) -> str:
        if not self._budgets.tallies:
            return ""
        for tally, need in self._budgets.needs(self._task(entry)):
            if tally.blocks(need):
                return tally.name_for(need)
        return ""

    def parked(self, entry: ReadyEntry, name: str) -> None:
        self._budgets.parked(name)

    def forgo(self, entry: ReadyEntry, name: str) -> None:
        """A task was let try for the room of a budget, and does not use it: the next ones may."""
        if waiting.anyone_waits(self._state):
            task = self._state.cached_task(entry.task_id)
            if task is not None:
                waiting.pass_on(self._state, task, name)

    def take(self, task: Task) -> None:
        self._budgets.take(task)

    def give_back(self, task: Task) -> None:
        """`Budgets.finish` has done it, which knows how the attempt has ended."""

    def room(self, name: str) -> int:
        _, budget_id, need_class = name.split("/")
        tally = self._budgets.tallies.get(budget_id)
        return _ANY if tally is None else tally.tries(int(need_class))

    def blockers(self, task: Task) -> Iterator[Blocker]:
        for tally, need in self._budgets.needs(task):
            if tally.blocks(need):
                yield self._blocker(tally, need)
        if not self._budgets.tallies:
            return
        for agent_id, tally in self._budgets.scopes.agents():
            agent = self._state.agents.get(agent_id)
            if agent is None or agent.state != AGENT_STATE_ACTIVE or task.agent_type not in agent.agent_types:
                continue
            [(_, need)] = self._budgets.scopes.needs_of(task, (tally,), self._budgets.history.of(task.template_id))
            if tally.blocks(need):
                yield self._blocker(tally, need, f"Agent {agent_id} may not take it: ")

    def _blocker(self, tally: Tally, need: int, prefix: str = "") -> Blocker:
        """Names the budget, what is spent and reserved, and when something comes back."""
        budget = self._state.standing.find(Budget, tally.budget_id)
        assert budget is not None, "a tally is of a budget"
        limit = tally.limit + tally.extended
        measure = tally.measure
        text = f"{'b' if prefix else 'B'}udget {budget.spec.display_name} has spent {words(measure, tally.spent)}"
        text += f" and reserved {words(measure, tally.reserved)} of {words(measure, limit)}"
        if tally.state == BUDGET_STATE_AWAITING_APPROVAL:
            text += ", and waits for somebody to let it go on."
        elif tally.stopped:
            text += ", at which it starts nothing new."
        elif need > limit:
            text += f"; the task needs {words(measure, need)}, more than there ever is."
        else:
            text += f"; the task needs {words(measure, need)}."
        blocker = Blocker(kind=WAIT_KIND_BUDGET, message=prefix + text, blocked_by=[tally.budget_id])
        if next_ns := tally.next_ns():
            stamp(blocker.until_time, next_ns)
        return blocker

    def _task(self, entry: ReadyEntry) -> Task:
        """The task of an entry; one that is not in memory comes with those behind it, which are asked for next."""
        found = self._state.cached_task(entry.task_id)
        if found is not None:
            return found
        following = self._state.queues.ready.about_first(entry.agent_type, _LOOK_AHEAD)
        self._state.prefetch_tasks([entry.task_id, *(one.task_id for one in following)])
        return self._state.task(entry.task_id)
