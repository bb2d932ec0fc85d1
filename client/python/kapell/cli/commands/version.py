"""`kapell version`: which client this is, and which server answers."""

from __future__ import annotations

from typing import Any

import click

from kapell._version import __version__
from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Refusal
from kapell.cli.output import View, note, write_one
from kapell.cli.shape import command
from kapell.cli.table import Column, Line


@command(
    "version",
    "Show the versions of client and server.",
    examples="""
        kapell version
        kapell version -o json
    """,
)
@options.output
@click.pass_obj
def version(app: App) -> None:
    from kapell.errors import Unavailable

    versions: dict[str, Any] = {"client": __version__}
    missing = ""
    try:
        info = app.run(lambda client: client.admin.server_info())
        versions |= {"server": info.version, "address": app.endpoint().address, "database": info.database}
    except (Refusal, Unavailable) as error:
        missing = str(error).split(" - ", maxsplit=1)[0]
    write_one(versions, _VIEW, app.terminal, app.output)
    if missing and app.terminal.is_tty and app.is_table:
        note(app.terminal.err(f"No server version: {missing}.", "dim"))


_VIEW = View(
    columns=(Column("CLIENT", lambda v: v["client"]), Column("SERVER", lambda v: v.get("server", "-"))),
    id=lambda v: v["client"],
    card=lambda v: [Line(name.capitalize(), text) for name, text in v.items()],
)
