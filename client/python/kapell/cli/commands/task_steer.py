"""`kapell task retry`, `reprioritize` and `edits`: tasks again, sooner or later, and as they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import bulk, many, options
from kapell.cli.app import App
from kapell.cli.commands.task_end import show_only, write_answers
from kapell.cli.output import write_list
from kapell.cli.parameters import parameters, parameters_of
from kapell.cli.shape import command
from kapell.cli.views import EDITS
from kapell.cli.which import LIVE, query_of, which_live_tasks, which_tasks

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task


def read_prompt(file: str | None) -> str | None:
    """The prompt of --prompt-file."""
    return None if file is None else options.text_of(file, "--prompt-file")


@command(
    "retry",
    "Queue failed or cancelled tasks again, as they were or with another prompt, input or priority.",
    examples="""
        kapell task retry task_01kabc
        kapell task retry task_01kabc --prompt-file better.md --priority 900
        kapell task retry --failed --type code --reason AGENT_LOST
        kapell task list --state failed -o id | kapell task retry -
    """,
)
@many.some_task_ids
@which_tasks
@many.caps
@click.option("--prompt-file", metavar="FILE", help="Another prompt; - is stdin.")
@click.option("-i", "--input", "inputs", multiple=True, metavar="KEY=VALUE", help="Another input, JSON if it parses.")
@click.option("--input-json", metavar="OBJECT", help="Another input as one JSON object; - is stdin.")
@parameters
@click.option("-p", "--priority", type=click.IntRange(0, 1000), metavar="0-1000", help="Another priority.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def retry(
    app: App,
    /,
    task_ids: tuple[str, ...] | None,
    everything: bool,
    max_affected: int | None,
    allow_partial: bool,
    prompt_file: str | None,
    inputs: tuple[str, ...],
    input_json: str | None,
    params: tuple[str, ...],
    params_json: str | None,
    priority: int | None,
    yes: bool,
    dry_run: bool,
    **which: Any,
) -> None:
    query = query_of(**which)
    by_filter = many.is_by_filter(task_ids, query, everything=everything)
    edits: dict[str, Any] = {
        "prompt": read_prompt(prompt_file),
        "input": options.input_data(inputs, input_json),
        "priority": priority,
    }
    edits = {name: value for name, value in edits.items() if value is not None}
    is_edited = bool(edits or params or params_json)
    if is_edited and (by_filter or len(task_ids or ()) > 1):
        raise click.UsageError("Only one task at a time can be edited: name it by its id.")
    if by_filter:
        if not everything:
            query.setdefault("states", ("failed",))
        many.change(
            app,
            lambda client: many.Change("retry", "Retried", client.tasks.retry_all),
            query,
            yes=yes,
            dry_run=dry_run,
            max_affected=max_affected,
            allow_partial=allow_partial,
            everything=everything,
        )
        return
    if dry_run:
        show_only(app, "retry", task_ids or ())
        return

    async def one(client: Client, id: str) -> Task:
        given = dict(edits)
        if params or params_json:
            given["parameters"] = await _parameters(client, id, params, params_json)
        return await client.tasks.retry(id, **given)

    write_answers(app, app.run(lambda client: bulk.each(task_ids or (), lambda id: one(client, id))))


async def _parameters(client: Client, task_id: str, params: tuple[str, ...], document: str | None) -> dict[str, Any]:
    """The parameters that were typed, in the form that the task's template declares."""
    task = await client.tasks.get(task_id)
    if not task.template_id:
        raise click.UsageError(f"{task_id} was not made from a template: use --prompt-file and --input.")
    template = await client.templates.get(f"{task.template_id}@{task.template_version}")
    return parameters_of(template, params, document)


@command(
    "reprioritize",
    "Give tasks another priority: the last argument, or --priority.",
    examples="""
        kapell task reprioritize task_01kabc task_01kdef 900
        kapell task reprioritize --state queued --type code -p 800
    """,
)
@click.argument("arguments", nargs=-1, metavar="[TASK_ID]... [PRIORITY]", shell_complete=options.complete_tasks)
@click.option(
    "-p", "--priority", "--to", "priority", type=click.IntRange(0, 1000), metavar="0-1000", help="The priority."
)
@which_live_tasks
@many.caps
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def reprioritize(
    app: App,
    /,
    arguments: tuple[str, ...],
    priority: int | None,
    everything: bool,
    max_affected: int | None,
    allow_partial: bool,
    yes: bool,
    dry_run: bool,
    **which: Any,
) -> None:
    query = query_of(**which)
    wanted, typed = _priority(arguments, priority)
    context = click.get_current_context()
    ids = options.with_stdin(context, context.command.params[0], typed) if typed else None
    if many.is_by_filter(ids, query, everything=everything):
        if not everything:
            query.setdefault("states", LIVE)
        many.change(
            app,
            lambda client: many.Change(
                "reprioritize", "Reprioritized", lambda **more: client.tasks.reprioritize_all(wanted, **more)
            ),
            query,
            yes=yes,
            dry_run=dry_run,
            max_affected=max_affected,
            allow_partial=allow_partial,
            everything=everything,
        )
        return
    if dry_run:
        show_only(app, "reprioritize", ids or ())
        return
    outcome = app.run(lambda client: bulk.each(ids or (), lambda id: client.tasks.update(id, priority=wanted)))
    write_answers(app, outcome)


def _priority(arguments: tuple[str, ...], option: int | None) -> tuple[int, tuple[str, ...]]:
    """The priority, from --priority or the last argument, and the arguments that are ids."""
    if option is not None:
        return option, arguments
    if not arguments:
        raise click.UsageError("Which priority? Give it as the last argument, or by --priority.")
    last = arguments[-1]
    if not last.isdecimal() or int(last) > 1000:
        raise click.UsageError(f"{last!r} is no priority: it must be 0 to 1000.")
    return int(last), arguments[:-1]


@command(
    "edits",
    "List what a task was before it was edited: its prompt and input.",
    examples="""
        kapell task edits task_01kabc
        kapell task edits task_01kabc -o yaml
    """,
)
@options.task_id
@options.output
@click.pass_obj
def edits(app: App, /, task_id: str) -> None:
    async def work(client: Client) -> list[Any]:
        found: list[Any] = []
        page_token = ""
        while True:
            page = await client.tasks.edits(task_id, page_token=page_token)
            found += page.edits
            page_token = page.next_page_token
            if not page_token:
                return found

    write_list(app.run(work), EDITS, app.terminal, app.output, empty="It was never edited.")
