"""`kapell task list`, `get` and `attempts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.output import note, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.states import task_look
from kapell.cli.views import ATTEMPTS, TASKS
from kapell.cli.which import query_of, which_tasks

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task


@command(
    "list",
    "List tasks, the newest first.",
    examples="""
        kapell task list
        kapell task list --state running --state queued -o wide
        kapell task list --type review --label team=web --since 1h
        kapell task list --failed --reason AGENT_LOST
        kapell task list --state failed -o id | kapell task retry -
    """,
)
@which_tasks
@click.option("--oldest", is_flag=True, help="The oldest first.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, oldest: bool, limit: int, **which: Any) -> None:
    query = query_of(**which)

    async def work(client: Client) -> list[Task]:
        from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST

        order = LIST_ORDER_OLDEST_FIRST if oldest else LIST_ORDER_NEWEST_FIRST
        return await options.take(client.tasks.iterate(order=order, page_size=min(limit + 1, 1000), **query), limit + 1)

    tasks = app.run(work)
    empty = "No task matches." if query else 'No tasks yet. Try: kapell task run --type shell "date"'
    write_list(tasks[:limit], TASKS, app.terminal, app.output, empty=empty)
    options.say_more(app, "tasks", shown=limit, found=len(tasks))


@command(
    "get",
    "Show one task with its prompt, input and result.",
    examples="""
        kapell task get task_01kabc
        kapell task get task_01kabc -o json
    """,
)
@options.task_ids()
@options.output
@click.pass_obj
def get(app: App, /, task_ids: tuple[str, ...]) -> None:
    outcome = app.run(lambda client: bulk.each(task_ids, client.tasks.get))
    if len(task_ids) == 1 and outcome.answers:
        task = outcome.answers[0]
        write_one(task, TASKS, app.terminal, app.output)
        if app.is_table and app.terminal.is_tty and task_look(task.state).word in ("pending", "queued"):
            note(app.terminal.err(f"Why it is not running: kapell task explain {task.task_id}", "dim"))
    elif outcome.answers:
        write_list(outcome.answers, TASKS, app.terminal, app.output)
    outcome.finish(app.terminal)


@command(
    "attempts",
    "List the attempts at a task.",
    examples="""
        kapell task attempts task_01kabc
        kapell task attempts task_01kabc -o jsonl
    """,
)
@options.task_id
@options.output
@click.pass_obj
def attempts(app: App, /, task_id: str) -> None:
    answer = app.run(lambda client: client.tasks.attempts(task_id))
    write_list(answer.attempts, ATTEMPTS, app.terminal, app.output, empty="No agent has taken it yet.")
