"""`kapell template list`, `get`, `versions` and `export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.output import write, write_list, write_one
from kapell.cli.shape import command
from kapell.cli.template_views import TEMPLATES, VERSIONS

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.template_pb2 import Template


@command(
    "list",
    "List templates, the newest first; those that came with Kapell are the last, by name.",
    examples="""
        kapell template list
        kapell template list --tag review -o wide
        kapell template list --mine security
    """,
)
@click.argument("words", nargs=-1, metavar="[WORD]...")
@click.option("-t", "--type", "agent_types", multiple=True, metavar="TYPE", help="Of this agent type; may be repeated.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="With this tag; may be repeated.")
@click.option("--mine", is_flag=True, help="Without those that came with Kapell.")
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, words: tuple[str, ...], mine: bool, limit: int, **query: Any) -> None:
    if mine:
        query["built_in"] = False

    async def work(client: Client) -> list[Template]:
        found = client.templates.iterate(page_size=min(limit + 1, 1000), text=" ".join(words), **query)
        return await options.take(found, limit + 1)

    templates = app.run(work)
    write_list(templates[:limit], TEMPLATES, app.terminal, app.output, empty="No template matches.")
    options.say_more(app, "templates", shown=limit, found=len(templates))


@command(
    "get",
    "Show one template with its parameters and prompt.",
    examples="""
        kapell template get code-review
        kapell template get code-review@1 -o json
    """,
)
@options.template
@options.output
@click.pass_obj
def get(app: App, /, template: str) -> None:
    write_one(app.run(lambda client: client.templates.get(template)), TEMPLATES, app.terminal, app.output)


@command(
    "versions",
    "List the versions of a template, the latest first.",
    examples="""
        kapell template versions code-review
        kapell template versions code-review -o id
    """,
)
@options.template_id
@options.limit
@options.output
@click.pass_obj
def versions(app: App, /, template_id: str, limit: int) -> None:
    answer = app.run(lambda client: client.templates.versions(template_id, page_size=min(limit, 1000)))
    write_list(answer.versions, VERSIONS, app.terminal, app.output)


@command(
    "export",
    "Print a template as a file for `apply`.",
    examples="""
        kapell template export code-review | tee code-review.yaml
        kapell template export code-review@1
    """,
)
@options.template
@options.server
@click.pass_obj
def export(app: App, /, template: str) -> None:
    from kapell.template_files import write_template

    write(write_template(app.run(lambda client: client.templates.get(template))).rstrip("\n"))
