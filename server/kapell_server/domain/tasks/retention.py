"""What is kept: finished tasks and events by age and number, and what an administrator has compacted.

Called with facts of the server's own housekeeping, which has looked up what may go; whether it
may still go is decided here. The surprise: compacting only moves a mark, `State.oldest_revision`.
It is in force at once and durable; the rows below it are removed later, some at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from kapell.v1.admin_pb2 import CompactEventsRequest, CompactEventsResponse
from kapell.v1.error_pb2 import ERROR_REASON_REVISION_COMPACTED, ERROR_REASON_REVISION_IN_FUTURE
from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.family import root_of
from kapell_server.domain.times import duration_ns, timestamp_ns
from kapell_server.domain.transitions import TASK_FINAL


def compact_events(state: State, request: CompactEventsRequest) -> CompactEventsResponse:
    """Compacts the log as an administrator asks; asking for less than is done already changes nothing."""
    if request.HasField("before_revision"):
        if request.before_revision > state.revision:
            raise _in_future(state, request.before_revision)
        oldest = request.before_revision - 1
    else:
        oldest = state.loader.newest_event_before(state.now_ns - duration_ns(request.older_than))
    compact_to(state, oldest)
    return CompactEventsResponse(oldest_revision=state.oldest_revision, revision=state.revision)


def compact_to(state: State, revision: int) -> None:
    """Ends the log at `revision`: what came after is kept, and the newest event always is.

    By the newest event a restart knows where revisions go on.
    """
    oldest = min(revision, state.revision - 1)
    if oldest > state.oldest_revision:
        state.on_rollback(_restore, state, state.oldest_revision, state.pending.oldest_revision)
        state.oldest_revision = state.pending.oldest_revision = oldest


def _restore(state: State, oldest_revision: int, pending: int) -> None:
    state.oldest_revision = oldest_revision
    state.pending.oldest_revision = pending


def delete_ended(state: State, task_ids: Sequence[str], ended_by_ns: int) -> bytes:
    """Deletes those of the tasks that ended by then and that nothing needs. The ids that went, one a line.

    A task that was retried meanwhile, or deleted and made again, stays.
    """
    gone: list[str] = []
    families: dict[str, bool] = {}
    for task_id in task_ids:
        current = state.find_task(task_id)
        if current is None or current.state not in TASK_FINAL or timestamp_ns(current.end_time) > ended_by_ns:
            continue
        if is_needed(state, current, families):
            continue
        state.put_task(copied(current), EVENT_KIND_TASK_DELETED, (), deleted=True)
        state.drop_content(task_id)
        state.passing_tasks.append(task_id)
        gone.append(task_id)
    return "\n".join(gone).encode()


def is_needed(state: State, task: Task, families: dict[str, bool]) -> bool:
    """Whether something that lives still needs the ended task, so that retention must leave it.

    The one place for such conditions. A task that is needed is looked at again in every round.
    `families` remembers, for the length of one command, which are still alive.
    """
    if task.task_id in state.edges.dependants or task.task_id in state.edges.kept:
        return True
    root_id = root_of(task)
    if root_id not in families:
        families[root_id] = _family_lives(state, root_id)
    return families[root_id]


def _family_lives(state: State, root_id: str) -> bool:
    """Whether the root or anything below it has not ended: parents want the results of their children."""
    root = state.find_task(root_id)
    if root is not None and root.state not in TASK_FINAL:
        return True
    for change in state.pending.changes:
        task = change.resource
        if isinstance(task, Task) and task.root_task_id == root_id and task.state not in TASK_FINAL:
            return True
    return state.loader.has_live_member(root_id)


def compacted(cursor: int, *, oldest: int, current: int, log_id: str) -> KapellError:
    """The log cannot be read on from `cursor`: what followed it is gone."""
    return KapellError(
        ERROR_REASON_REVISION_COMPACTED,
        f"The log no longer holds what followed revision {cursor}; the oldest usable is {oldest}."
        " Start over: a watch with send_initial_state, a list without a page_token.",
        metadata={"oldest": str(oldest), "current": str(current), "log_id": log_id},
    )


def _in_future(state: State, revision: int) -> KapellError:
    return KapellError(
        ERROR_REASON_REVISION_IN_FUTURE,
        f"The log cannot be compacted before revision {revision}: the newest is {state.revision}, which always stays."
        " Name a revision that the log has.",
        metadata={"current": str(state.revision), "log_id": state.log_id},
    )
