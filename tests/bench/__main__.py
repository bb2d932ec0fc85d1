"""`make bench`: speed as ratios against floors that are measured in the same run.

The server is pinned to one core and the load to another; floor and figure take turns, and every
ratio is given with its spread. Figures without ratios say nothing on a shared machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from tests.bench import (
    agents,
    budgeting,
    creating,
    flooding,
    ledger,
    locking,
    locks_dispatch,
    parking,
    queueing,
    reading,
    retaining,
    starting,
    templating,
    watching,
    working,
)
from tests.bench.place import can_pin, floor, pin_this_process
from tests.bench.result import Row, table
from tests.bench.suite import BENCHMARKS, LONG, Setting

MODULES = (
    creating,
    working,
    queueing,
    locking,
    parking,
    locks_dispatch,
    budgeting,
    parking,
    watching,
    reading,
    retaining,
    templating,
    ledger,
    flooding,
    starting,
    agents,
)


def main() -> int:
    """Runs the benchmarks; 0 unless one of them could not run."""
    arguments = _arguments()
    chosen = arguments.only or [name for name in BENCHMARKS if arguments.long or name not in LONG]
    if not can_pin():
        sys.stderr.write("This machine has one core or no taskset: the ratios will mislead.\n")
    pin_this_process()
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="kapell-bench-") as directory, floor() as bare:
        setting = Setting(
            directory=Path(directory),
            floor=bare,
            repetitions=arguments.repetitions,
            seconds=arguments.seconds,
            tasks=arguments.tasks,
        )
        rows = uvloop.run(_run(chosen, setting))
    sys.stdout.write(f"\n{table(rows)}\n")
    return 0


async def _run(chosen: Sequence[str], setting: Setting) -> list[Row]:
    rows: list[Row] = []
    for name in chosen:
        begin = time.monotonic()
        found = await asyncio.wait_for(BENCHMARKS[name](setting), timeout=3600)
        rows += found
        sys.stderr.write(f"{name}: {time.monotonic() - begin:.0f} s\n{table(found)}\n")
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), help="these benchmarks only")
    parser.add_argument("--long", action="store_true", help=f"also those that take long: {', '.join(sorted(LONG))}")
    parser.add_argument("--repetitions", type=int, default=5, help="how often each is measured (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement (default 2)")
    parser.add_argument(
        "--tasks",
        type=int,
        default=1_000_000,
        help="rows of the large table; a tenth in the backlog (default 1,000,000)",
    )
    parser.add_argument("--directory", help="where data is written, to choose the disk (default: TMPDIR)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
