"""`kapell queue list`."""

from __future__ import annotations

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import write_list
from kapell.cli.queue_views import QUEUES
from kapell.cli.shape import command


@command(
    "list",
    "Show what waits and what runs, by agent type.",
    examples="""
        kapell queue list
        kapell queue list build review -o wide
        kapell queue list -o json
    """,
)
@options.queues
@options.output
@click.pass_obj
def list_(app: App, /, agent_types: tuple[str, ...]) -> None:
    answer = app.run(lambda client: client.queues.stats(*agent_types))
    empty = "No queue has tasks, agents or settings yet. A task makes one: kapell task create --type build …"
    write_list(answer.queues, QUEUES, app.terminal, app.output, empty=empty)
