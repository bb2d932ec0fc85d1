"""`kapell event compact`: the log ends further up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import View, as_data, note, write, write_one
from kapell.cli.shape import command
from kapell.cli.times import DURATION

if TYPE_CHECKING:
    from kapell import Client


@command(
    "compact",
    "Drop the oldest events before their time.",
    examples="""
        kapell event compact --older-than 2d
        kapell event compact --before 12000 --yes
    """,
    epilog="The server drops old events by itself; kapell.toml says when. Tasks and agents stay as they are.",
)
@click.option("--before", type=click.IntRange(min=1), metavar="REVISION", help="Those before this revision.")
@click.option("--older-than", type=DURATION, metavar="DURATION", help="Those older than this, as in 12h or 7d.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def compact(app: App, /, before: int | None, older_than: float | None, yes: bool, dry_run: bool) -> None:
    if (before is None) is (older_than is None):
        raise click.UsageError("Give --before or --older-than, one of the two.")
    if dry_run:
        note("Dry run: this is what the log holds. Nothing was changed.")
        _show(app, app.run(lambda client: client.events.log_info()))
        return
    options.confirm(app, "Drop these events for good", (), yes=yes)

    async def work(client: Client) -> Any:
        return await client.admin.compact_events(before_revision=before, older_than=older_than)

    _show(app, app.run(work))


def _show(app: App, bounds: Any) -> None:
    if app.is_table:
        write(f"The log holds what came after revision {bounds.oldest_revision}, up to {bounds.revision}.")
    else:
        view = View(columns=(), id=lambda _: str(bounds.oldest_revision))
        write_one(as_data(bounds), view, app.terminal, app.output)
