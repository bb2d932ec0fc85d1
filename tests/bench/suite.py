"""What every benchmark is given, and how benchmarks are found by name."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import Load, RawClient, in_flight, median, same
from tests.bench.messages import ECHO, create
from tests.bench.place import Target
from tests.bench.result import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One run of the benchmarks. `floor` is running; `directory` is on the disk that is measured."""

    directory: Path
    floor: Target
    repetitions: int = 5
    seconds: float = 2.0
    tasks: int = 1_000_000

    async def echo(self, *, width: int, seconds: float | None = None) -> Load:
        """The bare echo of a request to create a task."""
        async with RawClient(self.floor.address) as client:
            return await in_flight(client.unary(ECHO), same(create()), width=width, seconds=seconds or self.seconds)

    def raw_commit(self, count: int = 200) -> float:
        """Median seconds of a commit of one row with the sqlite3 of Python, synchronous=FULL, no server."""
        path = self.directory / "raw.db"
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS raw (id INTEGER PRIMARY KEY, data BLOB)")
        taken = []
        for _ in range(count):
            begin = time.perf_counter()
            connection.execute("BEGIN")
            connection.execute("INSERT INTO raw (data) VALUES (?)", (create(),))
            connection.execute("COMMIT")
            taken.append(time.perf_counter() - begin)
        connection.close()
        return median(taken)


Benchmark = Callable[[Setting], Awaitable[Sequence[Row]]]
BENCHMARKS: dict[str, Benchmark] = {}
LONG: set[str] = set()


def benchmark(name: str, *, long: bool = False) -> Callable[[Benchmark], Benchmark]:
    """Registers a benchmark under `name`; a long one runs only when it is asked for."""

    def register(function: Benchmark) -> Benchmark:
        BENCHMARKS[name] = function
        if long:
            LONG.add(name)
        return function

    return register
