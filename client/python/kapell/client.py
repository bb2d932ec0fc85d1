"""The asynchronous client: one connection, one face a noun, watches and callbacks.

    async with Client() as client:
        task = await client.tasks.run("shell", "echo hello")
        print(task.result.string_value)

Belongs to the event loop it is first used in. `SyncClient` is the same for code without a loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Self, TypeVar, Unpack, overload

from kapell.admin import Admin
from kapell.agents import Agents
from kapell.alerts import Alerts
from kapell.approvals import Approvals
from kapell.artifacts import Artifacts
from kapell.budgets import Budgets
from kapell.connection import DEFAULT_TIMEOUT, Connection
from kapell.discovery import Endpoint, Tls, discover
from kapell.emitter import Emitter, Handler
from kapell.events import Events, EventWatchKeywords
from kapell.locks import HeldLocks, Locks
from kapell.messages import Seconds
from kapell.queues import Limits, Queues
from kapell.schedules import Schedules
from kapell.secrets import Secrets
from kapell.tasks import Tasks
from kapell.templates import Templates
from kapell.tokens import Audit, Tokens
from kapell.usage import Prices, Usage
from kapell.v1.event_pb2 import Event
from kapell.v1.lock_pb2 import LockItem
from kapell.watch import Watch
from kapell.webhooks import Webhooks

_H = TypeVar("_H", bound=Handler)


class Client:
    """A client of one server, named by "host:port", an Endpoint or a Connection, or found by itself.

    Without `server` it is KAPELL_ADDRESS or the server that runs on `data_dir`; without `token` it
    is KAPELL_TOKEN or, for a server on this machine, the admin token in `data_dir`. `tls` says whom
    to trust and what to show, else KAPELL_TLS_CA does. `timeout` is the default of unary calls,
    seconds, retries included. Raises ServerNotFound when there is nothing to talk to; whether it
    answers shows in the first call.
    """

    def __init__(
        self,
        server: str | Endpoint | Connection | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        if not isinstance(server, Connection):
            if not isinstance(server, Endpoint):
                server = discover(server, token=token, tls=tls, directory=data_dir)
            server = Connection(server, timeout=timeout)
        self.connection = server
        self.agents = Agents(server)
        self.tasks = Tasks(server)
        self.queues = Queues(server)
        self.limits = Limits(server)
        self.secrets = Secrets(server)
        self.templates = Templates(server)
        self.artifacts = Artifacts(server)
        self.schedules = Schedules(server)
        self.budgets = Budgets(server)
        self.alerts = Alerts(server)
        self.webhooks = Webhooks(server)
        self.usage = Usage(server)
        self.prices = Prices(server)
        self.approvals = Approvals(server)
        self.locks = Locks(server)
        self.events = Events(server)
        self.admin = Admin(server)
        self.tokens = Tokens(server)
        self.audit = Audit(server)
        self._emitter = Emitter(self.events)

    def watch(self, **keywords: Unpack[EventWatchKeywords]) -> Watch[Event]:
        """Every matching change, once and in order, through lost connections and restarts.

        `kinds`, `task_ids`, `agent_ids`, `template_ids`, `schedule_ids`, `approval_ids` and `labels`
        filter. It begins now, or after
        `after_revision` (with `log_id`, to be refused by another log), or with `initial_state` by
        everything that is, as SNAPSHOT events. Where the log no longer reaches back to the cursor
        it raises RevisionCompacted, or with `on_compacted="snapshot"` calls `on_reset` and begins
        anew with what there is. `connect_timeout` bounds the search for the first connection.
        """
        return self.events.watch(**keywords)

    def lock(
        self,
        *paths: str | LockItem,
        shared: bool = False,
        timeout: Seconds | None = None,
        ttl: Seconds | None = None,
        priority: int | None = None,
        note: str = "",
    ) -> HeldLocks:
        """Locks on paths and everything below them, for the length of an `async with`; all or none.

        Waits its turn in the queue up to `timeout` (None: for ever, 0: not at all), then raises LockHeld;
        Deadlock where the wait would never end. While the block lasts the locks are renewed; where that
        fails for a `ttl` (60 s unless given) or they are taken away, `lost` is set, `check()` raises
        LockLost, and so does the end of the block. Cancelled half-way, nothing stays held.
        """
        return self.locks.lock(*paths, shared=shared, timeout=timeout, ttl=ttl, priority=priority, note=note)

    @overload
    def on(self, name: str, handler: Handler) -> Handler: ...
    @overload
    def on(self, name: str) -> Callable[[_H], _H]: ...
    def on(self, name: str, handler: Handler | None = None) -> Handler | Callable[[_H], _H]:
        """Calls `handler`, a function or a coroutine function, with each event of this name.

        Names are those of watch.proto, as in "task.completed"; "*" is every event, and "error"
        gets what handlers raise (HandlerFailure) and what stops the watch. Handlers run one at a
        time, in the order of events. Without a handler this is a decorator. Before a loop runs,
        listening begins with `async with client` or `await client.listening()`.
        """
        if handler is not None:
            self._emitter.on(name, handler)
            return handler

        def decorate(function: _H) -> _H:
            self._emitter.on(name, function)
            return function

        return decorate

    def off(self, name: str, handler: Handler) -> None:
        """Takes back one `on`; what was never on is ignored."""
        self._emitter.off(name, handler)

    async def listening(self) -> None:
        """Returns when every handler gets all that happens from now on. Raises what stopped the watch."""
        await self._emitter.listening()

    async def close(self) -> None:
        """Stops the callbacks and closes the connection; open watches end. Closing twice is fine."""
        await self._emitter.close()
        await self.connection.close()

    async def __aenter__(self) -> Self:
        self._emitter.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
