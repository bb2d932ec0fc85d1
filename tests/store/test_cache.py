"""The memory of encoded tasks: fed by commits, complete or silent, bounded."""

from __future__ import annotations

from kapell.v1.agent_pb2 import Agent
from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import EVENT_KIND_AGENT_STATUS, EVENT_KIND_TASK_CREATED, EVENT_KIND_TASK_DELETED, EventKind
from kapell_server.store.cache import TaskCache
from kapell_server.store.record import Record


def record(task_id: str, revision: int, kind: EventKind.ValueType = EVENT_KIND_TASK_CREATED) -> Record:
    return Record(revision, kind, task_id, Task(task_id=task_id, revision=revision), b"")


def content(prompt: str) -> bytes:
    return Task(prompt=prompt).SerializeToString()


def get(cache: TaskCache, task_id: str) -> Task | None:
    data = cache.get(task_id)
    return None if data is None else Task.FromString(data)


def test_a_task_is_kept_with_its_content() -> None:
    cache = TaskCache()

    cache.feed([record("task_a", 1)], {"task_a": content("p")})

    assert get(cache, "task_a") == Task(task_id="task_a", revision=1, prompt="p")


def test_a_change_keeps_the_content_that_is_known() -> None:
    cache = TaskCache()
    cache.feed([record("task_a", 1)], {"task_a": content("p")})

    cache.feed([record("task_a", 2)], {})

    assert get(cache, "task_a") == Task(task_id="task_a", revision=2, prompt="p")


def test_a_task_whose_content_is_not_known_is_not_answered() -> None:
    cache = TaskCache()

    cache.feed([record("task_a", 7)], {})

    assert cache.get("task_a") is None


def test_a_deleted_task_is_forgotten() -> None:
    cache = TaskCache()
    cache.feed([record("task_a", 1)], {"task_a": content("p")})

    cache.feed([record("task_a", 2, EVENT_KIND_TASK_DELETED)], {})

    assert cache.get("task_a") is None


def test_agents_are_not_kept() -> None:
    cache = TaskCache()

    cache.feed([Record(1, EVENT_KIND_AGENT_STATUS, "agent_a", Agent(agent_id="agent_a"), b"")], {})

    assert cache.get("agent_a") is None


def test_the_longest_unchanged_goes_first() -> None:
    cache = TaskCache(max_bytes=5000)
    for revision, task_id in enumerate(["task_a", "task_b", "task_c", "task_a", "task_d"], 1):
        cache.feed([record(task_id, revision)], {task_id: content("p")})

    assert [task_id for task_id in ("task_a", "task_b", "task_c", "task_d") if cache.get(task_id)] == [
        "task_a",
        "task_c",
        "task_d",
    ]


def test_a_content_larger_than_all_room_is_not_kept() -> None:
    cache = TaskCache(max_bytes=5000)

    cache.feed([record("task_a", 1)], {"task_a": content("p" * 5000)})

    assert cache.get("task_a") is None
