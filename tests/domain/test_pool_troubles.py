"""Pools where things go wrong beside them: agents of others, agents that fail together, profiles that are gone."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_TERMINATING,
    Agent,
    AgentPool,
    AgentProfile,
    AgentSpec,
    CommandRuntime,
    DeleteAgentRequest,
    DrainAgentRequest,
    TerminateAgentRequest,
    UpdateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.task_pb2 import WAIT_KIND_NO_AGENT
from kapell.v1.worker_pb2 import DeregisterRequest
from kapell_server.domain.workers.pool import Pools
from kapell_server.engine.facts import AgentProcessExited

from tests.domain.test_agent_pools import IDLE, begin, create, finish, living, pooled
from tests.domain.test_rollback import fail_commit, new
from tests.domain.world import World, as_agent

BROKEN = ProcessExit(code=1, message="exited with code 1")


def of_pool(world: World, name: str = "coder") -> list[Agent]:
    return [agent for agent in living(world) if agent.profile == name]


def fail(world: World, *agents: Agent) -> None:
    """The processes of all of them end in one batch."""
    world.do(*(AgentProcessExited(agent.agent_id, BROKEN, "its host broke") for agent in agents))
    world.advance(0)


def test_free_slots_that_take_other_types_only_do_not_count() -> None:
    world = pooled(0, 4, 1, "coder", "tester")
    other = world.register("coder", slots=8)
    world.poll(other, max_tasks=8)

    create(world, 3, "tester")

    assert len(of_pool(world)) == 3


def test_a_free_slot_is_counted_once() -> None:
    world = pooled(0, 4, 1, "coder", "tester")
    both = world.register("coder", "tester")
    world.pause("coder")
    world.pause("tester")
    create(world, 1, "coder")
    create(world, 1, "tester")
    assert of_pool(world) == []
    world.resume("coder")
    world.resume("tester")
    world.advance(0)

    assert both
    assert len(of_pool(world)) == 1


def test_a_slot_that_another_type_has_taken_is_made_up_for() -> None:
    world = pooled()
    other = world.register("other", "coder")
    create(world)
    assert of_pool(world) == [], "the other agent has a free slot"

    world.create("other", priority=1000)
    task_id = world.lease(other)
    world.advance(0)

    assert world.task(task_id).agent_type == "other"
    assert len(of_pool(world)) == 1


def test_an_agent_of_others_that_goes_is_made_up_for() -> None:
    for leave in (
        lambda world, one: world.do(DeregisterRequest(agent_id=one), caller=as_agent(world.agent(one))),
        lambda world, one: world.do(DrainAgentRequest(agent_id=one)),
        lambda world, one: world.do(TerminateAgentRequest(agent_id=one)),
        lambda world, one: world.advance(1e5),
    ):
        world = pooled()
        other = world.register("coder")
        create(world)
        assert of_pool(world) == []

        leave(world, other)
        world.advance(0)

        assert len(of_pool(world)) == 1


def test_a_drained_agent_of_the_pool_is_made_up_for() -> None:
    world = pooled(least=1)
    [first] = begin(world)

    world.do(DrainAgentRequest(agent_id=first))
    world.advance(0)

    assert len(of_pool(world)) == 2


def test_a_pool_that_had_no_room_starts_when_there_is_some() -> None:
    world = pooled(server_agents=1)
    other = world.register("other")
    [task_id] = create(world)
    assert of_pool(world) == []
    [blocker] = [found for found in world.explain(task_id).blockers if found.kind == WAIT_KIND_NO_AGENT]
    assert "may have no more agents" in blocker.message

    world.do(DeregisterRequest(agent_id=other), caller=as_agent(world.agent(other)))
    world.advance(0)

    assert len(of_pool(world)) == 1


def test_agents_that_fail_together_fail_once() -> None:
    world = pooled(most=8)
    create(world, 8)

    fail(world, *of_pool(world))
    world.advance(1)

    assert len(of_pool(world)) == 8
    fail(world, *of_pool(world))
    world.advance(1)
    assert of_pool(world) == [], "the second time in a row it waits for longer"
    world.advance(1)
    assert len(of_pool(world)) == 8


def test_what_is_done_to_failed_agents_is_no_failure() -> None:
    world = pooled()
    create(world)
    [agent] = of_pool(world)
    fail(world, agent)
    world.advance(1)

    for number in range(4):
        renamed = Agent(agent_id=agent.agent_id, display_name=str(number))
        request = UpdateAgentRequest(agent=renamed)
        request.update_mask.paths.append("display_name")
        world.do(request)
    world.do(DeleteAgentRequest(agent_id=agent.agent_id))

    assert world.state.pools.setbacks["coder"].row == 1


def test_agents_of_a_pool_that_is_no_more_finish_their_work_and_go() -> None:
    world = pooled()
    create(world)
    [agent_id] = begin(world)
    task_id = world.lease(agent_id)
    world.beat(agent_id, task_id)
    by_hand = world.spawn(spec=AgentSpec(agent_types=["x"], command=CommandRuntime(argv=["true"])), profile="coder")

    world.state.pools = Pools(world.state)
    world.state.pools.load([])
    create(world)
    begin(world)
    world.advance(1000)
    assert world.agent(agent_id).state == AGENT_STATE_ACTIVE
    world.complete(task_id)
    world.advance(300)

    assert world.agent(agent_id).state == AGENT_STATE_TERMINATING
    assert [agent.agent_id for agent in living(world)] == [agent_id, by_hand]
    assert world.agent(by_hand).state == AGENT_STATE_ACTIVE


def test_two_pools_for_one_type_start_one_agent_for_one_task() -> None:
    world = pooled()
    spec = AgentSpec(agent_types=["coder"], command=CommandRuntime(argv=["true"]))
    pool = AgentPool(max_agents=4, idle_stop=Duration(seconds=IDLE))
    first = world.state.pools.profiles["coder"]
    world.state.pools = Pools(world.state)
    world.state.pools.load([first, AgentProfile(profile="second", spec=spec, pool=pool)])

    create(world)
    assert len(living(world)) == 1
    create(world, 7)

    assert (len(of_pool(world)), len(of_pool(world, "second"))) == (4, 4)


def test_what_a_failed_batch_was_to_start_is_started_by_the_next() -> None:
    world = pooled()
    fail_commit(world, new("task_x"))
    assert living(world) == []

    create(world)

    assert len(of_pool(world)) == 1


def test_one_that_idles_while_tasks_want_others_is_ended_when_they_are_gone() -> None:
    world = pooled(most=1)
    create(world)
    [agent_id] = begin(world)
    world.complete(world.lease(agent_id))
    waiting = create(world, 3)
    world.advance(2 * IDLE)
    assert world.agent(agent_id).state == AGENT_STATE_ACTIVE

    for task_id in waiting:
        world.cancel(task_id)
    world.advance(IDLE)
    world.advance(IDLE)
    finish(world)

    assert living(world) == []
