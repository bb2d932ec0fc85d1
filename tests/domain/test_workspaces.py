"""What attempts say of their workspaces, and how merges are recorded."""

from __future__ import annotations

from kapell.v1.task_pb2 import RecordTaskMergeRequest
from kapell.v1.worker_pb2 import LEASE_DIRECTIVE_CANCEL, ReportWorkspacesRequest
from kapell.v1.workspace_pb2 import (
    MERGE_OUTCOME_CONFLICT,
    MERGE_OUTCOME_MERGED,
    MergeOutcome,
    TaskWorkspace,
    WorkspaceMerge,
)

from tests.domain.test_rollback import fail_commit
from tests.domain.world import World


def told(world: World, task_id: str, *heads: str) -> object:
    """What an attempt says: repositories a, b, … and where their branches are."""
    workspaces = [
        TaskWorkspace(name=name, branch="mine", head_commit=head, attempt=99)
        for name, head in zip("abc", heads, strict=False)
    ]
    return world.do(ReportWorkspacesRequest(lease_token=world.token(task_id), workspaces=workspaces))


def merge(
    world: World, task_id: str, head: str, outcome: MergeOutcome.ValueType = MERGE_OUTCOME_MERGED, name: str = "a"
) -> object:
    made = WorkspaceMerge(outcome=outcome, commit="new", base_ref="refs/heads/main")
    return world.do(RecordTaskMergeRequest(task_id=task_id, name=name, head_commit=head, merge=made))


def test_what_is_said_replaces_what_was_said_before() -> None:
    world = World()
    task_id = world.running()

    told(world, task_id, "1", "2")
    told(world, task_id, "3")

    [left] = world.task(task_id).workspaces
    assert (left.name, left.head_commit, left.attempt) == ("a", "3", 1)


def test_the_same_again_is_no_event() -> None:
    world = World()
    task_id = world.running()
    told(world, task_id, "1")
    revision = world.state.revision

    told(world, task_id, "1")

    assert world.state.revision == revision


def test_a_merge_is_kept_with_its_time_and_author_until_the_branch_moves() -> None:
    world = World()
    task_id = world.running()
    told(world, task_id, "1")
    merge(world, task_id, "1", MERGE_OUTCOME_CONFLICT)
    told(world, task_id, "1", "2")

    kept = world.task(task_id).workspaces[0].merge
    assert kept.outcome == MERGE_OUTCOME_CONFLICT
    assert kept.time.ToNanoseconds() == world.state.now_ns
    assert kept.actor.id == "admin"
    told(world, task_id, "3")
    assert not world.task(task_id).workspaces[0].HasField("merge")


def test_what_has_not_succeeded_is_not_merged_but_may_be_in_conflict() -> None:
    world = World()
    task_id = world.running()
    told(world, task_id, "1")

    with world.refuses("TASK_STATE_CONFLICT"):
        merge(world, task_id, "1")
    merge(world, task_id, "1", MERGE_OUTCOME_CONFLICT)
    world.complete(task_id)
    merge(world, task_id, "1")

    assert world.task(task_id).workspaces[0].merge.commit == "new"


def test_a_merge_of_what_is_not_there_any_more_is_refused() -> None:
    world = World()
    task_id = world.running()
    told(world, task_id, "2")
    world.complete(task_id)

    with world.refuses("WORKSPACE_CHANGED") as errors:
        merge(world, task_id, "1")
    with world.refuses("WORKSPACE_NOT_FOUND"):
        merge(world, task_id, "2", name="b")

    assert errors[0].metadata["head_commit"] == "2"


def test_an_attempt_may_say_how_it_has_merged() -> None:
    world = World()
    task_id = world.running()
    told(world, task_id, "1")
    merged = TaskWorkspace(name="a", branch="mine", head_commit="1", merge=WorkspaceMerge(outcome=MERGE_OUTCOME_MERGED))

    for _ in range(2):
        world.do(ReportWorkspacesRequest(lease_token=world.token(task_id), workspaces=[merged]))
    told(world, task_id, "1")

    assert world.events.count("task.merged") == 1
    kept = world.task(task_id).workspaces[0].merge
    assert (kept.outcome, kept.time.ToNanoseconds()) == (MERGE_OUTCOME_MERGED, world.state.now_ns)


def test_a_task_that_is_being_cancelled_still_says_what_it_has_left() -> None:
    world = World()
    task_id = world.running()
    world.cancel(task_id)

    answer = told(world, task_id, "1")

    assert answer.directive == LEASE_DIRECTIVE_CANCEL  # type: ignore[attr-defined]
    assert world.task(task_id).workspaces[0].head_commit == "1"


def test_each_has_an_event_of_its_own() -> None:
    world = World()
    task_id = world.running()

    told(world, task_id, "1")
    merge(world, task_id, "1", MERGE_OUTCOME_CONFLICT)
    world.complete(task_id)
    merge(world, task_id, "1")

    told_of = {"task.workspace", "task.unmerged", "task.merged"}
    assert [event for event in world.events if event in told_of] == ["task.workspace", "task.unmerged", "task.merged"]


def test_a_report_that_cannot_be_written_leaves_no_trace() -> None:
    world = World()
    task_id = world.running()
    told(world, task_id, "1")

    fail_commit(world, ReportWorkspacesRequest(lease_token=world.token(task_id), workspaces=[TaskWorkspace(name="z")]))

    assert [left.name for left in world.task(task_id).workspaces] == ["a"]
