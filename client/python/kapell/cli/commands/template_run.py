"""`kapell run`: a task from a template, followed live to its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.commands.task_fields import fields_given, fields_of_template
from kapell.cli.commands.task_run import following, run_to_end
from kapell.cli.output import note, write_one
from kapell.cli.parameters import parameters, parameters_of
from kapell.cli.shape import command
from kapell.cli.template_views import DRY_RUNS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.task_pb2 import Task
    from kapell.v1.template_pb2 import RenderTemplateResponse


@command(
    "run",
    "Create a task from a template and follow it to its end. The exit code is 0 if it succeeded, 7 if not.",
    examples="""
        kapell run code-review --param files=src/a.py,src/b.py
        kapell run code-review --param files=@list.txt --param branch=develop
        kapell run bug-fix --param bug_description=@report.md --param error_log=@error.log
        kapell run code-review@2 --param files=README.md --dry-run
    """,
)
@options.template
@parameters
@fields_of_template
@following
@options.dry_run
@options.output
@click.pass_obj
def run(
    app: App,
    /,
    template: str,
    params: tuple[str, ...],
    params_json: str | None,
    agent_type: str,
    dry_run: bool,
    timeout: float | None,
    times: bool,
    **values: Any,
) -> None:
    fields = fields_given(**values)

    async def given(client: Client) -> dict[str, Any]:
        found = await client.templates.get(template)
        return parameters_of(found, params, params_json)

    async def create(client: Client) -> Task:
        return await client.tasks.create(agent_type, template=template, parameters=await given(client), **fields)

    async def render(client: Client) -> RenderTemplateResponse:
        return await client.templates.render(template, await given(client), agent_type=agent_type)

    if dry_run:
        note("Dry run: a task would look like this. Nothing was changed.")
        write_one(app.run(render), DRY_RUNS, app.terminal, app.output)
        return
    run_to_end(app, create, timeout=timeout, times=times)
