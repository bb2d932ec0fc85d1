"""Which finished tasks may go, and how far the log may be compacted."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1.admin_pb2 import CompactEventsRequest
from kapell.v1.task_pb2 import CancelTaskRequest, DeleteTaskRequest, RetryTaskRequest
from kapell_server.engine.facts import EventsOutlived, TasksOutlived

from tests.domain.world import World


def ended(world: World, *task_ids: str) -> None:
    for task_id in task_ids:
        world.create(task_id=task_id)
        world.do(CancelTaskRequest(task_id=task_id))


def gone(world: World, *task_ids: str, by_ns: int | None = None) -> list[str]:
    """Which of the tasks retention deletes, all that it was told ended by then."""
    fact = TasksOutlived(task_ids, world.now_ns if by_ns is None else by_ns)
    answer: bytes = world.do(fact)
    return answer.decode().split()


def test_only_what_has_ended_by_then_goes() -> None:
    world = World()
    ended(world, "task_a", "task_retried", "task_deleted")
    by_ns = world.now_ns
    world.do(RetryTaskRequest(task_id="task_retried"))
    world.do(DeleteTaskRequest(task_id="task_deleted"))
    world.create(task_id="task_waits")
    world.advance(1)
    ended(world, "task_later", "task_deleted")

    everything = ("task_a", "task_retried", "task_deleted", "task_waits", "task_later", "task_unknown")

    assert gone(world, *everything, by_ns=by_ns) == ["task_a"]
    assert sorted(world.rows.tasks) == ["task_deleted", "task_later", "task_retried", "task_waits"]


def test_what_goes_is_an_event_and_leaves_no_memory() -> None:
    world = World()
    ended(world, "task_a")
    before = len(world.events)

    assert gone(world, "task_a") == ["task_a"]

    assert world.events[before:] == ["task.deleted"]
    assert world.state.cached_task("task_a") is None
    assert world.state.find_task("task_a") is None
    assert gone(world, "task_a") == []


def test_the_mark_only_rises_and_leaves_the_newest_event() -> None:
    world = World()
    ended(world, "task_a", "task_b")

    for asked, found in ((1, 1), (3, 3), (2, 3), (0, 3), (100, 3)):
        world.do(EventsOutlived(asked))
        assert world.state.oldest_revision == found
    assert world.state.revision == 4


def test_compacting_an_empty_log_is_nothing() -> None:
    world = World()

    world.do(EventsOutlived(5))
    answer = world.do(CompactEventsRequest(older_than=Duration()))

    assert (answer.oldest_revision, answer.revision) == (0, 0)


def test_a_mark_that_could_not_be_written_is_taken_back() -> None:
    world = World()
    ended(world, "task_a", "task_b")
    world.do(EventsOutlived(1))
    before = world.picture()
    state = world.state
    state.begin(world.now_ns, world.rows)
    mark = state.mark()

    for revision in (2, 3):
        world._decide(EventsOutlived(revision))
    assert (state.oldest_revision, state.pending.oldest_revision) == (3, 3)
    state.rollback(mark)

    assert state.pending.oldest_revision == 0
    assert world.picture() == before


def test_a_revision_of_the_future_is_refused() -> None:
    world = World()
    ended(world, "task_a")

    with world.refuses("REVISION_IN_FUTURE"):
        world.do(CompactEventsRequest(before_revision=3))
