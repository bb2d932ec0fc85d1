"""`kapell task cancel` and `delete`: one verb on one or many tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, many, options
from kapell.cli.app import App
from kapell.cli.output import note, write, write_changed
from kapell.cli.shape import command
from kapell.cli.states import task_look
from kapell.cli.views import TASKS
from kapell.cli.which import LIVE, query_of, which_live_tasks

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task


def show_only(app: App, /, verb: str, ids: tuple[str, ...]) -> None:
    """The dry run: reads the tasks and says what would be done."""
    outcome = app.run(lambda client: bulk.each(ids, client.tasks.get))
    count = len(outcome.answers)
    note(f"Dry run: would {verb} {count} task{'' if count == 1 else 's'}. Nothing was changed.")
    write_changed(outcome.answers, TASKS, app.terminal, app.output)
    outcome.finish(app.terminal)


def write_answers(app: App, /, outcome: bulk.Outcome[Task]) -> None:
    """The tasks as they were answered with; then what failed."""
    write_changed(outcome.answers, TASKS, app.terminal, app.output)
    outcome.finish(app.terminal)


@command(
    "cancel",
    "Cancel tasks, and those below them: those with these ids, or all that match a filter and have not ended.",
    examples="""
        kapell task cancel task_01kabc
        kapell task cancel task_01kabc --reason "wrong branch"
        kapell task cancel --state queued --label team=a
        kapell task list --state queued --type review -o id | kapell task cancel --yes -
    """,
)
@many.some_task_ids
@which_live_tasks
@many.caps
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.option("--leave-children", is_flag=True, help="Let the tasks below them go on.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def cancel(
    app: App,
    /,
    task_ids: tuple[str, ...] | None,
    everything: bool,
    max_affected: int | None,
    allow_partial: bool,
    reason: str,
    leave_children: bool,
    yes: bool,
    dry_run: bool,
    **which: Any,
) -> None:
    query = query_of(**which)
    how: dict[str, Any] = {"reason": reason, "leave_children": leave_children}
    if many.is_by_filter(task_ids, query, everything=everything):
        query.setdefault("states", LIVE)
        many.change(
            app,
            lambda client: many.Change("cancel", "Cancelled", lambda **more: client.tasks.cancel_all(**how, **more)),
            query,
            yes=yes,
            dry_run=dry_run,
            max_affected=max_affected,
            allow_partial=allow_partial,
            everything=everything,
        )
        return
    ids = task_ids or ()
    if dry_run:
        show_only(app, "cancel", ids)
        return
    if len(ids) > 1:
        options.confirm(app, f"Cancel {len(ids)} tasks", ids, yes=yes, typed=str(len(ids)))
    write_answers(app, app.run(lambda client: bulk.each(ids, lambda id: client.tasks.cancel(id, **how))))


@command(
    "delete",
    "Delete ended tasks with their logs; one that has not ended is cancelled instead.",
    examples="""
        kapell task delete task_01kabc
        kapell task list --state succeeded -o id | kapell task delete --yes -
    """,
)
@options.task_ids()
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def delete(app: App, /, task_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    if dry_run:
        show_only(app, "delete", task_ids)
        return
    count = len(task_ids)
    question = f"Delete {count} tasks with their logs" if count > 1 else "Delete this task with its logs"
    options.confirm(app, question, task_ids, yes=yes, typed=str(count) if count > 1 else "")

    async def one(client: Client, task_id: str) -> tuple[Task, bool]:
        task = await client.tasks.get(task_id)
        return task, (await client.tasks.delete(task_id)).deleted

    outcome = app.run(lambda client: bulk.each(task_ids, lambda id: one(client, id)))
    for task, deleted in outcome.answers:
        _say_deleted(app, task, deleted)
    outcome.finish(app.terminal)


def _say_deleted(app: App, /, task: Task, deleted: bool) -> None:
    """One line a task: its id on a pipe or where ids are wanted, a sentence on a terminal."""
    if app.output not in (None, "table", "wide"):
        write_changed([task], TASKS, app.terminal, app.output)
    elif not app.terminal.is_tty:
        write(f"{task.task_id}\t{'deleted' if deleted else 'cancelled'}")
    elif deleted:
        write(f"Deleted {task.task_id}.")
    else:
        word = task_look(task.state).word
        write(f"{task.task_id} was {word} and is being cancelled; delete it again once it has ended.")
