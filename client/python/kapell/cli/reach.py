"""From an endpoint to a connected client, or to the news that the server is down, within `REACH` seconds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kapell.cli.errors import Exit, Refusal
from kapell.client import Client
from kapell.connection import Connection
from kapell.discovery import Endpoint

_T = TypeVar("_T")

REACH = 2.0
"""Seconds until a server that does not answer counts as down."""


def connected(endpoint: Endpoint, work: Callable[[Client], Awaitable[_T]]) -> _T:
    """Runs `work` with a client of a server that answers. Raises Refusal (exit code 6) when none does."""

    async def run() -> _T:
        gives_up_at = asyncio.get_running_loop().time() + REACH
        await _dial(endpoint.address)
        async with Client(Connection(endpoint)) as client:
            await _greet(client, gives_up_at, tls=endpoint.tls is not None)
            return await work(client)

    return asyncio.run(run())


async def _dial(address: str) -> None:
    """Returns when something listens at the address: a refusal is known at once, and by its cause."""
    try:
        async with asyncio.timeout(REACH):
            if address.startswith("unix:"):
                path = address.removeprefix("unix:").removeprefix("//")
                _, writer = await asyncio.open_unix_connection(path)
            else:
                host, _, port = address.rpartition(":")
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except TimeoutError:
        raise _unreachable(address, f"nothing answered within {REACH:g} s") from None
    except OSError as error:
        number = error.errno or 0
        why = (os.strerror(number) if number > 0 else error.strerror or str(error)).lower()
        raise _unreachable(address, why) from None
    writer.close()


async def _greet(client: Client, gives_up_at: float, *, tls: bool) -> None:
    """Returns when what listens has spoken HTTP/2.

    A server that is frozen, or another program, takes the connection and then says nothing.
    """
    try:
        async with asyncio.timeout_at(gives_up_at):
            await client.connection.channel.channel_ready()
    except TimeoutError:
        why = f"something listens there, but it did not answer within {REACH:g} s"
        if tls:
            why += "; --tls-ca must name who has signed its certificate, and it may ask for one of yours"
        elif not client.connection.is_local:
            why += "; if it speaks TLS, --tls-ca must name who has signed its certificate"
        raise _unreachable(client.connection.address, why) from None


def _unreachable(address: str, why: str) -> Refusal:
    return Refusal(
        f"no Kapell server answers at {address}",
        why=why,
        next="kapell up      (or point KAPELL_ADDRESS at the right server)",
        exit=Exit.UNREACHABLE,
    )
