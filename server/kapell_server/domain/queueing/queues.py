"""The queues of all agent types: who may run next, and what holds the others back.

Owned by State, which tells it of every task that joins or leaves a queue or an agent; nobody else
changes it. Everything can be undone. Limits are looked at when a task is about to run, so a changed
limit needs no rewriting of tasks. What tasks share is kept by gates (`gates.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from kapell.v1.error_pb2 import ERROR_REASON_QUEUE_DRAINING
from kapell.v1.queue_pb2 import QUEUE_STATE_DRAINING, QUEUE_STATE_PAUSED, Queue
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, Blocker, Task
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CREATED,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_REQUEUED,
    EVENT_KIND_TASK_STARTED,
)

from kapell_server.domain.budgets import waiting
from kapell_server.domain.budgets.gate import BudgetGate
from kapell_server.domain.errors import KapellError
from kapell_server.domain.queueing.fair_share import FairShare
from kapell_server.domain.queueing.gates import Gate
from kapell_server.domain.queueing.keys import ConcurrencyKeys
from kapell_server.domain.queueing.lock_gate import LockGate
from kapell_server.domain.queueing.polls import ALL as ALL
from kapell_server.domain.queueing.rates import Rate
from kapell_server.domain.queueing.ready import ReadyEntry, ReadyIndex, entry_of
from kapell_server.domain.queueing.starts import Starts
from kapell_server.domain.times import SECOND

if TYPE_CHECKING:
    from kapell_server.domain.state import State

_JOINING = frozenset({EVENT_KIND_TASK_CREATED, EVENT_KIND_TASK_QUEUED, EVENT_KIND_TASK_REQUEUED})
_EVERY = 1 << 62


class Queues:
    """The tasks that wait for an agent and the limits they are under."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.ready = ReadyIndex(state.on_rollback)
        self.starts = Starts(state)
        self.keys = ConcurrencyKeys(state, self.starts, self.retry)
        self.locks = LockGate(state, self.let_try)
        self.budgets = BudgetGate(state, state.budgets)
        gates: tuple[Gate, ...] = (self.keys, self.locks, self.budgets)
        self._gates: dict[str, Gate] = {gate.kind: gate for gate in gates}
        """In the order in which they are asked."""
        self._fair = FairShare(state.on_rollback)
        self._running: dict[str, int] = {}
        self._added: dict[str, Rate] = {}
        self._given: dict[str, Rate] = {}
        self._many_types = _MANY_TYPES
        self._parked_now = 0
        """How many tasks this batch has parked."""
        self.arrivals: list[str] = []
        """Tasks under keys that have just joined."""
        self.unsettled: dict[str, str] = {}
        """Keys of which more tasks are to be cancelled than a batch does, each with the task that came last."""

    def begin(self) -> None:
        """A batch begins."""
        self._parked_now = 0

    # -- tasks that come and go ---------------------------------------------------------------

    def join(self, task: Task, *, arrives: bool) -> None:
        """A task becomes QUEUED: it gets its rank. `arrives` where it is new here and not tried again."""
        state = self._state
        task.queue_rank = self._fair.stamp(task.agent_type, task.priority, task.fairness_key)
        entry = entry_of(task)
        for gate in self._gates.values():
            gate.join(entry)
        if entry.keys and arrives:
            self.arrivals.append(task.task_id)
            state.on_rollback(self.arrivals.pop)
        name = self.closed(entry)
        self.ready.add(entry, name)
        if name:
            self._gate(name).parked(entry, name)
        state.alerts.queue_grew(entry.agent_type, entry.queue_ns)
        state.polls.touch_type(task.agent_type)

    def leave(self, task: Task, *, starts: bool) -> None:
        """A task, as it was, is QUEUED no more: it `starts`, or has ended or gone elsewhere."""
        place = self.ready.remove(task.task_id)
        if place is None:
            return
        entry, name = place
        self._fair.left(entry, task.fairness_key, served=starts)
        self._state.alerts.queue_shrank(entry.agent_type)
        for gate in self._gates.values():
            gate.leave(entry)
        if not starts and not name:
            for gate in self._gates.values():
                gate.forgo(entry, "")

    def occupy(self, task: Task, by: int) -> None:
        """An agent gets (1) or loses (-1) a task."""
        state = self._state
        self._hold(task.agent_type, by)
        state.on_rollback(self._hold, task.agent_type, -by)
        for gate in self._gates.values():
            gate.take(task) if by > 0 else gate.give_back(task)
        if not state.standing.any(Queue):
            return
        if by > 0:
            self._note_start(task.agent_type)
        elif state.standing.find(Queue, ALL) is not None:
            self.touch(ALL)
        elif state.standing.find(Queue, task.agent_type) is not None:
            self.touch(task.agent_type)

    def _hold(self, agent_type: str, by: int) -> None:
        running = self._running
        running[agent_type] = running.get(agent_type, 0) + by
        running[ALL] = running.get(ALL, 0) + by

    def next_suiting(self, agent_types: Iterable[str], suits: Callable[[ReadyEntry], bool]) -> ReadyEntry | None:
        """What an agent is to get next that cannot take just any: the best that suits it, of those that come first."""
        best: ReadyEntry | None = None
        for agent_type in agent_types:
            if not self.is_open(agent_type):
                continue
            first = self.ready.in_order(agent_type, _LOOKED_THROUGH)
            self._state.prefetch_tasks([entry.task_id for entry in first])
            entry = next((one for one in first if suits(one) and not self._is_set_aside(one)), None)
            if entry is not None and (best is None or _across_types(entry) < _across_types(best)):
                best = entry
        return best

    def _is_set_aside(self, entry: ReadyEntry) -> bool:
        """Whether a gate holds a task back, under which it is parked then."""
        name = self.closed(entry)
        if name and self._parked_now < _MOST_PARKED:
            self._park(entry, name)
        return bool(name)

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
        """The next of a type in one of its orders; those that a gate holds back are parked on the way.

        Not all at once: whoever has thousands before the next one is looked at again in a moment.
        """
        while (entry := look(agent_type)) is not None:
            name = self.closed(entry)
            if not name:
                return entry
            if self._parked_now >= _MOST_PARKED:
                self._state.schedule(self._state.now_ns + _SOON, f"queue/{agent_type}")
                return None
            self._park(entry, name)
        return None

    # -- gates -------------------------------------------------------------------------------

    def closed(self, entry: ReadyEntry) -> str:
        """The name under which a task has to wait; empty where every gate lets it start now."""
        for gate in self._gates.values():
            name = gate.closed(entry)
            if name:
                return name
        return ""

    def _park(self, entry: ReadyEntry, name: str) -> None:
        """Sets a task aside until its gate lets it go; others may have waited behind it at other gates."""
        self._parked_now += 1
        self.ready.add(entry, name)
        self._gate(name).parked(entry, name)
        for gate in self._gates.values():
            gate.forgo(entry, name)

    def retry(self, name: str) -> None:
        """Lets as many of those parked under a name try as there is room: none may wait for one that cannot run."""
        for agent_type in self.ready.types_parked_under(name):
            room = self._gate(name).room(name)
            if room > 0 and self.ready.wake(name, agent_type, room):
                self._state.polls.touch_type(agent_type)

    def let_all_try(self, name: str) -> None:
        """Lets all try that are parked under a name, which may have to wait under another one from now on."""
        for agent_type in self.ready.types_parked_under(name):
            if self.ready.wake(name, agent_type, _EVERY):
                self._state.polls.touch_type(agent_type)

    def let_try(self, task_id: str) -> None:
        """Lets one task try that its gate has parked."""
        agent_type = self.ready.unpark(task_id)
        if agent_type:
            self._state.polls.touch_type(agent_type)

    def relabelled(self, previous: Task) -> None:
        """A QUEUED task, as it was, has other labels now, and so perhaps other budgets."""
        place = self.ready.place_of(previous.task_id)
        if place is None:
            return
        name = place[1]
        if name.startswith("budget/"):
            self.let_try(previous.task_id)
        elif not name:
            waiting.pass_on(self._state, previous, name)

    def gate_blockers(self, task: Task) -> Iterator[Blocker]:
        """Every gate's reasons why the task cannot start now."""
        for gate in self._gates.values():
            yield from gate.blockers(task)

    def _gate(self, name: str) -> Gate:
        return self._gates[name.partition("/")[0]]

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
            if queue.HasField("start_rate") and self.starts.watch(f"queue/{name}", queue.start_rate):
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

    def touch(self, name: str) -> None:
        """Has dispatch look at a queue again; "*" for all."""
        self._state.polls.touch_type(name) if name != ALL else self._state.polls.touch_all()

    def _note_start(self, agent_type: str) -> None:
        for name in (agent_type, ALL):
            queue = self._state.standing.find(Queue, name)
            if queue is not None and queue.HasField("start_rate"):
                self.starts.note(f"queue/{name}", queue.start_rate)

    def rate_is_free(self, limit_id: str) -> None:
        """The time has come at which a rate allows another start. `limit_id` as in `starts.py`.

        Or that of a task whose turn at its locks is over: the end of the batch sees to it.
        """
        kind, _, name = limit_id.partition("/")
        if kind == "queue":
            self.touch(name)
        elif kind == "key":
            self.keys.reopen(name)

    def ahead_of(self, entry: ReadyEntry) -> tuple[int, bool]:
        """How many tasks of its type could run now and come before it, and whether there are no more than that.

        Looks at so many only, since the writer waits meanwhile.
        """
        before, are_all = self.ready.before(entry, lambda name: self._gate(name).room(name) > 0, _MOST_COUNTED)
        return sum(not self.closed(one) for one in before.values()), are_all

    # -- figures -----------------------------------------------------------------------------

    def running(self, name: str) -> int:
        """Tasks of a type that agents have; "*" for all."""
        return self._running.get(name, 0)

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
        resting: Iterable[tuple[str, int, tuple[str, ...]]],
        starts: Iterable[tuple[str, int]],
    ) -> None:
        """Takes over what the database has: queued entries with their fairness key, leased tasks as
        (id, type, time it first joined, keys), those that wait for their next attempt likewise, and starts as
        (limit id, time) in order of time."""
        for task_id, agent_type, arrival_ns, keys in leased:
            for name in (agent_type, ALL):
                self._running[name] = self._running.get(name, 0) + 1
            self.keys.load_running(task_id, arrival_ns, keys)
        for task_id, arrival_ns, keys in resting:
            self.keys.load_resting(task_id, arrival_ns, keys)
        for limit_id, start_ns in starts:
            self.starts.load(limit_id, start_ns)
        queued = list(queued)
        self._state.prefetch_tasks(entry.task_id for entry, _ in queued if entry.locked)
        for entry, _ in queued:
            for gate in self._gates.values():
                gate.join(entry)
        placed = [(entry, fairness_key, self.closed(entry)) for entry, fairness_key in queued]
        self._fair.load(placed)
        self.ready.load((entry, name) for entry, _, name in placed)
        for entry, _, name in placed:
            if name:
                self._gate(name).parked(entry, name)
        for agent_type in self.ready.depths():
            self._state.alerts.queue_grew(agent_type, self.ready.oldest_ns(agent_type))

    def trim(self) -> None:
        """Forgets what no decision needs any more; between batches only."""
        self._note_rates()
        self.arrivals.clear()
        if self.keys.trim() or len(self._running) + self.ready.types() > self._many_types:
            self._forget_idle_types()
        self.starts.trim()
        self.locks.trim()

    def _forget_idle_types(self) -> None:
        """Types come and go for as long as the server runs; one without tasks and news needs no place."""
        self.ready.trim()
        self._fair.trim()
        now_ns = self._state.now_ns
        for rates in (self._added, self._given):
            for agent_type in [agent_type for agent_type, rate in rates.items() if not rate.per_second(now_ns)]:
                del rates[agent_type]
        for agent_type in [agent_type for agent_type, count in self._running.items() if not count]:
            del self._running[agent_type]
        self._many_types = max(_MANY_TYPES, 2 * (len(self._running) + self.ready.types()))


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


def _across_types(entry: ReadyEntry) -> tuple[int, int, str]:
    """What orders tasks of different types, whose ranks have nothing to do with each other."""
    return entry.negative_priority, entry.queue_ns, entry.task_id


_LOOKED_THROUGH = 256
"""Most tasks that are looked through for one that suits an agent."""
_MOST_PARKED = 2_000
"""Most tasks that one batch parks: a flood of them must not keep everybody else waiting."""
_SOON = SECOND // 1000
_MOST_COUNTED = 1_000
"""Most places that are looked at to tell where a task stands."""
_MANY_TYPES = 2_048
