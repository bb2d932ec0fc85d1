"""Why a task failed that never ran: the tasks it waited for, and the commands that mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.cli.errors import Exit
from kapell.cli.states import task_look

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task

_MOST_LINKS = 8


async def causes(client: Client, task: Task) -> list[Task]:
    """The dependency that made it fail, the one that made that fail, and so on; empty where it failed by itself."""
    from kapell.errors import NotFound

    found: list[Task] = []
    while task.failure.reason == "DEPENDENCY_FAILED" and len(found) < _MOST_LINKS:
        id = task.failure.details.fields["task_id"].string_value
        if not id:
            break
        try:
            task = await client.tasks.get(id)
        except NotFound:
            break
        found.append(task)
    return found


def is_over_budget(task: Task) -> bool:
    """Whether a budget has stopped it."""
    return task.failure.reason == "BUDGET_EXCEEDED"


def is_not_approved(task: Task) -> bool:
    """Whether its start was denied, or nobody approved it in time."""
    return task.failure.reason in ("APPROVAL_REJECTED", "APPROVAL_EXPIRED")


def exit_of(task: Task) -> Exit:
    """The exit code for a task that has ended and did not succeed."""
    if is_not_approved(task):
        return Exit.APPROVAL
    return Exit.BUDGET if is_over_budget(task) else Exit.TASK_FAILED


def hints(task: Task, because: list[Task]) -> list[str]:
    """What to type next, for a task that did not succeed: where to look, and how to run it once more."""
    id = task.task_id
    if not because:
        return [f"  look closer: kapell task attempts {id}", f"  once more:   kapell task retry {id}"]
    first = because[-1]
    are_steps = all(one.parent_task_id == id and task_look(one.state).word == "failed" for one in because)
    # A task can be retried once those it waits for have been.
    before = [f"--root {id} --failed"] if are_steps else [one.task_id for one in reversed(because)]
    again = " && ".join(f"kapell task retry {which}" for which in (*before, id))
    return [
        f"  look closer: kapell task {'logs' if first.attempt else 'get'} {first.task_id}",
        f"  once more:   {again}",
    ]
