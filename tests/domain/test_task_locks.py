"""Tasks and their locks: taken with the slot, waited for without any, gone with the attempt, whatever ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kapell.v1.agent_pb2 import TERMINATE_MODE_FORCE, TerminateAgentRequest
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.lock_pb2 import CheckFenceRequest
from kapell.v1.task_pb2 import (
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    RetryPolicy,
    TaskTimeouts,
)
from kapell.v1.worker_pb2 import (
    DeregisterRequest,
    FailTaskRequest,
    ProviderRateLimit,
)
from kapell_server.domain.locks import lock
from kapell_server.engine.facts import AgentProcessExited

from tests.domain.asking import ask_whole
from tests.domain.lock_tasks import TaskWorld
from tests.domain.test_concurrency import seconds
from tests.domain.world import USER, World


@pytest.fixture
def world() -> TaskWorld:
    return TaskWorld(starving_after=1e6)


def agents(world: World, count: int, *types: str) -> list[str]:
    """So many agents, all of which wait for tasks."""
    found = [world.register(*(types or ("shell",)), key=f"agent {len(world.rows.agents)}") for _ in range(count)]
    for agent_id in found:
        world.poll(agent_id)
    return found


# -- the start -------------------------------------------------------------------------------------


def test_a_task_starts_with_all_its_locks_and_their_tokens(world: TaskWorld) -> None:
    task = world.task(world.start("repo/src", "docs r"))

    assert task.state == TASK_STATE_RUNNING
    by_path = {one.path: one for one in world.locks()}
    assert {one.path: (one.lock_id, one.fencing_token) for one in task.locks} == {
        path: (held.lock_id, held.fencing_token) for path, held in by_path.items()
    }
    assert {(held.owner.task_id, held.owner.attempt) for held in by_path.values()} == {(task.task_id, 1)}
    token = by_path["repo/src"].fencing_token
    guarded = CheckFenceRequest(path="repo/src/a.py", fencing_token=token)
    assert lock.check_fence(world.state, guarded, USER, world.now_ns).lock.path == "repo/src"


def test_two_that_overlap_run_one_after_the_other(world: TaskWorld) -> None:
    agents(world, 2)
    first, second = world.declare("repo/src"), world.declare("repo/src/a.py", "port/80")

    assert (world.state_of(first), world.state_of(second)) == (TASK_STATE_RUNNING, TASK_STATE_QUEUED)
    assert set(world.held()) == {"repo/src"}
    world.complete(first)

    assert world.state_of(second) == TASK_STATE_RUNNING
    assert set(world.held()) == {"repo/src/a.py", "port/80"}


def test_readers_run_beside_each_other_and_a_writer_after_them(world: TaskWorld) -> None:
    agents(world, 4)
    readers = [world.declare("repo r"), world.declare("repo/src r")]
    writer = world.declare("repo/src/a.py")
    late = world.declare("repo r")

    assert [world.state_of(one) for one in readers] == [TASK_STATE_RUNNING] * 2
    assert [world.state_of(one) for one in (writer, late)] == [TASK_STATE_QUEUED] * 2
    world.complete(readers[0])
    assert world.state_of(writer) == TASK_STATE_QUEUED
    world.complete(readers[1])

    assert [world.state_of(one) for one in (writer, late)] == [TASK_STATE_RUNNING, TASK_STATE_QUEUED]


def test_who_waits_holds_nothing(world: TaskWorld) -> None:
    agents(world, 2)
    world.start("b")
    waiting = world.declare("a", "b", "c")
    other = world.declare("d")

    assert set(world.held()) == {"b", "d"}
    assert (world.state_of(waiting), world.state_of(other)) == (TASK_STATE_QUEUED, TASK_STATE_RUNNING)


def test_a_task_that_waits_for_locks_costs_its_agent_nothing(world: TaskWorld) -> None:
    holder = world.start("repo")
    for _ in range(5):
        world.declare("repo/src", priority=900)
    free = world.declare(priority=1)

    assert world.lease(world.register()) == free
    assert world.state_of(holder) == TASK_STATE_RUNNING


def test_a_lock_of_a_session_holds_a_task_back_until_it_expires(world: TaskWorld) -> None:
    agents(world, 1)
    world.acquire(world.session(ttl=30), "repo")
    task = world.declare("repo/src")

    world.advance(29)
    assert world.state_of(task) == TASK_STATE_QUEUED
    world.poll(next(iter(world.rows.agents)))
    world.advance(1)

    assert world.state_of(task) == TASK_STATE_RUNNING


@pytest.mark.parametrize("how", ["given back", "weakened", "forced", "closed"])
def test_what_frees_a_lock_wakes_who_waits_for_it(world: TaskWorld, how: str) -> None:
    agents(world, 1)
    session = world.session()
    [held] = world.acquire(session, "repo").locks
    task = world.declare("repo/src r")
    assert world.state_of(task) == TASK_STATE_QUEUED

    match how:
        case "given back":
            world.give_back(held)
        case "weakened":
            world.give_back(held, keep_shared=True)
        case "forced":
            world.force("repo")
        case _:
            world.close(session)

    assert world.state_of(task) == TASK_STATE_RUNNING


def test_who_comes_first_and_goes_lets_the_next_one_go(world: TaskWorld) -> None:
    agents(world, 2)
    reader = world.start("repo r")
    writer = world.declare("repo")
    behind = world.declare("repo/src r")
    assert world.state_of(behind) == TASK_STATE_QUEUED

    world.cancel(writer)

    assert world.state_of(behind) == TASK_STATE_RUNNING
    assert world.state_of(reader) == TASK_STATE_RUNNING


# -- the end ---------------------------------------------------------------------------------------


def let_expire(world: TaskWorld, task_id: str) -> None:
    world.advance(10)


def terminate(world: TaskWorld, task_id: str) -> None:
    agent_id = world.task(task_id).lease.agent_id
    world.do(TerminateAgentRequest(agent_id=agent_id, mode=TERMINATE_MODE_FORCE))
    world.advance(200)


def limited(world: TaskWorld, task_id: str) -> None:
    limit = ProviderRateLimit(provider="p", reset_after=seconds(60))
    world.do(FailTaskRequest(lease_token=world.token(task_id), rate_limited=limit))


def run_out(world: TaskWorld, task_id: str) -> None:
    for _ in range(30):
        agent_id = world.task(task_id).lease.agent_id
        if world.state_of(task_id) == TASK_STATE_RUNNING:
            world.advance(5)
            world.beat(agent_id, task_id)
        elif world.state_of(task_id) == TASK_STATE_CANCELLING:
            world.fail(task_id)


def hold_on(world: TaskWorld, task_id: str) -> None:
    """Cancelled, and its agent never lets go."""
    world.cancel(task_id)
    for _ in range(40):
        if world.state_of(task_id) == TASK_STATE_CANCELLING:
            world.advance(5)
        if world.state_of(task_id) == TASK_STATE_CANCELLING:
            world.beat(world.task(task_id).lease.agent_id, task_id)


ENDS: dict[str, tuple[Callable[[TaskWorld, str], object], int]] = {
    "completed": (lambda world, task_id: world.complete(task_id), TASK_STATE_SUCCEEDED),
    "failed for good": (lambda world, task_id: world.fail(task_id, retryable=False), TASK_STATE_FAILED),
    "failed, to be tried again": (lambda world, task_id: world.fail(task_id), TASK_STATE_PENDING),
    "limited by its provider": (limited, TASK_STATE_PENDING),
    "handed back": (lambda world, task_id: world.release(task_id), TASK_STATE_QUEUED),
    "parked for an approval": (
        lambda world, task_id: ask_whole(world, task_id, park=True),
        TASK_STATE_AWAITING_APPROVAL,
    ),
    "expired": (let_expire, TASK_STATE_QUEUED),
    "agent terminated": (terminate, TASK_STATE_QUEUED),
    "agent deregistered": (
        lambda world, task_id: world.do(DeregisterRequest(agent_id=world.task(task_id).lease.agent_id)),
        TASK_STATE_QUEUED,
    ),
    "out of time": (run_out, TASK_STATE_FAILED),
    "cancelled, and the agent let go": (
        lambda world, task_id: (world.cancel(task_id), world.fail(task_id)),
        TASK_STATE_CANCELLED,
    ),
    "cancelled, and the agent did not": (hold_on, TASK_STATE_CANCELLED),
    "cancelled, and completed": (
        lambda world, task_id: (world.cancel(task_id), world.complete(task_id)),
        TASK_STATE_CANCELLED,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_locks_end_with_the_attempt_however_it_ends(world: TaskWorld, end: str) -> None:
    act, state = ENDS[end]
    timeouts = TaskTimeouts(run_timeout=seconds(20)) if end == "out of time" else None
    once = RetryPolicy(max_attempts=1) if end == "out of time" else None
    task_id = world.start("repo", "docs r", timeouts=timeouts, retry_policy=once)
    assert set(world.held()) == {"repo", "docs"}

    act(world, task_id)

    assert world.state_of(task_id) == state
    assert world.held() == {}
    assert all(not one.lock_id and not one.fencing_token for one in world.task(task_id).locks)


def test_an_offer_that_was_not_taken_up_gives_its_locks_back(world: TaskWorld) -> None:
    agent_id = world.register()
    task_id = world.declare("repo")
    world.lease(agent_id)

    world.advance(10)

    assert world.held() == {}
    assert world.state_of(task_id) == TASK_STATE_QUEUED


def test_a_process_that_dies_takes_the_locks_of_its_tasks_along(world: TaskWorld) -> None:
    agent_id = world.spawn()
    world.do(AgentProcessExited(agent_id, ProcessExit(code=1), ""))
    task_id = world.start("repo")
    world.advance(10)

    assert world.held() == {}
    assert world.state_of(task_id) == TASK_STATE_QUEUED


def test_locks_are_held_while_an_agent_is_told_to_let_go(world: TaskWorld) -> None:
    task_id = world.start("repo")

    world.cancel(task_id)

    assert world.state_of(task_id) == TASK_STATE_CANCELLING
    assert set(world.held()) == {"repo"}


def test_another_attempt_has_newer_tokens_and_the_old_ones_are_stale(world: TaskWorld) -> None:
    agent_id = world.register()
    task_id = world.declare("repo")
    world.lease(agent_id)
    old = world.task(task_id).locks[0].fencing_token
    world.release(task_id)

    world.lease(agent_id)

    assert world.task(task_id).locks[0].fencing_token > old
    with world.refuses("FENCING_TOKEN_STALE"):
        lock.check_fence(world.state, CheckFenceRequest(path="repo", fencing_token=old), USER, world.now_ns)


def test_what_an_attempt_acquired_besides_ends_with_it_too(world: TaskWorld) -> None:
    task_id = world.start("repo")
    world.acquire(task_id, "port/80", "repo/src")
    assert len(world.locks()) == 3

    world.complete(task_id)

    assert world.held() == {}
