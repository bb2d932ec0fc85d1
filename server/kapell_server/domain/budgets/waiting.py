"""Tasks that wait for budgets: who tries when it is not the room of a budget that changes.

What changes with the room is `Budgets.wake`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell_server.domain.budgets.tally import Tally

if TYPE_CHECKING:
    from kapell.v1.task_pb2 import Task

    from kapell_server.domain.queueing.ready import ReadyEntry
    from kapell_server.domain.state import State


def anyone_waits(state: State) -> bool:
    """Whether a task may be parked under a budget."""
    return any(tally.waiting for tally in state.budgets.tallies.values())


def pass_on(state: State, task: Task, name: str) -> None:
    """A task was parked under `name`, or has gone, without what it may have been let try for.

    Only those try that really fit: a task is parked at each budget once then, however many it draws from.
    """
    queues = state.queues
    for tally, _ in state.budgets.needs(task):
        for need_class in sorted(tally.waiting):
            other = f"budget/{tally.budget_id}/{need_class}"
            if other != name and any(_fits(state, tally, entry) for entry in queues.ready.heads(other)):
                queues.retry(other)


def _fits(state: State, tally: Tally, entry: ReadyEntry) -> bool:
    """Whether the budget has room for a parked task, or is none of its budgets any more."""
    needs = state.budgets.needs(state.task(entry.task_id))
    return all(not tally.blocks(need) for one, need in needs if one is tally)
