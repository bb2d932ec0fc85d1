"""Parents and children: who is below whom, how many there may be, and where a new child stands.

A family is all tasks below one root. It is loaded when somebody asks for it and kept up to date
by the puts of its members; part of State and undone with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from kapell.v1.error_pb2 import ERROR_REASON_CHILD_LIMIT
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    Task,
)

from kapell_server.domain.errors import KapellError
from kapell_server.domain.transitions import task_state_conflict

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_MOST = 500
_FERTILE = frozenset({TASK_STATE_PENDING, TASK_STATE_AWAITING_APPROVAL, TASK_STATE_QUEUED, TASK_STATE_RUNNING})


class Families:
    """Members of families in memory: the parent of each, by root and then by task, the eldest first."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._members: dict[str, dict[str, str]] = {}

    def of(self, root_id: str) -> dict[str, str]:
        """The parent of every task below `root_id`, of this batch too. Not to be altered."""
        if root_id not in self._members:
            self.prefetch((root_id,))
        return self._members[root_id]

    def prefetch(self, root_ids: Iterable[str]) -> None:
        """Loads in one query what is not in memory."""
        loaded: dict[str, dict[str, str]] = {root_id: {} for root_id in root_ids if root_id not in self._members}
        if not loaded:
            return
        for root_id, task_id, parent_id in self._state.loader.load_families(loaded):
            loaded[root_id][task_id] = parent_id
        for change in self._state.pending.changes:
            task = change.resource
            if isinstance(task, Task) and task.root_task_id in loaded:
                if change.created:
                    loaded[task.root_task_id][task.task_id] = task.parent_task_id
                elif change.deleted:
                    loaded[task.root_task_id].pop(task.task_id, None)
        for root_id, members in loaded.items():
            # Forgotten when the batch is undone: then what it has created must not stay here.
            self._state.assign(self._members, root_id, members)

    def notice(self, task: Task, deleted: bool) -> None:
        """A member was created or deleted."""
        members = self._members.get(task.root_task_id)
        if members is None:
            return
        if deleted:
            self._state.remove(members, task.task_id)
        else:
            self._state.assign(members, task.task_id, task.parent_task_id)

    def trim(self) -> None:
        """Forgets what is beyond the cap, the oldest first; between batches only."""
        while len(self._members) > _MOST:
            del self._members[next(iter(self._members))]


def root_of(task: Task) -> str:
    """The root of the family the task belongs to, perhaps itself."""
    return task.root_task_id or task.task_id


def below(state: State, task: Task) -> list[str]:
    """All tasks below this one, parents before their children."""
    members = state.families.of(root_of(task))
    if not members:
        return []
    if not task.root_task_id:
        return list(members)
    children: dict[str, list[str]] = {}
    for task_id, parent_id in members.items():
        children.setdefault(parent_id, []).append(task_id)
    found: list[str] = []
    level = [task.task_id]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def adopt(state: State, task: Task, parent: Task, *, at_any_depth: bool = False) -> None:
    """Makes a task that is not yet put a child of `parent`. Refuses what the parent may not have."""
    if parent.state not in _FERTILE:
        raise task_state_conflict(parent, "given children", _FERTILE)
    task.parent_task_id = parent.task_id
    task.root_task_id = root_of(parent)
    task.depth = parent.depth + 1
    if task.depth > state.settings.max_task_depth and not at_any_depth:
        raise _limit(
            parent, "max_task_depth", state.settings.max_task_depth, f"it stands {parent.depth} levels below its root"
        )


def check_room(state: State, roots: Iterable[str]) -> None:
    """Refuses more tasks below a root than there may be; `roots` are those of the tasks about to be put."""
    most = state.settings.max_tasks_per_root
    wanted = Counter(roots)
    state.families.prefetch(wanted)
    for root_id, fresh in wanted.items():
        have = len(state.families.of(root_id))
        if have + fresh > most:
            why = f"there are {have} tasks below it and {fresh} more were asked for"
            raise _limit(Task(task_id=root_id), "max_tasks_per_root", most, why)


def _limit(task: Task, name: str, most: int, why: str) -> KapellError:
    return KapellError(
        ERROR_REASON_CHILD_LIMIT,
        f"Task {task.task_id} cannot have these children: {why}, and {name} is {most}. "
        "Do the work in fewer tasks, or create tasks that are no children.",
        metadata={"task_id": task.task_id, "limit": name, "most": str(most)},
    )
