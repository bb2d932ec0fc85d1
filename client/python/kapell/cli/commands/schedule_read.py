"""`kapell schedule list`, `get` and `preview`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.commands.schedule_fields import calendar_fields, calendar_given, calendar_of
from kapell.cli.output import write_list, write_one
from kapell.cli.schedule_views import SCHEDULES, times_view
from kapell.cli.shape import command

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from kapell import Client
    from kapell.v1.schedule_pb2 import Schedule


@command(
    "list",
    "List schedules, the newest first.",
    examples="""
        kapell schedule list
        kapell schedule list --paused -o id
        kapell schedule list --template code-review -o wide
    """,
)
@click.option("--paused/--running", default=None, help="Only those that are paused, or only the others.")
@click.option(
    "--template", "template_ids", multiple=True, metavar="TEMPLATE_ID", help="Of this template; may be repeated."
)
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, paused: bool | None, template_ids: tuple[str, ...], limit: int) -> None:
    query: dict[str, Any] = {"template_ids": template_ids}
    if paused is not None:
        query["paused"] = paused

    async def work(client: Client) -> list[Schedule]:
        return await options.take(client.schedules.iterate(page_size=min(limit + 1, 1000), **query), limit + 1)

    schedules = app.run(work)
    empty = "No schedule matches. Create one with: kapell schedule create --help"
    write_list(schedules[:limit], SCHEDULES, app.terminal, app.output, empty=empty)
    options.say_more(app, "schedules", shown=limit, found=len(schedules))


@command(
    "get",
    "Show one schedule with its task and what became of its last run.",
    examples="""
        kapell schedule get nightly
        kapell schedule get nightly -o json
    """,
)
@options.schedule_id
@options.output
@click.pass_obj
def get(app: App, /, schedule_id: str) -> None:
    write_one(app.run(lambda client: client.schedules.get(schedule_id)), SCHEDULES, app.terminal, app.output)


@command(
    "preview",
    "Show the next times of a schedule, or of a calendar that is none yet.",
    examples="""
        kapell schedule preview nightly
        kapell schedule preview --cron "30 2 * * *" --timezone Europe/Berlin --count 10
        kapell schedule preview --every 90m --start 2030-01-01T00:00:00Z
    """,
)
@click.argument("name", required=False, metavar="[SCHEDULE]", callback=options.full_schedule_id)
@calendar_fields
@click.option("-n", "--count", type=click.IntRange(1, 100), default=5, metavar="N", help="How many. [default: 5]")
@options.output
@click.pass_obj
def preview(app: App, /, name: str | None, count: int, **values: Any) -> None:
    given = calendar_given(**values)
    if (name is None) is not bool(given):
        raise click.UsageError("Name a schedule, or say when by --cron or --every; one of the two.")

    async def work(client: Client) -> tuple[list[Timestamp], str]:
        calendar = given if name is None else calendar_of((await client.schedules.get(name)).spec)
        answer = await client.schedules.preview(count=count, **calendar)
        return list(answer.times), calendar.get("time_zone") or "UTC"

    times, zone = app.run(work)
    write_list(times, times_view(zone), app.terminal, app.output, empty="It does not run any more.")
