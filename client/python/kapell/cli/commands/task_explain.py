"""`kapell task explain`: why a task is not running."""

from __future__ import annotations

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import write, write_list, write_one
from kapell.cli.queue_views import BLOCKERS, EXPLANATIONS, blocker_detail
from kapell.cli.shape import command
from kapell.cli.terminal import visible


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
    write(terminal.out(visible(answer.summary), "bold"))
    for blocker in answer.blockers:
        write(f"  {visible(blocker.message)}")
        write(terminal.out(f"    {visible(blocker_detail(blocker))}", "dim"))
