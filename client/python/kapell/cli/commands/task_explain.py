"""`kapell task explain`: why a task is not running."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import write, write_list, write_one
from kapell.cli.queue_views import BLOCKERS, EXPLANATIONS, blocker_command, blocker_detail, place
from kapell.cli.shape import command
from kapell.cli.table import rows_for_terminal
from kapell.cli.terminal import Terminal, visible
from kapell.cli.views import TASKS

if TYPE_CHECKING:
    from kapell.v1.task_pb2 import ExplainTaskResponse


@command(
    "explain",
    "Tell why a task is not running: every reason, who is in the way, since and until when.",
    examples="""
        kapell task explain task_01kabc
        kapell task explain task_01kabc -o json
    """,
)
@options.task_id
@options.output
@click.pass_obj
def explain(app: App, /, task_id: str) -> None:
    answer = app.run(lambda client: client.tasks.explain(task_id))
    if not app.is_table:
        write_one(answer, EXPLANATIONS, app.terminal, app.output)
        return
    terminal = app.terminal
    if not terminal.is_tty or app.output == "wide":
        write(visible(answer.summary))
        write_list(answer.blockers, BLOCKERS, terminal, app.output)
        return
    for line in _told(answer, terminal):
        write(line)


def _told(answer: ExplainTaskResponse, terminal: Terminal) -> Iterator[str]:
    """The explanation for people: the sentence, or each reason as one, with who is in the way below it."""
    yield from rows_for_terminal(TASKS.brief, [answer.task], terminal, header=False)
    if not answer.blockers:
        yield f"  {visible(answer.summary)}"
    for blocker in answer.blockers:
        yield f"  {visible(blocker.message)}"
        if detail := blocker_detail(blocker):
            yield terminal.out(f"    {visible(detail)}", "dim")
        if way_out := blocker_command(blocker):
            yield terminal.out(f"    next: {visible(way_out)}", "dim")
    if answer.position:
        yield terminal.out(f"  Its place among those that could run: {place(answer)}", "dim")
