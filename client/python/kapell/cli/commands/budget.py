"""`kapell budget`: how much tasks may cost, and what happens at the limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kapell.cli import bulk, options, prefixed
from kapell.cli.app import App
from kapell.cli.budget_views import BUDGET, BUDGETS, short_id
from kapell.cli.output import note, write, write_changed, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.times import parse_duration

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.budget_pb2 import Budget

_F = TypeVar("_F", bound=Callable[..., Any])
_ACTIONS = ("notify", "approval", "stop", "cancel")
_CALENDAR = ("daily", "weekly", "monthly", "lifetime")
_ONE = prefixed.one("budget_id", BUDGET, "BUDGET")
_SOME = prefixed.some("budget_ids", BUDGET, "BUDGET")
_AMOUNT = "AMOUNT"


def _thresholds(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[int, str] | None:
    """80:stop and the like."""
    found: dict[int, str] = {}
    for value in values:
        percent, colon, action = value.partition(":")
        if (
            not percent.isdecimal()
            or not 1 <= int(percent) <= 100
            or ((action or not colon) and action not in _ACTIONS)
        ):
            raise click.BadParameter(f"{value!r} is not PERCENT:ACTION, as 80:notify; actions: {', '.join(_ACTIONS)}")
        found[int(percent)] = action
    return found or None


def _window(_ctx: click.Context, _param: click.Parameter, value: str) -> str | float:
    """A word, or a length in seconds."""
    if value in _CALENDAR:
        return value
    try:
        return parse_duration(value)
    except ValueError:
        words = ", ".join(_CALENDAR)
        raise click.BadParameter(f"{value!r} is neither one of {words} nor a length, as 24h") from None


_AT = click.option(
    "--at",
    "thresholds",
    multiple=True,
    metavar="PERCENT:ACTION",
    callback=_thresholds,
    help=f"What happens there: {', '.join(_ACTIONS)}; may be repeated. [default: 50:notify 80:notify 100:stop]",
)
_SAID = (
    _AT,
    click.option("--estimate", "default_estimate", metavar=_AMOUNT, help="For tasks of which nothing is known."),
    click.option("--name", "display_name", metavar="TEXT", help="A name for people."),
    click.option("--description", metavar="TEXT", help="What it is for."),
)


def _said(function: _F) -> _F:
    for option in reversed(_SAID):
        function = option(function)
    return function


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@command(
    "create",
    'Create a budget. An amount is "$5", "200k tokens", "20 attempts" or "90m" of agents\' time.',
    examples="""
        kapell budget create nightly --limit '$5' --window daily --timezone Europe/Berlin
        kapell budget create search --limit '200k tokens' --scope label:team=search --window 24h --at 100:approval
        kapell budget create release --limit '$20' --scope tree:task_release --at 80:notify --at 100:cancel
    """,
)
@_ONE
@click.option("--limit", required=True, metavar=_AMOUNT, help="How much may be spent in a window.")
@click.option(
    "--scope",
    default="all",
    metavar="SCOPE",
    help="Whose work: all, named, type:TYPE, agent:ID, template:ID, tree:TASK_ID or label:NAME[=VALUE]. [default: all]",
)
@click.option(
    "--window",
    default="lifetime",
    metavar="WINDOW",
    callback=_window,
    help="daily, weekly, monthly, lifetime, or a length that rolls, as 24h. [default: lifetime]",
)
@click.option("-z", "--timezone", "time_zone", default="", metavar="ZONE", help="Whose midnight counts. [default: UTC]")
@_said
@options.dry_run
@options.output
@click.pass_obj
def create(app: App, /, budget_id: str, limit: str, dry_run: bool, **values: Any) -> None:
    from kapell.amounts import amount_text, budget_amount
    from kapell.budgets import budget_scope

    amount = budget_amount(limit)
    if dry_run:
        budget_scope(values["scope"])
        note(f"Dry run: would create {short_id(budget_id)} of {amount_text(amount)}. Nothing was changed.")
        return
    made = app.run(lambda client: client.budgets.create(amount, budget_id=budget_id, **_given(values)))
    write_changed([made], BUDGETS, app.terminal, app.output)


@command(
    "list",
    "List budgets with what is spent and reserved right now, the newest first.",
    examples="""
        kapell budget list
        kapell budget list -o wide
        kapell budget list -o id
    """,
)
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, limit: int) -> None:
    async def work(client: Client) -> list[Budget]:
        return await options.take(client.budgets.iterate(page_size=min(limit + 1, 1000)), limit + 1)

    found = app.run(work)
    empty = "No budgets yet. Try: kapell budget create all --limit '$5' --window daily"
    write_list(found[:limit], BUDGETS, app.terminal, app.output, empty=empty)
    options.say_more(app, "budgets", shown=limit, found=len(found))


@command(
    "get",
    "Show one budget: what is spent, reserved and left, and when something comes back.",
    examples="""
        kapell budget get nightly
        kapell budget get nightly -o json
    """,
)
@_ONE
@options.output
@click.pass_obj
def get(app: App, /, budget_id: str) -> None:
    write_one(app.run(lambda client: client.budgets.get(budget_id)), BUDGETS, app.terminal, app.output)


@command(
    "update",
    "Change a budget; tasks that wait for it try again at once.",
    examples="""
        kapell budget update nightly --limit '$8'
        kapell budget update nightly --at 50:notify --at 100:approval
    """,
)
@_ONE
@click.option("--limit", metavar=_AMOUNT, help="How much may be spent in a window.")
@_said
@click.option("--etag", default="", metavar="ETAG", help="Refuse when it has changed since it had this etag.")
@options.dry_run
@options.output
@click.pass_obj
def update(app: App, /, budget_id: str, etag: str, dry_run: bool, **values: Any) -> None:
    changes = _given(values)
    if not changes:
        raise click.UsageError("Nothing to change: give an option.")
    if dry_run:
        current = app.run(lambda client: client.budgets.get(budget_id))
        note(f"Dry run: would change {', '.join(changes)} of this budget. Nothing was changed.")
        write_changed([current], BUDGETS, app.terminal, app.output)
        return
    changed = app.run(lambda client: client.budgets.update(budget_id, etag=etag, **changes))
    write_changed([changed], BUDGETS, app.terminal, app.output)


@command(
    "resume",
    "Let work go on that a budget holds back; at its limit by one more of it, for this window.",
    examples="""
        kapell budget resume nightly
        kapell budget resume nightly --add '$2' --reason "the release must be out"
    """,
)
@_ONE
@click.option("--add", "extend_by", metavar=_AMOUNT, help="By how much the limit is extended for this window.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@options.dry_run
@options.output
@click.pass_obj
def resume(app: App, /, budget_id: str, extend_by: str | None, reason: str, dry_run: bool) -> None:
    if dry_run:
        current = app.run(lambda client: client.budgets.get(budget_id))
        note("Dry run: would let work go on that this budget holds back. Nothing was changed.")
        write_changed([current], BUDGETS, app.terminal, app.output)
        return
    resumed = app.run(lambda client: client.budgets.resume(budget_id, extend_by=extend_by, reason=reason))
    write_changed([resumed], BUDGETS, app.terminal, app.output)


@command(
    "delete",
    "Delete budgets; tasks that wait for them are free of them.",
    examples="""
        kapell budget delete nightly
        kapell budget list -o id | kapell budget delete --yes -
    """,
)
@_SOME
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def delete(app: App, /, budget_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    if dry_run:
        found = app.run(lambda client: bulk.each(budget_ids, client.budgets.get))
        note(f"Dry run: would delete {len(found.answers)} budgets. Nothing was changed.")
        write_changed(found.answers, BUDGETS, app.terminal, app.output)
        found.finish(app.terminal)
        return
    count = len(budget_ids)
    question = f"Delete {count} budgets" if count > 1 else "Delete this budget"
    options.confirm(app, question, budget_ids, yes=yes, typed=str(count) if count > 1 else "")

    async def one(client: Client, budget_id: str) -> Budget:
        budget = await client.budgets.get(budget_id)
        await client.budgets.delete(budget_id)
        return budget

    gone = app.run(lambda client: bulk.each(budget_ids, lambda id: one(client, id)))
    if app.is_table and app.terminal.is_tty:
        for budget in gone.answers:
            write(f"Deleted {short_id(budget.budget_id)}.")
    else:
        write_changed(gone.answers, BUDGETS, app.terminal, app.output)
    gone.finish(app.terminal)
