"""Why a task does not run: every reason, nothing that is not so, and until when."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from kapell.v1.agent_pb2 import DrainAgentRequest
from kapell.v1.task_pb2 import (
    Blocker,
    CreateTaskRequest,
    ExplainTaskRequest,
    ExplainTaskResponse,
    RetryPolicy,
    TaskSpec,
    WaitKind,
)
from kapell.v1.worker_pb2 import DeregisterRequest, LeaseTasksRequest
from kapell_server.domain.queueing import queues as queues_module
from kapell_server.domain.queueing.ready import ReadyEntry, ReadyIndex
from kapell_server.domain.times import SECOND, stamp, timestamp_ns

from tests.domain.test_concurrency import add, take
from tests.domain.test_queues import change
from tests.domain.world import World, rate


def kinds(answer: ExplainTaskResponse) -> list[str]:
    return [WaitKind.Name(blocker.kind)[10:] for blocker in answer.blockers]


def blocker(answer: ExplainTaskResponse, kind: str) -> Blocker:
    [found] = [one for one in answer.blockers if WaitKind.Name(one.kind)[10:] == kind]
    return found


def until(answer: ExplainTaskResponse, kind: str) -> int:
    return timestamp_ns(blocker(answer, kind).until_time)


def test_a_task_without_agents_needs_one() -> None:
    world = World()
    task_id = add(world, "a")

    answer = world.explain(task_id)

    assert (kinds(answer), answer.position) == (["NO_AGENT"], 1)
    assert "shell" in answer.summary
    assert answer.task == world.task(task_id)
    assert answer.revision == world.state.revision


def test_an_agent_that_drains_or_has_ended_is_none() -> None:
    world = World()
    drained, ended = world.register(), world.register()
    world.do(DrainAgentRequest(agent_id=drained), DeregisterRequest(agent_id=ended))

    assert kinds(world.explain(add(world, "a"))) == ["NO_AGENT"]


def test_busy_agents_and_agents_that_did_not_ask_are_named() -> None:
    world = World()
    agent_id = world.register()
    first, second = add(world, "a"), add(world, "b")

    answer = world.explain(first)
    assert (kinds(answer), answer.position) == (["AGENT_NOT_ASKING"], 1)
    assert blocker(answer, "AGENT_NOT_ASKING").blocked_by == [agent_id]
    take(world, agent_id)

    answer = world.explain(second)
    assert (kinds(answer), answer.position) == (["AGENTS_BUSY"], 1)
    assert blocker(answer, "AGENTS_BUSY").blocked_by == [agent_id]


def test_tasks_that_come_first_are_counted() -> None:
    world = World()
    world.register()
    for name in "abc":
        add(world, name)
    add(world, "other", agent_type="red")
    high = add(world, "high", priority=900)

    answer = world.explain("task_c")

    assert (kinds(answer), answer.position) == (["AGENT_NOT_ASKING", "TURN"], 4)
    assert world.explain(high).position == 1


def test_a_task_that_could_not_run_is_not_in_the_way_of_others() -> None:
    world = World()
    red, blue = world.register("red"), world.register("blue")
    for name in "abc":
        add(world, name, "k", agent_type="red")
    free = add(world, "free", agent_type="red")
    add(world, "holder", "k", agent_type="blue")
    assert world.explain(free).position == 4

    assert take(world, blue) == ["holder"]

    answer = world.explain(free)
    assert (kinds(answer), answer.position) == (["AGENT_NOT_ASKING"], 1)
    assert take(world, red) == ["free"]


def test_a_taken_key_names_its_holders_and_since_when() -> None:
    world = World()
    holder = world.running(concurrency_keys=["k"])
    task_id = add(world, "a", "k", agent_type="nobody")

    answer = world.explain(task_id)

    assert (kinds(answer), answer.position) == (["NO_AGENT", "CONCURRENCY_LIMIT"], 0)
    found = blocker(answer, "CONCURRENCY_LIMIT")
    assert (list(found.blocked_by), found.since_time) == ([holder], world.task(holder).lease.start_time)


def test_every_closed_key_is_named_and_no_open_one() -> None:
    world = World()
    world.register()
    world.limit("open", 5)
    world.limit("none", 0)
    holder = world.running(concurrency_keys=["taken"])
    task_id = add(world, "a", "open", "taken", "none")

    answer = world.explain(task_id)

    assert kinds(answer) == ["CONCURRENCY_LIMIT", "CONCURRENCY_LIMIT", "AGENT_NOT_ASKING"]
    assert [list(one.blocked_by) for one in answer.blockers[:2]] == [[holder], ["none"]]


@pytest.mark.parametrize("kind", ["queue", "all", "key"])
def test_a_used_up_rate_tells_when_it_is_free_to_the_nanosecond(kind: str) -> None:
    world = World(lease_duration=100.0)
    agent_id = world.register(slots=9)
    if kind == "key":
        world.limit("k", 9, start_rate=rate(2, 10))
    else:
        world.do(change("shell" if kind == "queue" else "*", start_rate=rate(2, 10)))
    for name in "abc":
        add(world, name, "k")
        take(world, agent_id)
        world.advance(1)
        if kind != "key" and name != "c":
            world.complete(f"task_{name}")

    answer = world.explain("task_c")

    assert kinds(answer) == ["START_RATE", "AGENT_NOT_ASKING"]
    free = until(answer, "START_RATE")
    assert 0 <= free - timestamp_ns(world.task("task_a").start_time) - 10 * SECOND < 100
    world.now_ns = free - 1
    assert take(world, agent_id) == []
    world.now_ns = free
    assert take(world, agent_id) == ["c"]


@pytest.mark.parametrize("queue", ["shell", "*"])
def test_a_paused_queue_tells_why_and_since_when(queue: str) -> None:
    world = World()
    waiting = world.poll(world.register())
    paused = world.pause(queue, "deploying")

    answer = world.explain(add(world, "a"))

    assert waiting.taken == []
    assert (kinds(answer), answer.position) == (["QUEUE_PAUSED"], 0)
    found = blocker(answer, "QUEUE_PAUSED")
    assert (list(found.blocked_by), found.since_time) == ([queue], paused.update_time)
    assert "deploying" in answer.summary


@pytest.mark.parametrize("queue", ["shell", "*"])
def test_a_full_queue_is_told(queue: str) -> None:
    world = World()
    agent_id = world.register(slots=9)
    world.do(change(queue, max_running=1))
    add(world, "a")
    task_id = add(world, "b")
    assert take(world, agent_id) == ["a"]

    assert kinds(world.explain(task_id)) == ["QUEUE_LIMIT", "AGENT_NOT_ASKING"]


def test_all_reasons_are_told_at_once() -> None:
    world = World()
    world.running(concurrency_keys=["k"])
    world.do(change("*", max_running=1))
    world.pause("red")
    task_id = add(world, "a", "k", agent_type="red")

    answer = world.explain(task_id)

    assert kinds(answer) == ["NO_AGENT", "QUEUE_PAUSED", "QUEUE_LIMIT", "CONCURRENCY_LIMIT"]
    assert answer.summary.endswith("3 more reasons.")


def test_a_task_that_waits_for_its_time_says_until_when() -> None:
    world = World()
    later = Timestamp()
    stamp(later, world.now_ns + 7 * SECOND)
    task_id = add(world, "a", not_before_time=later)

    answer = world.explain(task_id)

    assert (kinds(answer), answer.position) == (["NOT_BEFORE"], 0)
    assert until(answer, "NOT_BEFORE") == timestamp_ns(later)


def test_a_task_that_is_tried_again_says_when() -> None:
    world = World()
    agent_id = world.register()
    task_id = add(world, "a", retry_policy=RetryPolicy(initial_backoff=Duration(seconds=4), jitter=0))
    take(world, agent_id)
    world.fail(task_id)

    answer = world.explain(task_id)

    assert kinds(answer) == ["RETRY_BACKOFF"]
    assert until(answer, "RETRY_BACKOFF") == world.now_ns + 4 * SECOND


def test_a_task_that_is_being_cancelled_waits_for_its_agent() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)

    answer = world.explain(task_id)

    assert kinds(answer) == ["AGENT_LETTING_GO"]
    assert list(answer.blockers[0].blocked_by) == [world.task(task_id).lease.agent_id]


def test_what_runs_or_has_ended_waits_for_nothing() -> None:
    world = World()
    task_id = world.running()
    running = world.explain(task_id)
    world.complete(task_id)

    ended = world.explain(task_id)

    assert (list(running.blockers), list(ended.blockers)) == ([], [])
    assert (running.summary[:13], ended.summary[:12]) == ("It is running", "It has ended")


def test_an_unknown_task_has_no_reasons() -> None:
    world = World()

    with world.refuses("TASK_NOT_FOUND"):
        world.explain("task_unknown")


def test_the_answer_is_that_of_the_end_of_the_batch() -> None:
    world = World()
    agent_id = world.register()
    asked: list[Any] = [
        CreateTaskRequest(task=TaskSpec(task_id="task_a", agent_type="shell")),
        LeaseTasksRequest(agent_id=agent_id),
        ExplainTaskRequest(task_id="task_a"),
    ]

    answer = world.do(*asked)

    assert answer.blockers == []
    assert answer.task.lease.agent_id == agent_id


def test_far_behind_only_the_least_place_is_told() -> None:
    world = World()
    urgent = [TaskSpec(agent_type="shell", priority=600, prompt="p") for _ in range(600)]
    usual = [TaskSpec(agent_type="shell", prompt="p") for _ in range(600)]
    world.do(*[CreateTaskRequest(task=one) for one in urgent + usual])
    ids = [task.task_id for task in sorted(world.rows.tasks.values(), key=lambda one: (-one.priority, one.queue_rank))]

    near, far = world.explain(ids[999]), world.explain(ids[-1])

    assert (near.position, near.position_at_least) == (1000, False)
    assert (far.position, far.position_at_least) == (1001, True)
    world.register()
    assert world.explain(ids[-1]).blockers[-1].message == "At least 1000 tasks of its type come first."


@given(st.data())
def test_what_comes_before_is_what_a_look_at_all_finds(data: st.DataObject) -> None:
    """Heaps are walked in part only, with what means nothing any more still in them."""
    index = ReadyIndex(lambda *_: None)
    ranks = st.tuples(st.integers(-2, 0), st.integers(0, 6), st.sampled_from(["", "key/a", "key/b"]))
    for number in data.draw(st.lists(st.integers(0, 9), max_size=40)):
        priority, rank, gate = data.draw(ranks)
        if data.draw(st.booleans()):
            index.add(ReadyEntry(priority, rank, number, f"task_{number}", "shell"), gate)
        else:
            index.remove(f"task_{number}")
    places = list(index._places.values())
    for entry, _ in places:
        expected = {one.task_id for one, gate in places if one < entry and gate != "key/b"}

        found, are_all = index.before(entry, lambda name: name == "key/a", 1000)
        some, _ = index.before(entry, lambda name: name == "key/a", 3)

        assert (set(found), are_all) == (expected, True)
        assert set(some) <= expected


def test_types_without_tasks_are_forgotten_once_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    queues = world.state.queues
    monkeypatch.setattr(queues_module, "_MANY_TYPES", 20)
    queues._many_types = 20
    for number in range(60):
        task_id = world.create(f"type-{number}", concurrency_keys=["k"])
        if number % 2:
            agent_id = world.register(f"type-{number}")
            world.lease(agent_id)
            world.complete(task_id)
        else:
            world.cancel(task_id)
        world.advance(120)
    waiting = world.create("waits")

    assert len(queues._running) + queues.ready.types() < 50
    assert len(queues._fair._classes) < 50
    assert len(queues._added) + len(queues._given) < 50
    assert world.lease(world.register("waits")) == waiting
