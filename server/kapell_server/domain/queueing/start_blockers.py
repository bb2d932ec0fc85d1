"""What queues and limits would do to a task that is not there yet: for dry runs of templates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kapell.v1.lock_pb2 import LockItem, TaskLock
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    CONCURRENCY_STRATEGY_CANCEL_NEWEST,
    CONCURRENCY_STRATEGY_SKIP,
)
from kapell.v1.task_pb2 import WAIT_KIND_CONCURRENCY_LIMIT, WAIT_KIND_QUEUE_PAUSED, WAIT_KIND_START_RATE, Blocker, Task
from kapell.v1.template_pb2 import (
    START_BLOCKER_KIND_BUDGET,
    START_BLOCKER_KIND_LIMIT,
    START_BLOCKER_KIND_LOCK,
    START_BLOCKER_KIND_QUEUE_DRAINING,
    START_BLOCKER_KIND_QUEUE_PAUSED,
    RenderTemplateResponse,
    StartBlocker,
)

from kapell_server.domain.queueing.explain import held_by_queue
from kapell_server.domain.queueing.queues import ALL
from kapell_server.domain.state import State
from kapell_server.domain.tasks.task import DEFAULT_PRIORITY
from kapell_server.domain.times import stamp

_AT_THE_LIMIT = {
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS: "A new task has the oldest one cancelled.",
    CONCURRENCY_STRATEGY_CANCEL_NEWEST: "A new task is cancelled at once.",
    CONCURRENCY_STRATEGY_SKIP: "A new task is skipped.",
}


@dataclass(frozen=True, slots=True)
class StartQuestion:
    """Asks what would be in the way. `needed` are the agent types of all tasks, `first` those of the first ones."""

    needed: tuple[str, ...]
    first: tuple[str, ...]
    keys: tuple[str, ...]
    """The concurrency keys of the first ones."""
    locks: tuple[tuple[LockItem, ...], ...] = ()
    """The locks of each of the first ones."""
    template_id: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    """What else budgets look at."""


def held_up(state: State, question: StartQuestion) -> RenderTemplateResponse:
    """The blockers alone. One of all queues is named once."""
    tasks = [
        Task(agent_type=agent_type, template_id=question.template_id, labels=dict(question.labels))
        for agent_type in question.first
    ]
    found = [*_draining(state, question.needed), *_queues(state, question.first), *_keys(state, question.keys)]
    found += _locks(state, question.locks)
    found += [_budget(blocker) for task in tasks for blocker in state.queues.budgets.blockers(task)]
    once = {blocker.message: blocker for blocker in found}
    response = RenderTemplateResponse(blockers=once.values(), revision=state.revision)
    for task in tasks:
        response.budget_holds.extend(tally.describe_hold(need, 0) for tally, need in state.budgets.needs(task))
    return response


def _budget(blocker: Blocker) -> StartBlocker:
    text = f"{blocker.message} Wait, raise its limit, or resume it."
    told = StartBlocker(kind=START_BLOCKER_KIND_BUDGET, message=text)
    if blocker.HasField("until_time"):
        told.until_time.CopyFrom(blocker.until_time)
    return told


def _draining(state: State, agent_types: tuple[str, ...]) -> Iterator[StartBlocker]:
    for agent_type in agent_types:
        queue = state.queues.draining(agent_type)
        if queue is not None:
            which = "All queues are" if queue.agent_type == ALL else f"The queue {queue.agent_type} is"
            why = f": {queue.state_reason}" if queue.state_reason else ""
            text = f"{which} draining{why}. New tasks are refused until it is resumed."
            yield StartBlocker(kind=START_BLOCKER_KIND_QUEUE_DRAINING, message=text)


def _queues(state: State, agent_types: tuple[str, ...]) -> Iterator[StartBlocker]:
    for agent_type in agent_types:
        for blocker in held_by_queue(state, agent_type):
            if blocker.kind == WAIT_KIND_QUEUE_PAUSED:
                text = f"{blocker.message} Nothing starts until it is resumed."
                yield StartBlocker(kind=START_BLOCKER_KIND_QUEUE_PAUSED, message=text)
            else:
                yield _limit(blocker, "Wait, or raise the limit of the queue.")


def _keys(state: State, keys: tuple[str, ...]) -> Iterator[StartBlocker]:
    for key in keys:
        for blocker in state.queues.keys.blockers_of(key):
            waits = "Wait, or raise the limit of the key."
            taken = blocker.kind == WAIT_KIND_CONCURRENCY_LIMIT
            yield _limit(blocker, _AT_THE_LIMIT.get(state.queues.keys.strategy(key), waits) if taken else waits)


def _locks(state: State, sets: tuple[tuple[LockItem, ...], ...]) -> Iterator[StartBlocker]:
    for items in sets:
        task = Task(priority=DEFAULT_PRIORITY, locks=[TaskLock(path=item.path, mode=item.mode) for item in items])
        stamp(task.queue_time, state.now_ns)
        for blocker in state.queues.locks.blockers(task):
            told = StartBlocker(kind=START_BLOCKER_KIND_LOCK, message=f"{blocker.message} It waits for that.")
            if blocker.HasField("until_time"):
                told.until_time.CopyFrom(blocker.until_time)
            yield told


def _limit(blocker: Blocker, advice: str) -> StartBlocker:
    told = StartBlocker(kind=START_BLOCKER_KIND_LIMIT, message=f"{blocker.message} {advice}")
    if blocker.kind == WAIT_KIND_START_RATE:
        told.until_time.CopyFrom(blocker.until_time)
    return told
