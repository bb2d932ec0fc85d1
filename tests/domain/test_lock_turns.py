"""Which task gets its locks first, why the others wait, and that no wait is for ever."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.lock_pb2 import Lock, LockFilter, TaskLock
from kapell.v1.task_pb2 import (
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    WAIT_KIND_CONCURRENCY_LIMIT,
    WAIT_KIND_LOCK,
    Task,
    TaskSpec,
    UpdateTaskRequest,
)
from kapell.v1.worker_pb2 import (
    CreateChildTasksRequest,
    LeaseTasksRequest,
)
from kapell_server.domain.locks.views import GraphQuestion, LocksQuestion
from kapell_server.engine.facts import ChildrenAwaited

from tests.domain.lock_tasks import TaskWorld
from tests.domain.world import World


@pytest.fixture
def world() -> TaskWorld:
    return TaskWorld(starving_after=1e6)


def agents(world: World, count: int, *types: str) -> list[str]:
    """So many agents, all of which wait for tasks."""
    found = [world.register(*(types or ("shell",)), key=f"agent {len(world.rows.agents)}") for _ in range(count)]
    for agent_id in found:
        world.poll(agent_id)
    return found


# -- the order -------------------------------------------------------------------------------------


def test_a_thousand_under_one_path_are_woken_one_at_a_time(world: TaskWorld) -> None:
    [agent_id] = agents(world, 1)
    world.declare("repo")
    waiting = [world.declare("repo") for _ in range(1000)]
    assert world.parked() == sorted(waiting)

    for number in range(5):
        running = world.state.leases.of_agent(agent_id)
        [lease] = running
        world.complete(lease.task_id)
        assert len(world.parked()) >= 1000 - number - 1, "one of them was let go"
        assert world.lease(agent_id) == waiting[number]

    assert len(world.state.locks.waits) == 1


def test_priority_comes_first_and_then_who_was_there_first(world: TaskWorld) -> None:
    agents(world, 1)
    holder = world.start("repo")
    world.declare("repo/a", agent_type="nobody")
    early, urgent = world.declare("repo"), world.declare("repo", priority=900)

    world.complete(holder)

    assert world.state_of(urgent) == TASK_STATE_RUNNING
    assert world.state_of(early) == TASK_STATE_QUEUED


def test_a_ticket_and_a_task_go_in_the_order_in_which_they_came(world: TaskWorld) -> None:
    agents(world, 1)
    holder = world.start("repo")
    before = world.acquire(world.session(), "repo", wait=60)
    world.advance(1)
    task = world.declare("repo")
    world.advance(1)
    after = world.acquire(world.session(), "repo", wait=60)

    world.complete(holder)
    assert before.answer is not None
    assert world.state_of(task) == TASK_STATE_QUEUED
    world.give_back(*before.locks)
    assert world.state_of(task) == TASK_STATE_RUNNING
    assert after.answer is None
    world.complete(task)

    assert after.locks


def test_another_priority_is_another_place(world: TaskWorld) -> None:
    agents(world, 1)
    holder = world.start("repo")
    first, second = world.declare("repo"), world.declare("repo")

    world.do(UpdateTaskRequest(task=Task(task_id=second, priority=999), update_mask=FieldMask(paths=["priority"])))
    world.complete(holder)

    assert world.state_of(second) == TASK_STATE_RUNNING
    assert world.state_of(first) == TASK_STATE_QUEUED


def test_other_locks_are_waited_for_at_once(world: TaskWorld) -> None:
    agents(world, 1)
    world.start("repo")
    task = world.declare("repo")

    world.do(
        UpdateTaskRequest(
            task=Task(task_id=task, locks=[TaskLock(path="other")]), update_mask=FieldMask(paths=["locks"])
        )
    )

    assert world.state_of(task) == TASK_STATE_RUNNING
    assert set(world.held()) == {"repo", "other"}


def test_a_type_that_nobody_serves_blocks_nobody(world: TaskWorld) -> None:
    agents(world, 1)
    holder = world.start("repo")
    world.declare("repo", agent_type="nobody", priority=1000)
    task = world.declare("repo")
    call = world.acquire(world.session(), "repo", wait=60)

    world.complete(holder)

    assert world.state_of(task) == TASK_STATE_RUNNING
    world.complete(task)
    assert call.locks


def test_who_asks_in_a_moment_keeps_its_turn_for_a_second(world: TaskWorld) -> None:
    agent_id = world.register("slow")
    holder = world.start("repo")
    task = world.declare("repo", agent_type="slow")
    call = world.acquire(world.session(), "repo", wait=60)

    world.complete(holder)
    assert call.answer is None
    world.advance(0.5)
    assert world.lease(agent_id) == task
    world.complete(task)
    assert call.locks


def test_who_does_not_ask_in_time_gives_way_and_gets_its_place_again(world: TaskWorld) -> None:
    agent_id = world.register("slow")
    holder = world.start("repo")
    task = world.declare("repo", agent_type="slow")
    call = world.acquire(world.session(), "repo", wait=60)

    world.complete(holder)
    world.advance(1)
    assert call.locks
    later = world.acquire(world.session(), "repo", wait=60)
    world.poll(agent_id)
    assert world.state_of(task) == TASK_STATE_QUEUED
    world.give_back(*call.locks)

    assert world.state_of(task) == TASK_STATE_RUNNING
    assert later.answer is None


def test_who_has_waited_too_long_keeps_its_turn_while_its_agents_are_busy() -> None:
    world = TaskWorld(starving_after=100)
    holder, busy = world.start("repo"), world.running()
    type_of_busy = world.task(busy).agent_type
    agent_id = world.task(busy).lease.agent_id
    task = world.declare("repo", agent_type=type_of_busy)
    call = world.acquire(world.session(), "repo", wait=60)
    for _ in range(28):
        world.advance(5)
        world.beat(world.task(holder).lease.agent_id, holder)
        world.beat(agent_id, busy)

    world.complete(holder)  # It has waited 140 s, so its turn is 10 s.
    world.advance(9)
    world.beat(agent_id, busy)
    assert call.answer is None
    world.complete(busy)
    assert world.lease(agent_id) == task

    assert world.state_of(task) == TASK_STATE_RUNNING


def test_a_turn_ends_even_if_the_agents_stay_busy() -> None:
    world = TaskWorld(starving_after=100)
    holder, busy = world.start("repo"), world.running()
    agent_id = world.task(busy).lease.agent_id
    world.declare("repo", agent_type=world.task(busy).agent_type)
    call = world.acquire(world.session(), "repo", wait=60)
    for _ in range(28):
        world.advance(5)
        world.beat(world.task(holder).lease.agent_id, holder)
        world.beat(agent_id, busy)

    world.complete(holder)
    for _ in range(2):
        world.advance(5)
        world.beat(agent_id, busy)

    assert call.locks


def test_a_task_that_a_key_holds_back_lets_the_next_one_of_its_line_go(world: TaskWorld) -> None:
    agents(world, 2)
    holder = world.start("repo", concurrency_keys=["k"])
    keyed = world.declare("repo", concurrency_keys=["k"], priority=900)
    plain = world.declare("repo")
    other = world.declare("x", concurrency_keys=["k"])
    blockers = {one.kind for one in world.explain(keyed).blockers}
    assert blockers >= {WAIT_KIND_CONCURRENCY_LIMIT, WAIT_KIND_LOCK}

    world.complete(holder)

    running = {one for one in (keyed, plain, other) if world.state_of(one) == TASK_STATE_RUNNING}
    assert len(running & {keyed, plain}) == 1
    assert len(running & {keyed, other}) == 1


# -- why it waits ------------------------------------------------------------------------------------


def test_explain_names_path_holder_and_since_when(world: TaskWorld) -> None:
    agents(world, 1)
    holder = world.start("repo")
    task = world.declare("repo/src/a.py")

    [blocker] = world.explain(task).blockers

    agent_id = world.task(holder).lease.agent_id
    assert blocker.kind == WAIT_KIND_LOCK
    assert blocker.message == f"It needs repo/src/a.py: {holder} ({agent_id}) holds repo."
    assert list(blocker.blocked_by) == [holder]
    assert blocker.since_time == world.locks()[0].grant_time
    assert not blocker.HasField("until_time")


def test_explain_says_when_a_lock_with_a_ttl_ends(world: TaskWorld) -> None:
    agents(world, 1)
    call = world.acquire("", "repo r", ttl=30, note="release")
    task = world.declare("repo")

    [blocker] = world.explain(task).blockers

    assert blocker.message == "It needs repo: admin (release) holds repo to share it with readers."
    assert blocker.until_time.ToNanoseconds() == world.now_ns + 30 * 10**9
    assert list(blocker.blocked_by) == [call.locks[0].owner.grant_id]


def test_explain_names_who_comes_first(world: TaskWorld) -> None:
    agents(world, 3)
    world.start("repo r")
    writer = world.declare("repo/src")
    reader = world.declare("repo r")

    [blocker] = world.explain(reader).blockers

    assert blocker.message == f"It needs repo: {writer} asked for repo/src before."
    assert list(blocker.blocked_by) == [writer]


def test_those_behind_the_first_of_their_line_are_told_who_holds(world: TaskWorld) -> None:
    agents(world, 3)
    holder = world.start("repo")
    world.declare("repo")
    last = world.declare("repo")

    assert list(world.explain(last).blockers[0].blocked_by) == [holder]


# -- deadlocks ---------------------------------------------------------------------------------------


def test_a_parent_that_waits_for_a_child_that_needs_its_lock_is_told_the_circle(world: TaskWorld) -> None:
    agents(world, 1)
    parent = world.start("repo")
    spec = TaskSpec(agent_type="shell", locks=[{"path": "repo/src"}])
    [child] = world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[spec]))
    world.state.locks.child_waits[parent] = 1

    with world.refuses("DEADLOCK") as refusals:
        world.do(ChildrenAwaited(parent))

    assert f"{parent} waits for its child {child.task_id}" in refusals[0].message
    assert f"{child.task_id} waits for repo/src of {parent} (it has repo)" in refusals[0].message


def test_a_parent_that_lets_go_first_may_wait(world: TaskWorld) -> None:
    agents(world, 1)
    parent = world.start("repo")
    spec = TaskSpec(agent_type="shell", locks=[{"path": "repo/src"}])
    [child] = world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[spec]))

    world.give_back(*[one for one in world.locks() if one.owner.task_id == parent])
    world.state.locks.child_waits[parent] = 1
    world.do(ChildrenAwaited(parent))

    assert world.state_of(child.task_id) == TASK_STATE_RUNNING


def test_an_attempt_that_holds_and_waits_makes_no_deadlock_with_tasks_that_wait(world: TaskWorld) -> None:
    agents(world, 1)
    first = world.start("a")
    second = world.declare("a", "b")

    call = world.acquire(first, "b")

    assert call.locks
    assert world.state_of(second) == TASK_STATE_QUEUED
    assert isinstance(world.locks()[0], Lock)
    world.complete(first)
    assert world.state_of(second) == TASK_STATE_RUNNING
    world.do(LeaseTasksRequest(agent_id=world.task(second).lease.agent_id))


# -- how it looks ------------------------------------------------------------------------------------


def test_all_who_wait_are_listed_with_their_places(world: TaskWorld) -> None:
    agents(world, 1)
    holder = world.start("repo")
    waiting = []
    for _ in range(3):
        world.advance(0.001)
        waiting.append(world.declare("repo"))
    world.advance(0.001)
    world.acquire(world.session(), "repo/a", wait=60)

    listed = world.do(LocksQuestion(LockFilter(), 50, None))
    elsewhere = world.do(LocksQuestion(LockFilter(path="docs"), 50, None))
    mine = world.do(LocksQuestion(LockFilter(task_id=waiting[2]), 50, None))

    assert [(one.owner.task_id, one.position) for one in listed.waiters[:3]] == [
        (task_id, place) for place, task_id in enumerate(waiting, 1)
    ]
    assert all(one.blockers[0].owner.task_id == holder for one in listed.waiters)
    assert (listed.waiter_count, elsewhere.waiter_count) == (4, 0)
    assert [one.owner.task_id for one in mine.waiters] == [waiting[2]]
    graph = world.do(GraphQuestion(LockFilter()))
    assert {edge.from_node_id for edge in graph.edges} >= set(waiting)
