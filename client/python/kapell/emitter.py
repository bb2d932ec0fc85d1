"""Events as callbacks: `client.on("task.completed", handler)`.

One watch serves all handlers, filtered to the kinds that somebody asked for; when a new kind is
asked for it is opened again at its cursor, so no handler misses anything and each event reaches
a handler once. Handlers run one after the other, in the order of events; a slow one delays the
others but loses nothing. What a handler raises goes to the "error" handlers, or else to the
event loop's exception handler, and the next event follows.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kapell.errors import KapellError, RevisionCompacted
from kapell.messages import event_kind, event_name
from kapell.reconnect import Reconnect

if TYPE_CHECKING:
    from kapell.events import Events
    from kapell.v1.event_pb2 import Event
    from kapell.watch import Watch

Handler = Callable[[Any], Awaitable[None] | None]
"""Takes an Event; "error" handlers take a HandlerFailure or a KapellError."""

ERROR = "error"
EVERYTHING = "*"


class HandlerFailure(Exception):
    """A handler raised; the exception is its `__cause__`."""

    def __init__(self, name: str, handler: Handler, event: Event) -> None:
        super().__init__(f"the handler of {name!r} failed on revision {event.revision}")
        self.name = name
        self.handler = handler
        self.event = event


@dataclass(slots=True)
class _Subscription:
    name: str
    handler: Handler
    since: int | None = None
    """Events after this revision are for it; None until the watch covers it."""

    def wants(self, event: Event, name: str) -> bool:
        return self.name in (name, EVERYTHING) and self.since is not None and event.revision > self.since


class Emitter:
    """Owns the handlers and the task that feeds them. `start()` once a loop runs; `close()` at the end."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._subscriptions: list[_Subscription] = []
        self._error_handlers: list[Handler] = []
        self._watch: Watch[Event] | None = None
        self._task: asyncio.Task[None] | None = None
        self._covered = asyncio.Event()
        self._failure: KapellError | None = None
        self._generation = 0
        self._cursor: int | None = None
        self._log_id = ""

    def on(self, name: str, handler: Handler) -> None:
        """Calls `handler` with each event of this name from now on; "*" is every event, "error" failures.

        Raises InvalidRequest for a name that no event has. The same handler twice is called twice.
        """
        if name == ERROR:
            self._error_handlers.append(handler)
            return
        if name != EVERYTHING:
            name = event_name(event_kind(name))
        self._subscriptions.append(_Subscription(name, handler))
        self._changed()

    def off(self, name: str, handler: Handler) -> None:
        """Takes back one `on`; what was never on is ignored."""
        if name == ERROR:
            if handler in self._error_handlers:
                self._error_handlers.remove(handler)
            return
        for subscription in self._subscriptions:
            if subscription.name == name.strip().lower() and subscription.handler == handler:
                self._subscriptions.remove(subscription)
                self._changed()
                return

    def start(self) -> None:
        """Begins to listen, if there is a handler; does nothing when it listens already."""
        if self._subscriptions and (self._task is None or self._task.done()):
            self._failure = None
            self._covered.clear()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="kapell-emitter")

    async def listening(self) -> None:
        """Returns when every handler gets all that happens from now on. Raises what stopped the watch."""
        self.start()
        if self._subscriptions:
            await self._covered.wait()
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stops; a handler that runs is cancelled."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _changed(self) -> None:
        """Has the watch opened again with the kinds that are wanted now."""
        self._generation += 1
        self._covered.clear()
        if self._watch is not None:
            self._watch.close()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self.start()

    async def _run(self) -> None:
        reconnect = Reconnect(connect_timeout=None)
        while self._subscriptions:
            try:
                await self._follow()
                reconnect.succeeded()
            except RevisionCompacted as error:
                self._begin_anew()
                await self._report(error)
            except KapellError as error:
                pause = reconnect.pause_after(error)
                if pause is None:
                    self._failure = error
                    self._covered.set()
                    await self._report(error)
                    return
                await asyncio.sleep(pause)

    def _begin_anew(self) -> None:
        """Forgets every revision: what was missed is lost, and another log counts from elsewhere."""
        self._covered.clear()
        self._cursor = None
        for subscription in self._subscriptions:
            subscription.since = None

    async def _follow(self) -> None:
        """Dispatches until the handlers change, then leaves the cursor where the next watch goes on."""
        generation = self._generation
        subscriptions = list(self._subscriptions)
        info = await self._events.log_info()
        if self._cursor is None:
            self._cursor, self._log_id = info.revision, info.log_id
        watch = self._watch = self._events.watch(
            kinds=_kinds(subscriptions),
            after_revision=self._cursor,
            log_id=self._log_id,
            connect_timeout=None,
        )
        try:
            await watch.ready()
            for subscription in subscriptions:
                if subscription.since is None:
                    subscription.since = info.revision
            if generation != self._generation:
                return
            self._covered.set()
            async for event in watch:
                self._cursor = event.revision
                await self._dispatch(event)
            self._cursor = watch.revision
        finally:
            self._watch = None
            watch.close()

    async def _dispatch(self, event: Event) -> None:
        name = event_name(event.kind)
        for subscription in list(self._subscriptions):
            if not subscription.wants(event, name):
                continue
            try:
                result = subscription.handler(event)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                failure = HandlerFailure(name, subscription.handler, event)
                failure.__cause__ = error
                await self._report(failure)

    async def _report(self, failure: Exception) -> None:
        """Tells the "error" handlers, or the event loop's exception handler where there is none."""
        context: dict[str, Any] = {"message": str(failure), "exception": failure}
        loop = asyncio.get_running_loop()
        if not self._error_handlers:
            loop.call_exception_handler(context)
        for handler in list(self._error_handlers):
            try:
                result = handler(failure)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:
                loop.call_exception_handler({"message": 'an "error" handler failed', "exception": error})


def _kinds(subscriptions: list[_Subscription]) -> list[str]:
    """The kinds to watch; none stands for all."""
    names = {subscription.name for subscription in subscriptions}
    return [] if EVERYTHING in names else sorted(names)
