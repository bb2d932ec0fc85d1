"""Concurrency keys: of the tasks that share one, only so many run at a time.

A gate. What its limit is may change at any time, so it is looked at when a task is about to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from kapell.v1.queue_pb2 import CONCURRENCY_STRATEGY_WAIT, ConcurrencyLimit, ConcurrencyStrategy
from kapell.v1.task_pb2 import WAIT_KIND_CONCURRENCY_LIMIT, Blocker, Task

from kapell_server.domain.queueing.ready import ReadyEntry
from kapell_server.domain.queueing.starts import Starts
from kapell_server.domain.queueing.wording import NAMED, count_of, start_rate_blocker
from kapell_server.domain.times import timestamp_ns
from kapell_server.domain.transitions import TASK_RESTING

if TYPE_CHECKING:
    from kapell_server.domain.state import State

DEFAULT_MAX_RUNNING = 1
"""What a concurrency key without a limit of its own allows."""
_MANY_KEYS = 4096


class ConcurrencyKeys:
    """Who runs and who waits under which key. Names are "key/KEY"."""

    kind = "key"

    def __init__(self, state: State, starts: Starts, retry: Callable[[str], None]) -> None:
        self._state = state
        self._starts = starts
        self._retry = retry
        self._running: dict[str, dict[str, int]] = {}
        """By key, its tasks, each with the time it first joined. Not in order: an undone change puts one last."""
        self._queued: dict[str, dict[str, int]] = {}
        """The same for those that are QUEUED."""
        self._resting: dict[str, dict[str, int]] = {}
        """The same for those that have begun and are PENDING until their next attempt."""
        self._many = _MANY_KEYS

    # -- as a gate ---------------------------------------------------------------------------

    def join(self, entry: ReadyEntry) -> None:
        for key in entry.keys:
            self._state.assign(self._queued.setdefault(key, {}), entry.task_id, entry.arrival_ns or entry.queue_ns)

    def leave(self, entry: ReadyEntry) -> None:
        for key in entry.keys:
            self._state.remove(self._queued.get(key, {}), entry.task_id)

    def closed(self, entry: ReadyEntry) -> str:
        for key in entry.keys:
            if self._room(key) <= 0:
                return f"key/{key}"
        return ""

    def parked(self, entry: ReadyEntry, name: str) -> None:
        self._watch_rate(_key(name))

    def forgo(self, entry: ReadyEntry, name: str) -> None:
        for key in entry.keys:
            if name != (other := f"key/{key}"):
                self._retry(other)

    def take(self, task: Task) -> None:
        for key in task.concurrency_keys:
            self._state.assign(self._running.setdefault(key, {}), task.task_id, _arrival_ns(task))
            limit = self._state.standing.find(ConcurrencyLimit, key)
            if limit is not None and limit.HasField("start_rate"):
                self._starts.note(f"key/{key}", limit.start_rate)
                self._starts.watch(f"key/{key}", limit.start_rate)  # for those that are parked already

    def give_back(self, task: Task) -> None:
        for key in task.concurrency_keys:
            self._state.remove(self._running.setdefault(key, {}), task.task_id)
        for key in task.concurrency_keys:
            self._retry(f"key/{key}")

    def room(self, name: str) -> int:
        return self._room(_key(name))

    def blockers(self, task: Task) -> Iterator[Blocker]:
        for key in task.concurrency_keys:
            yield from self.blockers_of(key)

    def note_rest(self, previous: Task | None, task: Task) -> None:
        """A task has another state: it may begin to wait for its next attempt, or have waited for it."""
        for key in previous.concurrency_keys if previous is not None and _rests(previous) else ():
            self._state.remove(self._resting.setdefault(key, {}), task.task_id)
        for key in task.concurrency_keys if _rests(task) else ():
            self._state.assign(self._resting.setdefault(key, {}), task.task_id, _arrival_ns(task))

    # -- limits ------------------------------------------------------------------------------

    def _room(self, key: str) -> int:
        limit = self._state.standing.find(ConcurrencyLimit, key)
        room = self.max_running(key) - len(self._running.get(key, ()))
        if room > 0 and limit is not None and limit.HasField("start_rate"):
            room = min(room, self._starts.left(f"key/{key}", limit.start_rate))
        return room

    def max_running(self, key: str) -> int:
        """How many tasks of a key may run at a time."""
        limit = self._state.standing.find(ConcurrencyLimit, key)
        return limit.max_running if limit is not None and limit.HasField("max_running") else DEFAULT_MAX_RUNNING

    def strategy(self, key: str) -> ConcurrencyStrategy.ValueType:
        """What is done with tasks beyond the limit of a key."""
        limit = self._state.standing.find(ConcurrencyLimit, key)
        return limit.strategy if limit is not None else CONCURRENCY_STRATEGY_WAIT

    def reopen(self, key: str) -> None:
        """The limit of a key has changed."""
        self._retry(f"key/{key}")
        self._watch_rate(key)

    def _watch_rate(self, key: str) -> None:
        limit = self._state.standing.find(ConcurrencyLimit, key)
        if limit is not None and limit.HasField("start_rate"):
            self._starts.watch(f"key/{key}", limit.start_rate)

    # -- figures -----------------------------------------------------------------------------

    def holders(self, key: str) -> list[str]:
        """The tasks of a key that agents have, the one that was queued first first."""
        return _by_age(self._running.get(key, {}))

    def queued(self, key: str) -> list[str]:
        """The tasks of a key that are QUEUED, the one that was queued first first."""
        return _by_age(self._queued.get(key, {}))

    def begun_or_queued(self, key: str) -> list[str]:
        """The tasks of a key that agents have, that wait for their next attempt, or are QUEUED, the eldest first."""
        return _by_age({**self._running.get(key, {}), **self._resting.get(key, {}), **self._queued.get(key, {})})

    def count(self, key: str) -> tuple[int, int]:
        """How many tasks of a key agents have, and how many are QUEUED."""
        return len(self._running.get(key, ())), len(self._queued.get(key, ()))

    def blockers_of(self, key: str) -> Iterator[Blocker]:
        """Why a key lets nothing start now; nothing where it does."""
        holders = self.holders(key)
        limit = self._state.standing.find(ConcurrencyLimit, key)
        if len(holders) >= self.max_running(key):
            run = f"{count_of(self.max_running(key), 'task')} at a time"
            text = f"Concurrency key {key} lets {run} run" + (f"; {holders[0]} is first." if holders else ".")
            blocker = Blocker(kind=WAIT_KIND_CONCURRENCY_LIMIT, message=text, blocked_by=holders[:NAMED] or [key])
            if holders:
                blocker.since_time.CopyFrom(self._state.task(holders[0]).lease.start_time)
            yield blocker
        if limit is not None and limit.HasField("start_rate"):
            free_ns = self._starts.next_ns(f"key/{key}", limit.start_rate)
            if free_ns:
                what = f"Concurrency key {key} is at its limit of starts"
                yield start_rate_blocker(what, key, limit.start_rate.count, free_ns)

    # -- the start, and between batches --------------------------------------------------------

    def load_running(self, task_id: str, arrival_ns: int, keys: Iterable[str]) -> None:
        """Takes over a task that an agent has."""
        for key in keys:
            self._running.setdefault(key, {})[task_id] = arrival_ns

    def load_resting(self, task_id: str, arrival_ns: int, keys: Iterable[str]) -> None:
        """Takes over a task that waits for its next attempt."""
        for key in keys:
            self._resting.setdefault(key, {})[task_id] = arrival_ns

    def trim(self) -> bool:
        """Forgets keys without tasks, once they are many; tells whether it did."""
        if len(self._queued) <= self._many:
            return False
        for of_key in (self._queued, self._running, self._resting):
            for key in [key for key, tasks in of_key.items() if not tasks]:
                del of_key[key]
        self._many = max(_MANY_KEYS, 2 * len(self._queued))
        return True


def _rests(task: Task) -> bool:
    """Whether a task under keys has begun and waits for its next attempt."""
    return task.state in TASK_RESTING and task.HasField("first_queue_time")


def _arrival_ns(task: Task) -> int:
    return timestamp_ns(task.first_queue_time) or timestamp_ns(task.queue_time)


def _key(name: str) -> str:
    return name.partition("/")[2]


def _by_age(tasks: dict[str, int]) -> list[str]:
    return sorted(tasks, key=lambda task_id: (tasks[task_id], task_id))
