"""The same client for code without an event loop: each call blocks, streams are plain iterators.

    with SyncClient() as client:
        print(client.tasks.run("shell", "echo hello").result.string_value)

An event loop runs in a thread of its own; the faces are made from the asynchronous ones, verb by
verb, with the same arguments and errors. Callbacks run in a second thread, one at a time, so they
may use the client. May be used from several threads. Ctrl-C cancels the call that is waited for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Self, TypeVar, overload

from kapell._blocking import Face, LoopThread, blocking, streaming
from kapell._locks.blocking import SyncHeldLocks, SyncHeldSession
from kapell.admin import Admin
from kapell.agents import Agents
from kapell.alerts import Alerts
from kapell.approvals import Approvals
from kapell.artifacts import Artifacts
from kapell.budgets import Budgets
from kapell.client import Client
from kapell.connection import DEFAULT_TIMEOUT, Connection
from kapell.discovery import Endpoint, Tls
from kapell.emitter import Handler
from kapell.events import Events
from kapell.locks import Locks
from kapell.messages import Seconds
from kapell.queues import Limits, Queues
from kapell.schedules import Schedules
from kapell.secrets import Secrets
from kapell.tasks import Tasks
from kapell.templates import Templates
from kapell.tokens import Audit, Tokens
from kapell.usage import Prices, Usage
from kapell.v1.lock_pb2 import LockItem
from kapell.webhooks import Webhooks

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F")
_H = TypeVar("_H", bound=Handler)


class SyncTasks(Face[Tasks]):
    """`client.tasks`, blocking."""

    create = blocking(Tasks.create)
    create_batch = blocking(Tasks.create_batch)
    run = blocking(Tasks.run)
    get = blocking(Tasks.get)
    list = blocking(Tasks.list)
    iterate = streaming(Tasks.iterate)
    count = blocking(Tasks.count)
    update = blocking(Tasks.update)
    cancel = blocking(Tasks.cancel)
    retry = blocking(Tasks.retry)
    cancel_all = blocking(Tasks.cancel_all)
    retry_all = blocking(Tasks.retry_all)
    reprioritize_all = blocking(Tasks.reprioritize_all)
    edits = blocking(Tasks.edits)
    delete = blocking(Tasks.delete)
    tree = blocking(Tasks.tree)
    attempts = blocking(Tasks.attempts)
    explain = blocking(Tasks.explain)
    approve = blocking(Tasks.approve)
    record_merge = blocking(Tasks.record_merge)
    wait = blocking(Tasks.wait)
    watch = streaming(Tasks.watch)
    logs = streaming(Tasks.logs)


class SyncAgents(Face[Agents]):
    """`client.agents`, blocking."""

    spawn = blocking(Agents.spawn)
    get = blocking(Agents.get)
    list = blocking(Agents.list)
    iterate = streaming(Agents.iterate)
    update = blocking(Agents.update)
    terminate = blocking(Agents.terminate)
    drain = blocking(Agents.drain)
    resume = blocking(Agents.resume)
    delete = blocking(Agents.delete)
    profiles = blocking(Agents.profiles)
    watch = streaming(Agents.watch)
    logs = streaming(Agents.logs)


class SyncEvents(Face[Events]):
    """`client.events`, blocking."""

    list = blocking(Events.list)
    iterate = streaming(Events.iterate)
    log_info = blocking(Events.log_info)
    watch = streaming(Events.watch)


class SyncTemplates(Face[Templates]):
    """`client.templates`, blocking."""

    create = blocking(Templates.create)
    update = blocking(Templates.update)
    apply = blocking(Templates.apply)
    get = blocking(Templates.get)
    list = blocking(Templates.list)
    iterate = streaming(Templates.iterate)
    versions = blocking(Templates.versions)
    delete = blocking(Templates.delete)
    set_alias = blocking(Templates.set_alias)
    delete_alias = blocking(Templates.delete_alias)
    validate = blocking(Templates.validate)
    check = blocking(Templates.check)
    render = blocking(Templates.render)
    clone = blocking(Templates.clone)


class SyncQueues(Face[Queues]):
    """`client.queues`, blocking."""

    stats = blocking(Queues.stats)
    pause = blocking(Queues.pause)
    resume = blocking(Queues.resume)
    drain = blocking(Queues.drain)
    update = blocking(Queues.update)


class SyncLimits(Face[Limits]):
    """`client.limits`, blocking."""

    set = blocking(Limits.set)
    list = blocking(Limits.list)
    iterate = streaming(Limits.iterate)
    delete = blocking(Limits.delete)


class SyncSecrets(Face[Secrets]):
    """`client.secrets`, blocking."""

    set = blocking(Secrets.set)
    list = blocking(Secrets.list)
    iterate = streaming(Secrets.iterate)
    delete = blocking(Secrets.delete)
    rotate_key = blocking(Secrets.rotate_key)


class SyncArtifacts(Face[Artifacts]):
    """`client.artifacts`, blocking."""

    upload = blocking(Artifacts.upload)
    download = blocking(Artifacts.download)
    get = blocking(Artifacts.get)
    list = blocking(Artifacts.list)
    iterate = streaming(Artifacts.iterate)
    delete = blocking(Artifacts.delete)


class SyncSchedules(Face[Schedules]):
    """`client.schedules`, blocking."""

    create = blocking(Schedules.create)
    get = blocking(Schedules.get)
    list = blocking(Schedules.list)
    iterate = streaming(Schedules.iterate)
    update = blocking(Schedules.update)
    delete = blocking(Schedules.delete)
    pause = blocking(Schedules.pause)
    resume = blocking(Schedules.resume)
    trigger = blocking(Schedules.trigger)
    preview = blocking(Schedules.preview)


class SyncBudgets(Face[Budgets]):
    """`client.budgets`, blocking."""

    create = blocking(Budgets.create)
    get = blocking(Budgets.get)
    list = blocking(Budgets.list)
    iterate = streaming(Budgets.iterate)
    update = blocking(Budgets.update)
    delete = blocking(Budgets.delete)
    resume = blocking(Budgets.resume)
    reserve = blocking(Budgets.reserve)
    settle = blocking(Budgets.settle)
    release = blocking(Budgets.release)


class SyncAlerts(Face[Alerts]):
    """`client.alerts`, blocking."""

    list = blocking(Alerts.list)
    iterate = streaming(Alerts.iterate)
    acknowledge = blocking(Alerts.acknowledge)


class SyncWebhooks(Face[Webhooks]):
    """`client.webhooks`, blocking."""

    create = blocking(Webhooks.create)
    list = blocking(Webhooks.list)
    iterate = streaming(Webhooks.iterate)
    delete = blocking(Webhooks.delete)
    test = blocking(Webhooks.test)
    deliveries = blocking(Webhooks.deliveries)
    resend = blocking(Webhooks.resend)


class SyncUsage(Face[Usage]):
    """`client.usage`, blocking."""

    record = blocking(Usage.record)
    query = blocking(Usage.query)
    list = blocking(Usage.list)
    iterate = streaming(Usage.iterate)
    watch = streaming(Usage.watch)
    reprice = blocking(Usage.reprice)
    estimate = blocking(Usage.estimate)


class SyncPrices(Face[Prices]):
    """`client.prices`, blocking."""

    list = blocking(Prices.list)
    iterate = streaming(Prices.iterate)
    get = blocking(Prices.get)
    set = blocking(Prices.set)
    delete = blocking(Prices.delete)


class SyncApprovals(Face[Approvals]):
    """`client.approvals`, blocking."""

    request = blocking(Approvals.request)
    get = blocking(Approvals.get)
    get_with_precedent = blocking(Approvals.get_with_precedent)
    list = blocking(Approvals.list)
    iterate = streaming(Approvals.iterate)
    decide = blocking(Approvals.decide)
    decide_all = blocking(Approvals.decide_all)
    cancel = blocking(Approvals.cancel)
    wait = blocking(Approvals.wait)
    watch = streaming(Approvals.watch)
    watch_events = streaming(Approvals.watch_events)
    audit = blocking(Approvals.audit)
    export_audit = streaming(Approvals.export_audit)
    create_rule = blocking(Approvals.create_rule)
    list_rules = blocking(Approvals.list_rules)
    delete_rule = blocking(Approvals.delete_rule)
    preview_rule = blocking(Approvals.preview_rule)


class SyncLocks(Face[Locks]):
    """`client.locks`, blocking."""

    acquire = blocking(Locks.acquire)
    renew = blocking(Locks.renew)
    release = blocking(Locks.release)
    force_release = blocking(Locks.force_release)
    check_fence = blocking(Locks.check_fence)
    list = blocking(Locks.list)
    iterate = streaming(Locks.iterate)
    graph = blocking(Locks.graph)
    watch = streaming(Locks.watch)
    ticket = blocking(Locks.ticket)
    watch_ticket = streaming(Locks.watch_ticket)
    cancel_ticket = blocking(Locks.cancel_ticket)
    open_session = blocking(Locks.open_session)
    renew_session = blocking(Locks.renew_session)
    close_session = blocking(Locks.close_session)
    sessions = blocking(Locks.sessions)

    def session(self, display_name: str = "", *, ttl: Seconds | None = None) -> SyncHeldSession:
        """A session for the length of a `with`, renewed by the client's thread."""
        return SyncHeldSession(self._loop.run, lambda: self._face.session(display_name, ttl=ttl))


class SyncAdmin(Face[Admin]):
    """`client.admin`, blocking."""

    server_info = blocking(Admin.server_info)
    diagnostics = blocking(Admin.diagnostics)
    compact_events = blocking(Admin.compact_events)


class SyncTokens(Face[Tokens]):
    """`client.tokens`, blocking."""

    create = blocking(Tokens.create)
    list = blocking(Tokens.list)
    iterate = streaming(Tokens.iterate)
    revoke = blocking(Tokens.revoke)
    caller = blocking(Tokens.caller)


class SyncAudit(Face[Audit]):
    """`client.audit`, blocking."""

    list = blocking(Audit.list)
    iterate = streaming(Audit.iterate)


class SyncClient:
    """`Client` without a loop; takes the same arguments. Close it, or use `with`."""

    def __init__(
        self,
        server: str | Endpoint | Connection | None = None,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        client = Client(server, token=token, tls=tls, data_dir=data_dir, timeout=timeout)
        self._client = client
        self._loop = loop = LoopThread()
        self._callbacks = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kapell-callbacks")
        self._wrapped: dict[tuple[str, Handler], Handler] = {}
        self.agents = SyncAgents(loop, client.agents)
        self.tasks = SyncTasks(loop, client.tasks)
        self.queues = SyncQueues(loop, client.queues)
        self.limits = SyncLimits(loop, client.limits)
        self.secrets = SyncSecrets(loop, client.secrets)
        self.templates = SyncTemplates(loop, client.templates)
        self.artifacts = SyncArtifacts(loop, client.artifacts)
        self.schedules = SyncSchedules(loop, client.schedules)
        self.budgets = SyncBudgets(loop, client.budgets)
        self.alerts = SyncAlerts(loop, client.alerts)
        self.webhooks = SyncWebhooks(loop, client.webhooks)
        self.usage = SyncUsage(loop, client.usage)
        self.prices = SyncPrices(loop, client.prices)
        self.approvals = SyncApprovals(loop, client.approvals)
        self.locks = SyncLocks(loop, client.locks)
        self.events = SyncEvents(loop, client.events)
        self.admin = SyncAdmin(loop, client.admin)
        self.tokens = SyncTokens(loop, client.tokens)
        self.audit = SyncAudit(loop, client.audit)
        self.watch = self.events.watch
        self._closed = False

    def lock(
        self,
        *paths: str | LockItem,
        shared: bool = False,
        timeout: Seconds | None = None,
        ttl: Seconds | None = None,
        priority: int | None = None,
        note: str = "",
    ) -> SyncHeldLocks:
        """As `Client.lock`, for the length of a `with`; the client's thread renews them."""
        locks = self._client.locks
        return SyncHeldLocks(
            self._loop.run,
            lambda: locks.lock(*paths, shared=shared, timeout=timeout, ttl=ttl, priority=priority, note=note),
        )

    @overload
    def on(self, name: str, handler: Handler) -> Handler: ...
    @overload
    def on(self, name: str) -> Callable[[_H], _H]: ...
    def on(self, name: str, handler: Handler | None = None) -> Handler | Callable[[_H], _H]:
        """As `Client.on`, with plain functions; returns when the handler gets all that happens from now on."""
        if handler is not None:
            self._subscribe(name, handler)
            return handler

        def decorate(function: _H) -> _H:
            self._subscribe(name, function)
            return function

        return decorate

    def off(self, name: str, handler: Handler) -> None:
        """Takes back one `on`; what was never on is ignored."""
        wrapped = self._wrapped.pop((name, handler), None)
        if wrapped is not None:
            self._loop.call(lambda: self._client.off(name, wrapped))

    def close(self) -> None:
        """Stops the callbacks, closes the connection and ends the threads. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._loop.close(self._client.close())
        self._callbacks.shutdown(wait=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _subscribe(self, name: str, handler: Handler) -> None:
        async def in_thread(event: Any) -> None:
            await asyncio.get_running_loop().run_in_executor(self._callbacks, handler, event)

        self._wrapped[(name, handler)] = in_thread
        self._loop.call(lambda: self._client.on(name, in_thread))
        self._loop.run(self._client.listening())
