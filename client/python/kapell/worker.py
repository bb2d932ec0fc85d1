"""A worker in Python: functions that carry out tasks, and the process that runs them.

    worker = Worker(slots=4)

    @worker.task("summarise")
    async def summarise(ctx: TaskContext, task: Task) -> object:
        ctx.progress(0.5, message="reading")
        return {"words": len(task.prompt.split())}

    worker.run_forever()

What a handler returns is the task's result, any JSON value; TaskFailed ends the attempt as failed,
and so does every other exception, with the reason EXCEPTION and its traceback in the task's log.
RateLimited hands the task back until its provider takes calls again; that costs no attempt.
Handlers share one event loop with the heartbeat: work that blocks belongs into `asyncio.to_thread`.
The worker survives restarts of the server: handlers run on, and their results are sent when it is back.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from kapell._worker.arguments import UnusableHints, Wanted, filled, wanted_by
from kapell._worker.attempts import Handler, Run
from kapell._worker.context import TaskContext
from kapell._worker.crew import Crew
from kapell._worker.outcome import RateLimited, TaskFailed
from kapell._worker.session import new_instance_key
from kapell.discovery import Endpoint, discover
from kapell.errors import InvalidRequest
from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import RegisterWorkerRequest

__all__ = ["RateLimited", "TaskContext", "TaskFailed", "Worker"]

DEFAULT_SHUTDOWN_GRACE = 30.0
MAX_SLOTS = 256

TaskFunction = Callable[..., Awaitable[object]]
_F = TypeVar("_F", bound=TaskFunction)


class Worker:
    """Serves tasks of the types that have a handler, `slots` at a time, until it is stopped.

    Without `server` it is KAPELL_ADDRESS or the server that runs on `data_dir`; without `token` it
    is KAPELL_TOKEN or, for a server on this machine, the admin token in `data_dir`. After `stop`,
    running handlers may go on for `shutdown_grace` seconds (None: as long as they take); then they
    are cancelled, and the server gives their tasks to somebody else.
    """

    def __init__(
        self,
        server: str | Endpoint | None = None,
        *,
        token: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        slots: int = 1,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        shutdown_grace: float | None = DEFAULT_SHUTDOWN_GRACE,
    ) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise _unusable(f"slots is {slots} - a worker has 1 to {MAX_SLOTS} of them")
        self._server = server
        self._token = token
        self._data_dir = data_dir
        self._slots = slots
        self._display_name = display_name
        self._labels = dict(labels or {})
        self._shutdown_grace = shutdown_grace
        self._handlers: dict[str, Handler] = {}
        self._instance_key = new_instance_key()
        self._crew: Crew | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def handlers(self) -> dict[str, Handler]:
        """The handlers by the type of task they are for."""
        return dict(self._handlers)

    @property
    def agent_id(self) -> str:
        """The agent this worker is; empty before it is registered."""
        return self._crew.session.agent_id if self._crew is not None else ""

    def task(self, agent_type: str, *, cancel_grace: float = 0.0) -> Callable[[_F], _F]:
        """Makes a coroutine function the handler of one type of task; a decorator.

        When its task is cancelled, `ctx.cancelled` is set, and `cancel_grace` seconds later the
        handler is cancelled as any coroutine is. A lost lease cancels at once. Parameters after context
        and task, with type hints, are filled from the task's input; see `kapell._worker.arguments`.
        """

        def decorate(function: _F) -> _F:
            is_coroutine: bool = inspect.iscoroutinefunction(function)
            name = getattr(function, "__name__", repr(function))
            if not is_coroutine:
                raise _unusable(
                    f"{name} is not a coroutine function - write `async def`, and put what blocks "
                    "into asyncio.to_thread"
                )
            try:
                wanted = wanted_by(function)
                inspect.signature(function).bind(None, None, **{one.name: None for one in wanted})
            except UnusableHints as error:
                raise _unusable(f"{name} cannot be a handler: {error}") from None
            except TypeError:
                raise _unusable(
                    f"{name} cannot be called with a context and a task - write `async def {name}(ctx, task)`"
                ) from None
            if agent_type in self._handlers:
                raise _unusable(f"{agent_type!r} has a handler already - one worker has one for each type")
            self._handlers[agent_type] = Handler(_with_arguments(function, name, wanted), cancel_grace)
            return function

        return decorate

    async def run(self) -> None:
        """Registers and works until `stop`; waits for a server that is away.

        Raises KapellError when there is no server to be found or when it refuses this worker. When
        cancelled, so are the handlers, and the server is told.
        """
        if self._crew is not None:
            raise _unusable("this worker runs already, or has run - make a new one")
        if not self._handlers:
            raise _unusable("the worker has no handler - decorate a function with @worker.task(...)")
        server = self._server
        endpoint = (
            server if isinstance(server, Endpoint) else discover(server, token=self._token, directory=self._data_dir)
        )
        registration = RegisterWorkerRequest(
            instance_key=self._instance_key,
            agent_types=sorted(self._handlers),
            slots=self._slots,
            display_name=self._display_name,
            labels=self._labels,
        )
        self._loop = asyncio.get_running_loop()
        self._crew = Crew(endpoint, registration, self._find_handler, grace=self._shutdown_grace)
        await self._crew.run()

    def run_forever(self) -> None:
        """As `run`, for a program that does nothing else.

        SIGINT and SIGTERM stop it; a second one stops it at once.
        """
        asyncio.run(self._run_until_signalled())

    def stop(self, reason: str = "stopped", *, at_once: bool = False) -> None:
        """Begins the end of `run`; may be called from any thread. `at_once` gives handlers no grace."""
        crew, loop = self._crew, self._loop
        if crew is not None and loop is not None:
            loop.call_soon_threadsafe(lambda: crew.stop(reason, at_once=at_once))

    def _find_handler(self, task: Task) -> Handler | None:
        return self._handlers.get(task.agent_type)

    async def _run_until_signalled(self) -> None:
        signals = 0

        def stop(name: str) -> None:
            nonlocal signals
            signals += 1
            self.stop(f"got {name}", at_once=signals > 1)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number.name)
        await self.run()


def _with_arguments(function: TaskFunction, name: str, wanted: list[Wanted]) -> Run:
    if not wanted:
        return function

    async def run(context: TaskContext, task: Task) -> object:
        return await function(context, task, **filled(wanted, context.input, name))

    return run


def _unusable(text: str) -> InvalidRequest:
    return InvalidRequest(text, reason="ARGUMENT_INVALID")
