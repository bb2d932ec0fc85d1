"""What one caller's flood costs another: the time of single calls beside it, against calls on a quiet server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise

import grpc
from kapell.v1.common_pb2 import SCOPE_READ, SCOPE_WRITE
from kapell.v1.task_pb2 import CreateTaskResponse
from kapell.v1.token_pb2 import CreateTokenRequest, CreateTokenResponse
from kapell_server.rpc.limits import CallLimits

from tests.bench import messages
from tests.bench.load import Call, RawClient, percentile
from tests.bench.place import Target, kapell
from tests.bench.result import Row
from tests.bench.suite import Setting, benchmark

TOKENS = "/kapell.v1.TokenService/"
FLOOD = 1_000
"""Calls that the flood keeps open, on connections of its own."""
FACTOR = 10
"""What the p50 of another's calls may be, of that on a quiet server; the how-to about limits says so."""
LINES = 3 * CallLimits().at_once
"""How many calls of the flood may be done before another's."""
ROUNDS = 100
_WARM_UP = 0.5


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of single calls, and how many calls of others were done during each."""

    p50: float
    p99: float
    others: float


@benchmark("flood")
async def beside_a_flood(setting: Setting) -> Sequence[Row]:
    """CreateTask, one in flight, of a user beside another who keeps 1,000 open."""
    quiet: list[Times] = []
    found: dict[str, list[Times]] = {}
    with kapell(setting.directory) as server:
        flooder, other = await _token(server, "flooder"), await _token(server, "other")
        floods = {
            "calls of another on one connection": (flooder, 1),
            "calls of another on eight": (flooder, 8),
            "wrong tokens": ("wrong", 1),
        }
        async with RawClient(server.address, other) as client:
            call = client.unary(messages.TASKS + "CreateTask")
            for _ in range(setting.repetitions):
                quiet.append(await _times(call))
                for kind, (token, connections) in floods.items():
                    with _flood(server.address, token, connections):
                        found.setdefault(kind, []).append(await _times(call))
    return [row for kind, times in found.items() for row in _rows(f"CreateTask beside {FLOOD:,} {kind}", times, quiet)]


def _rows(name: str, times: Sequence[Times], quiet: Sequence[Times]) -> list[Row]:
    """The factor against the quiet server, and what does not depend on the machine: whose calls came before."""
    return [
        Row(
            name=f"{name}, p50",
            unit="ms",
            figures=[time.p50 for time in times],
            floors=[time.p50 for time in quiet],
            goal=FACTOR,
            note="floor: nobody else calls",
        ),
        Row(
            name=f"{name}, p99",
            unit="ms",
            figures=[time.p99 for time in times],
            floors=[time.p99 for time in quiet],
        ),
        Row(
            name=f"{name}, calls done meanwhile",
            unit="calls",
            figures=[time.others for time in times],
            compared=[time.others for time in times],
            compared_unit="calls",
            goal=LINES,
        ),
    ]


@contextmanager
def _flood(address: str, token: str, connections: int) -> Iterator[None]:
    """Calls in flight from another process, from the time it says so until it is ended."""
    command = [sys.executable, "-m", "tests.bench.flooding", address, token, str(connections)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), "the flood did not begin"
            yield
        finally:
            process.kill()


async def _pour(address: str, token: str, connections: str) -> None:
    """Keeps calls open for ever. What becomes of them is no matter."""
    request = messages.create()
    async with AsyncExitStack() as stack:
        calls = []
        for _ in range(int(connections)):
            client = await stack.enter_async_context(RawClient(address, token))
            calls.append(client.unary(messages.TASKS + "CreateTask"))

        async def repeat(call: Call) -> None:
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await call(request)

        pouring = [asyncio.create_task(repeat(calls[number % len(calls)])) for number in range(FLOOD)]
        await asyncio.sleep(_WARM_UP)
        print("pouring", flush=True)
        await asyncio.gather(*pouring)


async def _times(call: Call) -> Times:
    """Single calls, one after the other. Each create moves the revision by one."""
    request, taken, revisions = messages.create(), [], []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        answer = await call(request)
        taken.append((time.perf_counter() - begin) * 1e3)
        revisions.append(CreateTaskResponse.FromString(answer).revision)
    between = [after - before - 1 for before, after in pairwise(revisions)]
    return Times(percentile(taken, 50), percentile(taken, 99), percentile(between, 50))


async def _token(server: Target, principal: str) -> str:
    async with RawClient(server.address, server.token) as client:
        request = CreateTokenRequest(principal=principal, scopes=[SCOPE_READ, SCOPE_WRITE])
        data = await client.unary(TOKENS + "CreateToken")(request.SerializeToString())
    return CreateTokenResponse.FromString(data).secret


if __name__ == "__main__":
    asyncio.run(_pour(*sys.argv[1:]))
