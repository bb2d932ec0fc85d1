"""`kapell profile`: what agents can be spawned from by name."""

from __future__ import annotations

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import write_list
from kapell.cli.shape import command
from kapell.cli.views import PROFILES


@command(
    "list",
    "List the profiles of the server's configuration.",
    examples="""
        kapell profile list
        kapell profile list -o yaml
    """,
)
@options.output
@click.pass_obj
def list_(app: App) -> None:
    answer = app.run(lambda client: client.agents.profiles())
    empty = "The configuration has no profiles. Add a table [profiles.NAME] to kapell.toml."
    write_list(answer.profiles, PROFILES, app.terminal, app.output, empty=empty)
