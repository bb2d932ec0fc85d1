"""Workers that the python runtime loads in tests; found by its path, not imported by name."""

from __future__ import annotations

import asyncio

from kapell import Worker
from kapell.v1.task_pb2 import Task
from kapell.worker import TaskContext

answers, hangs, forecasts = Worker(), Worker(), Worker()
graceful = Worker()


@answers.task("played")
async def answer(ctx: TaskContext, task: Task) -> object:
    return task.prompt


@hangs.task("played")
async def hang(ctx: TaskContext, task: Task) -> object:
    ctx.log("up")
    return await asyncio.Event().wait()


@graceful.task("played", cancel_grace=20)
async def tidy_up(ctx: TaskContext, task: Task) -> object:
    ctx.log("up")
    await ctx.cancelled.wait()
    return "tidied"


@forecasts.task("forecast")
async def forecast(ctx: TaskContext, task: Task, city: str, days: int = 3) -> object:
    return f"{city} {days}"
