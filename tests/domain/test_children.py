"""Children of tasks: whose they are, how many there may be, and what becomes of them with their parent."""

from __future__ import annotations

from typing import Any

import pytest
from kapell.v1.dependency_pb2 import DEPENDENCY_CONDITION_FINISHED, TaskDependency
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_SUCCEEDED,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    Task,
    TaskSpec,
)
from kapell.v1.template_pb2 import CreateTemplateRequest, TemplateSpec
from kapell.v1.worker_pb2 import CreateChildTasksRequest
from kapell_server.domain.errors import KapellError

from tests.domain.world import World, as_agent


def children(world: World, task_id: str, *specs: TaskSpec, **options: Any) -> list[Task]:
    """What the agent of a running task creates."""
    request = CreateChildTasksRequest(lease_token=world.token(task_id), tasks=specs or [TaskSpec(agent_type="shell")])
    created: list[Task] = world.do(request, **options)
    return created


def child_of(parent_id: str, **fields: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=TaskSpec(agent_type="shell", parent_task_id=parent_id, **fields))


def states(world: World, *task_ids: str) -> list[int]:
    return [world.task(task_id).state for task_id in task_ids]


def test_children_know_their_parents() -> None:
    world = World()
    root = world.running()

    [child] = children(world, root)
    grandchild = world.do(child_of(child.task_id))

    assert (child.parent_task_id, child.root_task_id, child.depth) == (root, root, 1)
    assert (grandchild.parent_task_id, grandchild.root_task_id, grandchild.depth) == (child.task_id, root, 2)
    assert world.task(root).depth == 0
    assert not world.task(root).root_task_id


def test_children_are_created_by_the_agent_itself() -> None:
    world = World()
    root = world.running()
    caller = as_agent(world.agent(world.task(root).lease.agent_id))

    [child] = children(world, root, caller=caller)

    assert child.creator.id == caller.agent_id
    other = as_agent(world.agent(world.register()))
    with world.refuses("NOT_OWNER"):
        children(world, root, caller=other)


def test_a_superseded_attempt_creates_nothing() -> None:
    world = World()
    root = world.running()
    token = world.token(root)
    world.release(root)

    with world.refuses("LEASE_LOST"):
        world.do(CreateChildTasksRequest(lease_token=token, tasks=[TaskSpec(agent_type="shell")]))


def test_a_child_has_its_parents_priority_unless_something_else_is_said() -> None:
    world = World()
    world.do(CreateTemplateRequest(template_id="t", spec=TemplateSpec(agent_type="shell", prompt="p", priority=3)))
    root = world.running(priority=7)

    inherited, said, by_template = children(
        world, root, TaskSpec(agent_type="shell"), TaskSpec(agent_type="shell", priority=5), TaskSpec(template="t")
    )

    assert [task.priority for task in (inherited, said, by_template)] == [7, 5, 3]


def test_a_child_is_in_its_parents_share() -> None:
    world = World()
    root = world.create(fairness_key="team-a")

    inherited = world.create(parent_task_id=root)
    own = world.create(parent_task_id=root, fairness_key="team-b")

    assert [world.task(task_id).fairness_key for task_id in (inherited, own)] == ["team-a", "team-b"]


def test_children_may_depend_on_each_other_and_on_elder_ones() -> None:
    world = World()
    root = world.running()
    [other] = children(world, root)

    first, second = children(
        world,
        root,
        TaskSpec(agent_type="shell", client_key="first", dependencies=[TaskDependency(task_id=other.task_id)]),
        TaskSpec(agent_type="shell", dependencies=[TaskDependency(client_key="first")]),
    )

    assert (first.state, second.state) == (TASK_STATE_PENDING, TASK_STATE_PENDING)
    assert second.dependencies[0].task_id == first.task_id


def test_a_parent_may_come_earlier_in_the_same_request() -> None:
    world = World()
    request = BatchCreateTasksRequest()
    request.tasks.add(agent_type="shell", task_id="task_top")
    request.tasks.add(agent_type="shell", task_id="task_mid", parent_task_id="task_top")
    request.tasks.add(agent_type="shell", parent_task_id="task_mid")

    *_, last = world.do(request)

    assert (last.root_task_id, last.depth) == ("task_top", 2)


@pytest.mark.parametrize("end", ["cancelling", "cancelled", "succeeded"])
def test_what_has_ended_or_is_being_cancelled_gets_no_children(end: str) -> None:
    world = World()
    root = world.running()
    world.complete(root) if end == "succeeded" else world.cancel(root)
    if end == "cancelled":
        world.fail(root)

    with world.refuses("TASK_STATE_CONFLICT"):
        world.do(child_of(root))
    if end == "cancelling":
        with world.refuses("TASK_STATE_CONFLICT"):
            children(world, root)


def test_a_parent_that_does_not_exist_is_named_by_its_path() -> None:
    world = World()

    with world.refuses("TASK_NOT_FOUND") as refusals:
        world.do(child_of("task_nobody"))

    assert refusals[0].violations[0][0] == "task.parent_task_id"


# -- caps ------------------------------------------------------------------------------------------


def test_a_tree_has_a_greatest_depth() -> None:
    world = World()
    task_id = world.create()
    for _ in range(8):
        task_id = world.do(child_of(task_id)).task_id

    with world.refuses("CHILD_LIMIT") as refusals:
        world.do(child_of(task_id))

    assert refusals[0].metadata == {"task_id": task_id, "limit": "max_task_depth", "most": "8"}


def test_a_root_has_a_greatest_number_of_tasks_below_it() -> None:
    world = World(max_tasks_per_root=5)
    root = world.running()
    [first] = children(world, root)
    children(world, root, *[TaskSpec(agent_type="shell")] * 2)

    with world.refuses("CHILD_LIMIT") as refusals:
        children(world, root, *[TaskSpec(agent_type="shell")] * 3)
    with pytest.raises(KapellError, match="max_tasks_per_root"):
        world.do(child_of(root), child_of(first.task_id), child_of(root))

    assert len(world.state.families.of(root)) == 5
    assert refusals[0].metadata == {"task_id": root, "limit": "max_tasks_per_root", "most": "5"}


def test_deleted_tasks_make_room() -> None:
    world = World(max_tasks_per_root=1)
    root = world.create()
    child = world.do(child_of(root)).task_id
    world.cancel(child)

    world.do(DeleteTaskRequest(task_id=child), child_of(root))

    with world.refuses("CHILD_LIMIT"):
        world.do(child_of(root))


def test_the_count_is_right_after_a_refusal_and_a_lost_memory() -> None:
    world = World(max_tasks_per_root=2)
    root = world.create()
    world.do(child_of(root))
    with world.refuses("REQUEST_INVALID"):
        world.do(child_of(root, dependencies=[TaskDependency(client_key="x")]))
    world.state.families._members.clear()

    world.do(child_of(root))

    with world.refuses("CHILD_LIMIT"):
        world.do(child_of(root))


# -- cancelling ------------------------------------------------------------------------------------


def family(world: World) -> tuple[str, str, str, str, str]:
    """root → (child → (grandchild, done), sibling), where all but `done` live."""
    root = world.create()
    child, sibling = world.do(child_of(root)).task_id, world.do(child_of(root)).task_id
    done = world.create("done")
    world.cancel(done)
    world.delete(done)
    done = world.do(CreateTaskRequest(task=TaskSpec(agent_type="done", parent_task_id=child))).task_id
    grandchild = world.do(child_of(child)).task_id
    world.lease(world.register("done"))
    world.complete(done)
    return root, child, sibling, grandchild, done


def test_a_cancel_goes_down_the_tree() -> None:
    world = World()
    root, child, sibling, grandchild, done = family(world)

    task = world.cancel(root)

    assert task.task_id == root
    assert states(world, root, child, sibling, grandchild) == [TASK_STATE_CANCELLED] * 4
    assert states(world, done) == [TASK_STATE_SUCCEEDED]
    assert world.task(grandchild).state_reason == f"{root}, which it is part of, was cancelled"


def test_a_cancel_in_the_middle_leaves_the_others() -> None:
    world = World()
    root, child, sibling, grandchild, _ = family(world)

    world.cancel(child)

    assert states(world, child, grandchild) == [TASK_STATE_CANCELLED] * 2
    assert states(world, root, sibling) == [TASK_STATE_QUEUED] * 2


def test_a_cancel_reaches_below_what_has_ended() -> None:
    world = World()
    root, child, _, grandchild, _ = family(world)
    world.do(CancelTaskRequest(task_id=child, leave_children=True))
    assert states(world, grandchild) == [TASK_STATE_QUEUED]

    world.cancel(root)

    assert states(world, grandchild) == [TASK_STATE_CANCELLED]


def test_children_can_be_left_alone() -> None:
    world = World()
    root, child, sibling, grandchild, _ = family(world)

    world.do(CancelTaskRequest(task_id=root, leave_children=True))

    assert states(world, child, sibling, grandchild) == [TASK_STATE_QUEUED] * 3


def test_running_children_are_told() -> None:
    world = World()
    root = world.running()
    [child] = children(world, root, TaskSpec(agent_type="other"))
    world.lease(world.register("other"))

    world.cancel(root)

    assert states(world, root, child.task_id) == [TASK_STATE_CANCELLING] * 2


@pytest.mark.parametrize("leave", [False, True])
def test_deleting_a_live_task_cancels_its_children(leave: bool) -> None:
    world = World()
    root, child, *_ = family(world)

    world.do(DeleteTaskRequest(task_id=root, leave_children=leave))

    assert states(world, child) == [TASK_STATE_QUEUED if leave else TASK_STATE_CANCELLED]


def test_children_that_wait_for_each_other_are_cancelled_and_not_failed() -> None:
    world = World()
    root = world.running()
    first, second = children(
        world,
        root,
        TaskSpec(agent_type="shell", client_key="first"),
        TaskSpec(agent_type="shell", dependencies=[TaskDependency(client_key="first")]),
    )

    world.cancel(root)

    assert states(world, first.task_id, second.task_id) == [TASK_STATE_CANCELLED] * 2
    assert world.edges() == {}


def test_children_of_one_batch_are_cancelled_with_it() -> None:
    world = World()
    root = world.create(task_id="task_root")

    world.do(child_of(root, task_id="task_child"), CancelTaskRequest(task_id=root))

    assert states(world, "task_child") == [TASK_STATE_CANCELLED]


def test_the_end_of_a_parent_leaves_its_children() -> None:
    world = World()
    root = world.running()
    [child] = children(world, root)

    world.fail(root, retryable=False)

    assert states(world, child.task_id) == [TASK_STATE_QUEUED]


# -- what an agent may not take through its children -------------------------------------------------


def test_a_child_takes_no_more_than_its_parent_has() -> None:
    world = World()
    parent = world.running(priority=100, fairness_key="us", concurrency_keys=["deploy"])

    for spec in (
        {"priority": 101},
        {"fairness_key": "them"},
        {"concurrency_keys": ["release"]},
    ):
        with world.refuses("REQUEST_INVALID"):
            world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[TaskSpec(agent_type="x", **spec)]))
    modest = TaskSpec(agent_type="x", priority=100, fairness_key="us", concurrency_keys=["deploy"])
    [child] = world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[modest]))
    assert (child.priority, child.fairness_key, list(child.concurrency_keys)) == (100, "us", ["deploy"])


def test_a_child_depends_on_its_own_family_only() -> None:
    world = World()
    foreign, needed = world.create("other"), world.create("other")
    agent_id = world.register("shell")
    wanted = [TaskDependency(task_id=needed, condition=DEPENDENCY_CONDITION_FINISHED, name="n")]
    parent = world.create(dependencies=wanted)
    world.cancel(needed)
    assert world.lease(agent_id) == parent

    with world.refuses("NOT_OWNER"):
        _child_after(world, parent, foreign)
    sibling = _child_after(world, parent, needed)
    assert _child_after(world, parent, sibling)
    with world.refuses("TASK_NOT_FOUND"):
        _child_after(world, parent, "task_unknown")


def _child_after(world: World, parent: str, task_id: str) -> str:
    wanted = TaskDependency(task_id=task_id, condition=DEPENDENCY_CONDITION_FINISHED)
    spec = TaskSpec(agent_type="x", dependencies=[wanted])
    [child] = world.do(CreateChildTasksRequest(lease_token=world.token(parent), tasks=[spec]))
    found: str = child.task_id
    return found


def test_what_is_left_below_an_ended_task_can_be_cancelled() -> None:
    world = World()
    parent = world.running()
    child = _child_after(world, parent, parent)
    world.complete(parent)

    assert world.cancel(parent).state == TASK_STATE_SUCCEEDED
    assert world.task(child).state == TASK_STATE_CANCELLED
    with world.refuses("TASK_STATE_CONFLICT"):
        world.cancel(parent)
