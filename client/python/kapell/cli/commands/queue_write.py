"""`kapell queue pause`, `resume`, `drain` and `set`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import note, write_changed
from kapell.cli.queue_views import SETTINGS, queue_name
from kapell.cli.rates import COUNT, RATE, Given
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.queue_pb2 import Queue

_REASON = click.option("--reason", default="", metavar="TEXT", help="Why, for the record and for those who wonder.")
_ALL = click.option("--all", "everything", is_flag=True, help="All queues.")


@command(
    "pause",
    "Stop giving out tasks; those that run go on, and new ones may still be created.",
    examples="""
        kapell queue pause build --reason "the runner is being moved"
        kapell queue pause --all
    """,
)
@options.queue(required=False)
@_REASON
@_ALL
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def pause(app: App, /, agent_type: str | None, reason: str, everything: bool, yes: bool, dry_run: bool) -> None:
    _confirm(app, "Pause", agent_type, everything=everything, yes=yes or dry_run)
    _change(app, "pause", agent_type, lambda client: client.queues.pause(agent_type, reason=reason), dry_run=dry_run)


@command(
    "resume",
    "Open a paused or draining queue again.",
    examples="""
        kapell queue resume build
        kapell queue resume
    """,
)
@options.queue(required=False)
@options.dry_run
@options.output
@click.pass_obj
def resume(app: App, /, agent_type: str | None, dry_run: bool) -> None:
    _change(app, "resume", agent_type, lambda client: client.queues.resume(agent_type), dry_run=dry_run)


@command(
    "drain",
    "Refuse new tasks; those that are in the queue run to their end.",
    examples="""
        kapell queue drain build --reason "replaced by build-2"
        kapell queue drain --all
    """,
)
@options.queue(required=False)
@_REASON
@_ALL
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def drain(app: App, /, agent_type: str | None, reason: str, everything: bool, yes: bool, dry_run: bool) -> None:
    _confirm(app, "Drain", agent_type, everything=everything, yes=yes or dry_run)
    _change(app, "drain", agent_type, lambda client: client.queues.drain(agent_type, reason=reason), dry_run=dry_run)


@command(
    "set",
    "Set how many tasks may run, and how many may start in a period.",
    examples="""
        kapell queue set build --max-running 4
        kapell queue set review --rate 10/1m
        kapell queue set build --max-running none --rate none
    """,
)
@options.queue(required=True)
@click.option("--max-running", type=COUNT, metavar="N|none", help="Most tasks that run at a time.")
@click.option("--rate", type=RATE, metavar="N/PERIOD|none", help="Most tasks that start in a period: 10/1m, 30/1h.")
@click.option("--etag", default="", metavar="ETAG", help="Refuse when the queue has changed since it had this etag.")
@options.dry_run
@options.output
@click.pass_obj
def set_(app: App, /, agent_type: str, max_running: Given | None, rate: Given | None, etag: str, dry_run: bool) -> None:
    given: dict[str, Any] = {"max_running": max_running, "start_rate": rate}
    changes = {field: option.value for field, option in given.items() if option is not None}
    if not changes:
        raise click.UsageError("Nothing to change: give --max-running or --rate.")
    _change(
        app,
        "change",
        agent_type,
        lambda client: client.queues.update(agent_type, etag=etag, **changes),
        dry_run=dry_run,
    )


def _confirm(app: App, verb: str, agent_type: str | None, *, everything: bool, yes: bool) -> None:
    """Asks before all queues are stopped because no type was named."""
    if agent_type and everything:
        raise click.UsageError("Name one queue or say --all, not both.")
    if not agent_type:
        options.confirm(app, f"{verb} all queues", (), yes=yes or everything)


def _change(
    app: App, verb: str, agent_type: str | None, act: Callable[[Client], Awaitable[Queue]], *, dry_run: bool
) -> None:
    """Changes a queue and shows it; with `dry_run` shows it as it is."""

    async def work(client: Client) -> Queue:
        if not dry_run:
            return await act(client)
        found = await client.queues.stats(agent_type or "*")
        return found.queues[0].queue

    queue = app.run(work)
    if dry_run:
        note(f"Dry run: would {verb} the queue of {queue_name(queue)}, which is like this. Nothing was changed.")
    write_changed([queue], SETTINGS, app.terminal, app.output)
