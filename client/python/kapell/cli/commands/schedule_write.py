"""`kapell schedule create` and `update`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.commands.schedule_fields import (
    calendar_fields,
    calendar_given,
    calendar_of,
    how_fields,
    how_given,
    task_fields,
    task_given,
)
from kapell.cli.output import note, write_changed, write_list
from kapell.cli.parameters import parameters
from kapell.cli.schedule_views import SCHEDULES, times_view
from kapell.cli.shape import command

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from kapell import Client
    from kapell.v1.schedule_pb2 import Schedule

_CALENDAR = ("cron", "every", "timezone", "start", "end")
_HOW = ("overlap", "jitter", "catch_up", "name")
_RESETS = {
    "start": "start_time",
    "end": "end_time",
    "jitter": "jitter",
    "catch-up": "catch_up_window",
    "overlap": "overlap_policy",
    "name": "display_name",
}


@command(
    "create",
    "Create a schedule, which makes a task whenever its time comes.",
    examples="""
        kapell schedule create nightly --cron "0 3 * * *" --timezone Europe/Berlin --template code-review -P files=src
        kapell schedule create backup --every 6h --type shell --prompt "make backup" --jitter 5m
        kapell schedule create weekly --cron @weekly --type review --file prompt.md --overlap queue --paused
    """,
)
@options.schedule_id
@calendar_fields
@task_fields
@parameters
@how_fields
@click.option("--paused", is_flag=True, help="Begin paused.")
@click.option("--reason", default="", metavar="TEXT", help="Why it begins paused.")
@options.dry_run
@options.output
@click.pass_obj
def create(app: App, /, schedule_id: str, paused: bool, reason: str, dry_run: bool, **values: Any) -> None:
    calendar, how, task = _parts(values)
    if "cron" not in calendar and "interval" not in calendar:
        raise click.UsageError("Say when it runs, by --cron or --every.")

    async def work(client: Client) -> Schedule | list[Timestamp]:
        spec = await task_given(client, **task)
        if spec is None:
            raise click.UsageError("Say which task it makes, by --template, or by --type and --prompt.")
        if not dry_run:
            return await client.schedules.create(
                spec, schedule_id=schedule_id, paused=paused, pause_reason=reason, **calendar, **how
            )
        return await _times(client, calendar)

    made = app.run(work)
    if isinstance(made, list):
        note(f"Dry run: would create {schedule_id}, which would run at these times. Nothing was changed.")
        write_list(made, times_view(calendar.get("time_zone", "UTC")), app.terminal, app.output)
    else:
        write_changed([made], SCHEDULES, app.terminal, app.output)


@command(
    "update",
    "Change a schedule; another calendar begins now.",
    examples="""
        kapell schedule update nightly --cron "30 2 * * *"
        kapell schedule update backup --every 12h --reset jitter
        kapell schedule update nightly --template code-review@stable --param files=src
    """,
)
@options.schedule_id
@calendar_fields
@task_fields
@parameters
@how_fields
@click.option(
    "--reset", "resets", multiple=True, type=click.Choice(list(_RESETS)), help="Back to its default; may be repeated."
)
@click.option("--etag", default="", metavar="ETAG", help="Refuse when it has changed since it had this etag.")
@options.dry_run
@options.output
@click.pass_obj
def update(app: App, /, schedule_id: str, resets: tuple[str, ...], etag: str, dry_run: bool, **values: Any) -> None:
    calendar, how, task = _parts(values)
    changes = {**dict.fromkeys(_RESETS[name] for name in resets), **calendar, **how}

    async def work(client: Client) -> tuple[Schedule, list[Timestamp]]:
        spec = await task_given(client, **task)
        if spec is None and not changes:
            raise click.UsageError("Nothing to change: give an option.")
        if not dry_run:
            return await client.schedules.update(schedule_id, task=spec, etag=etag, **changes), []
        current = await client.schedules.get(schedule_id)
        given = {**calendar_of(current.spec), **{name: changes[name] for name in changes if name in _OF_CALENDAR}}
        if "interval" in calendar:
            given.pop("cron", None)
        elif "cron" in calendar:
            given.pop("interval", None)
        return current, await _times(client, given)

    schedule, times = app.run(work)
    if dry_run:
        note(f"Dry run: {schedule_id} would run at these times after the change. Nothing was changed.")
        zone = calendar.get("time_zone") or schedule.spec.time_zone
        write_list(times, times_view(zone), app.terminal, app.output)
    else:
        write_changed([schedule], SCHEDULES, app.terminal, app.output)


_OF_CALENDAR = frozenset({"cron", "interval", "time_zone", "start_time", "end_time"})


def _parts(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What was said of the calendar, of how it runs, and of the task."""
    calendar = calendar_given(**{name: values.pop(name) for name in _CALENDAR})
    how = how_given(**{name: values.pop(name) for name in _HOW})
    return calendar, how, values


async def _times(client: Client, calendar: dict[str, Any]) -> list[Timestamp]:
    answer = await client.schedules.preview(**calendar)
    return list(answer.times)
