"""Which budgets apply to a task, and how much of each it needs: looked up, never searched.

The answer is the same for all tasks that are alike in what budgets look at, and is remembered for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kapell.v1.budget_pb2 import Budget, TaskEstimate
from kapell.v1.task_pb2 import Task

from kapell_server.domain.budgets.amounts import Measure, declared, milliseconds
from kapell_server.domain.budgets.history import Habits
from kapell_server.domain.budgets.tally import Tally
from kapell_server.domain.times import duration_ns

Needs = tuple[tuple[Tally, int], ...]
_MOST_REMEMBERED = 4_096
_NO_HABITS = Habits()
_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Features:
    """What budgets look at of a task, or of usage that was recorded without one."""

    agent_type: str = ""
    template_id: str = ""
    tree: str = ""
    """The topmost task above it, or itself."""
    budget_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


class Scopes:
    """The budgets by their scopes. Made anew whenever a budget is created or deleted."""

    def __init__(self, budgets: Iterable[tuple[Budget, Tally]]) -> None:
        self._all: list[Tally] = []
        self._by: dict[tuple[str, str], list[Tally]] = {}
        """By kind of scope and its value; labels as ("label", "NAME") and ("label", "NAME=VALUE")."""
        self._label_names: set[str] = set()
        self._has_time = False
        self._remembered: dict[_Key, Needs] = {}
        self._asked: dict[str, tuple[Task, Habits | None, Needs]] = {}
        """By task, as it was when it was last asked about: it is asked about as it joins and as it starts."""
        for budget, tally in budgets:
            self._has_time |= tally.measure == "wall_time"
            self._by.setdefault(("budget_id", budget.budget_id), []).append(tally)
            kind = budget.spec.scope.WhichOneof("scope")
            if kind == "all":
                self._all.append(tally)
            elif kind is not None:
                value: str = getattr(budget.spec.scope, kind)
                self._by.setdefault((kind, value), []).append(tally)
                if kind == "label":
                    self._label_names.add(value.partition("=")[0])

    def needs(self, task: Task, habits: Habits | None) -> Needs:
        """The budgets that a task draws from whatever agent gets it, each with what it needs of it."""
        asked = self._asked.get(task.task_id)
        if asked is not None and asked[0] is task and asked[1] is habits:
            return asked[2]
        if len(self._asked) >= _MOST_REMEMBERED:
            self._asked.clear()
        found = self._alike(task, habits)
        self._asked[task.task_id] = (task, habits, found)
        return found

    def admitted(self, task: Task) -> Needs | None:
        """With what needs a task that starts was found open, in the same batch; None where nobody remembers."""
        asked = self._asked.pop(task.task_id, None)
        return asked[2] if asked is not None else None

    def _alike(self, task: Task, habits: Habits | None) -> Needs:
        """What all tasks need that are like this one."""
        tree = task.root_task_id or task.task_id
        labels = task.labels
        key: _Key = (
            task.agent_type,
            task.template_id,
            tree if ("root_task_id", tree) in self._by else "",
            task.budget_id,
            tuple([labels.get(name) for name in self._label_names]) if self._label_names else (),
            task.estimate.SerializeToString() if task.HasField("estimate") else b"",
            duration_ns(task.timeouts.run_timeout) if self._has_time else 0,
            habits,
        )
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self.needs_of(task, self.matching(features_of(task)), habits)
        return found

    def needs_of(self, task: Task, tallies: Iterable[Tally], habits: Habits | None) -> Needs:
        """What a task needs of each of these budgets."""
        run_ns = duration_ns(task.timeouts.run_timeout)
        return tuple((tally, _need(tally, task.estimate, run_ns, habits or _NO_HABITS)) for tally in tallies)

    def of_agent(self, agent_id: str) -> list[Tally]:
        """The budgets of one agent."""
        return self._by.get(("agent_id", agent_id), [])

    def agents(self) -> list[tuple[str, Tally]]:
        """All budgets of agents."""
        return [(value, tally) for (kind, value), found in self._by.items() if kind == "agent_id" for tally in found]

    def matching(self, features: Features) -> list[Tally]:
        """The budgets that apply to anything with these features, each once."""
        found = list(self._all)
        for kind, value in (
            ("agent_type", features.agent_type),
            ("template_id", features.template_id),
            ("root_task_id", features.tree),
            ("budget_id", features.budget_id),
        ):
            found += self._by.get((kind, value), ())
        for name in self._label_names:
            if name in features.labels:
                found += self._by.get(("label", name), ())
                found += self._by.get(("label", f"{name}={features.labels[name]}"), ())
        return list(dict.fromkeys(found))


def features_of(task: Task) -> Features:
    """What budgets look at of a task."""
    return Features(task.agent_type, task.template_id, task.root_task_id or task.task_id, task.budget_id, task.labels)


def _need(tally: Tally, estimate: TaskEstimate, run_ns: int, habits: Habits) -> int:
    """What was declared; for time, the run timeout; what tasks of the template mostly need; the budget's own guess."""
    measure: Measure = tally.measure
    said = declared(estimate, measure)
    if said is not None:
        return said
    if measure == "wall_time" and run_ns:
        return milliseconds(run_ns)
    usual = habits.of(measure)
    return tally.default_need if usual is None else usual
