"""`kapell up --demo`: a server as a child, a stage on it, and a calm account of what happens.

Ctrl-C, SIGTERM and SIGHUP end everything: the agents, their programs, the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from kapell.cli.banner import banner
from kapell.cli.errors import Exit, Refusal
from kapell.cli.output import note, write
from kapell.cli.states import task_look
from kapell.cli.terminal import Terminal, cut, visible
from kapell.cli.views import failure_text
from kapell.client import Client
from kapell.demo.server import DemoServer, ServerFailedError
from kapell.demo.stage import LABELS, Stage
from kapell.demo.work import PACE
from kapell.v1.event_pb2 import Event
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_REQUEUED

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def show(terminal: Terminal, arguments: Sequence[str]) -> Exit:
    """Runs the demo until it is stopped. Raises Refusal when the server ends by itself."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        async with DemoServer(arguments, say=lambda line: note(visible(line))) as server:
            lines = banner(
                terminal,
                address=server.address,
                http_address=server.http_address,
                data_dir=server.data_dir,
                is_demo=True,
            )
            for line in lines:
                write(line)
            await _play(server, terminal, stop)
            write(terminal.out("Stopping: the agents first, then the server.", "dim"))
    except ServerFailedError as error:
        raise _refusal(error) from None
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
    write(terminal.out("Everything has stopped.", "dim"))
    return Exit.DONE


def _refusal(error: ServerFailedError) -> Refusal:
    if error.had_served:
        return Refusal(
            "the server has died", why=str(error), next="kapell up      (its agents work on and will be found)"
        )
    return Refusal("the server did not start", why=str(error), next="mend what it says above, then try again")


async def _play(server: DemoServer, terminal: Terminal, stop: asyncio.Event) -> None:
    """Plays until `stop` is set. Raises what made the play end by itself."""
    async with Client(server.address, data_dir=server.data_dir) as client:
        parts = [
            asyncio.create_task(_fill(client), name="demo stage"),
            asyncio.create_task(_tell(client, terminal), name="demo account"),
            asyncio.create_task(_tell_what_waits(client, terminal), name="demo questions"),
            asyncio.create_task(_until_dead(server), name="server's end"),
        ]
        stopping = asyncio.create_task(stop.wait(), name="stop signal")
        try:
            done, _ = await asyncio.wait([*parts, stopping], return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in [*parts, stopping]:
                part.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*parts, stopping, return_exceptions=True)


async def _fill(client: Client) -> None:
    stage = Stage(client, Path.cwd(), pace=float(os.environ.get("KAPELL_DEMO_PACE", PACE)))
    await stage.open()
    await stage.keep_alive()


async def _until_dead(server: DemoServer) -> None:
    raise ServerFailedError(await server.ended(), had_served=True)


async def _tell(client: Client, terminal: Terminal) -> None:
    """One line for each task of the demo that ended or will be tried again."""
    kinds = ["task.completed", "task.failed", "task.cancelled", "task.requeued"]
    async with client.watch(kinds=kinds, labels=LABELS) as events:
        async for event in events:
            write(_line(event, terminal))


async def _tell_what_waits(client: Client, terminal: Terminal) -> None:
    """One line for each question, and each alert, with the command that shows it."""
    async with client.watch(kinds=["approval.required", "alert.fired"]) as events:
        async for event in events:
            if event.HasField("approval"):
                asked = event.approval
                said, command = f"{asked.title}  ", f"kapell approval show {asked.approval_id}"
                word, colour = "asks you", "yellow"
            else:
                said, command = f"{event.alert.message}  ", "kapell alert list"
                word, colour = "alert", "red"
            told = visible(said)
            if terminal.is_tty:
                told = cut(told, max(terminal.width - 17 - len(command), 20))
            write(f"  {terminal.out(word.ljust(11), colour)}  {told}{terminal.out(command, 'cyan')}")


def _line(event: Event, terminal: Terminal) -> str:
    """The state, the name, and why it failed; cut to the width of a terminal."""
    task = event.task
    look = task_look(task.state)
    word = "retrying" if event.kind == EVENT_KIND_TASK_REQUEUED else look.word
    head = f"{look.mark} {word}" if terminal.marks else word
    told = f"{visible(task.display_name)}"
    if task.HasField("failure") and look.word != "succeeded":
        told += f"  ({visible(failure_text(task.failure))})"
    if terminal.is_tty:
        told = cut(told, terminal.width - 17)
    return f"  {terminal.out(head.ljust(11), look.colour)}  {told}"
