"""`kapell lock acquire`, `renew`, `release` and `cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from kapell.cli import bulk, options
from kapell.cli.app import App
from kapell.cli.errors import Exit, Refusal
from kapell.cli.lock_views import LOCKS, WAITERS, lock_words
from kapell.cli.output import note, write, write_changed
from kapell.cli.shape import command
from kapell.cli.times import DURATION

if TYPE_CHECKING:
    from kapell import Client
    from kapell.v1.lock_pb2 import AcquireLocksResponse, ForceReleaseLocksResponse, Lock, ReleaseLocksResponse

_MOST = 1000


@command(
    "acquire",
    "Acquire locks, all or none; they end after their ttl unless they are renewed or released.",
    examples="""
        kapell lock acquire web/src --ttl 10m
        kapell lock acquire web/src web/docs --shared --wait 30s
        kapell lock acquire port/8080 --session session_01kabc -o json
        kapell lock acquire web --wait 1m --keep-queued
    """,
    epilog="Exit code 5 with the holder when they are held. `kapell lock run` also renews and releases.",
)
@options.lock_paths
@click.option("--shared", is_flag=True, help="For reading: beside other shared locks.")
@click.option("--ttl", type=DURATION, metavar="DURATION", help="How long they live, 1s to 1d. [default: 60s]")
@click.option("--session", "session_id", default="", metavar="SESSION_ID", help="Let them hang on this session.")
@click.option("--wait", type=DURATION, metavar="DURATION", help="How long to wait, at most 60s. [default: not at all]")
@click.option("--keep-queued", is_flag=True, help="Keep the place in the queue when the wait is over; gives a ticket.")
@click.option("--priority", type=click.IntRange(0, 1000), metavar="N", help="0 to 1000; higher first. [default: 500]")
@click.option("--note", "about", default="", metavar="TEXT", help="What it is for, shown to those who wait.")
@options.dry_run
@options.output
@click.pass_obj
def acquire(
    app: App,
    /,
    paths: tuple[str, ...],
    shared: bool,
    ttl: float | None,
    session_id: str,
    wait: float | None,
    keep_queued: bool,
    priority: int | None,
    about: str,
    dry_run: bool,
) -> None:
    if ttl is not None and session_id:
        raise click.UsageError("Locks of a session live as long as it does: --ttl or --session, not both.")
    if dry_run:
        _show_in_the_way(app, paths)
        return

    async def work(client: Client) -> AcquireLocksResponse:
        return await client.locks.acquire(
            *paths,
            shared=shared,
            ttl=ttl,
            session_id=session_id,
            wait=wait,
            keep_queued=keep_queued,
            priority=priority,
            note=about,
        )

    answer = app.run(work)
    if answer.HasField("ticket"):
        write_changed([answer.ticket], WAITERS, app.terminal, app.output)
        if app.terminal.is_tty and app.is_table:
            hint = "Follow it with: kapell lock waiters; give it up with: kapell lock cancel"
            note(app.terminal.err(f"{hint} {answer.ticket.ticket_id}", "dim"))
    else:
        write_changed(answer.locks, LOCKS, app.terminal, app.output)


def _show_in_the_way(app: App, paths: tuple[str, ...]) -> None:
    async def work(client: Client) -> list[Lock]:
        pages = [await client.locks.list(path=path, page_size=10) for path in paths]
        return [lock for page in pages for lock in page.locks]

    touching = app.run(work)
    note(f"Dry run: would acquire {', '.join(paths)}. Nothing was changed. {len(touching)} locks touch that.")
    write_changed(touching, LOCKS, app.terminal, app.output)


@command(
    "renew",
    "Renew locks; all or none, for another ttl.",
    examples="""
        kapell lock renew lock_01kabc
        kapell lock list --agent agent_01kabc -o id | kapell lock renew -
    """,
)
@options.lock_ids
@options.dry_run
@options.output
@click.pass_obj
def renew(app: App, /, lock_ids: tuple[str, ...], dry_run: bool) -> None:
    if dry_run:
        note(f"Dry run: would renew {len(lock_ids)} locks. Nothing was changed.")
        return
    write_changed(app.run(lambda client: client.locks.renew(*lock_ids)), LOCKS, app.terminal, app.output)


@command(
    "release",
    "Release locks of one's own; with --force those of others, which are then stale.",
    examples="""
        kapell lock release lock_01kabc
        kapell lock release lock_01kabc --keep-shared
        kapell lock release lock_01kabc --force --reason "its machine is gone"
        kapell lock release --force --path web --reason "release day" --yes
    """,
)
@click.argument(
    "lock_ids", nargs=-1, metavar="[LOCK_ID]...", callback=options.with_stdin, shell_complete=options.complete_locks
)
@click.option("--keep-shared", is_flag=True, help="Keep them as shared locks.")
@click.option("--force", is_flag=True, help="Take them away from whoever has them; for administrators.")
@click.option("--path", default="", metavar="PATH", help="With --force: all locks on this path and below it.")
@click.option("--reason", default="", metavar="TEXT", help="With --force: why, for the record. Required.")
@options.yes
@options.dry_run
@options.output
@click.pass_obj
def release(
    app: App,
    /,
    lock_ids: tuple[str, ...],
    keep_shared: bool,
    force: bool,
    path: str,
    reason: str,
    yes: bool,
    dry_run: bool,
) -> None:
    if bool(lock_ids) is bool(path):
        raise click.UsageError("Which locks? Name them by their ids, or, with --force, by a --path.")
    if force:
        if not reason:
            raise click.UsageError("Say why, by --reason: whoever loses the locks will ask.")
        _force(app, lock_ids, path, reason, yes=yes, dry_run=dry_run)
        return
    if path or reason:
        raise click.UsageError("--path and --reason go with --force.")
    if dry_run:
        note(f"Dry run: would release {len(lock_ids)} locks. Nothing was changed.")
        return

    async def work(client: Client) -> ReleaseLocksResponse:
        return await client.locks.release(*lock_ids, keep_shared=keep_shared)

    answer = app.run(work)
    write_changed(answer.locks, LOCKS, app.terminal, app.output)
    if answer.lost_lock_ids:
        raise Refusal(
            f"{', '.join(answer.lost_lock_ids)} had ended before",
            why="expired, released or taken away: their work was not protected to the end",
            exit=Exit.CONFLICT,
        )


def _force(app: App, lock_ids: tuple[str, ...], path: str, reason: str, *, yes: bool, dry_run: bool) -> None:
    """Looks first, asks, takes away. Forced, so the count or the path must be typed."""

    async def look(client: Client) -> list[Lock]:
        found = [lock async for lock in client.locks.iterate(path=path)]
        if path:
            return [lock for lock in found if f"{lock.path}/".startswith(f"{path.rstrip('/')}/")]
        return [lock for lock in found if lock.lock_id in lock_ids]

    if dry_run or not yes:
        found = app.run(look)
        if dry_run:
            note(f"Dry run: would take away {len(found)} locks. Nothing was changed.")
            write_changed(found, LOCKS, app.terminal, app.output)
            return
        if not found:
            raise Refusal("none of these locks is held", exit=Exit.NOT_FOUND)
        words = [lock_words(lock) for lock in found]
        typed = path or str(len(found))
        options.confirm(app, f"Take {len(found)} locks away from their holders", words, yes=False, typed=typed)
    if path:
        answer = app.run(lambda client: client.locks.force_release(path=path, reason=reason))
        _say_taken(app, list(answer.locks))
        return

    async def one(client: Client, lock_id: str) -> ForceReleaseLocksResponse:
        return await client.locks.force_release(lock_id=lock_id, reason=reason)

    taken = app.run(lambda client: bulk.each(lock_ids, lambda lock_id: one(client, lock_id)))
    _say_taken(app, [lock for answer in taken.answers for lock in answer.locks])
    taken.finish(app.terminal)


def _say_taken(app: App, locks: list[Lock]) -> None:
    write_changed(locks, LOCKS, app.terminal, app.output)
    if not locks:
        note("None of them was held.")
    elif app.is_table and app.terminal.is_tty:
        note(app.terminal.err("Their fencing tokens are stale: what the holders still write is refused.", "dim"))


@command(
    "cancel",
    "Leave the queue for locks; a grant that came first stands.",
    examples="""
        kapell lock cancel ticket_01kabc
    """,
)
@click.argument("ticket_ids", nargs=-1, required=True, metavar="TICKET_ID...", callback=options.with_stdin)
@options.dry_run
@options.output
@click.pass_obj
def cancel(app: App, /, ticket_ids: tuple[str, ...], dry_run: bool) -> None:
    if dry_run:
        found = app.run(lambda client: bulk.each(ticket_ids, client.locks.ticket))
        note(f"Dry run: would cancel {len(found.answers)} tickets. Nothing was changed.")
    else:
        found = app.run(lambda client: bulk.each(ticket_ids, client.locks.cancel_ticket))
    write_changed(found.answers, WAITERS, app.terminal, app.output)
    for ticket in found.answers:
        if ticket.locks and not dry_run:
            write("Granted before: " + ", ".join(lock.lock_id for lock in ticket.locks))
    found.finish(app.terminal)
