"""The python runtime: handlers of a `kapell.Worker`, in the host's own process.

The module is imported once, when the host starts; what is wrong with it ends the host with words. Handlers get what
they get in a worker of their own, and end the same way; see `kapell.worker`. They share the host's
event loop with its heartbeat, so what blocks belongs into `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from importlib import import_module
from pathlib import Path
from typing import cast

from kapell._worker.attempts import Handler
from kapell._worker.context import TaskContext
from kapell._worker.outcome import TaskFailed
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import AgentSpec
from kapell.v1.task_pb2 import Task
from kapell.worker import Worker


def build(spec: AgentSpec, *, agent_id: str, directory: Path) -> Python:
    """The runtime of a spec. Raises ValueError where its app is not there, or serves other types than the spec says."""
    handlers = _load(spec.python.app, spec.python.path).handlers
    if missing := sorted(set(spec.agent_types) - handlers.keys()):
        raise ValueError(
            f"{spec.python.app} has no handler for {', '.join(missing)}, which the profile's agent_types name; "
            f"it has: {', '.join(sorted(handlers)) or 'none'}"
        )
    if more := sorted(handlers.keys() - set(spec.agent_types)):
        raise ValueError(
            f"{spec.python.app} has handlers that the profile's agent_types leave out: {', '.join(more)} - "
            "name them, or they never run"
        )
    return Python(handlers)


class Python:
    """Runs the handlers of an app."""

    def __init__(self, handlers: dict[str, Handler]) -> None:
        self._handlers = handlers

    async def run(self, attempt: Attempt, task: Task) -> object:
        """Runs the handler of the task's type; see Runtime.run. It has its grace when the task is cancelled."""
        handler = self._handlers[task.agent_type]
        # What a host gives a runtime is a handler's context, of which the contract of runtimes is a part.
        work = asyncio.ensure_future(handler.run(cast(TaskContext, attempt), task))
        stop = asyncio.create_task(_stop(work, handler, attempt), name=f"cancel of {task.task_id}")
        try:
            return await work
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if not attempt.cancelled.is_set() or (current is not None and current.cancelling()):
                raise
            raise TaskFailed("CANCELLED", "the work was stopped because the task was cancelled") from None
        finally:
            stop.cancel()

    async def close(self) -> None:
        """Nothing is held."""


async def _stop(work: asyncio.Future[object], handler: Handler, attempt: Attempt) -> None:
    """Cancels the handler when it is to stop: at once, or after its grace."""
    await attempt.cancelled.wait()
    if handler.cancel_grace and not attempt.lease_lost.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(attempt.lease_lost.wait(), handler.cancel_grace)
    work.cancel()


def _load(app: str, path: str) -> Worker:
    module_name, _, name = app.partition(":")
    if path and path not in sys.path:
        sys.path.insert(0, path)
    try:
        module = import_module(module_name)
    except Exception as error:
        where = f" (looked for in {path} first)" if path else ""
        raise ValueError(f"{module_name} cannot be imported{where}: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not isinstance(found, Worker):
        what = "is not there" if found is None else f"is a {type(found).__name__}"
        raise ValueError(f"{name} of {module_name} {what} - it must be a kapell.Worker")
    return found
