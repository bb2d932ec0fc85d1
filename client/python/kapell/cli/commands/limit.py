"""`kapell limit`: how many tasks of a concurrency key run at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.output import note, write, write_changed, write_list
from kapell.cli.queue_views import LIMITS
from kapell.cli.rates import RATE, Given
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.queue_pb2 import ConcurrencyLimit

_STRATEGIES = ("wait", "cancel-in-progress", "cancel-newest", "skip")


@command(
    "list",
    "List the limits that were set, the newest first; a key without one lets one task run at a time.",
    examples="""
        kapell limit list
        kapell limit list -o wide
        kapell limit list -o id
    """,
)
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, limit: int) -> None:
    async def work(client: Client) -> list[ConcurrencyLimit]:
        return await options.take(client.limits.iterate(page_size=min(limit + 1, 1000)), limit + 1)

    limits = app.run(work)
    empty = "No limit was set: of each concurrency key one task runs at a time. Try: kapell limit set repo:web --max 2"
    write_list(limits[:limit], LIMITS, app.terminal, app.output, empty=empty)
    options.say_more(app, "limits", shown=limit, found=len(limits))


@command(
    "set",
    "Create or replace the limit of a concurrency key; tasks that run already are not touched.",
    examples="""
        kapell limit set repo:web --max 2
        kapell limit set deploy:web --strategy cancel-in-progress
        kapell limit set api:search --max 5 --rate 30/1h --description "the plan allows no more"
    """,
)
@options.limit_key
@click.option("--max", "maximum", type=click.IntRange(0), default=1, metavar="N", help="Most that run. [default: 1]")
@click.option(
    "--strategy",
    type=click.Choice(_STRATEGIES),
    default="wait",
    metavar="STRATEGY",
    help=f"What becomes of those beyond it: {', '.join(_STRATEGIES)}. [default: wait]",
)
@click.option("--rate", type=RATE, metavar="N/PERIOD|none", help="Most tasks that start in a period. [default: none]")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option("--etag", default="", metavar="ETAG", help="Refuse when the limit has changed since it had this etag.")
@options.dry_run
@options.output
@click.pass_obj
def set_(
    app: App,
    /,
    key: str,
    maximum: int,
    strategy: str,
    rate: Given | None,
    description: str,
    etag: str,
    dry_run: bool,
) -> None:
    if dry_run:
        note(f"Dry run: would let {maximum} tasks of {key} run at a time, strategy {strategy}. Nothing was changed.")
        return
    start_rate = rate.value if rate is not None else None
    assert start_rate is None or isinstance(start_rate, tuple)
    limit = app.run(
        lambda client: client.limits.set(
            key, max_running=maximum, strategy=strategy, start_rate=start_rate, description=description, etag=etag
        )
    )
    write_changed([limit], LIMITS, app.terminal, app.output)


@command(
    "delete",
    "Forget the limits of concurrency keys, which then let one task run at a time.",
    examples="""
        kapell limit delete repo:web
        kapell limit list -o id | kapell limit delete --yes -
    """,
)
@options.limit_keys
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def delete(app: App, /, keys: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    count = len(keys)
    what = "this limit" if count == 1 else f"{count} limits"
    if dry_run:
        note(f"Dry run: would forget {what}: {', '.join(keys)}. Nothing was changed.")
        return
    if count > 1:
        options.confirm(app, f"Forget {what}", keys, yes=yes, typed=str(count))

    async def one(client: Client, key: str) -> str:
        await client.limits.delete(key)
        return key

    outcome = app.run(lambda client: bulk.each(keys, lambda key: one(client, key)))
    for key in outcome.answers:
        write(f"Forgot the limit of {key}." if app.terminal.is_tty else f"{key}\tdeleted")
    outcome.finish(app.terminal)
