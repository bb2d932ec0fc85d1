"""`kapell task create` and `update`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.commands.task_fields import new_task, task_fields
from kapell.cli.output import note, write_changed
from kapell.cli.shape import command
from kapell.cli.views import TASKS, spawn_command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task


@command(
    "create",
    "Create a task and return at once.",
    examples="""
        kapell task create --type shell "make test"
        kapell task create --type shell --priority 900 --label team=web -- wc -l README.md
        kapell task create --type review --file prompt.md --input pr=17 -o id
        kapell task create --type shell --not-before 10m "date"
        kapell task create --type shell --after task_01kabc "make deploy"
    """,
)
@task_fields
@options.dry_run
@options.output
@click.pass_obj
def create(app: App, /, dry_run: bool, **values: Any) -> None:
    wanted = new_task(**values)

    async def work(client: Client) -> tuple[Task, str]:
        task = await client.tasks.create(wanted.agent_type, wanted.prompt, validate_only=dry_run, **wanted.fields)
        return task, await unserved(client, wanted.agent_type) if app.terminal.is_tty else ""

    task, warning = app.run(work)
    if dry_run:
        note("Dry run: the server would create this task. Nothing was changed.")
    write_changed([task], TASKS, app.terminal, app.output)
    if app.terminal.is_tty and app.is_table and not dry_run:
        note(app.terminal.err(f"Follow it with: kapell task logs --follow {task.task_id}", "dim"))
        if warning:
            note(app.terminal.err(warning, "yellow"))


async def unserved(client: Client, agent_type: str) -> str:
    """What to say when no agent that takes tasks of the type is there or coming; empty when one is."""
    page = await client.agents.list(states=["pending", "starting", "active"], agent_types=[agent_type], page_size=1)
    if page.agents:
        return ""
    advice = spawn_command(agent_type, (await client.agents.profiles()).profiles)
    return f"No agent serves {agent_type!r} yet, so the task waits. Start one with: {advice}"


@command(
    "update",
    "Change priority, labels or name of a task.",
    examples="""
        kapell task update task_01kabc --priority 900
        kapell task update task_01kabc --label team=web --name "Nightly build"
    """,
)
@options.task_id
@click.option("-p", "--priority", type=click.IntRange(0, 1000), metavar="0-1000", help="Higher runs first.")
@click.option("--name", metavar="TEXT", help="The name for people.")
@options.labels("A label to set; replaces all labels. May be repeated.")
@click.option("--no-labels", is_flag=True, help="Remove all labels.")
@click.option("--etag", metavar="ETAG", help="Refuse when the task has changed since it had this etag.")
@options.dry_run
@options.output
@click.pass_obj
def update(
    app: App,
    /,
    task_id: str,
    priority: int | None,
    name: str | None,
    labels: dict[str, str],
    no_labels: bool,
    etag: str | None,
    dry_run: bool,
) -> None:
    changes: dict[str, Any] = {"priority": priority, "display_name": name}
    changes["labels"] = labels if labels or no_labels else None
    changes = {field: value for field, value in changes.items() if value is not None}
    if not changes:
        raise click.UsageError("Nothing to change: give --priority, --name, --label or --no-labels.")

    async def work(client: Client) -> Task:
        if not dry_run:
            return await client.tasks.update(task_id, etag=etag or "", **changes)
        task = await client.tasks.get(task_id)
        task.labels.clear() if "labels" in changes else None
        task.labels.update(changes.pop("labels", {}))
        for field, value in changes.items():
            setattr(task, field, value)
        return task

    task = app.run(work)
    if dry_run:
        note("Dry run: the task would look like this. Nothing was changed.")
    write_changed([task], TASKS, app.terminal, app.output)
