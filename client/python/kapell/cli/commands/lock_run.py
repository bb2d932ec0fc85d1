"""`kapell lock run`: a command under locks, which end with it, and it with them."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import click

from kapell.cli import options
from kapell.cli.app import App
from kapell.cli.errors import Done, Exit, Refusal
from kapell.cli.output import note
from kapell.cli.shape import ProgramCommand, command
from kapell.cli.times import DURATION

if TYPE_CHECKING:
    import asyncio

    from kapell import Client
    from kapell._locks.holding import HeldLocks

_GRACE = 5.0
_PAUSE = 0.05
_NOT_FOUND, _NOT_EXECUTABLE, _SIGNALLED = 127, 126, 128


@command(
    "run",
    "Hold locks while a command runs; it learns them by KAPELL_LOCKS.",
    examples="""
        kapell lock run web/src -- make format
        kapell lock run web --shared --wait 10m -- pytest
        kapell lock run web/src web/docs --note "release notes" -- git commit -m "Release"
    """,
    epilog="The exit code is that of the command; 5 when the locks are held by somebody else, or were lost. A command "
    "whose locks are lost gets SIGTERM and, 5 s later, SIGKILL, with all that it started, unless --on-loss warn. "
    "What it leaves running in the background when it ends is not protected any more.",
    cls=ProgramCommand,
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH... -- COMMAND...")
@click.option("--shared", is_flag=True, help="For reading: beside other shared locks.")
@click.option("--wait", type=DURATION, metavar="DURATION", help="How long to wait for them. [default: not at all]")
@click.option("--ttl", type=DURATION, default=30.0, help="How long they outlive a crash of kapell. [default: 30s]")
@click.option("--priority", type=click.IntRange(0, 1000), metavar="N", help="0 to 1000; higher first. [default: 500]")
@click.option("--note", "about", default="", metavar="TEXT", help="What it is for. [default: the command]")
@click.option(
    "--on-loss",
    type=click.Choice(("kill", "warn")),
    default="kill",
    help="What becomes of the command when a lock is lost. [default: kill]",
)
@options.server
@click.pass_obj
def run(
    app: App,
    /,
    paths: tuple[str, ...],
    argv: list[str],
    shared: bool,
    wait: float | None,
    ttl: float,
    priority: int | None,
    about: str,
    on_loss: str,
) -> None:
    if not argv:
        raise click.UsageError("Which command? Put it behind --, as in: kapell lock run web/src -- make format")

    async def work(client: Client) -> int:
        held = client.lock(
            *paths, shared=shared, timeout=wait or 0, ttl=ttl, priority=priority, note=(about or " ".join(argv))[:200]
        )
        async with held:
            return await _hold(held, argv, kills=on_loss == "kill")

    code = app.run(work)
    if code:
        raise Done(code)


async def _hold(held: HeldLocks, argv: list[str], *, kills: bool) -> int:
    """Runs the command to its end, or to the loss of a lock; its exit code."""
    import asyncio

    from kapell._locks import environment
    from kapell.runtimes._processes import become_subreaper

    known = environment.known(held.locks)
    outer = os.environ.get(environment.VARIABLE)
    if outer:
        try:
            known += environment.parse(outer)
        except ValueError as error:
            raise Refusal(str(error), exit=Exit.USAGE) from None
    # What the command starts and leaves behind stays below us, so that none outlives a lost lock.
    become_subreaper()
    process = _start(argv, {**os.environ, environment.VARIABLE: environment.dump(known)})
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, process.send_signal, signal.SIGTERM)
    # Ctrl-C reaches the command by the terminal; we stay until it has ended, for its locks.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    ending = asyncio.create_task(asyncio.to_thread(process.wait), name="the command")
    losing = asyncio.create_task(held.lost.wait(), name="loss of locks")
    try:
        await asyncio.wait((ending, losing), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            await _lose(held, process, ending, kills=kills)
        code = await ending
    finally:
        losing.cancel()
        if process.poll() is None:
            process.kill()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return code if code >= 0 else _SIGNALLED - code


def _start(argv: list[str], environ: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(argv, env=environ)
    except FileNotFoundError:
        note(f"kapell: {argv[0]}: not found")
        raise Done(_NOT_FOUND) from None
    except OSError as error:
        note(f"kapell: {argv[0]}: {error.strerror}")
        raise Done(_NOT_EXECUTABLE) from None


async def _lose(held: HeldLocks, process: subprocess.Popen[bytes], ending: asyncio.Task[int], *, kills: bool) -> None:
    """A lock is gone while the command runs."""
    import asyncio

    note(f"kapell: {held.loss.error}")
    if kills:
        note(f"kapell: the command is ended: SIGTERM, SIGKILL after {_GRACE:g} s")
        await _end_family()
    await asyncio.wait((ending,))


async def _end_family() -> None:
    """Ends the command and all that it has started, however far that ran away."""
    import asyncio
    import contextlib

    from kapell.runtimes import _processes

    loop = asyncio.get_running_loop()
    deadline = loop.time() + _GRACE
    told: set[int] = set()
    while family := _processes.below(os.getpid()):
        for process in family:
            if loop.time() >= deadline:
                _processes.kill(process)
            elif process.pid not in told:
                told.add(process.pid)
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGTERM)
        # Orphans that became ours end without a signal to us.
        await asyncio.sleep(_PAUSE)
