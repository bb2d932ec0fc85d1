"""Clients of a storm: they create, change, cancel, retry, delete and repeat themselves.

Every request has a request_id and is repeated until it is answered, so each effect must come
exactly once (D3); but "gamblers" send a batch once and never ask again, so that it may be there or
not, but never in part (D2).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from kapell.errors import KapellError
from kapell.v1 import task_pb2
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED, TaskSpec, TaskState

from tests.crash.journal import Journal
from tests.crash.peer import Peer
from tests.crash.watchers import FINAL, Standing

AGENT_TYPE = "stormy"
# Creating waits while more tasks than this are open, so that workers stay in step.
MOST_OPEN = 120
BATCH = 7
LIVE = TaskState.values()[1:5]
GIVEN_UP = (TASK_STATE_FAILED, TASK_STATE_CANCELLED)

_VERBS = {
    "create": "CreateTask",
    "batch": "BatchCreateTasks",
    "update": "UpdateTask",
    "cancel": "CancelTask",
    "retry": "RetryTask",
    "delete": "DeleteTask",
}


class Creator:
    """One client; sequential, so its journal entries are in its own order."""

    def __init__(self, name: str, peer: Peer, journal: Journal, standing: Standing, rng: random.Random) -> None:
        self.name = name
        self.gambles: dict[str, int] = {}
        self._peer = peer
        self._journal = journal
        self._standing = standing
        self._rng = rng
        self._numbers = itertools.count(1)
        self._answered: list[tuple[str, Message, Message]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Goes on until asked to stop; ends with its last request answered."""
        acts: dict[Callable[[], Awaitable[None]], int] = {
            self._create: 10,
            self._create_batch: 2,
            self._gamble: 1,
            self._update: 1,
            self._cancel: 2,
            self._retry: 1,
            self._delete: 1,
            self._repeat: 2,
        }
        while not stop.is_set():
            await self._standing.until(lambda: len(self._standing.open) < MOST_OPEN or stop.is_set())
            [act] = self._rng.choices(list(acts), weights=list(acts.values()))
            await act()

    async def _create(self) -> None:
        request_id = self._request_id()
        spec = self._spec(request_id)
        if self._rng.random() < 0.3:
            spec.task_id = f"task_{self.name}-{next(self._numbers)}"
        await self._ask("create", task_pb2.CreateTaskRequest(task=spec, request_id=request_id))

    async def _create_batch(self) -> None:
        request_id = self._request_id()
        specs = [self._spec(request_id) for _ in range(BATCH)]
        await self._ask("batch", task_pb2.BatchCreateTasksRequest(tasks=specs, request_id=request_id))

    async def _gamble(self) -> None:
        """One try, whatever comes of it."""
        mark = self._request_id()
        self.gambles[mark] = BATCH
        request = task_pb2.BatchCreateTasksRequest(tasks=[self._spec(mark) for _ in range(BATCH)])
        try:
            await self._peer.ask_once("gamble", self._peer.tasks.BatchCreateTasks, request)
        except KapellError as error:
            assert not error.from_server or error.code == "UNAVAILABLE", error

    async def _update(self) -> None:
        task_id = self._some_task(LIVE)
        if task_id:
            change = task_pb2.Task(task_id=task_id, priority=self._rng.randint(0, 1000))
            await self._ask(
                "update",
                task_pb2.UpdateTaskRequest(
                    task=change, update_mask=FieldMask(paths=["priority"]), request_id=self._request_id()
                ),
            )

    async def _cancel(self) -> None:
        task_id = self._some_task(LIVE)
        if task_id:
            await self._ask("cancel", task_pb2.CancelTaskRequest(task_id=task_id, request_id=self._request_id()))

    async def _retry(self) -> None:
        task_id = self._some_task(GIVEN_UP)
        if task_id:
            await self._ask("retry", task_pb2.RetryTaskRequest(task_id=task_id, request_id=self._request_id()))

    async def _delete(self) -> None:
        task_id = self._some_task(FINAL)
        if task_id:
            await self._ask("delete", task_pb2.DeleteTaskRequest(task_id=task_id, request_id=self._request_id()))

    async def _repeat(self) -> None:
        """The very same request again, perhaps to a server that has been killed since."""
        if self._answered:
            kind, request, first = self._rng.choice(self._answered)
            await self.repeat(kind, request, first)

    async def repeat(self, kind: str, request: Any, first: Any) -> None:
        """The answer must be the first one, and say so."""
        again = await self._peer.ask("repeat", getattr(self._peer.tasks, _VERBS[kind]), request)
        if not again.replayed:
            self._journal.broken.append(f"D3: {request.request_id} was carried out again: {again}")
        if _without_mark(again) != _without_mark(first):
            self._journal.broken.append(f"D3: {request.request_id} got {again} instead of {first}")

    async def repeat_all(self, most: int) -> int:
        """Repeats up to `most` requests, chosen by chance; how many."""
        chosen = self._rng.sample(self._answered, min(most, len(self._answered)))
        for kind, request, first in chosen:
            await self.repeat(kind, request, first)
        return len(chosen)

    async def reuse_a_request_id(self) -> str:
        """The reason of the refusal when a used request_id comes with another body."""
        request = task_pb2.CreateTaskRequest(task=TaskSpec(agent_type=AGENT_TYPE, prompt="another body"))
        request.request_id = next(request.request_id for kind, request, _ in self._answered if kind == "create")  # type: ignore[attr-defined]
        try:
            await self._peer.ask("reuse", self._peer.tasks.CreateTask, request)
        except KapellError as error:
            return error.reason
        return "none"

    async def _ask(self, kind: str, request: Any) -> None:
        try:
            response = await self._peer.ask(kind, getattr(self._peer.tasks, _VERBS[kind]), request)
        except KapellError as error:
            # Somebody else was first: the task has moved on, or is gone.
            if error.reason not in ("TASK_STATE_CONFLICT", "TASK_NOT_FOUND"):
                raise
            return
        self._answered.append((kind, request, response))

    def _spec(self, mark: str) -> TaskSpec:
        rng = self._rng
        spec = TaskSpec(
            agent_type=AGENT_TYPE,
            prompt=f"{self.name} {mark} {'x' * rng.randint(0, 400)}",
            priority=rng.randint(0, 1000),
            labels={"asked-by": mark},
        )
        spec.retry_policy.max_attempts = rng.randint(2, 5)
        spec.retry_policy.initial_backoff.FromMilliseconds(rng.randint(0, 60))
        spec.retry_policy.max_backoff.FromMilliseconds(100)
        if rng.random() < 0.1:
            spec.not_before_time.FromMilliseconds(int(time.time() * 1000) + rng.randint(0, 800))
        return spec

    def _some_task(self, states: Collection[int]) -> str:
        """One of the latest tasks that are in one of the states, as far as is known."""
        known = self._standing.tasks
        latest = itertools.islice(reversed(known), 200)
        fitting = [task_id for task_id in latest if known[task_id].state in states]
        return self._rng.choice(fitting) if fitting else ""

    def _request_id(self) -> str:
        return f"{self.name}/{next(self._numbers)}"


def _without_mark(response: Any) -> bytes:
    copy = type(response)()
    copy.CopyFrom(response)
    copy.replayed = False
    return bytes(copy.SerializeToString(deterministic=True))
