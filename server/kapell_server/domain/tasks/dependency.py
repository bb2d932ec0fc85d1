"""When a task may run as far as other tasks are concerned: judging, waking and giving up.

A task is put once for all of its dependencies: when the last one is met, or the first one fails.
Edges are looked at wave by wave at the end of each batch, so that a long chain is no recursion.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from kapell.v1.dependency_pb2 import (
    DEPENDENCY_CONDITION_FINISHED,
    DEPENDENCY_CONDITION_STARTED,
    DEPENDENCY_FAILURE_ACTION_RUN,
    DEPENDENCY_FAILURE_ACTION_SKIP,
    DependencyCondition,
    TaskDependency,
)
from kapell.v1.error_pb2 import ERROR_REASON_DEPENDENCY_FAILED
from kapell.v1.task_pb2 import (
    TASK_STATE_PENDING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_DEPENDENCY,
    Task,
    TaskFailure,
)
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_REQUEUED, EVENT_KIND_TASK_UPDATED

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks import dependency_results
from kapell_server.domain.tasks.edges import Edge
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL, task_state_name
from kapell_server.domain.workers import attempt

MOST_AT_ONCE = 10_000
"""Most edges that are closed in one batch."""
_CHUNK = 200
_MOST_BYTES = 32 * 1024 * 1024
"""Most bytes of prompts that are filled in one batch; a little more with its last chunk."""
_EVERYTHING = 1 << 62


class Verdict(enum.Enum):
    """How a dependency stands."""

    OPEN = enum.auto()
    MET = enum.auto()
    FAILED = enum.auto()


def judge(parent: Task, condition: DependencyCondition.ValueType) -> Verdict:
    """How a dependency on `parent` stands."""
    ended = parent.state in TASK_FINAL
    if condition == DEPENDENCY_CONDITION_FINISHED:
        return Verdict.MET if ended else Verdict.OPEN
    if condition == DEPENDENCY_CONDITION_STARTED:
        met = parent.HasField("start_time")
    else:
        met = parent.state == TASK_STATE_SUCCEEDED
    if met:
        return Verdict.MET
    return Verdict.FAILED if ended else Verdict.OPEN


@dataclass(slots=True)
class Judgement:
    """How all dependencies of one task stand. `failed` is the first that keeps it from running."""

    open: list[TaskDependency] = field(default_factory=list)
    failed: tuple[TaskDependency, Task] | None = None


def judge_all(state: State, dependencies: Iterable[TaskDependency], fresh: Container[str] = ()) -> Judgement:
    """How these stand; `fresh` are ids of tasks about to be put. One that was deleted holds nobody up any more."""
    judgement = Judgement()
    state.prefetch_tasks(wanted.task_id for wanted in dependencies if wanted.task_id not in fresh)
    for wanted in dependencies:
        if wanted.task_id in fresh:
            judgement.open.append(wanted)
            continue
        parent = state.find_task(wanted.task_id)
        verdict = Verdict.MET if parent is None else judge(parent, wanted.condition)
        if verdict is Verdict.OPEN:
            judgement.open.append(wanted)
        elif verdict is Verdict.FAILED and wanted.on_failure != DEPENDENCY_FAILURE_ACTION_RUN:
            assert parent is not None
            judgement.failed = (wanted, parent)
            return judgement
    return judgement


def begin(state: State, judgements: Mapping[str, Judgement]) -> None:
    """Goes on with tasks that were just put as PENDING: opens their edges, gives them up, or lets them run.

    First all edges, so that whoever ends here finds those that wait for it.
    """
    for task_id, judgement in judgements.items():
        if judgement.failed is None:
            for wanted in judgement.open:
                state.edges.add(wanted.task_id, task_id, Edge(wanted.condition, wanted.on_failure))
            keep_results(state, state.task(task_id))
    for task_id, judgement in judgements.items():
        if judgement.failed is not None:
            _give_up(state, state.task(task_id), *judgement.failed)
        elif not judgement.open:
            _release(state, [task_id])


def keep_results(state: State, task: Task) -> None:
    """Keeps what is met already of a task that waits on, for the prompt that is filled when it waits no more."""
    unmet = state.edges.unmet.get(task.task_id)
    if not unmet or not task.prompt_pending:
        return
    for entry in task.dependencies:
        if entry.task_id not in unmet and state.find_task(entry.task_id) is not None:
            state.edges.keep(entry.task_id, task.task_id)


def is_waiting(task: Task) -> bool:
    """Whether dependencies keep a task from running."""
    return any(wait.kind == WAIT_KIND_DEPENDENCY for wait in task.waiting_on)


# -- at the end of a batch -------------------------------------------------------------------------


def resolve(state: State, most: int = MOST_AT_ONCE) -> int:
    """Closes the edges of tasks that have started or ended, in waves, until nothing moves or `most` are closed.

    Returns how many were closed, `most` too where prompts have filled the batch. What is left stays stirred.
    """
    closed = 0
    while state.edges.stirred and closed < most:
        done, is_full = _wave(state, state.edges.take_stirred(), most - closed)
        closed = most if is_full else closed + done
    return closed


def resolve_ended(state: State, task_id: str) -> None:
    """Closes all edges of an ended task that is about to be deleted or retried: what it was counts."""
    if task_id in state.edges.dependants:
        state.remove(state.edges.stirred, task_id)
        _wave(state, [task_id], _EVERYTHING, _EVERYTHING)


def _wave(state: State, parent_ids: list[str], most: int, most_bytes: int = _MOST_BYTES) -> tuple[int, bool]:
    """Judges the edges of these tasks. Whoever was not got at is stirred again.

    Returns how many were closed, and whether their prompts have used `most_bytes` up.
    """
    decided = _decided(state, parent_ids, most)
    room = most_bytes
    for start in range(0, len(decided), _CHUNK):
        chunk = decided[start : start + _CHUNK]
        if room <= 0:
            for parent, _, _ in decided[start:]:
                state.assign(state.edges.stirred, parent.task_id, None)
            return start, True
        state.prefetch_tasks([child_id for _, child_id, _ in chunk])
        room -= _close(state, chunk)
    return len(decided), room <= 0


_Decided = tuple[Task, str, Verdict]


def _decided(state: State, parent_ids: list[str], most: int) -> list[_Decided]:
    """The edges that can be closed, at most so many."""
    edges = state.edges
    state.prefetch_tasks(parent_ids)
    decided: list[_Decided] = []
    for parent_id in parent_ids:
        parent = state.find_task(parent_id)
        for child_id, edge in edges.dependants.get(parent_id, {}).items():
            assert parent is not None, "the edges of a task are closed before it is deleted"
            verdict = judge(parent, edge.condition)
            if verdict is Verdict.OPEN:
                continue
            if len(decided) == most:
                state.assign(edges.stirred, parent_id, None)
                break
            if edge.on_failure == DEPENDENCY_FAILURE_ACTION_RUN:
                verdict = Verdict.MET
            decided.append((parent, child_id, verdict))
    return decided


def _close(state: State, decided: list[_Decided]) -> int:
    """Closes edges, and moves the tasks on that wait for nothing more. Returns the bytes of filled prompts."""
    edges = state.edges
    ready: list[str] = []
    for parent, child_id, verdict in decided:
        if parent.task_id not in edges.unmet.get(child_id, ()):
            continue  # Another edge of this wave has ended it.
        if verdict is Verdict.FAILED:
            child = state.task(child_id)
            wanted = next(entry for entry in child.dependencies if entry.task_id == parent.task_id)
            _give_up(state, child, wanted, parent)
            continue
        edges.drop(parent.task_id, child_id)
        if child_id not in edges.unmet:
            ready.append(child_id)
        elif state.task(child_id).prompt_pending:
            edges.keep(parent.task_id, child_id)
    return _release(state, ready)


def _give_up(state: State, current: Task, wanted: TaskDependency, parent: Task) -> Task:
    """Ends a task whose dependency cannot be met: skipped or failed, as it was asked for."""
    what = "skipped" if parent.skipped else task_state_name(parent.state).lower()
    label = wanted.name if wanted.name == parent.task_id else f"{wanted.name} ({parent.task_id})"
    reason = f"its dependency {label} has failed" if what == "failed" else f"its dependency {label} was {what}"
    if wanted.condition == DEPENDENCY_CONDITION_STARTED:
        reason += " before it started"
    if wanted.on_failure == DEPENDENCY_FAILURE_ACTION_SKIP:
        return attempt.cancel_waiting(state, current, f"skipped: {reason}", skipped=True)
    failure = TaskFailure(reason="DEPENDENCY_FAILED", message=reason, retryable=False)
    failure.details.update({"task_id": parent.task_id, "state": task_state_name(parent.state)})
    return attempt.fail_waiting(state, current, failure)


def _release(state: State, task_ids: list[str]) -> int:
    """Moves tasks on that wait for no other task any more, the eldest first. Returns the bytes of filled prompts."""
    tasks = sorted(map(state.task, task_ids), key=lambda task: (timestamp_ns(task.create_time), task.task_id))
    results = dependency_results.Results(state, [task for task in tasks if task.prompt_pending])
    size = 0
    for current in tasks:
        task = current
        if current.prompt_pending:
            task = copied(current)
            failure = results.put_into(task)
            if failure is not None:
                attempt.fail_waiting(state, current, failure)
                continue
            size += task.content_bytes
        _let_go(state, task)
    return size


def _let_go(state: State, current: Task) -> None:
    """Lets a task run, unless its time has not come."""
    later = [wait for wait in current.waiting_on if timestamp_ns(wait.until_time) > state.now_ns]
    if not later:
        attempt.wake(state, current)
        return
    task = copied(current)
    task.ClearField("waiting_on")
    task.waiting_on.extend(later)
    state.put_task(task, EVENT_KIND_TASK_UPDATED, ("waiting_on",))


# -- retried by hand ---------------------------------------------------------------------------------


def retry(state: State, task: Task, changed: tuple[str, ...]) -> Task | None:
    """Parks a task that is retried and must wait for dependencies, or have its prompt filled anew.

    None where it may run at once. Takes ownership of `task`, which is ready to be put but for its
    state; `changed` are the fields that the retry has edited. Raises DEPENDENCY_FAILED.
    """
    judgement = judge_all(state, task.dependencies)
    if judgement.failed is not None:
        raise _retry_first(task, *judgement.failed)
    dependency_results.renew_prompt(state, task)
    if not judgement.open and not task.prompt_pending:
        return None
    task.state = TASK_STATE_PENDING
    task.waiting_on.add(kind=WAIT_KIND_DEPENDENCY)
    names = ("state", "attempts_used", "failure", "progress", "retries", "waiting_on", *changed)
    state.put_task(task, EVENT_KIND_TASK_REQUEUED, names)
    begin(state, {task.task_id: judgement})
    return state.task(task.task_id)


def _retry_first(task: Task, wanted: TaskDependency, parent: Task) -> KapellError:
    state = task_state_name(parent.state)
    return KapellError(
        ERROR_REASON_DEPENDENCY_FAILED,
        f"Task {task.task_id} cannot be retried: its dependency {wanted.name} is {state}. "
        f"Retry {parent.task_id} first, then this one.",
        metadata={"task_id": task.task_id, "dependency_id": parent.task_id, "state": state},
    )
