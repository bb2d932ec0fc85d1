"""Pools: agents come as tasks need them and go when they have nothing to do."""

from __future__ import annotations

import math
from random import Random

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import (
    AGENT_STATE_TERMINATING,
    Agent,
    AgentPool,
    AgentProfile,
    AgentSpec,
    CommandRuntime,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import WAIT_KIND_NO_AGENT
from kapell.v1.worker_pb2 import RegisterWorkerRequest
from kapell_server.domain.transitions import AGENT_FINAL
from kapell_server.engine.facts import AgentProcessExited, AgentProcessStarted

from tests.domain.world import World, as_ticket

IDLE = 60


def pooled(least: int = 0, most: int = 4, slots: int = 1, *types: str, server_agents: int = 50) -> World:
    """A world with the pool "coder"."""
    world = World(lease_duration=1e6, silent_after=1e5, max_agents=server_agents)
    spec = AgentSpec(agent_types=types or ["coder"], slots=slots, command=CommandRuntime(argv=["true"]))
    pool = AgentPool(min_agents=least, max_agents=most, idle_stop=Duration(seconds=IDLE))
    world.advance(0)
    world.state.pools.load([AgentProfile(profile="coder", spec=spec, pool=pool)])
    world.advance(0)
    return world


def living(world: World) -> list[Agent]:
    return [agent for agent in world.rows.agents.values() if agent.state not in AGENT_FINAL]


def begin(world: World) -> list[str]:
    """Every agent that is to be started registers; the ids of all that live."""
    for agent in living(world):
        if not agent.instance:
            world.do(AgentProcessStarted(agent.agent_id, 41))
            world.do(RegisterWorkerRequest(instance_key=agent.agent_id), caller=as_ticket(agent.agent_id))
    return [agent.agent_id for agent in living(world)]


def finish(world: World) -> None:
    """Processes of agents that are being ended end."""
    for agent in living(world):
        if agent.state == AGENT_STATE_TERMINATING:
            world.do(AgentProcessExited(agent.agent_id, ProcessExit(message="exited with code 0"), ""))


def create(world: World, count: int = 1, agent_type: str = "coder", **spec: object) -> list[str]:
    made = [world.create(agent_type, **spec) for _ in range(count)]
    world.advance(0)
    return made


def test_nothing_runs_while_there_is_nothing_to_do() -> None:
    assert living(pooled()) == []


def test_the_least_there_is_always_is_started_and_started_anew() -> None:
    world = pooled(least=2)
    first, _ = begin(world)

    world.do(AgentProcessExited(first, ProcessExit(signal=9, message="killed by SIGKILL"), ""))
    world.advance(1)

    assert len(living(world)) == 2


@pytest.mark.parametrize(("slots", "tasks", "agents"), [(1, 3, 3), (1, 9, 4), (2, 3, 2), (4, 3, 1)])
def test_as_many_start_as_the_tasks_need_and_not_more_than_there_may_be(slots: int, tasks: int, agents: int) -> None:
    world = pooled(slots=slots)

    create(world, tasks)

    found = living(world)
    assert len(found) == agents
    assert {(agent.profile, agent.creator.id) for agent in found} == {("coder", "pool")}
    create(world)
    assert len(living(world)) == min(4, math.ceil((tasks + 1) / slots)), "what is coming is counted"


def test_free_slots_of_others_are_used_first() -> None:
    world = pooled()
    other = world.register("coder", slots=2)
    world.poll(other)

    create(world, 3)

    assert len([agent for agent in living(world) if agent.profile == "coder"]) == 1


def test_what_could_not_run_anyway_starts_nobody() -> None:
    world = pooled()
    world.pause("coder")
    create(world, 2)
    assert living(world) == []

    world.resume("coder")
    world.advance(0)
    assert len(living(world)) == 2


def test_tasks_that_wait_for_each_other_keep_nobody() -> None:
    world = pooled()
    create(world, 3, concurrency_keys=["db"])
    busy, *others = begin(world)
    task_id = world.lease(busy)
    world.beat(busy, task_id)
    for other in others:
        assert not world.poll(other).taken

    world.advance(IDLE)
    finish(world)
    world.advance(IDLE)
    assert [agent.agent_id for agent in living(world)] == [busy]


def test_idle_ones_go_and_busy_ones_stay() -> None:
    world = pooled()
    create(world, 2)
    busy, idle = begin(world)
    task_id = world.lease(busy)
    world.beat(busy, task_id)
    done = world.lease(idle)
    world.complete(done)

    world.advance(IDLE - 1)
    assert len(living(world)) == 2
    world.advance(1)
    assert world.agent(idle).state == AGENT_STATE_TERMINATING
    assert world.agent(idle).state_reason == "nothing to do, and its pool needs it no more"
    finish(world)

    assert [agent.agent_id for agent in living(world)] == [busy]
    world.complete(task_id)
    world.advance(IDLE)
    finish(world)
    assert living(world) == []


def test_agents_spawned_by_hand_count_and_are_left_alone() -> None:
    world = pooled(most=1)
    spec = world.state.pools.profiles["coder"].spec
    by_hand = world.spawn(spec=spec, profile="coder")
    begin(world)
    world.advance(2 * IDLE)
    create(world, 3)

    assert [agent.agent_id for agent in living(world)] == [by_hand]


def test_a_pool_whose_agents_fail_is_held_back_and_says_so() -> None:
    world = pooled()
    [task_id] = create(world)
    pauses = []
    for _ in range(8):
        [agent] = living(world)
        world.do(AgentProcessExited(agent.agent_id, ProcessExit(message="x"), "its host exited with code 1"))
        world.advance(0)
        assert living(world) == []
        [blocker] = [found for found in world.explain(task_id).blockers if found.kind == WAIT_KIND_NO_AGENT]
        assert blocker.message.endswith("failed: its host exited with code 1")
        pauses.append(round(blocker.until_time.ToNanoseconds() / 1e9 - world.now_ns / 1e9))
        world.advance(pauses[-1])

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    [agent_id] = begin(world)
    assert world.lease(agent_id) == task_id
    assert not world.state.pools.setbacks, "one that works ends the row"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_there_are_never_more_than_may_be_and_all_is_done(seed: int) -> None:
    random = Random(seed)
    world = pooled(random.randrange(2), random.randrange(2, 5), random.randrange(1, 4), "coder", "tester")
    pool = world.state.pools.profiles["coder"].pool
    for _ in range(150):
        match random.randrange(6):
            case 0:
                create(world, random.randrange(1, 4), random.choice(("coder", "tester")))
            case 1:
                begin(world)
            case 2:
                for agent in living(world):
                    if agent.instance and agent.state != AGENT_STATE_TERMINATING:
                        world.poll(agent.agent_id)
            case 3:
                for task in [task for task in world.rows.tasks.values() if task.HasField("lease")]:
                    world.complete(task.task_id)
            case 4:
                finish(world)
            case 5:
                world.advance(random.choice((0, 1, IDLE)))
        assert len([agent for agent in living(world) if agent.state != AGENT_STATE_TERMINATING]) <= pool.max_agents
    for _ in range(60):
        world.advance(0)
        begin(world)
        for agent in living(world):
            if agent.state != AGENT_STATE_TERMINATING:
                world.poll(agent.agent_id)
        for task in [task for task in world.rows.tasks.values() if task.HasField("lease")]:
            world.complete(task.task_id)
        finish(world)
    assert not world.state.queues.ready.depths()
    world.advance(IDLE)
    finish(world)
    world.advance(IDLE)
    finish(world)
    assert len(living(world)) == pool.min_agents
