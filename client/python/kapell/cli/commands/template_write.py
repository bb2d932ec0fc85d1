"""`kapell template apply`, `clone`, `alias` and `delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.errors import Refusal
from kapell.cli.output import note, write, write_changed
from kapell.cli.parameters import parameters, values_given
from kapell.cli.shape import command
from kapell.cli.template_views import TEMPLATES

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.template_pb2 import Template


@command(
    "apply",
    "Create or update templates from files; one that is equal already stays as it is.",
    examples="""
        kapell template apply -f greet.yaml
        kapell template apply -f greet.yaml -f review.yaml --dry-run
        kapell template export code-review | kapell template apply -f -
    """,
)
@options.template_files
@options.dry_run
@options.output
@click.pass_obj
def apply(app: App, /, files: tuple[str, ...], dry_run: bool) -> None:
    from kapell.template_files import read_template

    read = [read_template(text, name) for name, text in options.texts(files)]

    async def work(client: Client) -> list[Template]:
        if not dry_run:
            return [await client.templates.apply(template_id, spec) for template_id, spec in read]
        for template_id, spec in read:
            problems = (await client.templates.validate(spec)).problems
            if problems:
                raise Refusal(f"{template_id} cannot be applied: {problems[0].field}", why=problems[0].description)
        return []

    applied = app.run(work)
    if dry_run:
        names = ", ".join(template_id for template_id, _ in read)
        note(f"Dry run: would apply {names}. Nothing was changed.")
    else:
        write_changed(applied, TEMPLATES, app.terminal, app.output)


@command(
    "clone",
    "Create a template from another one, with other defaults.",
    examples="""
        kapell template clone code-review my-review --param branch=develop
        kapell template clone code-review@1 my-review --type reviewer --name "Our review"
    """,
)
@options.template
@click.argument("template_id", metavar="NEW_ID")
@parameters
@click.option("--name", default="", metavar="TEXT", help="A name of its own.")
@click.option("--description", default="", metavar="TEXT", help="A description of its own.")
@click.option("-t", "--type", "agent_type", default="", metavar="TYPE", help="Other agents.")
@options.dry_run
@options.output
@click.pass_obj
def clone(
    app: App,
    /,
    template: str,
    template_id: str,
    params: tuple[str, ...],
    params_json: str | None,
    name: str,
    description: str,
    agent_type: str,
    dry_run: bool,
) -> None:
    async def work(client: Client) -> Template:
        source = await client.templates.get(template)
        defaults = values_given(params, params_json, source.spec.parameters)
        if dry_run:
            return source
        return await client.templates.clone(
            template,
            template_id,
            defaults=defaults,
            display_name=name,
            description=description,
            agent_type=agent_type,
        )

    made = app.run(work)
    if dry_run:
        note(
            f"Dry run: would clone version {made.version} of {made.template_id} as {template_id}. Nothing was changed."
        )
    else:
        write_changed([made], TEMPLATES, app.terminal, app.output)


@command(
    "alias",
    "Let a name stand for a version, as in code-review@stable.",
    examples="""
        kapell template alias code-review stable 2
        kapell template alias code-review stable --remove
    """,
)
@options.template_id
@click.argument("alias", metavar="ALIAS")
@click.argument("version", type=click.IntRange(1), required=False, metavar="[VERSION]")
@click.option("--remove", is_flag=True, help="Remove the alias.")
@options.dry_run
@options.output
@click.pass_obj
def alias(app: App, /, template_id: str, alias: str, version: int | None, remove: bool, dry_run: bool) -> None:
    if remove is (version is not None):
        raise click.UsageError("Give a VERSION, or --remove.")

    async def work(client: Client) -> Template:
        if dry_run:
            return await client.templates.get(f"{template_id}@{version}" if version else template_id)
        if version is None:
            return await client.templates.delete_alias(template_id, alias)
        return await client.templates.set_alias(template_id, alias, version)

    template = app.run(work)
    if dry_run:
        does = "remove" if remove else f"set to version {version}"
        note(f"Dry run: would {does} the alias {alias} of {template_id}. Nothing was changed.")
    else:
        write_changed([template], TEMPLATES, app.terminal, app.output)


@command(
    "delete",
    "Delete templates with all their versions; tasks made from them keep what they have.",
    examples="""
        kapell template delete my-review
        kapell template list --mine -o id | kapell template delete --yes -
    """,
)
@options.template_ids
@click.option("--force", is_flag=True, help="Although tasks made from it have not ended.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def delete(app: App, /, template_ids: tuple[str, ...], force: bool, yes: bool, dry_run: bool) -> None:
    if dry_run:
        found = app.run(lambda client: bulk.each(template_ids, client.templates.get))
        note(f"Dry run: would delete {len(found.answers)} templates. Nothing was changed.")
        write_changed(found.answers, TEMPLATES, app.terminal, app.output)
        found.finish(app.terminal)
        return
    count = len(template_ids)
    question = f"Delete {count} templates with all versions" if count > 1 else "Delete this template with all versions"
    options.confirm(app, question, template_ids, yes=yes, typed=str(count) if count > 1 else "")

    async def one(client: Client, template_id: str) -> Template:
        template = await client.templates.get(template_id)
        await client.templates.delete(template_id, force=force)
        return template

    outcome = app.run(lambda client: bulk.each(template_ids, lambda id: one(client, id)))
    if app.is_table and app.terminal.is_tty:
        for template in outcome.answers:
            write(f"Deleted {template.template_id}.")
    else:
        write_changed(outcome.answers, TEMPLATES, app.terminal, app.output)
    outcome.finish(app.terminal)
