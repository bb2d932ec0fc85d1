"""What happens to tasks of a concurrency key that shall not wait: the newest or the oldest ones go."""

from __future__ import annotations

from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    CONCURRENCY_STRATEGY_CANCEL_NEWEST,
    CONCURRENCY_STRATEGY_SKIP,
)
from kapell.v1.task_pb2 import TASK_STATE_CANCELLING, TASK_STATE_QUEUED, Task

from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import cancel_tree
from kapell_server.domain.transitions import TASK_FINAL

_MOST_CANCELLED = 100
"""Most tasks that one arrival cancels in a batch, each with all below it."""
_IMPATIENT = (CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS, CONCURRENCY_STRATEGY_CANCEL_NEWEST, CONCURRENCY_STRATEGY_SKIP)


def settle_arrivals(state: State, settled: int = 0) -> int:
    """Applies the strategies of the keys of every task that has just become QUEUED, in their order.

    Limits count as they are at the end of the batch. Each task finds what was there when it came:
    those that came after it in the same batch are not there yet. The first `settled` arrivals have
    had their turn in this batch; returns how many have had it now. Where more are to be cancelled
    than a batch does, the next batch goes on with the latest task of the key.
    """
    place: dict[str, int] = {}
    for number, task_id in enumerate(state.queues.arrivals):
        place.pop(task_id, None)  # cancelled and retried: it counts from then
        place[task_id] = number
    if not settled:
        for key, task_id in list(state.queues.unsettled.items()):
            state.remove(state.queues.unsettled, key)
            task = state.find_task(task_id)
            if task_id not in place and task is not None and task.state not in TASK_FINAL:
                _settle(state, task, key, place)
    for task_id in [task_id for task_id, number in place.items() if number >= settled]:
        task = state.find_task(task_id)
        for key in task.concurrency_keys if task is not None else ():
            if task is not None and task.state == TASK_STATE_QUEUED:
                _settle(state, task, key, place)
                task = state.find_task(task_id)
    return len(state.queues.arrivals)


def _settle(state: State, task: Task, key: str, place: dict[str, int]) -> None:
    """One task and one of its keys, which may have too many tasks now."""
    keys = state.queues.keys
    strategy = keys.strategy(key)
    if strategy not in _IMPATIENT:
        return
    here = place.get(task.task_id, 0)
    before = [one for one in keys.begun_or_queued(key) if one != task.task_id and place.get(one, -1) < here]
    state.prefetch_tasks(before[: _MOST_CANCELLED + 1])
    others = [one for one in before if one not in state.leases.by_task or _has(state, one)]
    excess = len(others) + 1 - keys.max_running(key)
    if excess <= 0:
        return
    if strategy == CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS:
        for task_id in others[: min(excess, _MOST_CANCELLED)]:
            cancel_tree(state, state.task(task_id), f"superseded by {task.task_id} under concurrency key {key}")
        if excess > _MOST_CANCELLED:
            state.assign(state.queues.unsettled, key, task.task_id)
        elif key in state.queues.unsettled:
            state.remove(state.queues.unsettled, key)
        return
    skipped = strategy == CONCURRENCY_STRATEGY_SKIP
    verb = "skipped" if skipped else "cancelled"
    by = f"by {others[0]}" if others else "by its limit of 0"
    cancel_tree(state, task, f"{verb}: concurrency key {key} is taken {by}", skipped=skipped)


def _has(state: State, task_id: str) -> bool:
    """Whether an agent that has the task is not letting go of it."""
    return state.task(task_id).state != TASK_STATE_CANCELLING
