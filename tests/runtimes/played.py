"""A worker that plays a script of `casts` in Python."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from kapell import Worker
from kapell.v1.task_pb2 import Task
from kapell.worker import TaskContext, TaskFailed


def worker_of(steps: Sequence[list[Any]]) -> Worker:
    """A worker for "played" that does these steps; what it has said is its result."""
    worker = Worker()

    @worker.task("played")
    async def play(ctx: TaskContext, task: Task) -> object:
        said: list[str] = []
        for name, *arguments in steps:
            match name:
                case "say":
                    await ctx.budget_room()
                    ctx.log(arguments[0])
                    said.append(arguments[0])
                case "progress":
                    ctx.progress(arguments[0] / 100, arguments[1])
                case "usage":
                    ctx.usage(cost=arguments[0], record_id="one")
                case "fail":
                    raise TaskFailed("WENT_WRONG", "it went wrong")
                case "hang":
                    ctx.log("up")
                    await asyncio.Event().wait()
                case _:
                    raise AssertionError(f"{name} is for programs")
        return "\n".join(said)

    return worker
