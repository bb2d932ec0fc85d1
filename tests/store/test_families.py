"""Trees, children and the filters by them, on both databases."""

from __future__ import annotations

import pytest
from kapell.v1.error_pb2 import ERROR_REASON_TASK_NOT_FOUND
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_QUEUED,
    BatchCreateTasksRequest,
    CancelTaskRequest,
    CountTasksRequest,
    DeleteTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    TaskFilter,
)
from kapell_server.domain.errors import KapellError
from kapell_server.store import family_reads

from tests.support.live_engine import LiveEngine, new_task


async def family(live: LiveEngine) -> None:
    """a → (b → (d → e), c), and one that is nobody's."""
    await live.create(task_id="task_a", display_name="a")
    for name, parent in (("b", "a"), ("c", "a"), ("d", "b"), ("e", "d")):
        await live.create(task_id=f"task_{name}", display_name=name, parent_task_id=f"task_{parent}")
    await live.create(task_id="task_x", display_name="x")


async def drawn(live: LiveEngine, name: str) -> str:
    answer = await live.engine.reads.families.tree(f"task_{name}")
    assert answer.revision == live.engine.revision
    return " ".join(f"{node.task.display_name}{node.depth}" for node in answer.nodes)


async def listed(live: LiveEngine, **wanted: str) -> str:
    request = ListTasksRequest(filter=TaskFilter(**wanted), order=2)  # type: ignore[arg-type]
    answer = ListTasksResponse.FromString(await live.engine.reads.list_tasks(request))
    return "".join(task.display_name for task in answer.tasks)


async def test_a_tree_is_read_depth_first_from_any_task(live: LiveEngine) -> None:
    await family(live)

    assert await drawn(live, "a") == "a0 b1 d2 e3 c1"
    assert await drawn(live, "b") == "b0 d1 e2"
    assert await drawn(live, "e") == "e0"
    assert await drawn(live, "x") == "x0"


async def test_a_tree_of_nothing_is_not_found(live: LiveEngine) -> None:
    with pytest.raises(KapellError) as refusal:
        await live.engine.reads.families.tree("task_nothing")

    assert refusal.value.reason == ERROR_REASON_TASK_NOT_FOUND


async def test_orphans_stand_below_the_root(live: LiveEngine) -> None:
    await family(live)
    await live.call(CancelTaskRequest(task_id="task_d", leave_children=True))
    await live.call(DeleteTaskRequest(task_id="task_d"))

    assert await drawn(live, "a") == "a0 b1 c1 e1"
    assert await drawn(live, "b") == "b0"


async def test_a_tree_has_a_cap(live: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family_reads, "MOST_NODES", 3)
    await family(live)

    answer = await live.engine.reads.families.tree("task_a")

    assert (len(answer.nodes), answer.truncated) == (3, True)


async def test_a_tree_of_long_tasks_is_cut(live: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    await family(live)
    whole = await live.engine.reads.families.tree("task_a")
    three = sum(node.task.ByteSize() for node in whole.nodes[:3])
    cut = []
    for most in (1, three, 1024 * 1024):
        monkeypatch.setattr(family_reads, "ANSWER_BYTES", most)
        answer = await live.engine.reads.families.tree("task_a")
        cut.append((len(answer.nodes), answer.truncated))

    assert cut == [(1, True), (3, True), (5, False)]


async def test_a_root_with_all_it_may_have_below_it_is_one_tree(live: LiveEngine) -> None:
    await live.create(task_id="task_a", display_name="a")
    below = [new_task(task_id=f"task_{n}", parent_task_id="task_a").task for n in range(1000)]
    await live.call(BatchCreateTasksRequest(tasks=below))

    answer = await live.engine.reads.families.tree("task_a")

    assert (len(answer.nodes), answer.truncated) == (1001, False)


async def test_filters_by_parent_and_root(live: LiveEngine) -> None:
    await family(live)

    assert await listed(live, parent_task_id="task_a") == "bc"
    assert await listed(live, parent_task_id="task_e") == ""
    assert await listed(live, root_task_id="task_a") == "bcde"
    assert await listed(live, root_task_id="task_b") == ""
    counted = await live.engine.reads.count_tasks(CountTasksRequest(filter=TaskFilter(root_task_id="task_a")))
    assert [(entry.state, entry.count) for entry in counted.counts] == [(TASK_STATE_QUEUED, 4)]


async def test_a_cancel_goes_down_a_tree_that_is_not_in_memory(live: LiveEngine) -> None:
    await family(live)
    await live.crash()

    await live.call(CancelTaskRequest(task_id="task_b"))

    states = {name: (await live.task(f"task_{name}")).state for name in "abcde"}
    assert states == {
        **dict.fromkeys("bde", TASK_STATE_CANCELLED),
        **dict.fromkeys("ac", TASK_STATE_QUEUED),
    }


async def test_results_of_children_are_added_up_to_a_size(live: LiveEngine) -> None:
    await family(live)
    agent_id = await live.register(slots=8)
    for offer in await live.lease(agent_id, max_tasks=8):
        await live.complete(offer, "x" * 100)

    children, revision = await live.engine.reads.families.children("task_a")
    left_out = await live.engine.reads.families.add_results(children, 150)

    assert [task.display_name for task in children] == ["b", "c"]
    assert [len(task.result.string_value) for task in children] == [100, 0]
    assert left_out == ["task_c"]
    assert revision == live.engine.revision
