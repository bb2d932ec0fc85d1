"""What one caller's flood costs another: the time of single calls beside it, against calls on a quiet server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import grpc
from kapell.v1.common_pb2 import SCOPE_READ, SCOPE_WRITE
from kapell.v1.token_pb2 import CreateTokenRequest, CreateTokenResponse

from tests.bench import messages
from tests.bench.load import Call, RawClient, percentile
from tests.bench.place import Target, kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

TOKENS = "/kapell.v1.TokenService/"
FLOOD = 1_000
"""Calls that the flood keeps open, on connections of its own."""
ROUNDS = 100
_WARM_UP = 0.5


@benchmark("flood")
async def beside_a_flood(setting: Setting) -> Sequence[Row]:
    """CreateTask, one in flight, of a user beside another who keeps 1,000 open on a connection that may have 64."""
    quiet: dict[str, list[float]] = {"p50": [], "p99": []}
    found: dict[tuple[str, str], list[float]] = {}
    with kapell(setting.directory, "--max-calls-of-connection", "64") as server:
        flooder, other = await _token(server, "flooder"), await _token(server, "other")
        async with RawClient(server.address, other) as client:
            call = client.unary(messages.TASKS + "CreateTask")
            for _ in range(setting.repetitions):
                for name, value in (await _times(call)).items():
                    quiet[name].append(value)
                for kind, token in (("calls", flooder), ("wrong tokens", "wrong")):
                    with _flood(server.address, token):
                        for name, value in (await _times(call)).items():
                            found.setdefault((kind, name), []).append(value)
    return [
        Row(
            name=f"CreateTask beside {FLOOD:,} {kind} of another in flight, {name}",
            unit="ms",
            figures=figures,
            floors=quiet[name],
            goal=100,
            note="floor: nobody else calls",
        )
        for (kind, name), figures in found.items()
    ]


@contextmanager
def _flood(address: str, token: str) -> Iterator[None]:
    """Calls in flight from another process, from the time it says so until it is ended."""
    command = [sys.executable, "-m", "tests.bench.flooding", address, token, str(FLOOD)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the flood did not begin"
            yield
        finally:
            process.kill()


async def _pour(address: str, token: str, width: str) -> None:
    """Keeps calls open for ever. What becomes of them is no matter."""
    request = messages.create()
    async with RawClient(address, token) as client:
        call = client.unary(messages.TASKS + "CreateTask")

        async def repeat() -> None:
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await call(request)

        pouring = [asyncio.create_task(repeat()) for _ in range(int(width))]
        await asyncio.sleep(_WARM_UP)
        print("pouring", flush=True)
        await asyncio.gather(*pouring)


async def _times(call: Call) -> dict[str, float]:
    """Milliseconds of single calls."""
    request, taken = messages.create(), []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        await call(request)
        taken.append((time.perf_counter() - begin) * 1e3)
    return {"p50": percentile(taken, 50), "p99": percentile(taken, 99)}


async def _token(server: Target, principal: str) -> str:
    async with RawClient(server.address, server.token) as client:
        request = CreateTokenRequest(principal=principal, scopes=[SCOPE_READ, SCOPE_WRITE])
        data = await client.unary(TOKENS + "CreateToken")(request.SerializeToString())
    return CreateTokenResponse.FromString(data).secret


if __name__ == "__main__":
    asyncio.run(_pour(*sys.argv[1:]))
