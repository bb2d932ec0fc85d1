"""What every command is given: the terminal, the options all commands share, and a way to the server.

`App.run` is the only door to the SDK: it finds the server, makes sure within `REACH` seconds that
something answers, runs a coroutine with a `Client`, and leaves errors to `kapell.cli.main`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from kapell.cli.errors import Exit, Refusal
from kapell.cli.terminal import Terminal

if TYPE_CHECKING:
    from kapell import Client
    from kapell.discovery import Endpoint

_T = TypeVar("_T")

REACH = 2.0
"""Seconds until a server that does not answer counts as down."""


@dataclass
class App:
    """The state of one run of the command line."""

    terminal: Terminal
    address: str | None = None
    data_dir: str | None = None
    output: str | None = None
    debug: bool = False
    reattach: str = ""
    """Said after Ctrl-C: what goes on, and the command that shows it again."""

    @property
    def is_table(self) -> bool:
        """Whether the output is meant for eyes, not for a program."""
        return self.output in (None, "table", "wide")

    def endpoint(self) -> Endpoint:
        """The server to talk to. Raises the SDK's KapellError when none is known."""
        from kapell.discovery import discover

        return discover(self.address, directory=self.data_dir)

    def run(self, work: Callable[[Client], Awaitable[_T]]) -> _T:
        """Runs `work` with a connected client, in an event loop of its own."""
        endpoint = self.endpoint()

        async def connected() -> _T:
            from kapell.client import Client
            from kapell.connection import Connection

            gives_up_at = asyncio.get_running_loop().time() + REACH
            await _reach(endpoint.address)
            async with Client(Connection(endpoint)) as client:
                await _greet(client, gives_up_at)
                return await work(client)

        return asyncio.run(connected())


async def _reach(address: str) -> None:
    """Returns when something listens at the address. Raises Refusal (exit code 6) otherwise."""
    try:
        async with asyncio.timeout(REACH):
            if address.startswith("unix:"):
                _, writer = await asyncio.open_unix_connection(address.removeprefix("unix:").removeprefix("//"))
            else:
                host, _, port = address.rpartition(":")
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        raise unreachable(address, f"nothing answered within {REACH:g} s") from None
    except OSError as error:
        why = os.strerror(error.errno).lower() if error.errno else str(error)
        raise unreachable(address, why) from None
    writer.close()


async def _greet(client: Client, gives_up_at: float) -> None:
    """Returns when what listens has spoken HTTP/2. Raises Refusal (exit code 6) otherwise.

    A server that is frozen, or another program, takes the connection and then says nothing.
    """
    try:
        async with asyncio.timeout_at(gives_up_at):
            await client.connection.channel.channel_ready()
    except TimeoutError:
        why = f"something listens there, but it did not answer within {REACH:g} s"
        raise unreachable(client.connection.address, why) from None


def unreachable(address: str, why: str) -> Refusal:
    """The refusal for a server that cannot be reached."""
    return Refusal(
        f"no Kapell server answers at {address}",
        why=why,
        next="kapell up      (or point KAPELL_ADDRESS at the right server)",
        exit=Exit.UNREACHABLE,
    )
