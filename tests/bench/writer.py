"""Writes beside a measurement, in a process of its own: `python -m tests.bench.writer RATE SECONDS`.

The server is the one of KAPELL_ADDRESS and KAPELL_TOKEN. With a rate it creates tasks at fixed
times, else it keeps 64 calls open. Its last line is JSON: calls a second and the milliseconds of
p50 and p99.
"""

from __future__ import annotations

import json
import os
import sys
import time

import uvloop

from tests.bench import messages
from tests.bench.load import RawClient, at_rate, in_flight, same


async def write(address: str, token: str, rate: float, seconds: float) -> None:
    """Creates tasks and prints what that took."""
    requests = messages.creates_with_ids(f"writer-{os.getpid()}-{time.time_ns()}")
    async with RawClient(address, token) as client:
        call = client.unary(messages.TASKS + "CreateTask")
        if rate:
            load = await at_rate(call, requests, rate=rate, seconds=seconds)
        else:
            load = await in_flight(call, same(messages.create()), width=64, seconds=seconds)
    found = {"rate": load.rate, "p50_ms": load.percentile(50) * 1e3, "p99_ms": load.percentile(99) * 1e3}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    # Threads of grpc outlive its channel for a moment; ending the interpreter meanwhile can crash.
    os._exit(0)


if __name__ == "__main__":
    rate, seconds = sys.argv[1:]
    uvloop.run(write(os.environ["KAPELL_ADDRESS"], os.environ["KAPELL_TOKEN"], float(rate), float(seconds)))
