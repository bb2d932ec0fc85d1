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

_IMPATIENT = (CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS, CONCURRENCY_STRATEGY_CANCEL_NEWEST, CONCURRENCY_STRATEGY_SKIP)


def settle_arrivals(state: State, settled: int = 0) -> int:
    """Applies the strategies of the keys of every task that has just become QUEUED, in their order.

    Limits count as they are at the end of the batch. Each task finds what was there when it came:
    those that came after it in the same batch are not there yet. The first `settled` arrivals have
    had their turn in this batch; returns how many have had it now.
    """
    place: dict[str, int] = {}
    for number, task_id in enumerate(state.queues.arrivals):
        place.pop(task_id, None)  # cancelled and retried: it counts from then
        place[task_id] = number
    for task_id in [task_id for task_id, number in place.items() if number >= settled]:
        task = state.find_task(task_id)
        for key in task.concurrency_keys if task is not None else ():
            if task is not None and task.state == TASK_STATE_QUEUED and state.queues.keys.strategy(key) in _IMPATIENT:
                _settle(state, task, key, place)
                task = state.find_task(task_id)
    return len(state.queues.arrivals)


def _settle(state: State, task: Task, key: str, place: dict[str, int]) -> None:
    """One task and one of its keys, which may have too many tasks now."""
    keys = state.queues.keys
    holders = [one for one in keys.holders(key) if state.task(one).state != TASK_STATE_CANCELLING]
    others = [one for one in holders + keys.queued(key) if place.get(one, -1) < place[task.task_id]]
    excess = len(others) + 1 - keys.max_running(key)
    if excess <= 0:
        return
    match keys.strategy(key):
        case strategy if strategy in (CONCURRENCY_STRATEGY_CANCEL_NEWEST, CONCURRENCY_STRATEGY_SKIP):
            skipped = strategy == CONCURRENCY_STRATEGY_SKIP
            verb = "skipped" if skipped else "cancelled"
            by = f"by {others[0]}" if others else "by its limit of 0"
            cancel_tree(state, task, f"{verb}: concurrency key {key} is taken {by}", skipped=skipped)
        case strategy if strategy == CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS:
            for task_id in others[:excess]:
                cancel_tree(state, state.task(task_id), f"superseded by {task.task_id} under concurrency key {key}")
