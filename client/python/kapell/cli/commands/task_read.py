"""`kapell task list`, `get` and `attempts`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.output import note, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.states import TASK_WORDS, task_look
from kapell.cli.times import DURATION
from kapell.cli.views import ATTEMPTS, TASKS

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
        kapell task list --state failed -o id | kapell task retry -
    """,
)
@click.option(
    "-s",
    "--state",
    "states",
    multiple=True,
    type=click.Choice(TASK_WORDS),
    metavar="STATE",
    help=f"One of {', '.join(TASK_WORDS)}; may be repeated.",
)
@click.option("-t", "--type", "agent_types", multiple=True, metavar="TYPE", help="Of this agent type; may be repeated.")
@click.option(
    "--template", "template_ids", multiple=True, metavar="TEMPLATE_ID", help="Made from this template; may be repeated."
)
@click.option("--parent", "parent_task_id", default="", metavar="TASK_ID", help="Children of this task.")
@click.option("--root", "root_task_id", default="", metavar="TASK_ID", help="Everything below this task.")
@options.labels("With this label; may be repeated.")
@click.option("--since", type=DURATION, metavar="DURATION", help="Created within the last 30m, 2h, 7d …")
@click.option("--oldest", is_flag=True, help="The oldest first.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, since: float | None, oldest: bool, limit: int, **query: Any) -> None:
    if since is not None:
        query["created_after"] = datetime.fromtimestamp(datetime.now(UTC).timestamp() - since, UTC)

    async def work(client: Client) -> list[Task]:
        from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST, LIST_ORDER_OLDEST_FIRST

        order = LIST_ORDER_OLDEST_FIRST if oldest else LIST_ORDER_NEWEST_FIRST
        return await options.take(client.tasks.iterate(order=order, page_size=min(limit + 1, 1000), **query), limit + 1)

    tasks = app.run(work)
    is_filtered = any(query.values())
    empty = "No task matches." if is_filtered else 'No tasks yet. Try: kapell task run --type shell "date"'
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
