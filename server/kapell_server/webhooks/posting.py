"""One POST to a receiver. Imports the HTTP client, so it is itself imported when something is first sent.

No redirects, no proxies, no cookies. Every address is looked at before it is connected to, see
domain/webhooks/addresses. Of the answer only its status is read.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore2

from kapell_server.domain.webhooks.addresses import why_refused

TIMEOUT = 10.0
"""Seconds for all of one try."""
_ERROR_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one try. `status_code` is 0 where there was no answer; `error` is empty where it has arrived."""

    status_code: int
    error: str


class RefusedAddressError(Exception):
    """Nothing is sent to this address."""


class _Backend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that may be connected to."""

    def __init__(self) -> None:
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} could not be looked up: {error}") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if why := why_refused(address):
                raise RefusedAddressError(f"nothing is sent to {address}: {why}")
        last: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as failure:
                last = failure
        raise last


class Poster:
    """Sends; keeps connections for a while."""

    def __init__(self) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=32, max_keepalive_connections=8, keepalive_expiry=15.0, network_backend=_Backend()
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """One try. Never raises but CancelledError."""
        try:
            async with asyncio.timeout(TIMEOUT):
                async with self._pool.stream("POST", url, headers=list(headers.items()), content=body) as response:
                    status = response.status
        except TimeoutError:
            return Answer(0, f"no answer within {TIMEOUT:g} s")
        except Exception as error:
            # Whatever a receiver, its name or its certificate is wrong with is told in the delivery: none of
            # it may end the server.
            return Answer(0, _text(error))
        return Answer(status, "" if 200 <= status < 300 else f"it answered {status}")

    async def close(self) -> None:
        """Closes what is open."""
        await self._pool.aclose()


def _text(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_ERROR_LENGTH]
