"""One change of many tasks: which ones are fixed at its beginning, and then done in steps, one a batch.

So thousands of tasks keep nobody waiting for long. A change that needs more than one step is a
`BulkJob`, written down with the tasks that it has found in the transaction of its first step. From
then on it is done to its end: by the steps that follow, after a crash by those of the next start.
It ends in the transaction of its last step, where its answer becomes the first answer to its
request_id. A repeat meanwhile joins the job and gets the same answer. The price is that others see
the tasks change one step after the other; no task is seen half changed.
"""

from __future__ import annotations

from kapell.v1.error_pb2 import (
    ERROR_REASON_DEPENDENCY_FAILED,
    ERROR_REASON_QUEUE_FULL,
    ERROR_REASON_TASK_NOT_FOUND,
    ERROR_REASON_TASK_STATE_CONFLICT,
    ERROR_REASON_TOO_MANY_MATCHES,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    CancelTasksRequest,
    ReprioritizeTasksRequest,
    RetryTaskRequest,
    RetryTasksRequest,
    Task,
    TaskFilter,
    TaskOutcome,
)

from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks import family, task
from kapell_server.domain.tasks.bulk_job import (
    RESPONSES,
    BulkCommand,
    BulkJob,
    BulkRequest,
    BulkResponse,
    BulkStep,
    Selection,
)
from kapell_server.domain.tasks.task_filter import TaskTest, task_test
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.transitions import task_state_name

STEP = 250
"""Tasks a step: about as long as a full batch of other commands."""
_STEP_CHANGES = 1_000
"""Changes after which a step ends early: a cancelled task may have a thousand others below it."""
DEFAULT_AFFECTED = 1_000
_MOST_JOBS = 16


def begin(state: State, command: BulkCommand) -> BulkResponse | BulkJob:
    """Does all of a small change; of a large one the first step, and answers with the job."""
    request = command.request
    selection = _as_of_now(state, request.filter, command.selection)
    limit = request.max_affected or DEFAULT_AFFECTED
    if selection.matched > limit and not request.allow_partial:
        raise _too_many(selection.matched, limit)
    job = BulkJob(
        key=command.key or state.new_id("bulk"),
        request=request,
        caller=state.caller,
        task_ids=selection.task_ids[:limit],
        matched=selection.matched,
    )
    if len(job.task_ids) > STEP and len(state.bulk_jobs) >= _MOST_JOBS:
        raise KapellError(
            ERROR_REASON_QUEUE_FULL,
            f"The server is changing tasks for {_MOST_JOBS} other calls, its limit. Try again in a moment.",
            retry_after=1.0,
        )
    _do(state, job)
    if job.done:
        return job.response(state.revision)
    state.assign(state.bulk_jobs, job.key, job)
    state.assign(state.pending.bulk.started, job.key, job)
    state.assign(state.pending.bulk.steps, (job.key, 0), job.parts[0])
    return job


def step(state: State, fact: BulkStep) -> BulkJob:
    """Does the next step of a job; after the last one the job is ended."""
    job = fact.job
    first = job.next
    _do(state, job)
    if job.done:
        state.remove(state.bulk_jobs, job.key)
        state.assign(state.pending.bulk.ended, job.key, True)
    else:
        state.assign(state.pending.bulk.steps, (job.key, first), job.parts[-1])
    return job


def _as_of_now(state: State, wanted: TaskFilter, found: Selection) -> Selection:
    """The selection as the writer sees it: what has changed since it was read is looked at again.

    So it is exact without a scan that everybody would wait for. One that was cut short stays as it
    was counted: it is refused, or does not mean all.
    """
    changed = set(state.loader.load_changed_tasks(found.revision))
    changed.update(change.resource.task_id for change in state.pending.changes if type(change.resource) is Task)
    if not changed:
        return found
    state.prefetch_tasks(changed)
    test = task_test(wanted)
    now = [found_now for task_id in changed if (found_now := state.find_task(task_id)) is not None and test(found_now)]
    matching = {one.task_id for one in now}
    kept = [task_id for task_id in found.task_ids if task_id not in changed or task_id in matching]
    if found.matched > len(found.task_ids):
        return Selection(found.revision, kept, found.matched)
    known = set(found.task_ids)
    new = [one for one in now if one.task_id not in known]
    new.sort(key=lambda one: (timestamp_ns(one.create_time), one.task_id))
    kept += [one.task_id for one in new]
    return Selection(found.revision, kept, len(kept))


def _do(state: State, job: BulkJob) -> None:
    """Changes the next tasks of a job, each for itself, and notes what became of them."""
    task_ids = job.task_ids[job.next : job.next + STEP]
    state.prefetch_tasks(task_ids)
    if isinstance(job.request, CancelTasksRequest) and not job.request.leave_children:
        found = (state.find_task(task_id) for task_id in task_ids)
        state.families.prefetch(family.root_of(one) for one in found if one is not None)
    last_revision = state.revision + _STEP_CHANGES
    done = 0
    test = task_test(job.request.filter)
    response = RESPONSES[type(job.request)]()
    for task_id in task_ids:
        outcome, changed = _one(state, job.request, task_id, test)
        response.items.append(outcome)
        response.affected += changed
        done += 1
        if state.revision >= last_revision:
            break
    if isinstance(job.request, RetryTasksRequest):
        _retry_dependants(state, job.request, response, test)
    state.on_rollback(_rewind, job, job.next, job.affected, len(job.parts))
    job.next += done
    job.affected += response.affected
    job.parts.append(response.SerializeToString())


def _retry_dependants(state: State, request: BulkRequest, response: BulkResponse, test: TaskTest) -> None:
    """Tries those again whose dependencies were retried after them, until nothing moves any more."""
    moved = True
    while moved:
        moved = False
        for item in response.items:
            if item.reason == ERROR_REASON_DEPENDENCY_FAILED:
                outcome, changed = _one(state, request, item.task_id, test)
                if changed:
                    item.CopyFrom(outcome)
                    response.affected += 1
                    moved = True


def _rewind(job: BulkJob, done: int, affected: int, parts: int) -> None:
    job.next = done
    job.affected = affected
    del job.parts[parts:]


def _one(state: State, request: BulkRequest, task_id: str, test: TaskTest) -> tuple[TaskOutcome, bool]:
    """What became of one task, and whether it was changed. The text is short: an answer may hold 10,000."""
    current = state.find_task(task_id)
    if current is None:
        return TaskOutcome(task_id=task_id, reason=ERROR_REASON_TASK_NOT_FOUND, message="it was deleted"), False
    word = f"it is {task_state_name(current.state)}"
    outcome = TaskOutcome(task_id=task_id, state=current.state)
    if not test(current) and not _is_so_already(request, current):
        outcome.reason, outcome.message = ERROR_REASON_TASK_STATE_CONFLICT, f"{word} by now"
        return outcome, False
    mark = state.mark()
    try:
        after = _change(state, request, current)
    except KapellError as error:
        state.rollback(mark)
        is_its_state = error.reason == ERROR_REASON_TASK_STATE_CONFLICT
        outcome.reason, outcome.message = error.reason, word if is_its_state else "see what RetryTask says"
        return outcome, False
    outcome.state = after.state
    return outcome, after.revision != current.revision


def _is_so_already(request: BulkRequest, current: Task) -> bool:
    """Whether it was cancelled since, perhaps with the task that it is below: that is what was asked for."""
    ending = (TASK_STATE_CANCELLED, TASK_STATE_CANCELLING)
    return isinstance(request, CancelTasksRequest) and current.state in ending


def _change(state: State, request: BulkRequest, current: Task) -> Task:
    match request:
        case CancelTasksRequest():
            return task.cancel_tree(state, current, request.reason, request.leave_children)
        case RetryTasksRequest():
            return task.retry(state, current, RetryTaskRequest())
        case ReprioritizeTasksRequest():
            return task.reprioritize(state, current, request.priority)


def _too_many(matched: int, limit: int) -> KapellError:
    return KapellError(
        ERROR_REASON_TOO_MANY_MATCHES,
        f"{matched} tasks match, and max_affected allows {limit}. Nothing was changed. "
        "Narrow the filter, raise max_affected (to 10000 at most), or set allow_partial.",
        metadata={"matched": str(matched), "limit": str(limit)},
    )
