"""`kapell schedule pause`, `resume`, `trigger` and `delete`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.commands.schedule_fields import POLICIES
from kapell.cli.output import note, write, write_changed
from kapell.cli.schedule_views import RUNS, SCHEDULES, outcome, short_id
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.schedule_pb2 import Schedule


@command(
    "pause",
    "Let schedules make no tasks until they are resumed.",
    examples="""
        kapell schedule pause nightly --reason "release week"
        kapell schedule list --running -o id | kapell schedule pause -
    """,
)
@options.schedule_ids
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever wonders.")
@options.dry_run
@options.output
@click.pass_obj
def pause(app: App, /, schedule_ids: tuple[str, ...], reason: str, dry_run: bool) -> None:
    _each(app, schedule_ids, "pause", dry_run, lambda client, id: client.schedules.pause(id, reason=reason))


@command(
    "resume",
    "Let paused schedules run again; what they missed meanwhile is made up for by one run within the catch-up window.",
    examples="""
        kapell schedule resume nightly
        kapell schedule list --paused -o id | kapell schedule resume -
    """,
)
@options.schedule_ids
@options.dry_run
@options.output
@click.pass_obj
def resume(app: App, /, schedule_ids: tuple[str, ...], dry_run: bool) -> None:
    _each(app, schedule_ids, "resume", dry_run, lambda client, id: client.schedules.resume(id))


def _each(
    app: App,
    schedule_ids: tuple[str, ...],
    verb: str,
    dry_run: bool,
    act: Callable[[Client, str], Awaitable[Schedule]],
) -> None:
    """The verb on each of them, or what it would be done to."""
    if dry_run:
        found = app.run(lambda client: bulk.each(schedule_ids, client.schedules.get))
        note(f"Dry run: would {verb} {len(found.answers)} schedules. Nothing was changed.")
    else:
        found = app.run(lambda client: bulk.each(schedule_ids, lambda id: act(client, id)))
    write_changed(found.answers, SCHEDULES, app.terminal, app.output)
    found.finish(app.terminal)


@command(
    "trigger",
    "Make a run of a schedule now, paused or not.",
    examples="""
        kapell schedule trigger nightly
        kapell schedule trigger nightly --overlap allow -o id
    """,
)
@options.schedule_id
@click.option("--overlap", type=POLICIES, help="When the last task has not ended. [default: as the schedule says]")
@options.dry_run
@options.output
@click.pass_obj
def trigger(app: App, /, schedule_id: str, overlap: str | None, dry_run: bool) -> None:
    if dry_run:
        schedule = app.run(lambda client: client.schedules.get(schedule_id))
        note("Dry run: would make a run of this schedule. Nothing was changed.")
        write_changed([schedule], SCHEDULES, app.terminal, app.output)
        return
    answer = app.run(lambda client: client.schedules.trigger(schedule_id, overlap_policy=overlap))
    run, task_id = answer.schedule.last_run, answer.task.task_id
    if not (app.is_table and app.terminal.is_tty):
        if task_id or app.output != "id":
            write_changed([answer], RUNS, app.terminal, app.output)
    elif task_id:
        write(f"Created {task_id}.")
        note(app.terminal.err(f"Follow it with: kapell task logs --follow {task_id}", "dim"))
    if not task_id:
        note(f"No task was made: the run is {outcome(run).text}, since {run.task_id} has not ended.")


@command(
    "delete",
    "Delete schedules; tasks they have made go on.",
    examples="""
        kapell schedule delete nightly
        kapell schedule list --paused -o id | kapell schedule delete --yes -
    """,
)
@options.schedule_ids
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def delete(app: App, /, schedule_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    if dry_run:
        found = app.run(lambda client: bulk.each(schedule_ids, client.schedules.get))
        note(f"Dry run: would delete {len(found.answers)} schedules. Nothing was changed.")
        write_changed(found.answers, SCHEDULES, app.terminal, app.output)
        found.finish(app.terminal)
        return
    count = len(schedule_ids)
    question = f"Delete {count} schedules" if count > 1 else "Delete this schedule"
    options.confirm(app, question, schedule_ids, yes=yes, typed=str(count) if count > 1 else "")

    async def one(client: Client, schedule_id: str) -> Schedule:
        schedule = await client.schedules.get(schedule_id)
        await client.schedules.delete(schedule_id)
        return schedule

    gone = app.run(lambda client: bulk.each(schedule_ids, lambda id: one(client, id)))
    if app.is_table and app.terminal.is_tty:
        for schedule in gone.answers:
            write(f"Deleted {short_id(schedule.schedule_id)}.")
    else:
        write_changed(gone.answers, SCHEDULES, app.terminal, app.output)
    gone.finish(app.terminal)
