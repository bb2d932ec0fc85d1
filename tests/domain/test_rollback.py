"""What has been decided can be taken back, all of it, as if it had never been: refused commands, failed batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.agent_pb2 import Agent, DeleteAgentRequest, SpawnAgentRequest, UpdateAgentRequest
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.queue_pb2 import (
    CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS,
    ConcurrencyLimit,
    DeleteConcurrencyLimitRequest,
    DrainQueueRequest,
    PauseQueueRequest,
    Queue,
    SetConcurrencyLimitRequest,
    UpdateQueueRequest,
)
from kapell.v1.task_pb2 import (
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    RetryTaskRequest,
    Task,
    TaskFailure,
    TaskSpec,
    UpdateTaskRequest,
)
from kapell.v1.worker_pb2 import (
    CompleteTaskRequest,
    DeregisterRequest,
    FailTaskRequest,
    LeaseTasksRequest,
    ProviderRateLimit,
)
from kapell_server.domain import state as state_module
from kapell_server.engine.facts import AgentProcessExited, SpawnCommand

from tests.domain.world import SPEC, World, rate


class CommitFailedError(Exception):
    """The database did not take the batch."""


def fail_commit(world: World, *commands: Any) -> None:
    """A batch that is decided and then refused by the database."""

    def refuse() -> None:
        raise CommitFailedError

    commit, world._commit = world._commit, refuse  # type: ignore[method-assign]
    with pytest.raises(CommitFailedError):
        world.do(*commands)
    world._commit = commit  # type: ignore[method-assign]
    world.state.rollback(0)


def before_commit(world: World, look: Callable[[], bytes]) -> list[bytes]:
    """What each batch sees that far, while the database does not have it yet."""
    commit, seen = world._commit, []

    def look_and_commit() -> None:
        seen.append(look())
        commit()

    world._commit = look_and_commit  # type: ignore[method-assign]
    return seen


def new(task_id: str = "", prompt: str = "", **spec: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=TaskSpec(agent_type="shell", task_id=task_id, prompt=prompt, **spec))


def reprioritized(task_id: str, priority: int) -> UpdateTaskRequest:
    return UpdateTaskRequest(task=Task(task_id=task_id, priority=priority), update_mask=FieldMask(paths=["priority"]))


def put_off(task_id: str) -> UpdateTaskRequest:
    later = Timestamp(seconds=4_000_000_000)
    return UpdateTaskRequest(
        task=Task(task_id=task_id, not_before_time=later), update_mask=FieldMask(paths=["not_before_time"])
    )


def rate_limited(token: str) -> FailTaskRequest:
    limit = ProviderRateLimit(provider="anthropic", reset_after=Duration(seconds=60))
    return FailTaskRequest(lease_token=token, failure=TaskFailure(reason="RATE_LIMITED"), rate_limited=limit)


COMMANDS: dict[str, Callable[[World, dict[str, str]], list[Any]]] = {
    "create": lambda world, ids: [new("task_new", "p")],
    "cancel": lambda world, ids: [CancelTaskRequest(task_id=ids["queued"])],
    "cancel a running one": lambda world, ids: [CancelTaskRequest(task_id=ids["running"])],
    "complete": lambda world, ids: [CompleteTaskRequest(lease_token=world.token(ids["running"]))],
    "delete": lambda world, ids: [DeleteTaskRequest(task_id=ids["done"])],
    "reprioritize": lambda world, ids: [reprioritized(ids["queued"], 900)],
    "poll": lambda world, ids: [LeaseTasksRequest(agent_id=ids["idle"])],
    "poll to wait": lambda world, ids: [LeaseTasksRequest(agent_id=ids["other"])],
    "deregister": lambda world, ids: [DeregisterRequest(agent_id=ids["busy"])],
    "spawn": lambda world, ids: [SpawnCommand(SpawnAgentRequest(agent_id="agent_new"), "", SPEC)],
    "retry edited": lambda world, ids: [RetryTaskRequest(task_id=ids["done"], prompt="better", priority=7)],
    "put off": lambda world, ids: [put_off(ids["queued"])],
    "rate limit": lambda world, ids: [rate_limited(world.token(ids["running"]))],
    "delete an agent": lambda world, ids: [DeleteAgentRequest(agent_id=ids["ended"])],
    "create under keys": lambda world, ids: [new("task_new", concurrency_keys=["k", "other"], fairness_key="b")],
    "create instead of others": lambda world, ids: [superseding("k"), new("task_new", concurrency_keys=["k"])],
    "complete a holder": lambda world, ids: [CompleteTaskRequest(lease_token=world.token(ids["holder"]))],
    "lose a holder": lambda world, ids: [DeregisterRequest(agent_id=ids["keyed"])],
    "cancel a parked one": lambda world, ids: [CancelTaskRequest(task_id=ids["parked"])],
    "reprioritize a parked one": lambda world, ids: [reprioritized(ids["parked"], 900)],
    "raise a limit": lambda world, ids: [SetConcurrencyLimitRequest(limit=ConcurrencyLimit(key="k", max_running=9))],
    "delete a limit": lambda world, ids: [DeleteConcurrencyLimitRequest(key="k")],
    "pause": lambda world, ids: [PauseQueueRequest(agent_type="keyed"), LeaseTasksRequest(agent_id=ids["idle"])],
    "drain": lambda world, ids: [DrainQueueRequest(agent_type="new-queue")],
    "clear a rate": lambda world, ids: [
        UpdateQueueRequest(queue=Queue(agent_type="keyed"), update_mask=FieldMask(paths=["start_rate"]))
    ],
}


def superseding(key: str) -> SetConcurrencyLimitRequest:
    return SetConcurrencyLimitRequest(
        limit=ConcurrencyLimit(key=key, strategy=CONCURRENCY_STRATEGY_CANCEL_IN_PROGRESS, start_rate=rate(9, 60))
    )


def small_world() -> tuple[World, dict[str, str]]:
    world = World()
    ids = {"busy": world.register(), "running": world.create(), "ended": world.register(), "other": world.register("x")}
    assert world.lease(ids["busy"]) == ids["running"]
    world.do(DeregisterRequest(agent_id=ids["ended"]))
    ids["done"] = world.create()
    world.cancel(ids["done"])
    ids["idle"] = world.register()
    ids["queued"] = world.create(prompt="q")
    ids["keyed"] = world.register("keyed", slots=3)
    world.limit("k", 1, start_rate=rate(9, 60))
    world.do(
        UpdateQueueRequest(
            queue=Queue(agent_type="keyed", start_rate=rate(2, 60)), update_mask=FieldMask(paths=["start_rate"])
        )
    )
    for name in ("holder", "parked", "behind"):
        world.now_ns += 1000
        ids[name] = world.create("keyed", concurrency_keys=["k"], fairness_key="a")
    assert world.lease(ids["keyed"]) == ids["holder"]
    world.poll(ids["keyed"], max_tasks=3)
    return world, ids


@pytest.mark.parametrize("name", COMMANDS)
def test_a_failed_batch_leaves_memory_as_it_was_and_may_be_repeated(name: str) -> None:
    world, ids = small_world()
    commands = COMMANDS[name](world, ids)
    before = world.picture()

    fail_commit(world, *commands)

    assert world.picture() == before
    twin, twin_ids = small_world()
    world.do(*commands)
    twin.do(*COMMANDS[name](twin, twin_ids))
    assert world.events == twin.events


@pytest.mark.parametrize("change", ["cancel", "reprioritize"])
def test_a_queued_task_is_still_given_away_after_a_change_of_it_has_failed(change: str) -> None:
    world = World()
    task_id, agent_id = world.create(), world.register()
    command = CancelTaskRequest(task_id=task_id) if change == "cancel" else reprioritized(task_id, 900)

    fail_commit(world, command, LeaseTasksRequest(agent_id=agent_id))

    assert world.lease(agent_id) == task_id


def test_a_poll_that_was_served_by_a_failed_batch_is_served_by_the_next() -> None:
    world = World()
    waiting = world.poll(world.register())

    fail_commit(world, new("task_one"))
    world.do(new("task_two"))

    assert [lease.task_id for lease in waiting.taken] == ["task_two"]


def test_refused_creations_do_not_fill_the_memory_for_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_CONTENT_CACHE_BYTES", 1000)
    world = World()
    world.create(task_id="task_taken")
    refused = BatchCreateTasksRequest(
        tasks=[TaskSpec(agent_type="shell", prompt="x" * 400), TaskSpec(agent_type="shell", task_id="task_taken")]
    )

    for _ in range(5):
        with world.refuses("ID_TAKEN"):
            world.do(refused)
        world.state.settle()
    world.create(prompt="y" * 400)
    world.state.settle()


def test_contents_beyond_the_cap_are_read_again_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_CONTENT_CACHE_BYTES", 500)
    world = World()
    tasks = [world.create(prompt=str(number) * 400) for number in range(3)]
    world.state.settle()

    assert [Task.FromString(world.state.content(task_id)).prompt[0] for task_id in tasks] == ["0", "1", "2"]


def test_tasks_beyond_the_cap_are_read_again_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "_TASK_CACHE", 2)
    world = World()
    tasks = [world.create() for _ in range(5)]
    world.state.settle()

    assert world.state.cached_task(tasks[0]) is None
    assert [world.state.task(task_id).task_id for task_id in tasks] == tasks


def test_a_task_made_cancelled_and_retried_in_one_batch_is_offered_with_its_prompt() -> None:
    world = World()
    agent_id = world.register()
    offered = before_commit(world, lambda: world.state.content("task_quick"))

    world.do(
        new("task_quick", "the prompt"),
        CancelTaskRequest(task_id="task_quick"),
        RetryTaskRequest(task_id="task_quick"),
        LeaseTasksRequest(agent_id=agent_id),
    )

    assert [Task.FromString(content).prompt for content in offered] == ["the prompt"]


def test_a_deleted_task_stays_deleted_when_its_making_anew_is_refused() -> None:
    world = World()
    world.create(task_id="task_taken")
    world.create(task_id="task_gone")
    world.cancel("task_gone")
    again = BatchCreateTasksRequest(
        tasks=[TaskSpec(agent_type="shell", task_id=task_id) for task_id in ("task_gone", "task_taken")]
    )

    with pytest.raises(Exception, match="not found"):
        world.do(DeleteTaskRequest(task_id="task_gone"), again, DeleteTaskRequest(task_id="task_gone"))

    assert world.events.count("task.deleted") == 1


@pytest.mark.parametrize(
    "command",
    [
        DeleteAgentRequest(agent_id="agent_ended"),
        UpdateAgentRequest(agent=Agent(agent_id="agent_ended"), update_mask=FieldMask(paths=["labels"])),
    ],
)
def test_an_agent_deleted_in_this_batch_is_not_found_any_more(command: Any) -> None:
    world = World()
    world.spawn("agent_ended")

    world.do(AgentProcessExited("agent_ended", ProcessExit()))

    with pytest.raises(Exception, match="not found"):
        world.do(DeleteAgentRequest(agent_id="agent_ended"), command)

    assert world.events.count("agent.deleted") == 1
    assert "agent_ended" not in world.rows.agents


def test_an_agent_may_be_made_again_under_the_id_of_one_deleted_in_this_batch() -> None:
    world = World()
    world.spawn("agent_again")

    world.do(AgentProcessExited("agent_again", ProcessExit()))

    world.do(
        DeleteAgentRequest(agent_id="agent_again"),
        SpawnCommand(SpawnAgentRequest(agent_id="agent_again"), "", SPEC),
    )

    assert world.agent("agent_again").state == 1, "PENDING"
