"""By how much the totals of tasks, of the tasks above them and of agents grow: summed, then put once for each."""

from __future__ import annotations

from collections.abc import Iterator

from kapell.v1.usage_pb2 import UsageRecord

from kapell_server.domain.state import State
from kapell_server.domain.usage.entry import OTHERS, usage_id_of_agent, usage_id_of_task
from kapell_server.domain.usage.figures import Sums

_NOTHING = Sums()


class Growth:
    """What the records of one command add to totals."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._steps: list[tuple[UsageRecord, Sums]] = []

    def add(self, record: UsageRecord, sums: Sums) -> None:
        """A version counts from now on."""
        self._steps.append((record, sums))

    def take_off(self, record: UsageRecord, sums: Sums) -> None:
        """A version counts no more."""
        self._steps.append((record, _NOTHING.minus(sums)))

    def mark(self) -> int:
        """A point to roll back to."""
        return len(self._steps)

    def rollback(self, mark: int) -> None:
        """Forgets what came since the mark."""
        del self._steps[mark:]

    def apply(self) -> None:
        """Puts the totals, each once."""
        own: dict[str, Sums] = {}
        tree: dict[str, Sums] = {}
        by_subject: dict[tuple[str, str, str], Sums] = {}
        for record, sums in self._steps:
            subject = record.task_id, record.root_task_id, record.agent_id
            by_subject[subject] = by_subject.get(subject, _NOTHING).plus(sums)
        for (task_id, root_task_id, agent_id), sums in by_subject.items():
            subjects = [usage_id_of_task(task_id)] if task_id else []
            subjects += [usage_id_of_agent(agent_id)] if agent_id else []
            for usage_id in subjects or [OTHERS]:
                own[usage_id] = own.get(usage_id, _NOTHING).plus(sums)
            for above_id in chain_of(self._state, task_id, root_task_id):
                usage_id = usage_id_of_task(above_id)
                tree[usage_id] = tree.get(usage_id, _NOTHING).plus(sums)
        changed = list(dict.fromkeys((*own, *tree)))
        self._state.usage.prefetch_totals(changed)
        for usage_id in changed:
            self._state.usage.add(usage_id, own.get(usage_id, _NOTHING), tree.get(usage_id, _NOTHING))


def chain_of(state: State, task_id: str, root_task_id: str) -> Iterator[str]:
    """The task, those above it, and its root, which also stands above what a deleted parent has left behind."""
    seen = set()
    while task_id and task_id not in seen:
        seen.add(task_id)
        yield task_id
        task = state.find_task(task_id)
        task_id = task.parent_task_id if task is not None else ""
    if root_task_id and root_task_id not in seen:
        yield root_task_id
