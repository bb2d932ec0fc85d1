"""The load generator: raw bytes over grpc.aio, so that the client costs as little as it can."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

Call = Callable[[bytes], Awaitable[bytes]]

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    # A channel of one's own is a connection of one's own.
    ("grpc.use_local_subchannel_pool", 1),
)


class RawClient:
    """One connection on which methods are called with encoded messages."""

    def __init__(self, address: str, token: str = "") -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def unary(self, path: str) -> Call:
        """The method at "/package.Service/Method"."""
        call: Any = self._channel.unary_unary(path)
        metadata = self._metadata
        return lambda request: call(request, metadata=metadata)

    def stream(self, path: str) -> Callable[[bytes], Any]:
        """A server-streaming method; iterate over what it returns."""
        call: Any = self._channel.unary_stream(path)
        metadata = self._metadata
        return lambda request: call(request, metadata=metadata)

    async def __aenter__(self) -> Self:
        await asyncio.wait_for(self._channel.channel_ready(), 20)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self._channel.close()


@dataclass(frozen=True, slots=True)
class Load:
    """What a run of calls took: calls a second, and the seconds of each call."""

    rate: float
    latencies: list[float]

    def percentile(self, percent: float) -> float:
        """Seconds that `percent` of the calls did not exceed."""
        return percentile(self.latencies, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(values: Iterable[float]) -> float:
    """The middle one."""
    return statistics.median(values)


async def in_flight(call: Call, requests: Iterable[bytes], *, width: int, seconds: float) -> Load:
    """Keeps `width` calls open for `seconds`, after a short warm-up; each request is used once."""
    source = iter(requests)
    latencies: list[float] = []
    now = time.perf_counter
    begin = now() + seconds / 8
    end = begin + seconds

    async def run() -> None:
        while (sent := now()) < end:
            await call(next(source))
            answered = now()
            if sent >= begin and answered <= end:
                latencies.append(answered - sent)

    await asyncio.gather(*(run() for _ in range(width)))
    return Load(len(latencies) / seconds, latencies)


async def at_rate(call: Call, requests: Iterable[bytes], *, rate: float, seconds: float) -> Load:
    """Calls at fixed times, whether or not earlier ones were answered, as independent users do."""
    source = iter(requests)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    begin = loop.time()

    async def one() -> None:
        sent = time.perf_counter()
        await call(next(source))
        latencies.append(time.perf_counter() - sent)

    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - loop.time()))
            group.create_task(one())
    return Load(len(latencies) / seconds, latencies)


def same(request: bytes) -> Iterable[bytes]:
    """The same request for ever."""
    return itertools.repeat(request)
