"""Finding the tasks of a filter for a change of many, and reading what tasks were before they were edited."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_FAILED,
    TASK_STATE_QUEUED,
    CancelTaskRequest,
    DeleteTaskRequest,
    ListTaskEditsRequest,
    ListTaskEditsResponse,
    RetryTaskRequest,
    TaskFailure,
    TaskFilter,
)
from kapell.v1.worker_pb2 import FailTaskRequest
from kapell_server.domain.errors import KapellError
from kapell_server.domain.tasks.task_filter import task_test
from kapell_server.store import queries, task_selection
from kapell_server.store.schema import task_edits

from tests.support.live_engine import LiveEngine

CREATED = 1_800_000_003


async def stage(live: LiveEngine) -> dict[str, str]:
    """Six tasks, the state and labels of each its own; ids by name."""
    ids: dict[str, str] = {}
    agent_id = await live.register("code")
    for name in ("dead", "lost"):
        task = await live.create("code", display_name=name, labels={"team": "a"})
        ids[name] = task.task_id
        offer = await live.offer(agent_id)
        failure = TaskFailure(reason="AGENT_LOST" if name == "lost" else "EXIT_CODE", retryable=False)
        await live.call(FailTaskRequest(lease_token=offer.lease_token, failure=failure))
    for index, name in enumerate(("one", "two", "three", "four")):
        live.clock.advance(1)
        task = await live.create("shell" if index % 2 else "review", labels={"team": "ab"[index % 2], "n": str(index)})
        ids[name] = task.task_id
    await live.call(CancelTaskRequest(task_id=ids["four"]))
    return ids


FILTERS = {
    "everything": TaskFilter(),
    "by state": TaskFilter(states=[TASK_STATE_QUEUED, TASK_STATE_FAILED]),
    "by type": TaskFilter(agent_types=["shell"]),
    "by label": TaskFilter(labels={"team": "a"}),
    "by label and state": TaskFilter(labels={"team": "a"}, states=[TASK_STATE_FAILED]),
    "by reason": TaskFilter(failure_reasons=["AGENT_LOST", "OTHER"]),
    "by reason and type": TaskFilter(failure_reasons=["EXIT_CODE"], agent_types=["code"]),
    "by time": TaskFilter(created_after_time=Timestamp(seconds=CREATED)),
    "nothing": TaskFilter(task_ids=["task_other"]),
}


@pytest.mark.parametrize("name", FILTERS)
async def test_the_tasks_that_match_are_found_in_order(
    live: LiveEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_selection, "_SCAN", 2)
    ids = await stage(live)
    test = task_test(FILTERS[name])
    wanted = [task_id for task_id in ids.values() if test(await live.task(task_id))]

    found = await live.engine.reads.select_tasks(FILTERS[name], 100)
    cut = await live.engine.reads.select_tasks(FILTERS[name], 1)

    assert (list(found.task_ids), found.matched) == (wanted, len(wanted))
    assert (list(cut.task_ids), cut.matched) == (wanted[:1], len(wanted))
    assert found.revision == live.engine.revision


async def test_lists_take_reasons_of_failure(live: LiveEngine) -> None:
    ids = await stage(live)
    from kapell.v1.task_pb2 import ListTasksRequest, ListTasksResponse

    request = ListTasksRequest(filter=TaskFilter(failure_reasons=["AGENT_LOST"]))
    answer = ListTasksResponse.FromString(await live.engine.reads.list_tasks(request))

    assert [task.task_id for task in answer.tasks] == [ids["lost"]]


async def edits(live: LiveEngine, task_id: str, **request: Any) -> ListTaskEditsResponse:
    return await live.engine.reads.list_edits(ListTaskEditsRequest(task_id=task_id, **request))


async def edited(live: LiveEngine, prompts: list[str]) -> str:
    """A task that was retried with one prompt after the other."""
    task = await live.create(prompt=prompts[0])
    for prompt in prompts[1:]:
        await live.call(CancelTaskRequest(task_id=task.task_id))
        await live.call(RetryTaskRequest(task_id=task.task_id, prompt=prompt))
    return task.task_id


async def test_edits_are_read_page_by_page(live: LiveEngine) -> None:
    task_id = await edited(live, ["a", "b", "c", "d"])

    whole = await edits(live, task_id)
    first = await edits(live, task_id, page_size=2)
    second = await edits(live, task_id, page_size=2, page_token=first.next_page_token)

    assert [edit.prompt for edit in whole.edits] == ["a", "b", "c"]
    assert (whole.next_page_token, whole.revision) == ("", live.engine.revision)
    assert [edit.prompt for page in (first, second) for edit in page.edits] == ["a", "b", "c"]
    assert second.next_page_token == ""
    assert (await live.task(task_id)).prompt == "d"


async def test_a_page_of_long_edits_ends_early(live: LiveEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "ANSWER_BYTES", 1000)
    task_id = await edited(live, ["a" * 700, "b" * 700, "c" * 2000, "d"])

    found, token = [], ""
    while True:
        page = await edits(live, task_id, page_token=token)
        found.append([edit.prompt[0] for edit in page.edits])
        if not (token := page.next_page_token):
            break

    assert found == [["a"], ["b"], ["c"]]


async def test_edits_go_with_their_task(live: LiveEngine) -> None:
    task_id = await edited(live, ["a", "b"])
    await live.call(CancelTaskRequest(task_id=task_id))
    assert (await live.task(task_id)).state == TASK_STATE_CANCELLED

    await live.call(DeleteTaskRequest(task_id=task_id))

    with pytest.raises(KapellError, match="was not found"):
        await edits(live, task_id)
    assert await live.database.read(lambda connection: connection.execute(task_edits.select()).all()) == []
