"""The locks that a task declares: taken with its slot, all or none, and gone with its attempt.

A task waits for them without holding any, so it can never be part of a deadlock by them. The gate of dispatch
(`queueing/lock_gate`) asks: `may_take` before the task goes to an agent, `park` where that is refused, `take` when the
attempt begins. The table offers parked tasks their locks, and they keep their places in the queue for as long as
the gate says. Giving back is nobody's to remember: locks end with the lease, in State.close_lease.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.lock_pb2 import LOCK_MODE_SHARED, LockBlocker, LockOwner
from kapell.v1.task_pb2 import Task

from kapell_server.domain.locks import deadlock, grants
from kapell_server.domain.locks.entries import Item, Wait, order_of
from kapell_server.domain.locks.views import blockers_of
from kapell_server.domain.times import timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State


def may_take(state: State, task: Task) -> bool:
    """Whether the task could have all its locks now: they are free, and nobody is due before it."""
    return not task.locks or state.locks.obstacle(wait_of(state, task)) is None


def blockers(state: State, task: Task, most: int = 10) -> list[LockBlocker]:
    """What keeps the task from its locks: locks that others hold, then those due before it. Empty for nothing."""
    return blockers_of(state, wait_of(state, task), most) if task.locks else []


def park(state: State, task: Task) -> None:
    """The task waits for its locks, in its place by priority and the time it was queued. Once is enough."""
    if task.task_id not in state.locks.waits:
        wait = wait_of(state, task)
        state.locks.join(wait)
        deadlock.notice(state, wait.owner)


def unpark(state: State, task_id: str) -> None:
    """The task waits no more: it was cancelled, or changed. Not waiting is not an error."""
    wait = state.locks.waits.get(task_id)
    if wait is not None:
        state.locks.leave(wait)


def take(state: State, task: Task, agent_id: str) -> None:
    """Gives the attempt that `task`, a copy of the caller's, is about to begin all its locks and fills in the tokens.

    To be called with `may_take`, before the task is put.
    """
    if not task.locks:
        return
    wait = wait_of(state, task)
    if wait.wait_id in state.locks.waits:
        state.locks.leave(wait)
    wait.said = LockOwner(task_id=task.task_id, attempt=task.attempt, agent_id=agent_id, actor=state.caller.actor())
    wait.said.note = task.display_name[:200]
    for lock, held in zip(task.locks, grants.grant(state, wait), strict=True):
        lock.lock_id = held.lock_id
        lock.fencing_token = held.lock.fencing_token


def given_back(task: Task) -> None:
    """Takes the tokens out of a copy of a task whose attempt has ended."""
    for lock in task.locks:
        lock.ClearField("lock_id")
        lock.ClearField("fencing_token")


def wait_of(state: State, task: Task) -> Wait:
    """The task as something that stands in the queue, or could."""
    known = state.locks.waits.get(task.task_id)
    if known is not None:
        return known
    arrival_ns = timestamp_ns(task.queue_time)
    return Wait(
        wait_id=task.task_id,
        owner=task.task_id,
        items=tuple(Item(lock.path, lock.mode != LOCK_MODE_SHARED) for lock in task.locks),
        order=order_of(arrival_ns, task.priority, task.task_id),
        said=LockOwner(task_id=task.task_id, actor=task.creator, note=task.display_name[:200]),
        caller=state.caller,
        arrival_ns=arrival_ns,
        priority=task.priority,
        is_task=True,
    )
