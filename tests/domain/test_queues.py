"""Queues: pausing and draining them, how many run, how many start in a period, and their figures."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.queue_pb2 import (
    QUEUE_STATE_DRAINING,
    QUEUE_STATE_OPEN,
    QUEUE_STATE_PAUSED,
    GetQueueStatsRequest,
    GetQueueStatsResponse,
    Queue,
    QueueStats,
    StartRate,
    UpdateQueueRequest,
)
from kapell.v1.task_pb2 import (
    TASK_STATE_SUCCEEDED,
    BatchCreateTasksRequest,
    CreateTaskRequest,
    TaskSpec,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import LeaseTasksRequest

from tests.domain.test_concurrency import add, take
from tests.domain.test_rollback import fail_commit
from tests.domain.world import World, rate


def change(agent_type: str, *, etag: str = "", **fields: Any) -> UpdateQueueRequest:
    """Sets these fields of a queue; None clears one."""
    given = {name: value for name, value in fields.items() if value is not None}
    mask = FieldMask(paths=list(fields))
    return UpdateQueueRequest(queue=Queue(agent_type=agent_type, **given), update_mask=mask, etag=etag)


def stats(world: World, *agent_types: str) -> dict[str, QueueStats]:
    answer: GetQueueStatsResponse = world.do(GetQueueStatsRequest(agent_types=agent_types))
    return {one.queue.agent_type: one for one in answer.queues}


# -- pause and resume ----------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["shell", "*", ""])
def test_a_paused_queue_takes_in_and_gives_out_nothing(queue: str) -> None:
    world = World()
    agent_id = world.register(slots=9)
    add(world, "a")

    paused = world.pause(queue, "deploying")

    assert (paused.state, paused.state_reason, paused.agent_type) == (QUEUE_STATE_PAUSED, "deploying", queue or "*")
    add(world, "b")
    waiting = world.poll(agent_id, max_tasks=9)
    assert waiting.taken == []
    assert world.resume(queue).state == QUEUE_STATE_OPEN
    assert [lease.task_id for lease in waiting.taken] == ["task_a", "task_b"]


def test_what_runs_in_a_paused_queue_goes_on() -> None:
    world = World()
    agent_id = world.register()
    task_id = add(world, "a")
    take(world, agent_id)
    world.pause("shell")

    world.complete(task_id)

    assert world.task(task_id).state == TASK_STATE_SUCCEEDED


def test_one_paused_type_leaves_the_others_alone() -> None:
    world = World()
    agent_id = world.register("red", "blue", slots=9)
    world.pause("red")
    add(world, "r", agent_type="red", priority=900)
    add(world, "b", agent_type="blue")

    assert take(world, agent_id) == ["b"]


def test_a_queue_paused_by_itself_stays_so_when_all_are_resumed() -> None:
    world = World()
    agent_id = world.register()
    add(world, "a")
    world.pause("shell")
    world.pause("*")

    world.resume("*")
    assert take(world, agent_id) == []
    world.resume("shell")
    assert take(world, agent_id) == ["a"]


def test_pausing_twice_changes_nothing_the_second_time() -> None:
    world = World()
    first = world.pause("shell", "why").revision

    assert world.pause("shell", "why").revision == first
    assert world.events == ["queue.updated"]
    assert world.pause("shell", "another reason").revision > first


def test_a_task_in_a_paused_queue_still_times_out() -> None:
    world = World()
    world.pause("shell")
    task_id = add(world, "a", timeouts=TaskTimeouts(queue_timeout=Duration(seconds=5)))

    world.advance(6)

    assert world.task(task_id).failure.reason == "QUEUE_TIMEOUT"


# -- draining ------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["shell", "*"])
def test_a_draining_queue_gives_out_what_it_has_and_takes_nothing_in(queue: str) -> None:
    world = World()
    agent_id = world.register(slots=9)
    add(world, "a")
    assert world.drain(queue, "moving house").state == QUEUE_STATE_DRAINING

    with world.refuses("QUEUE_DRAINING") as caught:
        add(world, "b")

    assert "moving house" in str(caught[0])
    assert caught[0].metadata == {"agent_type": queue}
    assert take(world, agent_id) == ["a"]
    world.resume(queue)
    add(world, "b")
    assert take(world, agent_id) == ["b"]


def test_a_batch_with_one_task_for_a_draining_queue_changes_nothing() -> None:
    world = World()
    world.drain("red")
    world.limit("k", 1)
    specs = [
        TaskSpec(agent_type="blue", concurrency_keys=["k"], fairness_key="f"),
        TaskSpec(agent_type="red", concurrency_keys=["k"]),
    ]

    with world.refuses("QUEUE_DRAINING"):
        world.do(BatchCreateTasksRequest(tasks=specs))


def test_a_draining_type_does_not_refuse_the_others() -> None:
    world = World()
    world.drain("red")

    add(world, "b", agent_type="blue")

    assert take(world, world.register("blue")) == ["b"]


# -- how many run --------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", ["shell", "*"])
def test_no_more_of_a_queue_run_than_it_lets(queue: str) -> None:
    world = World()
    agents = [world.register(slots=2) for _ in range(2)]
    world.do(change(queue, max_running=3))
    for name in "abcdef":
        add(world, name)

    assert [take(world, agent_id) for agent_id in agents] == [["a", "b"], ["c"]]
    waiting = world.poll(agents[1])
    world.complete("task_a")
    assert [lease.task_id for lease in waiting.taken] == ["task_d"]


def test_all_queues_together_have_their_own_limit() -> None:
    world = World()
    agent_id = world.register("red", "blue", slots=9)
    world.do(change("*", max_running=3), change("red", max_running=1))
    for name, agent_type in (("r1", "red"), ("r2", "red"), ("b1", "blue"), ("b2", "blue"), ("b3", "blue")):
        add(world, name, agent_type=agent_type)

    assert take(world, agent_id) == ["r1", "b1", "b2"]


def test_a_limit_that_is_raised_or_cleared_is_felt_at_once() -> None:
    world = World()
    agent_id = world.register(slots=9)
    world.do(change("shell", max_running=0))
    for name in "abc":
        add(world, name)
    first = world.poll(agent_id, max_tasks=9)
    assert first.taken == []

    world.do(change("shell", max_running=1))
    assert [lease.task_id for lease in first.taken] == ["task_a"]
    second = world.poll(agent_id, max_tasks=9)
    world.do(change("shell", max_running=None))

    assert [lease.task_id for lease in second.taken] == ["task_b", "task_c"]
    assert not world.state.standing.find(Queue, "shell").HasField("max_running")


def test_a_change_names_what_it_changes_and_leaves_the_rest() -> None:
    world = World()
    world.do(change("shell", max_running=3, start_rate=rate(2, 60)))
    world.pause("shell", "why")

    queue = world.do(change("shell", max_running=4))

    assert (queue.max_running, queue.start_rate, queue.state) == (4, rate(2, 60), QUEUE_STATE_PAUSED)


def test_a_queue_read_before_it_changed_is_not_overwritten() -> None:
    world = World()
    old = world.pause("shell").etag
    world.resume("shell")

    with world.refuses("ETAG_MISMATCH"):
        world.do(change("shell", etag=old, max_running=4))


# -- starts in a period --------------------------------------------------------------------------


def rated(kind: str) -> tuple[World, str, tuple[str, ...]]:
    """A world where 2 tasks start in 10 s, its agent, and the keys of its tasks."""
    world = World(lease_duration=1000.0, offer_confirm=1000.0)
    agent_id = world.register(slots=99)
    if kind == "key":
        world.limit("k", 50, start_rate=rate(2, 10))
        return world, agent_id, ("k",)
    world.do(change({"queue": "shell", "all": "*"}[kind], start_rate=rate(2, 10)))
    return world, agent_id, ()


@pytest.mark.parametrize("kind", ["key", "queue", "all"])
def test_no_stretch_of_the_period_sees_more_starts_than_the_rate(kind: str) -> None:
    world, agent_id, keys = rated(kind)
    for number in range(40):
        add(world, f"{number:02}", *keys)
    starts: list[float] = []

    for _ in range(120):
        world.beat(agent_id)
        starts += [world.now_ns / 1e9] * len(take(world, agent_id))
        world.advance(0.7)

    assert len(starts) == pytest.approx(2 * 120 * 0.7 / 10, abs=2)
    assert all(later - earlier >= 9.999 for earlier, later in zip(starts, starts[2:], strict=False))


@pytest.mark.parametrize("kind", ["key", "queue", "all"])
def test_a_waiting_agent_gets_its_task_when_the_period_is_over(kind: str) -> None:
    world, agent_id, keys = rated(kind)
    for name in "abcd":
        add(world, name, *keys)
    assert take(world, agent_id) == ["a", "b"]
    waiting = world.poll(agent_id, max_tasks=9)

    world.advance(9.9)
    assert waiting.taken == []
    world.advance(0.2)

    assert [lease.task_id for lease in waiting.taken] == ["task_c", "task_d"]


def test_a_task_parked_while_its_key_was_full_is_woken_when_the_rate_has_room() -> None:
    world = World(lease_duration=1000.0)
    agent_id = world.register(slots=9)
    world.limit("k", 1, start_rate=rate(2, 60))
    for name in "abc":
        add(world, name, "k")
    assert take(world, agent_id) == ["a"]
    world.complete("task_a")
    assert take(world, agent_id) == ["b"]
    world.complete("task_b")
    waiting = world.poll(agent_id)
    assert waiting.taken == []

    world.advance(61)

    world.beat(agent_id)
    assert [lease.task_id for lease in waiting.taken] == ["task_c"]


@pytest.mark.parametrize("kind", ["key", "queue", "all"])
def test_a_cleared_rate_holds_nothing_back_and_remembers_nothing(kind: str) -> None:
    world, agent_id, keys = rated(kind)
    for name in "abcdef":
        add(world, name, *keys)
    assert take(world, agent_id) == ["a", "b"]
    waiting = world.poll(agent_id, max_tasks=1)

    def set_rate(to: StartRate | None) -> None:
        if kind == "key":
            world.limit("k", 50, start_rate=to)
        else:
            world.do(change("shell" if kind == "queue" else "*", start_rate=to))

    set_rate(None)

    assert [lease.task_id for lease in waiting.taken] == ["task_c"]
    set_rate(rate(2, 10))
    assert take(world, agent_id) == ["d", "e"]
    assert take(world, agent_id) == []


def test_a_start_counts_even_where_the_task_came_back() -> None:
    world, agent_id, _ = rated("queue")
    add(world, "a")
    for _ in range(2):
        assert take(world, agent_id) == ["a"]
        world.release("task_a")

    assert take(world, agent_id) == []


def test_a_failed_batch_has_started_nothing() -> None:
    world, agent_id, _ = rated("queue")
    for name in "abc":
        add(world, name)
    before = world.picture()

    fail_commit(world, LeaseTasksRequest(agent_id=agent_id, max_tasks=9))

    assert world.picture() == before
    assert take(world, agent_id) == ["a", "b"]


def test_a_failed_change_of_a_rate_forgets_no_start() -> None:
    world, agent_id, _ = rated("queue")
    for name in "abc":
        add(world, name)
    take(world, agent_id)
    before = world.picture()

    fail_commit(world, change("shell", start_rate=None), LeaseTasksRequest(agent_id=agent_id))

    assert world.picture() == before
    assert take(world, agent_id) == []


def test_starts_that_no_rate_looks_at_are_forgotten() -> None:
    world, agent_id, keys = rated("key")
    for number in range(20):
        add(world, str(number), *keys)
        take(world, agent_id)
        world.advance(11)
        world.beat(agent_id)

    assert len(world.state.queues.starts._starts["key/k"]) <= 2


# -- figures -------------------------------------------------------------------------------------


def test_stats_count_what_waits_is_held_back_and_runs() -> None:
    world = World()
    agent_id = world.register("red", slots=4)
    world.register("red", "blue", slots=2)
    for name in "abcd":
        add(world, name, "k", agent_type="red")
    add(world, "e", agent_type="red")
    assert take(world, agent_id) == ["a", "e"]
    add(world, "f", agent_type="green")
    world.advance(3)

    found = stats(world)

    red = found["red"]
    assert (red.depth, red.blocked, red.running, red.agents, red.free_slots) == (3, 3, 2, 2, 4)
    assert red.oldest_age.ToTimedelta().total_seconds() == pytest.approx(3, abs=0.01)
    assert (found["green"].depth, found["green"].agents, found["blue"].agents) == (1, 0, 1)
    assert not found["blue"].HasField("oldest_age")
    assert list(found) == ["blue", "green", "red"]


def test_stats_of_all_queues_are_the_sum() -> None:
    world = World()
    add(world, "a", agent_type="red")
    add(world, "b", agent_type="blue")
    world.running()

    every = stats(world, "*")["*"]

    assert (every.depth, every.running, every.agents) == (2, 1, 1)
    assert every.add_rate > every.dispatch_rate > 0


def test_stats_show_the_queue_as_it_was_set() -> None:
    world = World()
    world.pause("red", "why")

    assert stats(world)["red"].queue.state_reason == "why"
    assert stats(world, "blue")["blue"].queue.state == QUEUE_STATE_OPEN


def test_rates_are_those_of_the_last_minute() -> None:
    world = World()
    world.pause("shell")
    for _ in range(60):
        world.do(*[CreateTaskRequest(task=TaskSpec(agent_type="shell")) for _ in range(3)])
        world.advance(1)

    assert stats(world)["shell"].add_rate == pytest.approx(3, rel=0.05)
    assert stats(world)["shell"].dispatch_rate == 0
    world.advance(61)
    assert stats(world)["shell"].add_rate == 0
