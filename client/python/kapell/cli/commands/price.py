"""`kapell price`: what models cost, and costing anew what was recorded."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.errors import Exit, Refusal
from kapell.cli.money import shown
from kapell.cli.output import note, write, write_changed, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.times import MomentOrAge
from kapell.cli.usage_views import PRICES

if TYPE_CHECKING:
    from datetime import datetime

    from kapell import Client
    from kapell.v1.price_pb2 import Price
    from kapell.v1.usage_pb2 import RepriceUsageResponse

_MOMENT = MomentOrAge()
_MOST_CALLS = 1_000


@command(
    "list",
    "List prices of models, in dollars a million tokens: those that came with Kapell, and those that were set.",
    examples="""
        kapell price list
        kapell price list --provider anthropic
        kapell price list sonnet --past -o wide
    """,
)
@click.argument("model", default="", metavar="[PART-OF-MODEL]")
@click.option("--provider", default="", metavar="NAME", help="Of this provider only.")
@click.option("--past", is_flag=True, help="Also those that count no more.")
@click.option("-n", "--limit", type=click.IntRange(1), default=200, metavar="N", help="How many. [default: 200]")
@options.output
@click.pass_obj
def list_(app: App, /, model: str, provider: str, past: bool, limit: int) -> None:
    async def work(client: Client) -> tuple[list[Price], str]:
        prices = client.prices.iterate(provider=provider, model=model, include_past=past)
        date = (await client.prices.list(page_size=1)).shipped_date
        return await options.take(prices, limit + 1), date

    prices, date = app.run(work)
    empty = "No price matches; usage of such a model is unpriced. Set one with: kapell price set --help"
    write_list(prices[:limit], PRICES, app.terminal, app.output, empty=empty)
    options.say_more(app, "prices", shown=limit, found=len(prices))
    if app.is_table and app.terminal.is_tty and prices:
        note(app.terminal.err(f"Dollars a million tokens. Shipped prices were last looked after on {date}.", "dim"))


@command(
    "get",
    "Show the price of a model: the one that a call is costed by.",
    examples="""
        kapell price get claude-sonnet-4-5-20250929
        kapell price get gpt-5.6-luna --at 2026-07-15
    """,
)
@click.argument("model", metavar="MODEL")
@click.option("--provider", default="", metavar="NAME", help="Its provider, where more than one has it.")
@click.option("--at", type=_MOMENT, metavar="TIME|AGE", help="When the call was made. [default: now]")
@options.output
@click.pass_obj
def get(app: App, /, model: str, provider: str, at: datetime | None) -> None:
    price = app.run(lambda client: client.prices.get(model, provider=provider, at=at))
    write_one(price, PRICES, app.terminal, app.output)


@command(
    "set",
    "Set the price of a model, in dollars a million tokens. What was recorded keeps its cost until `reprice`.",
    examples="""
        kapell price set mycloud llama-4 --input-price 0.20 --output-price 0.60
        kapell price set anthropic claude-sonnet-4-5 --input-price 2.70 --output-price 13.50 --from 2026-12-01
    """,
)
@click.argument("provider", metavar="PROVIDER")
@click.argument("model", metavar="MODEL")
@click.option("--input-price", "input_", required=True, metavar="DOLLARS", help="A million tokens of uncached input.")
@click.option("--output-price", "output_", required=True, metavar="DOLLARS", help="A million of output.")
@click.option("--cache-read", metavar="DOLLARS", help="A million read from a cache. [default: as input, an estimate]")
@click.option("--cache-write", metavar="DOLLARS", help="A million written for 5 min. [default: as input, an estimate]")
@click.option("--cache-write-1h", metavar="DOLLARS", help="A million written for an hour. [default: as for 5 min]")
@click.option("--per-request", metavar="DOLLARS", help="Each request, besides its tokens.")
@click.option("--alias", "aliases", multiple=True, metavar="MODEL", help="Another name of the model.")
@click.option("--from", "valid_from", type=_MOMENT, metavar="TIME|AGE", help="Since when. [default: from ever]")
@click.option("--source", default="", metavar="TEXT", help="Where the figures are from.")
@options.dry_run
@options.output
@click.pass_obj
def set_(app: App, /, provider: str, model: str, dry_run: bool, **said: Any) -> None:
    if dry_run:
        rates = f"{said['input_']} in and {said['output_']} out a million tokens"
        note(f"Dry run: would set the price of {provider}/{model} to {rates}. Nothing was changed.")
        return
    price = app.run(
        lambda client: client.prices.set(
            provider,
            model,
            input=said["input_"],
            output=said["output_"],
            cache_read=said["cache_read"],
            cache_write_5m=said["cache_write"],
            cache_write_1h=said["cache_write_1h"],
            per_request=said["per_request"],
            aliases=said["aliases"],
            valid_from=said["valid_from"],
            source=said["source"],
        )
    )
    write_changed([price], PRICES, app.terminal, app.output)
    if app.is_table:
        note(app.terminal.err("What was recorded keeps its cost. Cost it anew with: kapell price reprice", "dim"))


@command(
    "delete",
    "Forget prices that were set, so that the ones before them count again.",
    examples="""
        kapell price delete mycloud/llama-4
        kapell price delete price_01kabc
    """,
)
@click.argument("price_ids", nargs=-1, required=True, metavar="PROVIDER/MODEL|PRICE_ID...", callback=options.with_stdin)
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def delete(app: App, /, price_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    if dry_run:
        note(f"Dry run: would forget {', '.join(price_ids)}. Nothing was changed.")
        return
    if len(price_ids) > 1:
        options.confirm(app, f"Forget {len(price_ids)} prices", price_ids, yes=yes, typed=str(len(price_ids)))

    async def one(client: Client, said: str) -> str:
        await client.prices.delete(await _id_of(client, said))
        return said

    outcome = app.run(lambda client: bulk.each(price_ids, lambda price_id: one(client, price_id)))
    for price_id in outcome.answers:
        write(f"Forgot {price_id}." if app.terminal.is_tty else f"{price_id}\tdeleted")
    outcome.finish(app.terminal)


async def _id_of(client: Client, said: str) -> str:
    """The price that was set for a model, where "provider/model" was said and only one is meant."""
    from kapell.v1.price_pb2 import PRICE_ORIGIN_SET

    provider, slash, model = said.partition("/")
    if not slash or provider == "shipped":
        return said
    found = [
        price
        async for price in client.prices.iterate(provider=provider, model=model, include_past=True)
        if price.origin == PRICE_ORIGIN_SET and price.model == model.lower()
    ]
    if len(found) == 1:
        return found[0].price_id
    line = f"kapell price list {shlex.quote(model)} --provider {shlex.quote(provider)} --past -o wide"
    if not found:
        raise Refusal(
            f"No price was set for {said}", why="those that came with Kapell stay", next=line, exit=Exit.NOT_FOUND
        )
    raise Refusal(
        f"{len(found)} prices were set for {said}, each from another time on",
        why="name one of " + ", ".join(price.price_id for price in found),
        next=line,
        exit=Exit.CONFLICT,
    )


@command(
    "reprice",
    "Cost what was recorded anew, by the prices as they are now: unpriced usage, and usage whose price has changed.",
    examples="""
        kapell price reprice --dry-run
        kapell price reprice --model llama-4 --yes
    """,
)
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Of this model, spelt as in the records.")
@click.option("--since", "start", type=_MOMENT, metavar="TIME|AGE", help="From when on. [default: from ever]")
@click.option("--until", "end", type=_MOMENT, metavar="TIME|AGE", help="Until when. [default: without end]")
@click.option("--reported", "include_reported", is_flag=True, help="Also costs that were reported.")
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def reprice(app: App, /, yes: bool, dry_run: bool, **query: Any) -> None:
    found: RepriceUsageResponse = app.run(lambda client: client.usage.reprice(preview=True, **query))
    lines = [
        f"{one.provider}/{one.model}: {one.records} records, {shown(one.cost_before)} -> {shown(one.cost_after)}"
        for one in found.models
    ]
    if not found.changed:
        note("Every cost is as the prices say. Nothing was changed.")
        return
    if dry_run:
        for line in lines:
            write(line)
        note("Dry run: nothing was changed.")
        return
    options.confirm(app, f"Cost {found.changed} records anew", lines, yes=yes)

    async def work(client: Client) -> int:
        changed = 0
        for _ in range(_MOST_CALLS):
            answer = await client.usage.reprice(**query)
            changed += answer.changed
            if not answer.more or not answer.changed:
                break
        return changed

    write(f"Costed {app.run(work)} records anew.")
