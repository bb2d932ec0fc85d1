"""`kapell auth token create|list|revoke|rotate-admin`, `kapell auth whoami`: who may call the server."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options, times
from kapell.cli.app import App
from kapell.cli.errors import Refusal
from kapell.cli.output import as_data, note, write, write_changed, write_line, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.times import DURATION
from kapell.cli.token_views import CALLER, TOKENS, scope_words

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.token_pb2 import Token

_SCOPES = ("read", "write", "spawn", "spawn_inline", "approve", "worker", "admin")
_DAYS_90 = 90 * 86_400.0


class _Expiry(click.ParamType[float | None]):
    """A duration, or "never"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        return 0.0 if value == "never" else DURATION.convert(value, param, ctx)


@command(
    "create",
    "Make a token of a user, and print it: it cannot be read again.",
    examples="""
        kapell auth token create ci --scope read --scope write
        kapell auth token create alice --scope admin --expires 8h --name laptop
        export KAPELL_TOKEN=$(kapell auth token create ci --scope read)
    """,
    epilog="On a pipe the token is all that is printed. Spawning agents from a command of one's own needs the scopes"
    " spawn and spawn_inline; profiles need spawn alone.",
)
@click.argument("principal", metavar="USER")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice(_SCOPES),
    metavar="SCOPE",
    help=f"What it may do, as often as wanted: {', '.join(_SCOPES)}.",
)
@click.option("--expires", type=_Expiry(), metavar="DURATION|never", help="How long it is good. [default: 90d]")
@click.option("--name", default="", metavar="TEXT", help="What it is for.")
@options.dry_run
@options.output
@click.pass_obj
def create(
    app: App, /, principal: str, scopes: tuple[str, ...], expires: float | None, name: str, dry_run: bool
) -> None:
    if dry_run:
        note(f"Dry run: would make a token of {principal} with {', '.join(scopes)}. Nothing was changed.")
        return
    ttl = _DAYS_90 if expires is None else expires or None
    made = app.run(lambda client: client.tokens.create(principal, scopes=scopes, ttl=ttl, display_name=name))
    if app.output in ("json", "jsonl", "yaml"):
        write_line(as_data(made), app.output)
        return
    write(made.token.token_id if app.output == "id" else made.secret)
    if app.terminal.is_tty:
        until = times.local(made.token.expire_time) if made.token.HasField("expire_time") else "it is revoked"
        note(f"{made.token.token_id} of {principal} ({scope_words(made.token.scopes)}), good until {until}.")
        note("Keep it: it is not shown again. Take it back with: kapell auth token revoke " + made.token.token_id)


@command(
    "list",
    "List tokens, the newest first, without their secrets.",
    examples="""
        kapell auth token list
        kapell auth token list --all -o wide
        kapell auth token list --user ci -o id | kapell auth token revoke --yes -
    """,
)
@click.option("--user", "principals", multiple=True, metavar="USER", help="Of this user only.")
@click.option("--all", "every", is_flag=True, help="Also those that were revoked or have expired.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, principals: tuple[str, ...], every: bool, limit: int) -> None:
    async def work(client: Client) -> list[Token]:
        found = client.tokens.iterate(principals=principals, include_ended=every, page_size=min(limit + 1, 1000))
        return await options.take(found, limit + 1)

    tokens = app.run(work)
    empty = "No tokens yet. Try: kapell auth token create ci --scope read"
    write_list(tokens[:limit], TOKENS, app.terminal, app.output, empty=empty)
    options.say_more(app, "tokens", shown=limit, found=len(tokens))


@command(
    "revoke",
    "End tokens at once and for good; their open streams end within 2 s.",
    examples="""
        kapell auth token revoke token_01kabc
        kapell auth token revoke token_01kabc --reason "the laptop was lost"
    """,
)
@options.token_ids
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def revoke(app: App, /, token_ids: tuple[str, ...], reason: str, yes: bool, dry_run: bool) -> None:
    count = len(token_ids)
    what = "this token" if count == 1 else f"{count} tokens"
    if dry_run:
        note(f"Dry run: would revoke {what}: {', '.join(token_ids)}. Nothing was changed.")
        return
    if count > 1:
        options.confirm(app, f"Revoke {what}", token_ids, yes=yes, typed=str(count))
    outcome = app.run(
        lambda client: bulk.each(token_ids, lambda token_id: client.tokens.revoke(token_id, reason=reason))
    )
    write_changed(outcome.answers, TOKENS, app.terminal, app.output)
    outcome.finish(app.terminal)


@command(
    "rotate-admin",
    "Give the owner of the local server another token; the one before opens nothing any more.",
    examples="""
        kapell auth token rotate-admin
        kapell auth token rotate-admin --yes
    """,
    epilog="Replaces the file admin.token of the data directory. A running server sees it within 2 s.",
)
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def rotate_admin(app: App, /, yes: bool, dry_run: bool) -> None:
    from kapell.discovery import data_dir

    directory = Path(app.data_dir).expanduser() if app.data_dir else data_dir()
    file = directory / "admin.token"
    if not file.exists():
        raise Refusal("there is no token to replace", why=f"{file} does not exist", next="kapell up")
    if dry_run:
        note(f"Dry run: would replace the token in {file}. Nothing was changed.")
        return
    options.confirm(app, "Replace the owner's token; whoever has the old one is shut out", (), yes=yes)
    draft = file.with_name(f".admin.token.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(f"kapell_admin_{secrets.token_urlsafe(32)}\n")
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)
    write(str(file))


@command(
    "whoami",
    "Tell whose token this command line uses, and what it may do.",
    examples="""
        kapell auth whoami
        kapell auth whoami -o json
    """,
)
@options.output
@click.pass_obj
def whoami(app: App, /) -> None:
    caller = app.run(lambda client: client.tokens.caller())
    if app.output is None and app.terminal.is_tty:
        write(f"{caller.actor.id}: {scope_words(caller.scopes)}")
        return
    write_one(caller, CALLER, app.terminal, app.output)
