"""What queues and limits must allow, and whose turn it must be: the oracle's part that steers, in its own words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.model.oracle import Task

NEVER = float("inf")
STARVES = 600.0
EVERY = "*"
Rate = tuple[int, float]
"""So many starts in so many seconds."""
Reason = tuple[str, frozenset[str], float]
"""What kind of reason, who is in the way, and until when (NEVER where nobody knows)."""


@dataclass
class Queue:
    """A queue as it should be."""

    state: str = "OPEN"
    most: int | None = None
    rate: Rate | None = None


@dataclass
class Limit:
    """The limit of a concurrency key as it should be."""

    most: int | None = None
    strategy: str = "WAIT"
    rate: Rate | None = None

    @property
    def room(self) -> int:
        return 1 if self.most is None else self.most


@dataclass
class Limits:
    """All of them, and the starts that their rates have counted."""

    queues: dict[str, Queue] = field(default_factory=dict)
    keys: dict[str, Limit] = field(default_factory=dict)
    starts: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def steer(self, name: str, state: str) -> None:
        self.queues.setdefault(name, Queue()).state = state

    def update_queue(self, name: str, changes: dict[str, int | Rate | None]) -> None:
        """`changes` has "most", "rate" or both; None clears."""
        queue = self.queues.setdefault(name, Queue())
        for what, value in changes.items():
            setattr(queue, what, value)
        if queue.rate is None:
            self.starts.pop(("queue", name), None)

    def set_limit(self, key: str, limit: Limit) -> None:
        self.keys[key] = limit
        if limit.rate is None:
            self.starts.pop(("key", key), None)

    def delete_limit(self, key: str) -> str | None:
        self.starts.pop(("key", key), None)
        return None if self.keys.pop(key, None) is not None else "LIMIT_NOT_FOUND"

    def refuses(self, kind: str) -> bool:
        """Whether new tasks of a kind are turned away."""
        return any(self.queues[name].state == "DRAINING" for name in (kind, EVERY) if name in self.queues)

    def reasons_of_queue(self, kind: str, held: list[Task], now: float) -> list[Reason]:
        """Why the queue of a kind gives out nothing; `held` are all tasks that agents have."""
        found: list[Reason] = []
        for name in (kind, EVERY):
            queue = self.queues.get(name)
            if queue is None:
                continue
            me = frozenset({name})
            if queue.state == "PAUSED":
                found.append(("QUEUE_PAUSED", me, NEVER))
            running = sum(task.kind == name or name == EVERY for task in held)
            if queue.most is not None and running >= queue.most:
                found.append(("QUEUE_LIMIT", me, NEVER))
            found += self._reasons_of_rate(("queue", name), queue.rate, now)
        return found

    def reasons_of_keys(self, keys: tuple[str, ...], held: dict[str, Task], now: float) -> list[Reason]:
        """Which of the keys let nothing start."""
        found: list[Reason] = []
        for key in keys:
            limit = self.keys.get(key, Limit())
            holders = {task_id for task_id, task in held.items() if key in task.keys}
            if len(holders) >= limit.room:
                found.append(("CONCURRENCY_LIMIT", frozenset(holders or {key}), NEVER))
            found += self._reasons_of_rate(("key", key), limit.rate, now)
        return found

    def _reasons_of_rate(self, of: tuple[str, str], rate: Rate | None, now: float) -> list[Reason]:
        if rate is None:
            return []
        count, period = rate
        recent = sorted(start for start in self.starts.get(of, ()) if start + period > now)
        return [("START_RATE", frozenset({of[1]}), recent[-count] + period)] if len(recent) >= count else []

    def note_start(self, task: Task, now: float) -> None:
        """A task starts: whoever has a rate counts it, and forgets what is older than its period."""
        queues = [(("queue", name), self.queues[name].rate) for name in (task.kind, EVERY) if name in self.queues]
        keys = [(("key", key), self.keys[key].rate) for key in task.keys if key in self.keys]
        for of, rate in queues + keys:
            if rate is not None:
                self.starts[of] = [start for start in self.starts.get(of, ()) if start > now - rate[1]] + [now]


class Shares:
    """Nobody waits for more tasks of another share than it has had turns itself.

    A line is one kind at one priority. The bound: while a task could run, each other share may get
    ahead of it by the number of its own share's tasks that joined the line since that was last
    without any, and two: one turn under way, and one for those that change within a batch. Tasks
    under keys or with locks may come later than it was their turn, and so are not counted.
    """

    def __init__(self) -> None:
        self._joined: dict[tuple[str, int, str], float] = {}
        self._overtaken: dict[int, Counter[str]] = {}

    def begin(self, queued: list[Task]) -> None:
        """A batch begins: shares that have nothing in a line start afresh."""
        there = {(task.kind, task.priority, task.share) for task in queued}
        self._joined = {of: count for of, count in self._joined.items() if of in there}

    def join(self, task: Task) -> None:
        of = task.kind, task.priority, task.share
        self._joined[of] = self._joined.get(of, 0) + 1
        task.place = self._joined[of]
        task.overtaken.clear()

    def serve(self, task: Task, ready: list[Task]) -> None:
        """One of those that could run gets its turn."""
        if task.keys or task.locks:
            return
        for other in [one for one in ready if not one.locks]:
            if (other.kind, other.priority) == (task.kind, task.priority) and other.share != task.share:
                other.overtaken[task.share] += 1
                assert other.overtaken[task.share] <= other.place + 2, f"{other} waits while {task.share} runs (T7)"

    def restart(self, queued: list[Task]) -> None:
        """A start reckons anew; who waits already is not held to the bound."""
        for task in queued:
            task.place = self._joined[task.kind, task.priority, task.share] = NEVER


def check_turn(task: Task, ready: list[Task], turn: int, now: float) -> None:
    """T7: the highest priority, within it the lowest rank; every fourth turn of an agent, who starves longest."""
    heads: dict[tuple[str, int], Task] = {}
    for one in sorted(ready, key=lambda one: (one.rank, one.came)):
        heads.setdefault((one.kind, one.priority), one)
    assert heads[task.kind, task.priority] is task, f"{task} came before {heads[task.kind, task.priority]} (T7)"
    hungry = [one for one in heads.values() if now - one.since >= STARVES] if turn % 4 == 0 else []
    highest = max(one.priority for one in ready)
    rivals = hungry or [one for one in heads.values() if one.priority == highest]
    assert any(one is task for one in rivals), f"{task} was not next of {rivals} (T7)"
    assert task.since <= min(one.since for one in rivals), f"{task} is not the oldest of {rivals} (T7)"
