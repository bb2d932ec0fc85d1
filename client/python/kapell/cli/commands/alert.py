"""`kapell alert`: what somebody should know of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.budget_views import ALERTS
from kapell.cli.output import note, write_changed, write_list
from kapell.cli.shape import command
from kapell.cli.times import MOMENT

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.alert_pb2 import Alert

_STATES = ("firing", "acknowledged", "resolved")


@command(
    "list",
    "List alerts, those that are firing first.",
    examples="""
        kapell alert list
        kapell alert list --state firing -o wide
        kapell alert list --state firing -o id | kapell alert ack -
    """,
)
@click.option(
    "--state", "states", multiple=True, type=click.Choice(_STATES), help="Only of this state; may be repeated."
)
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, states: tuple[str, ...], limit: int) -> None:
    async def work(client: Client) -> list[Alert]:
        return await options.take(client.alerts.iterate(page_size=min(limit + 1, 1000), states=states), limit + 1)

    found = app.run(work)
    empty = "No alert matches: nothing needs to be looked at."
    write_list(found[:limit], ALERTS, app.terminal, app.output, empty=empty)
    options.say_more(app, "alerts", shown=limit, found=len(found))


@command(
    "ack",
    "Say that somebody has taken note of alerts.",
    examples="""
        kapell alert ack alert_01kabc --comment "raised the limit"
        kapell alert ack alert_01kabc --until 2h
        kapell alert list --state firing -o id | kapell alert ack -
    """,
)
@click.argument("alert_ids", nargs=-1, required=True, metavar="ALERT_ID...", callback=options.with_stdin)
@click.option("--comment", default="", metavar="TEXT", help="What is being done about it.")
@click.option("--until", type=MOMENT, metavar="TIME", help="When it is to fire again if it is still so: 2h, or a time.")
@options.dry_run
@options.output
@click.pass_obj
def ack(app: App, /, alert_ids: tuple[str, ...], comment: str, until: float | None, dry_run: bool) -> None:
    if dry_run:
        note(f"Dry run: would acknowledge {len(alert_ids)} alerts. Nothing was changed.")
        return
    expires = None if until is None else datetime.fromtimestamp(until, UTC)
    noted = app.run(
        lambda client: bulk.each(alert_ids, lambda id: client.alerts.acknowledge(id, comment=comment, expires=expires))
    )
    write_changed(noted.answers, ALERTS, app.terminal, app.output)
    noted.finish(app.terminal)
