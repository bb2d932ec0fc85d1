"""`kapell template render` and `validate`: try templates out; nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Done, Exit, Refusal, report
from kapell.cli.output import note, write, write_one
from kapell.cli.parameters import parameters, parameters_of, values_given
from kapell.cli.shape import command
from kapell.cli.step_views import prompts_text
from kapell.cli.template_views import DRY_RUNS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.template_pb2 import RenderTemplateResponse, ValidateTemplateResponse


@command(
    "render",
    "Show what a task of a template would be: steps, prompt, limits, how earlier ones went, what would block it now.",
    examples="""
        kapell template render code-review --param files=README.md
        kapell template render code-review@1 --param files=@list.txt --prompt
    """,
)
@options.template
@parameters
@click.option("-t", "--type", "agent_type", default="", metavar="TYPE", help="Other agents than the template says.")
@click.option("--prompt", "prompt_only", is_flag=True, help="Only the prompt.")
@options.output
@click.pass_obj
def render(
    app: App,
    /,
    template: str,
    params: tuple[str, ...],
    params_json: str | None,
    agent_type: str,
    prompt_only: bool,
) -> None:
    async def work(client: Client) -> RenderTemplateResponse:
        found = await client.templates.get(template)
        given = parameters_of(found, params, params_json)
        return await client.templates.render(template, given, agent_type=agent_type)

    rendered = app.run(work)
    if prompt_only:
        write(rendered.prompt.rstrip("\n"))
    else:
        write_one(rendered, DRY_RUNS, app.terminal, app.output)


@command(
    "validate",
    "Check template files without storing them: exit code 0 if all is right, 2 if not.",
    examples="""
        kapell template validate -f greet.yaml
        kapell template validate -f greet.yaml --param name=Ada
    """,
)
@options.template_files
@parameters
@options.server
@click.pass_obj
def validate(app: App, /, files: tuple[str, ...], params: tuple[str, ...], params_json: str | None) -> None:
    from kapell.template_files import read_template

    specs = [(name, read_template(text, name)[1]) for name, text in options.texts(files)]

    async def work(client: Client) -> list[ValidateTemplateResponse]:
        answers = []
        for _name, spec in specs:
            given: dict[str, Any] | None = None
            if params or params_json is not None:
                given = values_given(params, params_json, spec.parameters)
            answers.append(await client.templates.validate(spec, given))
        return answers

    is_wrong = False
    for (name, _spec), answer in zip(specs, app.run(work), strict=True):
        for problem in answer.problems:
            is_wrong = True
            report(Refusal(f"{name}: {problem.field}", why=problem.description), app.terminal)
        if not answer.problems:
            note(f"{name} is right.")
        if answer.steps:
            write(prompts_text((step.name, step.prompt or "(left out)") for step in answer.steps) + "\n")
        if answer.prompt:
            write(answer.prompt.rstrip("\n"))
    raise Done(Exit.USAGE if is_wrong else Exit.DONE)
