"""The queues of all agent types: who may run next, and what holds the others back.

Owned by State, which tells it of every task that joins or leaves a queue or an agent; nobody else
changes it. Everything can be undone. Limits are looked at when a task is about to run, so a changed
limit needs no rewriting of tasks.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kapell.v1.error_pb2 import ERROR_REASON_QUEUE_DRAINING
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_WAIT,
    QUEUE_STATE_DRAINING,
    QUEUE_STATE_PAUSED,
    ConcurrencyLimit,
    ConcurrencyStrategy,
    Queue,
    StartRate,
)
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, Task
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_REQUEUED,
    EVENT_KIND_TASK_STARTED,
)

from kapell_server.domain.errors import KapellError
from kapell_server.domain.queueing.fair_share import FairShare
from kapell_server.domain.queueing.rates import Rate
from kapell_server.domain.queueing.ready import ReadyEntry, ReadyIndex, entry_of
from kapell_server.domain.times import SECOND, duration_ns, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

ALL = "*"
"""The queue that stands for all of them."""
DEFAULT_MAX_RUNNING = 1
"""What a concurrency key without a limit of its own allows."""
_JOINING = frozenset({EVENT_KIND_TASK_CREATED, EVENT_KIND_TASK_QUEUED, EVENT_KIND_TASK_REQUEUED})


class Queues:
    """The tasks that wait for an agent and the limits they are under."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.ready = ReadyIndex(state.on_rollback)
        self._fair = FairShare(state.on_rollback)
        self._running: dict[str, int] = {}
        self._running_of_key: dict[str, dict[str, int]] = {}
        """By key, its tasks, each with the time it was queued at. Not in order: an undone change puts one last."""
        self._queued_of_key: dict[str, dict[str, int]] = {}
        """The same for those that are QUEUED."""
        self._starts: dict[str, deque[int]] = {}
        self._added: dict[str, Rate] = {}
        self._given: dict[str, Rate] = {}
        self._many_keys = _MANY_KEYS
        self._parked_now = 0
        """How many tasks this batch has parked."""
        self.arrivals: list[str] = []
        """Tasks under keys that have just joined."""

    def begin(self) -> None:
        """A batch begins."""
        self._parked_now = 0

    # -- tasks that come and go ---------------------------------------------------------------

    def join(self, task: Task, *, arrives: bool) -> None:
        """A task becomes QUEUED: it gets its rank. `arrives` where it is new here and not tried again."""
        state = self._state
        task.queue_rank = self._fair.stamp(task.agent_type, task.priority, task.fairness_key)
        entry = entry_of(task)
        gate = ""
        if entry.keys:
            for key in entry.keys:
                state.assign(self._queued_of_key.setdefault(key, {}), task.task_id, entry.queue_ns)
            gate = self.closed_key(entry.keys)
            if arrives:
                self.arrivals.append(task.task_id)
                state.on_rollback(self.arrivals.pop)
        self.ready.add(entry, gate)
        self._watch_rate(gate)
        state.polls.touch_type(task.agent_type)

    def leave(self, task: Task, *, starts: bool) -> None:
        """A task, as it was, is QUEUED no more: it `starts`, or has ended or gone elsewhere."""
        place = self.ready.remove(task.task_id)
        if place is None:
            return
        entry, gate = place
        state = self._state
        self._fair.left(entry, task.fairness_key, served=starts)
        for key in entry.keys:
            state.remove(self._queued_of_key.get(key, {}), task.task_id)
        if starts:
            if entry.keys or state.standing.any(Queue):
                self._note_start(entry)
        elif not gate:
            self._wake_next(entry.keys)

    def occupy(self, task: Task, by: int) -> None:
        """An agent gets (1) or loses (-1) a task."""
        state = self._state
        self._hold(task.agent_type, by)
        state.on_rollback(self._hold, task.agent_type, -by)
        for key in task.concurrency_keys:
            holders = self._running_of_key.setdefault(key, {})
            if by > 0:
                state.assign(holders, task.task_id, timestamp_ns(task.queue_time))
            else:
                state.remove(holders, task.task_id)
        if by < 0 and task.concurrency_keys:
            self._wake_next(task.concurrency_keys)
        if by < 0 and state.standing.any(Queue):
            if state.standing.find(Queue, ALL) is not None:
                self.touch(ALL)
            elif state.standing.find(Queue, task.agent_type) is not None:
                self.touch(task.agent_type)

    def _hold(self, agent_type: str, by: int) -> None:
        running = self._running
        running[agent_type] = running.get(agent_type, 0) + by
        running[ALL] = running.get(ALL, 0) + by

    def next_for(self, agent_types: Iterable[str], *, starving_ns: int) -> ReadyEntry | None:
        """What an agent of these types is to get next; the oldest, where it waits since before `starving_ns`."""
        best: ReadyEntry | None = None
        hungriest: ReadyEntry | None = None
        for agent_type in agent_types:
            if not self.is_open(agent_type):
                continue
            entry = self._first_open(self.ready.first, agent_type)
            if entry is not None and (best is None or _across_types(entry) < _across_types(best)):
                best = entry
            if entry is not None and starving_ns:
                oldest = self._first_open(self.ready.oldest, agent_type)
                if oldest is None or oldest.queue_ns > starving_ns:
                    continue
                if hungriest is None or oldest.queue_ns < hungriest.queue_ns:
                    hungriest = oldest
        return hungriest or best

    def _first_open(self, look: Callable[[str], ReadyEntry | None], agent_type: str) -> ReadyEntry | None:
        """The next of a type in one of its orders; those that a key holds back are parked on the way.

        Not all at once: whoever has thousands before the next one is looked at again in a moment.
        """
        while (entry := look(agent_type)) is not None:
            gate = self.closed_key(entry.keys) if entry.keys else ""
            if not gate:
                return entry
            if self._parked_now >= _MOST_PARKED:
                self._state.schedule(self._state.now_ns + _SOON, f"queue/{agent_type}")
                return None
            self.park(entry, gate)
        return None

    def park(self, entry: ReadyEntry, gate: str) -> None:
        """Sets a task aside until the key lets it go; others may have waited behind it under its other keys."""
        self._parked_now += 1
        self.ready.add(entry, gate)
        self._watch_rate(gate)
        self._wake_next([key for key in entry.keys if key != gate])

    # -- limits ------------------------------------------------------------------------------

    def is_open(self, agent_type: str) -> bool:
        """Whether the queue of a type may give out a task now."""
        if not self._has_limits(agent_type):
            return True
        for name in (agent_type, ALL):
            queue = self._state.standing.find(Queue, name)
            if queue is None:
                continue
            if queue.state == QUEUE_STATE_PAUSED or self.is_full(queue):
                return False
            if queue.HasField("start_rate") and self._watch_rate_of(f"queue/{name}", queue.start_rate):
                return False
        return True

    def is_full(self, queue: Queue) -> bool:
        """Whether as many tasks of a queue run as may."""
        return queue.HasField("max_running") and self.running(queue.agent_type) >= queue.max_running

    def draining(self, agent_type: str) -> Queue | None:
        """The queue that refuses new tasks of a type, if one does."""
        if not self._state.standing.any(Queue):
            return None
        for name in (agent_type, ALL):
            queue = self._state.standing.find(Queue, name)
            if queue is not None and queue.state == QUEUE_STATE_DRAINING:
                return queue
        return None

    def _has_limits(self, agent_type: str) -> bool:
        standing = self._state.standing
        if not standing.any(Queue):
            return False
        return standing.find(Queue, agent_type) is not None or standing.find(Queue, ALL) is not None

    def closed_key(self, keys: Iterable[str]) -> str:
        """The first of the keys that lets nothing start now; empty where all do."""
        for key in keys:
            if self.room(key) <= 0:
                return key
        return ""

    def room(self, key: str) -> int:
        """How many more tasks a concurrency key lets start now."""
        limit = self._state.standing.find(ConcurrencyLimit, key)
        room = self.max_running(key) - len(self._running_of_key.get(key, ()))
        if room > 0 and limit is not None and limit.HasField("start_rate"):
            room = min(room, self._starts_left(f"key/{key}", limit.start_rate))
        return room

    def max_running(self, key: str) -> int:
        """How many tasks of a key may run at a time."""
        limit = self._state.standing.find(ConcurrencyLimit, key)
        return limit.max_running if limit is not None and limit.HasField("max_running") else DEFAULT_MAX_RUNNING

    def strategy(self, key: str) -> ConcurrencyStrategy.ValueType:
        """What is done with tasks beyond the limit of a key."""
        limit = self._state.standing.find(ConcurrencyLimit, key)
        return limit.strategy if limit is not None else CONCURRENCY_STRATEGY_WAIT

    def reopen_key(self, key: str) -> None:
        """The limit of a key has changed, or its time has come."""
        for agent_type in self.ready.types_parked_under(key):
            self._wake(key, agent_type)
        self._watch_rate(key)

    def touch(self, name: str) -> None:
        """Has dispatch look at a queue again; "*" for all."""
        self._state.polls.touch_type(name) if name != ALL else self._state.polls.touch_all()

    def _wake_next(self, keys: Iterable[str]) -> None:
        for key in keys:
            for agent_type in self.ready.types_parked_under(key):
                self._wake(key, agent_type)

    def _wake(self, key: str, agent_type: str) -> None:
        """Lets as many try as there is room: what is parked under a key must not wait for one that cannot run."""
        room = self.room(key)
        if room > 0 and self.ready.wake(key, agent_type, room):
            self._state.polls.touch_type(agent_type)

    # -- starts in a period ------------------------------------------------------------------

    def next_start_ns(self, limit_id: str, rate: StartRate) -> int:
        """When the rate allows another start; 0 for now. `limit_id` is "queue/TYPE" or "key/KEY"."""
        starts = self._starts.get(limit_id, ())
        if len(starts) < rate.count:
            return 0
        free_ns = starts[-rate.count] + duration_ns(rate.period)
        return free_ns if free_ns > self._state.now_ns else 0

    def _starts_left(self, limit_id: str, rate: StartRate) -> int:
        starts = self._starts.get(limit_id, ())
        over = bisect.bisect_right(starts, self._state.now_ns - duration_ns(rate.period))
        return rate.count - (len(starts) - over)

    def _note_start(self, entry: ReadyEntry) -> None:
        find = self._state.standing.find
        for name in (entry.agent_type, ALL):
            queue = find(Queue, name)
            if queue is not None and queue.HasField("start_rate"):
                self._count_start(f"queue/{name}", queue.start_rate)
        for key in entry.keys:
            limit = find(ConcurrencyLimit, key)
            if limit is not None and limit.HasField("start_rate"):
                self._count_start(f"key/{key}", limit.start_rate)
                self._watch_rate_of(f"key/{key}", limit.start_rate)  # for those that are parked already

    def _count_start(self, limit_id: str, rate: StartRate) -> None:
        state = self._state
        starts = self._starts.setdefault(limit_id, deque())
        now = max(state.tick_ns(), starts[-1] + 1 if starts else 0)
        starts.append(now)
        state.on_rollback(starts.pop)
        state.assign(state.pending.starts, (limit_id, now), now - duration_ns(rate.period))

    def _watch_rate(self, key: str) -> None:
        limit = self._state.standing.find(ConcurrencyLimit, key)
        if limit is not None and limit.HasField("start_rate"):
            self._watch_rate_of(f"key/{key}", limit.start_rate)

    def _watch_rate_of(self, limit_id: str, rate: StartRate) -> bool:
        """Whether the rate is used up; if so, the time it frees a start is looked at."""
        free_ns = self.next_start_ns(limit_id, rate)
        self._state.schedule(free_ns, limit_id)
        return bool(free_ns)

    def forget_starts(self, limit_id: str) -> None:
        """The rate of a limit is no more."""
        state = self._state
        state.remove(self._starts, limit_id)
        for key in [key for key in state.pending.starts if key[0] == limit_id]:
            state.remove(state.pending.starts, key)
        state.assign(state.pending.forgotten_starts, limit_id, True)

    def rate_is_free(self, limit_id: str) -> None:
        """The time has come at which a rate allows another start."""
        kind, _, name = limit_id.partition("/")
        if kind == "queue":
            self.touch(name)
        else:
            self.reopen_key(name)

    def ahead_of(self, entry: ReadyEntry) -> int:
        """How many tasks of its type could run now and come before it. Looks at all of them."""
        candidates = self.ready.candidates(entry.agent_type, lambda key: self.room(key) > 0)
        return sum(one < entry and not self.closed_key(one.keys) for one in candidates)

    # -- figures -----------------------------------------------------------------------------

    def running(self, name: str) -> int:
        """Tasks of a type that agents have; "*" for all."""
        return self._running.get(name, 0)

    def holders(self, key: str) -> list[str]:
        """The tasks of a key that agents have, the one that was queued first first."""
        return _by_age(self._running_of_key.get(key, {}))

    def queued(self, key: str) -> list[str]:
        """The tasks of a key that are QUEUED, the one that was queued first first."""
        return _by_age(self._queued_of_key.get(key, {}))

    def count(self, key: str) -> tuple[int, int]:
        """How many tasks of a key agents have, and how many are QUEUED."""
        return len(self._running_of_key.get(key, ())), len(self._queued_of_key.get(key, ()))

    def rates(self, agent_type: str) -> tuple[float, float]:
        """Tasks a second that joined and that were given out, over the last minute."""
        now = self._state.now_ns
        added, given = self._added.get(agent_type), self._given.get(agent_type)
        return added.per_second(now) if added else 0.0, given.per_second(now) if given else 0.0

    def types(self) -> set[str]:
        """The types that have or had tasks since the start."""
        return {*self._added, *self._given, *self.ready.depths(), *(self._running.keys() - {ALL})}

    def _note_rates(self) -> None:
        """Counts what the batch has put: after the commit, so that nothing has to be taken back."""
        joined: dict[str, int] = {}
        given: dict[str, int] = {}
        for change in self._state.pending.changes:
            task = change.resource
            if type(task) is not Task:
                continue
            if change.kind == EVENT_KIND_TASK_STARTED:
                given[task.agent_type] = given.get(task.agent_type, 0) + 1
            elif change.kind in _JOINING and task.state == TASK_STATE_QUEUED:
                joined[task.agent_type] = joined.get(task.agent_type, 0) + 1
        for counts, rates in ((joined, self._added), (given, self._given)):
            for agent_type, count in counts.items():
                rates.setdefault(agent_type, Rate()).note(self._state.now_ns, count)

    # -- the start, and between batches --------------------------------------------------------

    def load(
        self,
        queued: Iterable[tuple[ReadyEntry, str]],
        leased: Iterable[tuple[str, str, int, tuple[str, ...]]],
        starts: Iterable[tuple[str, int]],
    ) -> None:
        """Takes over what the database has: queued entries with their fairness key, leased tasks as
        (id, type, time it was queued at, keys), starts as (limit id, time) in order of time."""
        for task_id, agent_type, queue_ns, keys in leased:
            for name in (agent_type, ALL):
                self._running[name] = self._running.get(name, 0) + 1
            for key in keys:
                self._running_of_key.setdefault(key, {})[task_id] = queue_ns
        for limit_id, start_ns in starts:
            self._starts.setdefault(limit_id, deque()).append(start_ns)
        queued = list(queued)
        for entry, _ in queued:
            for key in entry.keys:
                self._queued_of_key.setdefault(key, {})[entry.task_id] = entry.queue_ns
        placed = [(entry, fairness_key, self.closed_key(entry.keys)) for entry, fairness_key in queued]
        self._fair.load(placed)
        self.ready.load((entry, gate) for entry, _, gate in placed)
        for gate in {gate for _, _, gate in placed}:
            self._watch_rate(gate)

    def trim(self) -> None:
        """Forgets what no decision needs any more; between batches only."""
        self._note_rates()
        self.arrivals.clear()
        if len(self._queued_of_key) > self._many_keys:
            self._forget_idle_keys()
        for (limit_id, _), floor_ns in self._state.pending.starts.items():
            starts = self._starts.get(limit_id)
            while starts and starts[0] <= floor_ns:  # as in the database
                starts.popleft()

    def _forget_idle_keys(self) -> None:
        for of_key in (self._queued_of_key, self._running_of_key):
            for key in [key for key, tasks in of_key.items() if not tasks]:
                del of_key[key]
        self.ready.trim()
        self._many_keys = max(_MANY_KEYS, 2 * len(self._queued_of_key))


def check_takes_in(state: State, agent_type: str) -> None:
    """Refuses a new task for a queue that is draining."""
    queue = state.queues.draining(agent_type)
    if queue is not None:
        name = "All queues take" if queue.agent_type == ALL else f"The queue {agent_type} takes"
        why = f": {queue.state_reason}" if queue.state_reason else ""
        raise KapellError(
            ERROR_REASON_QUEUE_DRAINING,
            f"{name} no new tasks{why}. Resume it with ResumeQueue, or wait until it was resumed.",
            metadata={"agent_type": queue.agent_type},
        )


def _by_age(tasks: dict[str, int]) -> list[str]:
    return sorted(tasks, key=lambda task_id: (tasks[task_id], task_id))


def _across_types(entry: ReadyEntry) -> tuple[int, int, str]:
    """What orders tasks of different types, whose ranks have nothing to do with each other."""
    return entry.negative_priority, entry.queue_ns, entry.task_id


_MANY_KEYS = 4096
_MOST_PARKED = 2_000
"""Most tasks that one batch parks: a flood of them must not keep everybody else waiting."""
_SOON = SECOND // 1000
