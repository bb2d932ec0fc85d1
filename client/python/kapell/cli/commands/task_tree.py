"""`kapell task tree`: a task with its children and theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import View, note, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.table import Cell, Column
from kapell.cli.views import ran_for, task_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kapell.v1.task_pb2 import TaskTreeNode


@command(
    "tree",
    "Show a task with its children and theirs.",
    examples="""
        kapell task tree task_01kabc
        kapell task tree task_01kabc -o json
    """,
)
@options.task_id
@options.output
@click.pass_obj
def tree(app: App, /, task_id: str) -> None:
    answer = app.run(lambda client: client.tasks.tree(task_id))
    branches = _branches(answer.nodes, marks=app.terminal.marks) if app.terminal.is_tty else None
    view = _view(branches)
    if app.output in ("json", "yaml"):
        write_one(answer, view, app.terminal, app.output)
    else:
        write_list(answer.nodes, view, app.terminal, app.output)
    if answer.truncated:
        note(app.terminal.err(f"There is more; these are the first {len(answer.nodes)} tasks.", "dim"))


def _view(branches: dict[str, str] | None) -> View:
    """The columns; on a pipe, where nothing is drawn, the depth comes first."""
    drawn = branches or {}
    columns = (
        Column("NAME", lambda n: drawn.get(n.task.task_id, "") + n.task.display_name, flexible=True),
        Column("STATE", lambda n: task_state(n.task)),
        Column("TYPE", lambda n: n.task.agent_type, flexible=True),
        Column("RAN", lambda n: ran_for(n.task), right=True),
        Column("ID", lambda n: Cell(n.task.task_id)),
    )
    depth = () if branches is not None else (Column("DEPTH", lambda n: str(n.depth), right=True),)
    return View(columns=(*depth, *columns), id=lambda n: n.task.task_id)


def _branches(nodes: Sequence[TaskTreeNode], *, marks: bool) -> dict[str, str]:
    """What stands before each name, by task: the lines from parents to children."""
    fork, end, line = ("├─ ", "└─ ", "│  ") if marks else ("|- ", "`- ", "|  ")
    drawn: dict[str, str] = {}
    # From the last node up: whether anything follows at each depth.
    follows: list[bool] = []
    for node in reversed(nodes):
        follows = [*follows, *[False] * (node.depth + 1 - len(follows))][: node.depth + 1]
        before = [line if following else "   " for following in follows[1 : node.depth]]
        last = fork if follows[node.depth] else end
        drawn[node.task.task_id] = "".join([*before, last]) if node.depth else ""
        follows[node.depth] = True
    return drawn
