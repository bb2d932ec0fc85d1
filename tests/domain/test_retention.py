"""Which finished tasks may go, and how far the log may be compacted."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from kapell.v1.admin_pb2 import CompactEventsRequest
from kapell.v1.dependency_pb2 import TaskDependency
from kapell.v1.task_pb2 import CancelTaskRequest, DeleteTaskRequest, RetryTaskRequest, UpdateTaskRequest
from kapell_server.engine.facts import EventsOutlived, TasksOutlived

from tests.domain.world import World

PLACES = "{deps.a.result} {deps.b.result}"


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


def waiting(world: World, prompt: str = PLACES) -> str:
    """A task that waits for `task_b`; what it wants of `task_a` is met before or after, as the caller likes."""
    dependencies = [TaskDependency(task_id="task_a", name="a"), TaskDependency(task_id="task_b", name="b")]
    return world.create("shell", task_id="task_waits", prompt=prompt, dependencies=dependencies)


def finish(world: World, task_id: str, result: str) -> None:
    assert world.lease(world.register(f"of-{task_id}")) == task_id
    world.complete(task_id, result)


def pair(world: World) -> None:
    for task_id in ("task_a", "task_b"):
        world.create(f"of-{task_id}", task_id=task_id)


def test_a_result_that_a_prompt_still_wants_stays_until_it_is_filled() -> None:
    world = World()
    pair(world)
    waiting(world)
    finish(world, "task_a", "first")

    while_it_waits = gone(world, "task_a")
    finish(world, "task_b", "second")

    assert while_it_waits == []
    assert world.content("task_waits").prompt == "first second"
    assert gone(world, "task_a", "task_b") == ["task_a", "task_b"]
    assert world.edges() == {} == world.rows.edges


def test_a_result_from_before_the_task_that_wants_it_stays_too() -> None:
    world = World()
    pair(world)
    finish(world, "task_a", "first")
    waiting(world)

    assert gone(world, "task_a") == []
    world.cancel("task_waits")
    assert gone(world, "task_a") == ["task_a"]
    assert world.rows.edges == {}


def test_a_result_that_an_edited_prompt_wants_stays() -> None:
    world = World()
    pair(world)
    finish(world, "task_a", "first")
    waiting(world, "nothing")
    request = UpdateTaskRequest(task={"task_id": "task_waits", "prompt": PLACES}, update_mask={"paths": ["prompt"]})
    world.do(request)

    assert gone(world, "task_a") == []
    request.task.prompt = "nothing again"
    world.do(request)
    assert gone(world, "task_a") == ["task_a"]


def test_a_kept_result_that_somebody_deletes_is_forgotten() -> None:
    world = World()
    pair(world)
    finish(world, "task_a", "first")
    waiting(world)

    world.delete("task_a")
    finish(world, "task_b", "second")

    assert world.content("task_waits").prompt == "(no result: a was deleted) second"
    assert world.rows.edges == {}
