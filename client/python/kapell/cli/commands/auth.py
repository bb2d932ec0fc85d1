"""`kapell auth`: what proves who you are."""

from __future__ import annotations

from pathlib import Path

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import write
from kapell.cli.shape import command

_ANY_LOCAL = "127.0.0.1:50051"


@command(
    "token",
    "Print the token this command line uses; make, list and revoke others.",
    examples="""
        kapell auth token
        kapell auth token --path
        kapell auth token create ci --scope read --scope write
        buf curl -H "authorization: Bearer $(kapell auth token)" …
    """,
    epilog="Commands below it: create, list, revoke, rotate-admin; see `kapell auth token create --help`.",
)
@click.option("--path", is_flag=True, help="Print the file of the local server's token instead.")
@options.server
@click.pass_obj
def token(app: App, /, path: bool) -> None:
    from kapell.discovery import data_dir, discover

    directory = Path(app.data_dir).expanduser() if app.data_dir else data_dir()
    file = directory / "admin.token"
    if path:
        write(str(file))
        return
    found = discover(app.address or _ANY_LOCAL, directory=directory).token
    if not found:
        raise Refusal(
            "there is no token to print",
            why=f"KAPELL_TOKEN is not set, and {file} does not exist",
            next="kapell up      (a server makes its token when it first starts)",
            exit=Exit.DENIED,
        )
    write(found)
