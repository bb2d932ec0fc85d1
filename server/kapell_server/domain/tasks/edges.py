"""Who waits for whom: the dependencies that are still open, from both ends, and the results that are kept.

A copy of the table `task_edges`, which holds nothing else: an edge goes as soon as it is met or
has failed, so a graph that has been worked off costs nothing. One that is met while the prompt of
its dependant still has places to fill is kept, so that the result is not deleted meanwhile.
Part of State and undone with it. The surprise: `stirred` is a list of hints. Whoever puts a task
with dependants that has started or ended adds it there, and `dependency.resolve` looks at all of
them at the end of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_UNSPECIFIED,
    DEPENDENCY_FAILURE_ACTION_UNSPECIFIED,
    DependencyCondition,
    DependencyFailureAction,
)
from kapell.v1.task_pb2 import Task

from kapell_server.domain.transitions import TASK_FINAL

if TYPE_CHECKING:
    from kapell_server.domain.state import State


class Edge(NamedTuple):
    """What a task wants of one that it waits for."""

    condition: DependencyCondition.ValueType
    on_failure: DependencyFailureAction.ValueType


KEPT = Edge(DEPENDENCY_CONDITION_UNSPECIFIED, DEPENDENCY_FAILURE_ACTION_UNSPECIFIED)
"""The row of an edge that is met and kept for the result: nothing else is wanted any more."""
EdgeKey = tuple[str, str]
"""(dependency, dependant): the one that is waited for, and the one that waits."""
_Table = dict[str, dict[str, Edge]]


class Edges:
    """The open edges and the kept results. Only `add`, `keep` and what drops them change them."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.unmet: dict[str, dict[str, Edge]] = {}
        """By the task that waits, and then by what it waits for."""
        self.dependants: dict[str, dict[str, Edge]] = {}
        """By the task that is waited for, and then by who waits."""
        self.keeps: dict[str, dict[str, Edge]] = {}
        """By the task whose prompt is still to be filled, and then by whose results are kept for it."""
        self.kept: dict[str, dict[str, Edge]] = {}
        """By the task whose result is kept, and then by who wants it."""
        self.stirred: dict[str, None] = {}
        """Tasks with dependants that have started or ended since somebody looked."""

    def load(self, rows: Iterable[tuple[str, str, Edge]], stirred: Iterable[str]) -> None:
        """Takes over (dependency, dependant, edge) from the database, for the start."""
        for dependency_id, dependant_id, edge in rows:
            by_dependant, by_dependency = (self.keeps, self.kept) if edge == KEPT else (self.unmet, self.dependants)
            by_dependant.setdefault(dependant_id, {})[dependency_id] = edge
            by_dependency.setdefault(dependency_id, {})[dependant_id] = edge
        self.stirred.update(dict.fromkeys(stirred))

    def add(self, dependency_id: str, dependant_id: str, edge: Edge) -> None:
        """Opens an edge."""
        self._add(self.unmet, self.dependants, dependency_id, dependant_id, edge)

    def drop(self, dependency_id: str, dependant_id: str) -> None:
        """Closes an edge that is open."""
        self._drop(self.unmet, self.dependants, dependency_id, dependant_id)

    def keep(self, dependency_id: str, dependant_id: str) -> None:
        """Keeps the result of a dependency that is met until the prompt of its dependant is filled."""
        if dependency_id not in self.keeps.get(dependant_id, ()):
            self._add(self.keeps, self.kept, dependency_id, dependant_id, KEPT)

    def _add(
        self, by_dependant: _Table, by_dependency: _Table, dependency_id: str, dependant_id: str, edge: Edge
    ) -> None:
        state = self._state
        for table, outer, inner in (
            (by_dependant, dependant_id, dependency_id),
            (by_dependency, dependency_id, dependant_id),
        ):
            entries = table.get(outer)
            if entries is None:
                entries = {}
                state.assign(table, outer, entries)
            state.assign(entries, inner, edge)
        state.assign(state.pending.new_edges, (dependency_id, dependant_id), edge)

    def _drop(self, by_dependant: _Table, by_dependency: _Table, dependency_id: str, dependant_id: str) -> None:
        state = self._state
        for table, outer, inner in (
            (by_dependant, dependant_id, dependency_id),
            (by_dependency, dependency_id, dependant_id),
        ):
            entries = table[outer]
            state.remove(entries, inner)
            if not entries:
                state.remove(table, outer)
        key = (dependency_id, dependant_id)
        if key in state.pending.new_edges:
            state.remove(state.pending.new_edges, key)
        else:
            state.assign(state.pending.dropped_edges, key, None)

    def concern(self, task_id: str) -> bool:
        """Whether a put of this task may change anything here."""
        return task_id in self.unmet or task_id in self.dependants or task_id in self.keeps or task_id in self.kept

    def notice(self, task: Task, previous: Task | None, deleted: bool) -> None:
        """Called with each put of a task that has an edge: an ended one waits for nothing any more."""
        task_id = task.task_id
        ended = deleted or task.state in TASK_FINAL
        if ended:
            for dependency_id in list(self.unmet.get(task_id, ())):
                self.drop(dependency_id, task_id)
        if ended or not task.prompt_pending:
            for dependency_id in list(self.keeps.get(task_id, ())):
                self._drop(self.keeps, self.kept, dependency_id, task_id)
        if deleted:
            for dependant_id in list(self.kept.get(task_id, ())):
                self._drop(self.keeps, self.kept, task_id, dependant_id)
        has_moved = previous is None or previous.state != task.state
        if has_moved and task_id in self.dependants and (ended or task.HasField("start_time")):
            self._state.assign(self.stirred, task_id, None)

    def take_stirred(self) -> list[str]:
        """The tasks to look at now, in order; clears the hints."""
        stirred = list(self.stirred)
        for task_id in stirred:
            self._state.remove(self.stirred, task_id)
        return stirred
