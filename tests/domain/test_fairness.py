"""Whose turn it is: fairness keys, priorities, and tasks that have waited too long (T7)."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.queue_pb2 import ConcurrencyLimit
from kapell.v1.task_pb2 import TASK_STATE_QUEUED, CreateTaskRequest, Task, TaskSpec, UpdateTaskRequest
from kapell_server.domain.queueing.ready import entry_of

from tests.domain.world import World


def add(world: World, key: str, count: int, **spec: object) -> list[str]:
    """So many tasks of a fairness key, in one batch."""
    world.now_ns += 1000
    first = len(world.rows.tasks)
    specs = [
        TaskSpec(task_id=f"task_{first + number:05}", agent_type="shell", fairness_key=key, **spec)  # type: ignore[arg-type]
        for number in range(count)
    ]
    world.do(*[CreateTaskRequest(task=one) for one in specs])
    return [one.task_id for one in specs]


def served(world: World, agent_id: str, count: int) -> str:
    """The fairness keys of the next tasks that the agent is given; it ends each at once."""
    keys = []
    for _ in range(count):
        task_id = world.lease(agent_id)
        keys.append(world.task(task_id).fairness_key)
        world.complete(task_id)
    return "".join(keys)


def test_keys_take_turns_however_many_tasks_each_has() -> None:
    world = World()
    add(world, "a", 100)
    add(world, "b", 3)

    assert served(world, world.register(), 8) == "abababaa"


def test_three_keys_that_arrive_one_after_another_share_equally() -> None:
    world = World()
    agent_id = world.register()
    add(world, "a", 30)
    assert served(world, agent_id, 5) == "aaaaa"
    add(world, "b", 30)
    add(world, "c", 30)

    order = served(world, agent_id, 15)

    assert sorted(order) == sorted("aaaaabbbbbccccc")
    assert all(len(set(order[start : start + 3])) == 3 for start in range(0, 15, 3))


def test_a_key_that_was_idle_gets_its_turn_and_no_more() -> None:
    world = World()
    agent_id = world.register()
    add(world, "a", 100)
    add(world, "b", 1)
    served(world, agent_id, 40)

    add(world, "b", 20)

    order = served(world, agent_id, 20)
    assert order.count("b") == 10
    assert "bbb" not in order


def test_a_key_that_has_had_more_than_its_share_while_alone_owes_nothing() -> None:
    world = World()
    agent_id = world.register()
    add(world, "a", 40)
    served(world, agent_id, 40)

    add(world, "b", 10)
    add(world, "a", 10)

    assert served(world, agent_id, 8).count("a") == 4


def test_a_key_whose_tasks_were_cancelled_owes_nothing() -> None:
    world = World()
    for task_id in add(world, "a", 50):
        world.cancel(task_id)

    add(world, "b", 10)
    add(world, "a", 10)

    assert served(world, world.register(), 8).count("a") == 4


def test_without_keys_it_is_first_come_first_served() -> None:
    world = World()
    agent_id = world.register(slots=9)
    ids = add(world, "", 5)

    assert [lease.task_id for lease in world.poll(agent_id, max_tasks=9).taken] == ids


def test_tasks_without_a_key_are_one_share() -> None:
    world = World()
    add(world, "", 10)
    add(world, "a", 10)

    assert served(world, world.register(), 6) == "aaa"


def test_priority_comes_before_fairness() -> None:
    world = World()
    add(world, "b", 3)
    add(world, "a", 5, priority=900)

    assert served(world, world.register(), 8) == "aaaaabbb"


def test_each_type_and_priority_has_turns_of_its_own() -> None:
    world = World()
    agent_id = world.register()
    add(world, "a", 20, priority=900)
    served(world, agent_id, 20)

    add(world, "a", 4)
    add(world, "b", 4)

    assert served(world, agent_id, 8) == "abababab"


def test_a_task_that_comes_back_joins_the_end_of_its_key() -> None:
    world = World()
    agent_id = world.register()
    first, *_ = add(world, "a", 3)
    add(world, "b", 3)
    assert world.lease(agent_id) == first
    world.now_ns += 1000

    world.release(first)

    assert served(world, agent_id, 6) == "bababa"
    assert world.rows.attempts[first, 2].attempt == 2


def test_a_new_priority_joins_the_end_there() -> None:
    world = World()
    moved, *_ = add(world, "a", 2)
    high = add(world, "a", 2, priority=900)
    world.now_ns += 1000
    request = UpdateTaskRequest(task=Task(task_id=moved, priority=900), update_mask=FieldMask(paths=["priority"]))

    world.do(request)

    got = [lease.task_id for lease in world.poll(world.register(slots=3), max_tasks=3).taken]
    assert got == [*high, moved]


def test_tasks_that_a_key_holds_back_do_not_delay_the_others_of_their_share() -> None:
    world = World()
    agent_id = world.register(slots=20)
    add(world, "a", 10, concurrency_keys=["k"])
    add(world, "b", 10)

    got = [world.task(lease.task_id).fairness_key for lease in world.poll(agent_id, max_tasks=20).taken]

    assert got == ["a", *["b"] * 10]


# -- tasks that starve ---------------------------------------------------------------------------


def flooded(*agent_types: str, starving_after: float = 600) -> tuple[World, str, str]:
    """A world with a low task that has starved, and a flood of high ones; the agent has had no turn yet."""
    world = World(starving_after=starving_after)
    old = world.create(agent_types[-1], priority=1)
    world.advance(601)
    for _ in range(12):
        world.now_ns += 1000
        world.create(agent_types[0], priority=900)
    return world, old, world.register(*agent_types)


def turns(world: World, agent_id: str, count: int) -> list[str]:
    got = []
    for _ in range(count):
        got.append(world.lease(agent_id))
        world.complete(got[-1])
    return got


@pytest.mark.parametrize("agent_types", [("shell",), ("red", "blue")])
def test_every_fourth_turn_of_an_agent_goes_to_a_starving_task(agent_types: tuple[str, ...]) -> None:
    world, old, agent_id = flooded(*agent_types)

    assert turns(world, agent_id, 5).index(old) == 3


def test_of_several_starving_ones_the_oldest_comes_first() -> None:
    world = World()
    second = world.create(priority=1)
    world.advance(1)
    third = world.create("other", priority=400)
    world.rows.tasks[second].CopyFrom(world.task(second))
    world.advance(700)
    for _ in range(20):
        world.create(priority=900)
    agent_id = world.register("shell", "other")

    got = turns(world, agent_id, 8)

    assert (got.index(second), got.index(third)) == (3, 7)


def test_a_task_that_has_not_waited_long_enough_has_no_such_turn() -> None:
    world, old, agent_id = flooded("shell", starving_after=700)

    assert old not in turns(world, agent_id, 12)


def test_a_starving_task_that_a_limit_holds_back_leaves_its_turn_to_the_next() -> None:
    world = World()
    holder = world.running(concurrency_keys=["k"])
    held_back = world.create(priority=1, concurrency_keys=["k"])
    for _ in range(130):
        world.advance(5)
        world.beat(world.task(holder).lease.agent_id, holder)
    for _ in range(8):
        world.create(priority=900)

    assert held_back not in turns(world, world.register(), 8)


# -- the start, and what is remembered -----------------------------------------------------------


def test_keys_without_queued_tasks_are_not_remembered() -> None:
    world = World()
    agent_id = world.register()
    for number in range(10):
        add(world, f"key-{number}", 2)
        world.complete(world.lease(agent_id))
        left = world.state.queues.ready.first("shell")
        assert left is not None
        world.cancel(left.task_id)

    assert world.state.queues._fair._classes["shell", 500].stamps == {}


def test_a_held_back_task_of_long_ago_gives_no_credit_to_keys_after_a_start() -> None:
    world = World()
    world.limit("k", 0)
    add(world, "old", 1, concurrency_keys=["k"])
    add(world, "a", 100)
    served(world, world.register(), 80)
    queued = [(entry_of(one), one.fairness_key) for one in world.rows.tasks.values() if one.state == TASK_STATE_QUEUED]

    again = World()
    again.rows = world.rows
    again.state.begin(world.now_ns, again.rows)
    again.state.standing.load([ConcurrencyLimit(key="k", max_running=0)])
    again.state.queues.load(queued, [], [], [])
    again.now_ns = world.now_ns
    add(again, "new", 20)

    assert served(again, again.register(), 10).count("a") == 5
