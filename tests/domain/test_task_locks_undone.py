"""What a batch does with tasks and locks is undone whole where the database refuses it, and can be done again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from kapell.v1.lock_pb2 import ForceReleaseLocksRequest, ReleaseLocksRequest, TaskLock
from kapell.v1.task_pb2 import CancelTaskRequest, CreateTaskRequest, Task, TaskSpec, UpdateTaskRequest
from kapell.v1.worker_pb2 import CompleteTaskRequest, LeaseTasksRequest, ReleaseTaskRequest
from kapell_server.domain.errors import KapellError

from tests.domain.lock_tasks import TaskWorld
from tests.domain.lock_world import Call, item
from tests.domain.test_rollback import fail_commit, reprioritized

Ids = dict[str, str]


class Knot(TaskWorld):
    """A holder, three that want the same, a reader behind them, a session, and agents for some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: Ids = {"session": self.session(), "agent": self.register(slots=2), "idle": self.register("other")}
        self.ids["holder"] = self.declare("repo")
        assert self.lease(self.ids["agent"]) == self.ids["holder"]
        for name in ("first", "second", "third"):
            self.now_ns += 1000
            self.ids[name] = self.declare("repo", priority=500)
        self.now_ns += 1000
        self.ids["reader"] = self.declare("repo/src r", agent_type="other")
        self.ids["keyed"] = self.declare("repo", concurrency_keys=["k"])
        [kept] = self.acquire(self.ids["session"], "port/80").locks
        self.ids["kept"] = kept.lock_id
        self.ids["wants port"] = self.declare("port r", agent_type="other")
        self.now_ns += 1000

    def whole_picture(self) -> object:
        gate = self.state.queues.locks
        lines = {like: dict(behind) for like, behind in gate._behind.items() if behind}
        return self.picture(), self.picture_of_locks(), dict(gate._lines), dict(gate._heads), lines, dict(gate._turns)


def new(*paths: str, agent_type: str = "shell", **fields: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=TaskSpec(agent_type=agent_type, locks=[item(path) for path in paths], **fields))


def poll(world: Knot, name: str = "agent") -> LeaseTasksRequest:
    return LeaseTasksRequest(agent_id=world.ids[name], max_tasks=2)


COMMANDS: dict[str, Callable[[Knot], list[Any]]] = {
    "one more of the same": lambda knot: [new("repo", task_id="task_new")],
    "one that comes first": lambda knot: [new("repo", task_id="task_new", priority=999)],
    "one that is free": lambda knot: [poll(knot), new("docs", task_id="task_new")],
    "the holder ends": lambda knot: [CompleteTaskRequest(lease_token=knot.token(knot.ids["holder"]))],
    "the holder ends, an agent asks": lambda knot: [
        CompleteTaskRequest(lease_token=knot.token(knot.ids["holder"])),
        poll(knot),
    ],
    "the holder hands back": lambda knot: [ReleaseTaskRequest(lease_token=knot.token(knot.ids["holder"])), poll(knot)],
    "the first one goes": lambda knot: [CancelTaskRequest(task_id=knot.ids["first"])],
    "one behind goes": lambda knot: [CancelTaskRequest(task_id=knot.ids["second"])],
    "all go": lambda knot: [CancelTaskRequest(task_id=knot.ids[name]) for name in ("first", "second", "third")],
    "one behind comes first": lambda knot: [reprioritized(knot.ids["third"], 999)],
    "the first one wants something else": lambda knot: [
        UpdateTaskRequest(
            task=Task(task_id=knot.ids["first"], locks=[TaskLock(path="x")]), update_mask=FieldMask(paths=["locks"])
        ),
        poll(knot),
    ],
    "a session lets go": lambda knot: [ReleaseLocksRequest(lock_ids=[knot.ids["kept"]]), poll(knot, "idle")],
    "forced": lambda knot: [ForceReleaseLocksRequest(path="repo", reason="test"), poll(knot), poll(knot, "idle")],
    "a call waits": lambda knot: [Call(knot.request(knot.ids["session"], "repo", wait=60))],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_failed_batch_leaves_all_as_it_was_and_may_be_repeated(name: str) -> None:
    knot, twin = Knot(), Knot()
    before = knot.whole_picture()

    fail_commit(knot, *COMMANDS[name](knot))

    assert knot.whole_picture() == before
    for world in (knot, twin):
        try:
            world.do(*COMMANDS[name](world))
        except KapellError as error:
            pytest.fail(f"refused: {error}")
    assert knot.events == twin.events
    assert knot.held() == twin.held()
