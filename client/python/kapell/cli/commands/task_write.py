"""`kapell task create` and `update`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.causes import causes, hints
from kapell.cli.commands.task_fields import new_task, task_fields
from kapell.cli.commands.task_steer import read_prompt
from kapell.cli.near import near_type
from kapell.cli.output import note, write_changed
from kapell.cli.shape import command
from kapell.cli.states import task_look
from kapell.cli.terminal import visible
from kapell.cli.times import DURATION, MOMENT
from kapell.cli.views import TASKS, failure_text, spawn_command

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
        kapell task create --type code --lock shop/src/cart --lock-shared shop/docs "Mend the cart"
    """,
)
@task_fields
@options.dry_run
@options.output
@click.pass_obj
def create(app: App, /, dry_run: bool, **values: Any) -> None:
    wanted = new_task(**values)

    async def work(client: Client) -> tuple[Task, list[Task], str]:
        task = await client.tasks.create(wanted.agent_type, wanted.prompt, validate_only=dry_run, **wanted.fields)
        if task_look(task.state).final:
            return task, await causes(client, task), ""
        return task, [], await unserved(client, wanted.agent_type) if app.terminal.is_tty else ""

    task, because, warning = app.run(work)
    if dry_run:
        note("Dry run: the server would create this task. Nothing was changed.")
    write_changed([task], TASKS, app.terminal, app.output)
    if task_look(task.state).final and not dry_run:
        _say_why(app, task, because)
    elif app.terminal.is_tty and app.is_table and not dry_run:
        decide = task_look(task.state).word == "awaiting approval"
        hint = "Decide it with: kapell approval list" if decide else "Follow it with: kapell task logs --follow"
        note(app.terminal.err(hint if decide else f"{hint} {task.task_id}", "dim"))
        if warning:
            note(app.terminal.err(warning, "yellow"))


def _say_why(app: App, task: Task, because: list[Task]) -> None:
    """What to say of a task that ended as it was created, or that a repeated request has created before."""
    look, terminal = task_look(task.state), app.terminal
    if look.word == "succeeded":
        return
    why = failure_text(task.failure) if task.HasField("failure") else task.state_reason
    note(terminal.err(f"{task.task_id} {look.word}: {visible(why)}", look.colour))
    if terminal.is_tty:
        for hint in hints(task, because):
            note(terminal.err(hint, "dim"))


async def unserved(client: Client, agent_type: str) -> str:
    """What to say when no agent that takes tasks of the type is there or coming; empty when one is."""
    page = await client.agents.list(states=["pending", "starting", "active"], agent_types=[agent_type], page_size=1)
    if page.agents:
        return ""
    advice = spawn_command(agent_type, (await client.agents.profiles()).profiles)
    meant = await near_type(client, agent_type)
    hint = f" {meant[0].upper()}{meant[1:]}" if meant else ""
    return f"No agent serves {agent_type!r} yet, so the task waits.{hint} Start one with: {advice}"


@command(
    "update",
    "Change a task that has not ended; its prompt and input only before its first start.",
    examples="""
        kapell task update task_01kabc --priority 900
        kapell task update task_01kabc --label team=web --name "Nightly build"
        kapell task update task_01kabc --not-before 2h --run-timeout 30m
        kapell task update task_01kabc --lock shop/src/cart
    """,
)
@options.task_id
@click.option("-p", "--priority", type=click.IntRange(0, 1000), metavar="0-1000", help="Higher runs first.")
@click.option("--name", metavar="TEXT", help="The name for people.")
@options.labels("A label to set; replaces all labels. May be repeated.")
@click.option("--no-labels", is_flag=True, help="Remove all labels.")
@click.option("--not-before", type=MOMENT, metavar="TIME", help="Start no earlier: 10m from now, or a time.")
@click.option("--queue-timeout", type=DURATION, metavar="DURATION", help="Fail when no agent took it by then.")
@click.option("--run-timeout", type=DURATION, metavar="DURATION", help="Stop an attempt that takes longer.")
@click.option("--total-timeout", type=DURATION, metavar="DURATION", help="Fail when it has not ended by then.")
@click.option("--max-attempts", type=click.IntRange(1, 100), metavar="N", help="Attempts in all.")
@click.option("--prompt-file", metavar="FILE", help="Another prompt; - is stdin.")
@click.option("-i", "--input", "inputs", multiple=True, metavar="KEY=VALUE", help="Another input, JSON if it parses.")
@click.option("--input-json", metavar="OBJECT", help="Another input as one JSON object; - is stdin.")
@click.option("--lock", "locks", multiple=True, metavar="PATH", help="A lock it needs, in the place of all.")
@click.option(
    "--lock-shared", "--read-lock", "read_locks", multiple=True, metavar="PATH", help="To share with readers."
)
@click.option("--no-locks", is_flag=True, help="Remove all locks.")
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
    not_before: float | None,
    max_attempts: int | None,
    prompt_file: str | None,
    inputs: tuple[str, ...],
    input_json: str | None,
    locks: tuple[str, ...],
    read_locks: tuple[str, ...],
    no_locks: bool,
    etag: str | None,
    dry_run: bool,
    **limits: float | None,
) -> None:
    changes: dict[str, Any] = {
        "priority": priority,
        "display_name": name,
        "labels": labels if labels or no_labels else None,
        "not_before": None if not_before is None else datetime.fromtimestamp(not_before, UTC),
        "prompt": read_prompt(prompt_file),
        "input": options.input_data(inputs, input_json),
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    if locks or read_locks or no_locks:
        changes |= {"locks": locks, "read_locks": read_locks}
    given = {field: value for field, value in limits.items() if value is not None}
    if not changes and not given and max_attempts is None:
        raise click.UsageError("Nothing to change: give --priority, --name, --label or another of the options.")

    async def work(client: Client) -> Task:
        if given or max_attempts is not None or dry_run:
            task = await client.tasks.get(task_id)
            changes.update(_merged(task, given, max_attempts))
        if not dry_run:
            return await client.tasks.update(task_id, etag=etag or "", **changes)
        return _as_it_would_be(task, changes)

    task = app.run(work)
    if dry_run:
        note("Dry run: the task would look like this. Nothing was changed.")
    write_changed([task], TASKS, app.terminal, app.output)


def _merged(task: Task, limits: dict[str, float], max_attempts: int | None) -> dict[str, Any]:
    """Timeouts and retry policy of the task with what was said of them; nothing where nothing was."""
    from kapell.task_specs import task_timeouts

    changes: dict[str, Any] = {}
    if limits:
        known: dict[str, Any] = {field.name: value for field, value in task.timeouts.ListFields()}
        changes["timeouts"] = task_timeouts(**known | limits)
    if max_attempts is not None:
        task.retry_policy.max_attempts = max_attempts
        changes["retry_policy"] = task.retry_policy
    return changes


def _as_it_would_be(task: Task, changes: dict[str, Any]) -> Task:
    """The task with the changes, for a dry run."""
    from kapell.messages import struct, timestamp
    from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED

    later, data = timestamp(changes.get("not_before")), struct(changes.get("input"))
    if later is not None:
        task.not_before_time.CopyFrom(later)
    if data is not None:
        task.input.CopyFrom(data)
    if "labels" in changes:
        task.labels.clear()
        task.labels.update(changes["labels"])
    for field, value in changes.items():
        match field:
            case "timeouts" | "retry_policy":
                getattr(task, field).CopyFrom(value)
            case "locks":
                task.ClearField("locks")
                for path in value:
                    task.locks.add(path=path, mode=LOCK_MODE_EXCLUSIVE)
                for path in changes["read_locks"]:
                    task.locks.add(path=path, mode=LOCK_MODE_SHARED)
            case "labels" | "not_before" | "input" | "read_locks":
                pass
            case _:
                setattr(task, field, value)
    return task
