"""Who waits for whom: the dependencies that are still open, from both ends.

A copy of the table `task_edges`, which holds nothing else: an edge goes as soon as it is met or
has failed, so a graph that has been worked off costs nothing. Part of State and undone with it.
The surprise: `stirred` is a list of hints. Whoever puts a task with dependants that has started
or ended adds it there, and `dependency.resolve` looks at all of them at the end of the batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from kapell.v1.dependency_pb2 import DependencyCondition, DependencyFailureAction
from kapell.v1.task_pb2 import Task

from kapell_server.domain.transitions import TASK_FINAL

if TYPE_CHECKING:
    from kapell_server.domain.state import State


class Edge(NamedTuple):
    """What a task wants of one that it waits for."""

    condition: DependencyCondition.ValueType
    on_failure: DependencyFailureAction.ValueType


EdgeKey = tuple[str, str]
"""(dependency, dependant): the one that is waited for, and the one that waits."""


class Edges:
    """The open edges. Only `add` and `drop` change them."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.unmet: dict[str, dict[str, Edge]] = {}
        """By the task that waits, and then by what it waits for."""
        self.dependants: dict[str, dict[str, Edge]] = {}
        """By the task that is waited for, and then by who waits."""
        self.stirred: dict[str, None] = {}
        """Tasks with dependants that have started or ended since somebody looked."""

    def load(self, rows: Iterable[tuple[str, str, Edge]], stirred: Iterable[str]) -> None:
        """Takes over (dependency, dependant, edge) from the database, for the start."""
        for dependency_id, dependant_id, edge in rows:
            self.unmet.setdefault(dependant_id, {})[dependency_id] = edge
            self.dependants.setdefault(dependency_id, {})[dependant_id] = edge
        self.stirred.update(dict.fromkeys(stirred))

    def add(self, dependency_id: str, dependant_id: str, edge: Edge) -> None:
        """Opens an edge."""
        state = self._state
        for table, outer, inner in (
            (self.unmet, dependant_id, dependency_id),
            (self.dependants, dependency_id, dependant_id),
        ):
            entries = table.get(outer)
            if entries is None:
                entries = {}
                state.assign(table, outer, entries)
            state.assign(entries, inner, edge)
        state.assign(state.pending.new_edges, (dependency_id, dependant_id), edge)

    def drop(self, dependency_id: str, dependant_id: str) -> None:
        """Closes an edge that is open."""
        state = self._state
        for table, outer, inner in (
            (self.unmet, dependant_id, dependency_id),
            (self.dependants, dependency_id, dependant_id),
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

    def notice(self, task: Task, previous: Task | None, deleted: bool) -> None:
        """Called with each put of a task that has an open edge: an ended one waits for nothing any more."""
        task_id = task.task_id
        ended = deleted or task.state in TASK_FINAL
        if ended:
            for dependency_id in list(self.unmet.get(task_id, ())):
                self.drop(dependency_id, task_id)
        has_moved = previous is None or previous.state != task.state
        if has_moved and task_id in self.dependants and (ended or task.HasField("start_time")):
            self._state.assign(self.stirred, task_id, None)

    def take_stirred(self) -> list[str]:
        """The tasks to look at now, in order; clears the hints."""
        stirred = list(self.stirred)
        for task_id in stirred:
            self._state.remove(self.stirred, task_id)
        return stirred
