"""After each step: what was given away, the log, the state and every explanation, held against the oracle."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from kapell.v1 import task_pb2
from kapell.v1.agent_pb2 import AgentState, ListAgentsRequest
from kapell.v1.event_pb2 import Event
from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE
from kapell.v1.queue_pb2 import GetQueueStatsRequest, GetQueueStatsResponse
from kapell.v1.task_pb2 import ExplainTaskRequest, ExplainTaskResponse, TaskState, WaitKind
from kapell.v1.watch_pb2 import (
    EVENT_KIND_AGENT_DELETED,
    EVENT_KIND_LIMIT_DELETED,
    EVENT_KIND_LOCK_EXPIRED,
    EVENT_KIND_LOCK_RELEASED,
    EVENT_KIND_TASK_DELETED,
)

from tests.model.commands import KINDS, QUEUES
from tests.model.limits import NEVER
from tests.model.lives import Task
from tests.model.locks import Tokens
from tests.model.oracle import Oracle
from tests.support.live_engine import LiveEngine

TRANSITIONS = {
    "PENDING": "QUEUED FAILED CANCELLED",
    "QUEUED": "RUNNING FAILED CANCELLED",
    "RUNNING": "PENDING QUEUED CANCELLING SUCCEEDED FAILED CANCELLED",
    "CANCELLING": "PENDING QUEUED SUCCEEDED FAILED CANCELLED",
    "SUCCEEDED": "",
    "FAILED": "QUEUED",
    "CANCELLED": "QUEUED",
}
DELETIONS = (
    EVENT_KIND_TASK_DELETED,
    EVENT_KIND_AGENT_DELETED,
    EVENT_KIND_LIMIT_DELETED,
    EVENT_KIND_LOCK_RELEASED,
    EVENT_KIND_LOCK_EXPIRED,
)


_ALERTS_AT_MOST = 10


class Checking:
    """Compares engine and oracle."""

    live: LiveEngine
    oracle: Oracle
    tokens: list[str]
    polls: list[tuple[str, asyncio.Task[Any]]]
    cursor: int
    replayed: dict[tuple[str, str], Any]
    fences: Tokens

    async def settle(self) -> None:
        """What dispatch has given away, and then that everything is as it should be."""
        await self.hear()
        if self.oracle.overdue():
            await self.live.pulse()
            self.oracle.begin()
            await self.hear()
        await self.check_state()
        await self.check_explanations()

    async def hear(self) -> None:
        """What a batch has done: the log tells the order, the offers who was given what."""
        await self.check_log()
        self.oracle.settle_arrivals()
        await self.collect_offers()

    async def collect_offers(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)  # callers that were answered with this batch take their answers
        offers = [(name, offer) for name, poll in self.polls if poll.done() for offer in poll.result().offers]
        for name, offer in sorted(offers, key=lambda one: one[1].task.revision):
            self.oracle.give(offer.task.task_id, name, offer.lease_token)
            assert offer.attempt == self.oracle.tasks[offer.task.task_id].number
            for lock in offer.task.locks:
                self.fences.see(lock.path, lock.fencing_token)
            self.tokens.append(offer.lease_token)
        self.polls = [(name, poll) for name, poll in self.polls if not poll.done()]
        for name, _ in self.polls:
            idle = self.oracle.free(name) and self.oracle.fitting(name)
            assert not idle, f"{name} waits while {idle} waits for it (T6)"

    async def check_log(self) -> None:
        """W1: no gap, and the ring says the same. T1: published transitions. Replays into `replayed`."""
        records = await self.live.engine.reads.events_after(self.cursor, 10_000)
        assert [record.revision for record in records] == [*range(self.cursor + 1, self.live.engine.revision + 1)]
        recent = self.live.engine.ring.after(self.cursor, 10_000)
        assert recent is None or [one.data for one in recent] == [record.data for record in records]
        for record in records:
            event = Event.FromString(record.data)
            kind = event.WhichOneof("resource")
            assert kind is not None
            resource, key = getattr(event, kind), (kind, record.resource_id)
            before = self.replayed.get(key)
            if kind == "task":
                self.check_transition(event, before)
            if record.kind in DELETIONS:
                assert before is not None
                del self.replayed[key]
            else:
                self.replayed[key] = resource
            self.cursor = record.revision

    def check_transition(self, event: Event, before: Any) -> None:
        """T1; and the oracle learns in which order tasks have joined their queues."""
        after = event.task
        if before is not None and before.state != after.state:
            assert event.previous_task_state == before.state
            assert state_of(after) in TRANSITIONS[state_of(before)].split(), "T1"
        known = self.oracle.tasks.get(after.task_id)
        if known is not None and state_of(after) == "QUEUED":
            known.rank = after.queue_rank
            if before is None or before.state != after.state:
                known.came = after.revision
                known.arrived = known.arrived or after.revision

    async def check_state(self) -> None:
        """W2: the events are the state. And the state is the oracle's."""
        listed = task_pb2.ListTasksResponse.FromString(
            await self.live.engine.reads.list_tasks(task_pb2.ListTasksRequest(page_size=1000))
        )
        found = {task.task_id: task for task in listed.tasks}
        assert found == {key: one for (kind, key), one in self.replayed.items() if kind == "task"}, "W2"
        for key in {*found, *self.oracle.tasks}:
            seen = seen_task(found[key]) if key in found else None
            expected = expected_task(self.oracle.tasks[key]) if key in self.oracle.tasks else None
            assert seen == expected, f"{key}: {seen} and not {expected}"
        self.check_locks()
        answer = await self.live.engine.reads.list_agents(ListAgentsRequest(page_size=1000))
        agents = {agent.agent_id: agent for agent in answer.agents}
        assert {key: ended(AgentState.Name(one.state)[12:]) for key, one in agents.items()} == {
            key: one.state for key, one in self.oracle.agents.items()
        }
        for key, agent in agents.items():
            held = [task.task_id for task in found.values() if task.lease.agent_id == key]
            assert sorted(agent.current_task_ids) == sorted(held)
            assert agent.slots_used == len(held) <= agent.slots_total
            agent.ClearField("last_heartbeat_time")
            assert agent == self.replayed["agent", key], "W2"

    def check_locks(self) -> None:
        """Each attempt has all its locks, nobody else has any: as the log says, and as the table does."""
        logged = {key: lock for (kind, key), lock in self.replayed.items() if kind == "lock"}
        held = [
            (task_id, path, alone) for task_id, task in self.oracle.held().items() for path, alone in sorted(task.locks)
        ]
        assert sorted(held) == sorted(
            (lock.owner.task_id, lock.path, lock.mode == LOCK_MODE_EXCLUSIVE) for lock in logged.values()
        )
        state = self.live.engine._state
        assert {key: one.lock for key, one in state.locks.held.items()} == logged
        waiting = state.locks.waits.keys() - state.locks.offered.keys() | set(state.queues.locks.behind())
        parked = {task_id for task_id, (_, name) in state.queues.ready._places.items() if name == "lock/"}
        assert waiting == parked, "who is parked is somewhere to be woken"

    async def check_explanations(self) -> None:
        """Every task is explained, and every queue counted, as the oracle does; asking changes nothing.

        Asked again where an alert was due in the very batch: of these the oracle knows nothing.
        """
        asked = [ExplainTaskRequest(task_id=task_id) for task_id in self.oracle.tasks]
        for _ in range(_ALERTS_AT_MOST):
            before = self.live.engine.revision
            *answers, stats = await self.live.together(*asked, GetQueueStatsRequest(agent_types=QUEUES))
            if self.live.engine.revision == before:
                break
        else:
            raise AssertionError("asking changes something")
        asking = {name for name, _ in self.polls}
        for request, answer in zip(asked, answers, strict=True):
            if isinstance(answer, Exception):
                raise answer
            assert answer.revision == before
            self.check_explanation(self.oracle.tasks[request.task_id], answer, asking)
        self.check_stats(stats)

    def check_explanation(self, task: Task, answer: ExplainTaskResponse, asking: set[str]) -> None:
        told = [(WaitKind.Name(one.kind)[10:], frozenset(one.blocked_by)) for one in answer.blockers]
        said = [(kind, by) for kind, by in told if kind != "LOCK"]
        of_locks = {name for kind, by in told if kind == "LOCK" for name in by}
        self.oracle.check_locks(task, of_locks)
        expected, places = self.oracle.explain(task, asking, locked=bool(of_locks), position=answer.position)
        assert Counter(said) == Counter((kind, by) for kind, by, _ in expected), f"{task}: {answer.summary}"
        assert answer.position in places, f"{task}: {answer.summary}"
        assert bool(told) == (task.state in ("PENDING", "QUEUED", "CANCELLING")), f"{task}: {answer.summary}"
        for blocker in answer.blockers:
            ends = [until for kind, by, until in expected if same(blocker, kind, by) and until != NEVER]
            if ends:
                wait = (blocker.until_time.ToNanoseconds() - self.live.clock.now_ns()) / 1e9
                assert any(abs(wait - (until - self.oracle.now)) < 2e-6 for until in ends), f"{task}: {blocker}"

    def check_stats(self, stats: GetQueueStatsResponse) -> None:
        """Depth, running tasks and free slots of each queue, and its settings as the log has them."""
        held = list(self.oracle.held().values())
        for found in stats.queues:
            kinds = KINDS if found.queue.agent_type == "*" else (found.queue.agent_type,)
            assert found.depth == sum(task.kind in kinds for task in self.oracle.queued())
            assert found.running == sum(task.kind in kinds for task in held)
            serving = [
                name
                for name, agent in self.oracle.agents.items()
                if agent.state == "ACTIVE" and set(kinds) & set(agent.kinds)
            ]
            assert (found.agents, found.free_slots) == (len(serving), sum(map(self.oracle.free, serving)))
            assert found.queue == self.replayed.get(("queue", found.queue.agent_type), found.queue), "W2"
        assert len(stats.queues) == len(QUEUES)


def same(blocker: task_pb2.Blocker, kind: str, by: frozenset[str]) -> bool:
    return WaitKind.Name(blocker.kind)[10:] == kind and frozenset(blocker.blocked_by) == by


def state_of(task: Any) -> str:
    return TaskState.Name(task.state)[11:]


def ended(state: str) -> str:
    return "ENDED" if state in ("TERMINATED", "FAILED") else state


def seen_task(task: Any) -> tuple[Any, ...]:
    """What the engine and the oracle must agree on."""
    return state_of(task), task.priority, task.attempts_used, task.attempt, task.lease.agent_id, task.skipped


def expected_task(task: Task) -> tuple[Any, ...]:
    assert task.tries <= task.most, "T4"
    holder = task.holder if task.state in ("RUNNING", "CANCELLING") else ""
    return task.state, task.priority, task.tries, task.number, holder, task.skipped
