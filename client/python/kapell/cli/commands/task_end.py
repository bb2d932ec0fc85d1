"""`kapell task cancel`, `retry` and `delete`: one verb on one or many tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.output import note, write, write_changed
from kapell.cli.shape import command
from kapell.cli.states import task_look
from kapell.cli.views import TASKS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task


def _show_only(app: App, /, verb: str, ids: tuple[str, ...]) -> None:
    """The dry run: reads the tasks and says what would be done."""
    outcome = app.run(lambda client: bulk.each(ids, client.tasks.get))
    count = len(outcome.answers)
    note(f"Dry run: would {verb} {count} task{'' if count == 1 else 's'}. Nothing was changed.")
    write_changed(outcome.answers, TASKS, app.terminal, app.output)
    outcome.finish(app.terminal)


def _write(app: App, /, outcome: bulk.Outcome[Task]) -> None:
    write_changed(outcome.answers, TASKS, app.terminal, app.output)
    outcome.finish(app.terminal)


@command(
    "cancel",
    "Cancel tasks, and those below them.",
    examples="""
        kapell task cancel task_01kabc
        kapell task cancel task_01kabc --reason "wrong branch"
        kapell task list --state queued --type review -o id | kapell task cancel --yes -
    """,
)
@options.task_ids()
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.option("--leave-children", is_flag=True, help="Let the tasks below them go on.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def cancel(app: App, /, task_ids: tuple[str, ...], reason: str, leave_children: bool, yes: bool, dry_run: bool) -> None:
    if dry_run:
        _show_only(app, "cancel", task_ids)
        return
    if len(task_ids) > 1:
        options.confirm(app, f"Cancel {len(task_ids)} tasks", task_ids, yes=yes, typed=str(len(task_ids)))
    _write(
        app,
        app.run(
            lambda client: bulk.each(
                task_ids, lambda id: client.tasks.cancel(id, reason=reason, leave_children=leave_children)
            )
        ),
    )


@command(
    "retry",
    "Queue failed or cancelled tasks again.",
    examples="""
        kapell task retry task_01kabc
        kapell task list --state failed -o id | kapell task retry -
    """,
)
@options.task_ids()
@options.dry_run
@options.output
@click.pass_obj
def retry(app: App, /, task_ids: tuple[str, ...], dry_run: bool) -> None:
    if dry_run:
        _show_only(app, "retry", task_ids)
        return
    _write(app, app.run(lambda client: bulk.each(task_ids, client.tasks.retry)))


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
        _show_only(app, "delete", task_ids)
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
