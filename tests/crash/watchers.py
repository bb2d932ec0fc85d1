"""Watchers that resume through every kill, and keep what they saw for the comparison with the log.

`LogWatcher` and `SnapshotWatcher` speak the bare protocol, `SdkWatcher` is `Client.watch`. None
of them may see a revision twice, skip one, or see an event that the log does not hold afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import grpc
from kapell import Client
from kapell.v1.agent_pb2 import Agent
from kapell.v1.event_pb2 import Event, EventFilter, WatchRequest
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_SUCCEEDED,
    Task,
)
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_DELETED, EventKind, WatchOptions

from tests.crash.peer import Peer
from tests.support.watch_checker import WatchChecker

FINAL = frozenset({TASK_STATE_SUCCEEDED, TASK_STATE_FAILED, TASK_STATE_CANCELLED})


def digest(event: Event) -> bytes:
    """What two copies of the same event have in common."""
    return hashlib.blake2b(event.SerializeToString(deterministic=True), digest_size=16).digest()


class Standing:
    """How all tasks and agents stand, as far as a watcher has heard. Others wait here for what they need."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.agents: dict[str, Agent] = {}
        self.events: list[Event] = []
        self.open: set[str] = set()
        self.revision = 0
        self._changed = asyncio.Condition()

    async def take(self, event: Event) -> None:
        """The next event of the log."""
        self.revision = event.revision
        self.events.append(event)
        if event.HasField("agent"):
            self.agents[event.agent.agent_id] = event.agent
        if event.HasField("task"):
            task_id = event.task.task_id
            self.tasks[task_id] = event.task
            if event.task.state in FINAL:
                self.open.discard(task_id)
            else:
                self.open.add(task_id)
            if event.kind == EVENT_KIND_TASK_DELETED:
                del self.tasks[task_id]
        await self.look_again()

    async def look_again(self) -> None:
        """Lets everybody who waits look at their condition."""
        async with self._changed:
            self._changed.notify_all()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; looked at after every event."""
        async with self._changed:
            await self._changed.wait_for(condition)


class LogWatcher:
    """Follows everything from the first event on, resuming after the last one it took."""

    def __init__(self, peer: Peer, standing: Standing | None = None) -> None:
        self.checker = WatchChecker()
        self.seen: dict[int, bytes] = {}
        self.streams = 0
        self._peer = peer
        self._standing = standing
        self._log_id = ""
        self.begun = asyncio.Event()
        self._moved = asyncio.Condition()

    async def until(self, revision: int) -> None:
        """Returns when everything up to `revision` was taken."""
        async with self._moved:
            await self._moved.wait_for(lambda: (self.checker.cursor or 0) >= revision)

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            self.checker.begin_stream()
            self.streams += 1
            options = WatchOptions(start_after_revision=self.checker.cursor or 0, log_id=self._log_id)
            await self._follow(WatchRequest(options=options))

    async def _follow(self, request: WatchRequest) -> None:
        stream = self._peer.events.Watch(request, metadata=self._peer.metadata, wait_for_ready=True)
        try:
            async for message in stream:
                self.checker.take(message)
                if message.HasField("bookmark"):
                    self._log_id = message.bookmark.log_id
                    self.begun.set()
                for event in message.events:
                    self.seen[event.revision] = digest(event)
                    if self._standing is not None:
                        await self._standing.take(event)
                async with self._moved:
                    self._moved.notify_all()
        except grpc.aio.AioRpcError as error:
            assert _is_loss(error), f"a resumed watch was refused: {error.details()}"


class SnapshotWatcher:
    """Never remembers: takes the whole state anew after every loss, then what changes (W2)."""

    def __init__(self, peer: Peer) -> None:
        self.checker = WatchChecker()
        self.resources: dict[str, Task | Agent] = {}
        self.streams = 0
        self._complete = False
        self._moved = asyncio.Condition()
        self._peer = peer

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            self.checker.begin_stream(snapshot=True)
            self.resources.clear()
            self.streams += 1
            self._complete = False
            request = WatchRequest(options=WatchOptions(send_initial_state=True))
            stream = self._peer.events.Watch(request, metadata=self._peer.metadata, wait_for_ready=True)
            try:
                async for message in stream:
                    self.checker.take(message)
                    self._apply(message)
                    async with self._moved:
                        self._moved.notify_all()
            except grpc.aio.AioRpcError as error:
                assert _is_loss(error), f"a watch was refused: {error.details()}"

    async def until(self, revision: int) -> None:
        """Returns when its snapshot is complete and everything up to `revision` was taken."""
        async with self._moved:
            await self._moved.wait_for(lambda: self._complete and (self.checker.cursor or 0) >= revision)

    def _apply(self, message: Any) -> None:
        self._complete |= message.bookmark.snapshot_complete
        for event in message.events:
            if event.WhichOneof("resource") not in ("task", "agent"):
                continue  # what came with Kapell and what stays: nobody changes it here
            resource = event.task if event.HasField("task") else event.agent
            key = event.task.task_id if event.HasField("task") else event.agent.agent_id
            if event.kind == EVENT_KIND_TASK_DELETED:
                self.resources.pop(key, None)
            else:
                self.resources[key] = resource


class SdkWatcher:
    """`client.watch`, with or without a choice of kinds."""

    def __init__(self, client: Client, *kinds: EventKind.ValueType) -> None:
        self.kinds = kinds
        self.seen: dict[int, bytes] = {}
        self.revisions: list[int] = []
        self.watch = client.watch(kinds=kinds, connect_timeout=None)
        self._moved = asyncio.Condition()

    async def run(self) -> None:
        """Follows until closed."""
        async for event in self.watch:
            self.revisions.append(event.revision)
            self.seen[event.revision] = digest(event)
            async with self._moved:
                self._moved.notify_all()

    async def until(self, revision: int) -> None:
        """Returns when the event of the revision, which must match, has come."""
        async with self._moved:
            await self._moved.wait_for(lambda: revision in self.seen)

    async def has(self, count: int) -> None:
        """Returns when so many events have come."""
        async with self._moved:
            await self._moved.wait_for(lambda: len(self.revisions) >= count)

    def wants(self, event: Event) -> bool:
        """Whether the filter lets the event through."""
        return not self.kinds or event.kind in EventFilter(kinds=self.kinds).kinds


def _is_loss(error: grpc.aio.AioRpcError) -> bool:
    """Whether the stream was cut, rather than refused."""
    return error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
