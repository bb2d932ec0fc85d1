"""`kapell artifact upload`, `download`, `get` and `delete`, and `kapell task artifacts`."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.artifact_views import ARTIFACTS
from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import note, write, write_changed, write_list, write_one
from kapell.cli.shape import command

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.artifact_pb2 import Artifact


@command(
    "artifacts",
    "List the files of a task, the newest first.",
    examples="""
        kapell task artifacts task_01kabc
        kapell task artifacts task_01kabc --attempt 2 -o wide
        kapell task artifacts task_01kabc --name report.html -n 1 -o id
    """,
)
@options.task_id
@click.option("--attempt", type=click.IntRange(0), metavar="N", help="Of this attempt; 0: uploaded by users.")
@click.option("--name", default="", metavar="NAME", help="Of this name.")
@options.limit
@options.output
@click.pass_obj
def artifacts(app: App, /, task_id: str, attempt: int | None, name: str, limit: int) -> None:
    async def work(client: Client) -> list[Artifact]:
        found = client.artifacts.iterate(task_id, attempt=attempt, name=name, page_size=min(limit + 1, 1000))
        return await options.take(found, limit + 1)

    found = app.run(work)
    empty = f"No artifacts. Programs leave them in KAPELL_ARTIFACTS_DIR; or: kapell artifact upload {task_id} FILE"
    write_list(found[:limit], ARTIFACTS, app.terminal, app.output, empty=empty)
    options.say_more(app, "artifacts", shown=limit, found=len(found))


@command(
    "upload",
    "Upload a file as an artifact of a task.",
    examples="""
        kapell artifact upload task_01kabc report.html
        kapell artifact upload task_01kabc out.tgz --name results/out.tgz --label kind=results
        kapell artifact upload task_01kabc big.iso --resume artifact_01kabc
    """,
)
@options.task_id
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", default="", metavar="NAME", help="Its name. [default: that of the file]")
@click.option("--media-type", default="", metavar="TYPE", help="What it is. [default: what its name tells]")
@options.labels("A label of the artifact; may be repeated.")
@click.option("--resume", "artifact_id", default="", metavar="ARTIFACT_ID", help="Go on with an upload that broke off.")
@options.output
@click.pass_obj
def upload(
    app: App, /, task_id: str, file: Path, name: str, media_type: str, labels: dict[str, str], artifact_id: str
) -> None:
    app.reattach = f"What was uploaded is kept for a day. Find the id with: kapell task artifacts {task_id}"
    uploaded = app.run(
        lambda client: client.artifacts.upload(
            task_id, file, name=name, media_type=media_type, labels=labels, artifact_id=artifact_id
        )
    )
    write_changed([uploaded], ARTIFACTS, app.terminal, app.output)


@command(
    "download",
    "Download an artifact; the file appears whole and checked, or not at all.",
    examples="""
        kapell artifact download artifact_01kabc
        kapell artifact download artifact_01kabc -O report.html
        kapell artifact download artifact_01kabc -O - | tar xz
    """,
)
@options.artifact_id
@click.option(
    "-O",
    "--to",
    "place",
    default=".",
    metavar="PATH",
    help="A file, which is replaced; a directory to put it into; or - for stdout. [default: here]",
)
@click.option("--force", is_flag=True, help="Replace a file of that name in the directory.")
@options.server
@click.pass_obj
def download(app: App, /, artifact_id: str, place: str, force: bool) -> None:
    if place == "-":
        _download_to_stdout(app, artifact_id)
        return
    again = f"kapell artifact download {artifact_id}" + ("" if place == "." else f" -O {shlex.quote(place)}")
    app.reattach = f"What was downloaded is kept. Go on with: {again}"
    replace = force or not Path(place).is_dir()

    async def work(client: Client) -> Path:
        try:
            return await client.artifacts.download(artifact_id, place, replace=replace)
        except FileExistsError as error:
            raise Refusal(
                f"{error.filename} exists already",
                why="a download replaces a file only when told to",
                next=f"{again} --force, or choose another place with -O PATH",
                exit=Exit.CONFLICT,
            ) from None

    write(str(app.run(work)))


def _download_to_stdout(app: App, artifact_id: str) -> None:
    """Writes the bytes once all of them are there and checked."""
    with tempfile.TemporaryDirectory(prefix="kapell-") as directory:
        found = app.run(lambda client: client.artifacts.download(artifact_id, Path(directory) / "artifact"))
        sys.stdout.flush()
        with found.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


@command(
    "get",
    "Show one artifact.",
    examples="""
        kapell artifact get artifact_01kabc
        kapell artifact get artifact_01kabc -o json
    """,
)
@options.artifact_id
@options.output
@click.pass_obj
def get(app: App, /, artifact_id: str) -> None:
    write_one(app.run(lambda client: client.artifacts.get(artifact_id)), ARTIFACTS, app.terminal, app.output)


@command(
    "delete",
    "Delete artifacts.",
    examples="""
        kapell artifact delete artifact_01kabc
        kapell task artifacts task_01kabc -o id | kapell artifact delete --yes -
    """,
)
@options.artifact_ids
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def delete(app: App, /, artifact_ids: tuple[str, ...], yes: bool, dry_run: bool) -> None:
    if dry_run:
        found = app.run(lambda client: bulk.each(artifact_ids, client.artifacts.get))
        note(f"Dry run: would delete {len(found.answers)} artifacts. Nothing was changed.")
        write_changed(found.answers, ARTIFACTS, app.terminal, app.output)
        found.finish(app.terminal)
        return
    count = len(artifact_ids)
    question = f"Delete {count} artifacts" if count > 1 else "Delete this artifact"
    options.confirm(app, question, artifact_ids, yes=yes, typed=str(count) if count > 1 else "")

    async def one(client: Client, artifact_id: str) -> Artifact:
        artifact = await client.artifacts.get(artifact_id)
        await client.artifacts.delete(artifact_id)
        return artifact

    outcome = app.run(lambda client: bulk.each(artifact_ids, lambda id: one(client, id)))
    if app.is_table and app.terminal.is_tty:
        for artifact in outcome.answers:
            write(f"Deleted {artifact.artifact_id}.")
    else:
        write_changed(outcome.answers, ARTIFACTS, app.terminal, app.output)
    outcome.finish(app.terminal)
