"""`kapell secret`: values that agents need. They are read from stdin, a file or a prompt, never from arguments."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.output import note, write, write_changed, write_list
from kapell.cli.secret_views import SECRETS
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.secret_pb2 import Secret


@command(
    "set",
    "Create or replace a secret; its value is typed unseen, or read from stdin or a file.",
    examples="""
        kapell secret set github-token
        gh auth token | kapell secret set github-token -
        kapell secret set deploy-key --from-file ~/.ssh/deploy
        kapell secret set model-key --server-env MODEL_API_KEY
    """,
)
@click.argument("name", metavar="NAME")
@click.argument("stdin", metavar="[-]", required=False, type=click.Choice(["-"]))
@click.option("--from-file", "from_file", metavar="FILE", help="Read the value from a local file; - is stdin.")
@click.option("--server-env", metavar="VARIABLE", help="It is in a variable of the server's environment.")
@click.option("--server-file", metavar="PATH", help="It is in a file on the server's machine.")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option("--etag", default="", metavar="ETAG", help="Refuse when it has changed since it had this etag.")
@options.dry_run
@options.output
@click.pass_obj
def set_(
    app: App,
    /,
    name: str,
    stdin: str | None,
    from_file: str | None,
    server_env: str | None,
    server_file: str | None,
    description: str,
    etag: str,
    dry_run: bool,
) -> None:
    if sum(given is not None for given in (stdin, from_file, server_env, server_file)) > 1:
        raise click.UsageError("Give one of -, --from-file, --server-env and --server-file.")
    value = None
    if server_env is None and server_file is None:
        value = _value(from_file or stdin, name)
    if dry_run:
        note(f"Dry run: would set the secret {name}. Nothing was changed.")
        return
    secret = app.run(
        lambda client: client.secrets.set(
            name, value, environment_variable=server_env, file=server_file, description=description, etag=etag
        )
    )
    write_changed([secret], SECRETS, app.terminal, app.output)


def _value(file: str | None, name: str) -> str:
    """The value without a last newline."""
    if file is None and sys.stdin.isatty():
        return getpass.getpass(f"Value of {name} (not shown): ")
    value = options.text_of(file or "-", "--from-file").removesuffix("\n").removesuffix("\r")
    if not value:
        raise click.UsageError("The value is empty: pipe it in, or give --from-file.")
    return value


@command(
    "list",
    "List secrets, the newest first; never their values.",
    examples="""
        kapell secret list
        kapell secret list -o id
    """,
)
@options.limit
@options.output
@click.pass_obj
def list_(app: App, /, limit: int) -> None:
    async def work(client: Client) -> list[Secret]:
        return await options.take(client.secrets.iterate(page_size=min(limit + 1, 1000)), limit + 1)

    secrets = app.run(work)
    empty = "No secrets yet. Set one with: kapell secret set NAME"
    write_list(secrets[:limit], SECRETS, app.terminal, app.output, empty=empty)
    options.say_more(app, "secrets", shown=limit, found=len(secrets))


@command(
    "delete",
    "Forget secrets; attempts of tasks that name them fail from then on.",
    examples="""
        kapell secret delete github-token --yes
        kapell secret delete --yes old-token older-token
    """,
)
@options.secret_names
@options.yes
@options.dry_run
@options.server
@click.pass_obj
def delete(app: App, /, names: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    what = f"the secret {names[0]}" if len(names) == 1 else f"{len(names)} secrets"
    if dry_run:
        note(f"Dry run: would forget {what}: {', '.join(names)}. Nothing was changed.")
        return
    options.confirm(app, f"Forget {what}", names, yes=yes, typed=names[0] if len(names) == 1 else str(len(names)))

    async def one(client: Client, name: str) -> str:
        await client.secrets.delete(name)
        return name

    outcome = app.run(lambda client: bulk.each(names, lambda name: one(client, name)))
    for name in outcome.answers:
        write(f"Forgot the secret {name}." if app.terminal.is_tty else f"{name}\tdeleted")
    outcome.finish(app.terminal)


@command(
    "rotate-key",
    "Make a new key and encrypt all values with it; the old key is forgotten.",
    examples="""
        kapell secret rotate-key
    """,
)
@options.dry_run
@options.server
@click.pass_obj
def rotate_key(app: App, /, dry_run: bool) -> None:
    if dry_run:
        note("Dry run: would make a new key and encrypt all values with it. Nothing was changed.")
        return
    answer = app.run(lambda client: client.secrets.rotate_key())
    write(f"A new key is in use; {answer.secrets} value{'' if answer.secrets == 1 else 's'} encrypted with it.")
