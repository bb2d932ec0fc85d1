"""`kapell audit`: what administrators did to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import as_data, write_line, write_list
from kapell.cli.shape import command
from kapell.cli.token_views import AUDIT

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.audit_pb2 import AuditEntry


@command(
    "list",
    "List what administrators did, the newest first.",
    examples="""
        kapell audit list
        kapell audit list --user alice -o wide
        kapell audit list --method TokenService.CreateToken
    """,
)
@click.option("--user", "principals", multiple=True, metavar="USER", help="Done by this user.")
@click.option("--method", "methods", multiple=True, metavar="METHOD", help="This method, as TokenService.RevokeToken.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, principals: tuple[str, ...], methods: tuple[str, ...], limit: int) -> None:
    async def work(client: Client) -> list[AuditEntry]:
        found = client.audit.iterate(principals=principals, methods=methods, page_size=min(limit + 1, 1000))
        return await options.take(found, limit + 1)

    entries = app.run(work)
    write_list(entries[:limit], AUDIT, app.terminal, app.output, empty="Nothing was recorded yet.")
    options.say_more(app, "entries", shown=limit, found=len(entries))


@command(
    "export",
    "Print the whole audit log, the oldest entry first, one line of JSON each.",
    examples="""
        kapell audit export
        kapell audit export | tail -1
    """,
)
@options.server
@click.pass_obj
def export(app: App, /) -> None:
    from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST

    async def work(client: Client) -> None:
        async for entry in client.audit.iterate(order=LIST_ORDER_OLDEST_FIRST, page_size=1000):
            write_line(as_data(entry), "jsonl")

    app.run(work)
