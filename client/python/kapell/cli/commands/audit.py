"""`kapell audit`: what administrators did to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import as_data, write_line, write_list
from kapell.cli.shape import command
from kapell.cli.times import MOMENT_OR_AGE
from kapell.cli.token_views import AUDIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from kapell import Client
    from kapell.v1.audit_pb2 import AuditEntry


def _filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Which entries: --user, --method, --since, --until; the command hands them on as they are."""
    for option in (
        click.option("--user", "principals", multiple=True, metavar="USER", help="Done by this user."),
        click.option(
            "--method", "methods", multiple=True, metavar="METHOD", help="This method: TokenService.RevokeToken."
        ),
        click.option(
            "--since", "start", type=MOMENT_OR_AGE, metavar="TIME|AGE", help="From when on. [default: from ever]"
        ),
        click.option(
            "--until", "end", type=MOMENT_OR_AGE, metavar="TIME|AGE", help="Until when. [default: without end]"
        ),
    ):
        function = option(function)
    return function


@command(
    "list",
    "List what administrators did, the newest first.",
    examples="""
        kapell audit list
        kapell audit list --user alice -o wide
        kapell audit list --method TokenService.CreateToken --since 7d
    """,
)
@_filter
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, limit: int, **wanted: Any) -> None:
    async def work(client: Client) -> list[AuditEntry]:
        found = client.audit.iterate(**wanted, page_size=min(limit + 1, 1000))
        return await options.take(found, limit + 1)

    entries = app.run(work)
    write_list(entries[:limit], AUDIT, app.terminal, app.output, empty="Nothing was recorded yet.")
    options.say_more(app, "entries", shown=limit, found=len(entries))


@command(
    "export",
    "Print the audit log, the oldest entry first, one line of JSON each; however long it is.",
    examples="""
        kapell audit export
        kapell audit export --since 2026-01-01 --until 2026-02-01 > january.jsonl
    """,
)
@_filter
@options.server
@click.pass_obj
def export(app: App, /, **wanted: Any) -> None:
    from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST

    async def work(client: Client) -> None:
        async for entry in client.audit.iterate(**wanted, order=LIST_ORDER_OLDEST_FIRST, page_size=1000):
            write_line(as_data(entry), "jsonl")

    app.run(work)
