"""kill -9 in the middle of a change of many tasks: a repeat is answered for all, and nothing is done twice."""

from __future__ import annotations

import threading
from collections import Counter

import grpc
import pytest
from kapell.v1 import event_pb2, task_pb2
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_QUEUED
from kapell.v1.watch_pb2 import EVENT_KIND_TASK_CANCELLED

from tests.rpc.scene import Ask, Scene
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.timeout(120)

COUNT = 2000


def cancelled(scene: Scene) -> Counter[str]:
    """How often each task was cancelled, by the log."""
    wanted = event_pb2.EventFilter(kinds=[EVENT_KIND_TASK_CANCELLED])
    found: Counter[str] = Counter()
    token = ""
    while True:
        request = event_pb2.ListEventsRequest(
            filter=wanted, order=LIST_ORDER_OLDEST_FIRST, page_size=1000, page_token=token
        )
        page = scene.ask("ListEvents", request)
        found.update(event.task.task_id for event in page.events)
        if not (token := page.next_page_token):
            return found


def count(scene: Scene, state: int) -> int:
    counts = scene.ask("CountTasks", task_pb2.CountTasksRequest()).counts
    return sum(entry.count for entry in counts if entry.state == state)


def test_a_change_that_was_killed_is_finished_once(server_process: ServerProcess) -> None:
    scene = Scene(server_process)
    for _ in range(COUNT // 500):
        scene.ask("BatchCreateTasks", task_pb2.BatchCreateTasksRequest(tasks=[scene.spec()] * 500))
    wanted = task_pb2.TaskFilter(states=[TASK_STATE_QUEUED])
    request = task_pb2.CancelTasksRequest(filter=wanted, max_affected=COUNT, request_id="once")
    call = scene.start("CancelTasks", Ask(request))
    ended = threading.Event()
    call.add_done_callback(lambda _: ended.set())
    while not count(scene, TASK_STATE_CANCELLED):
        assert not ended.is_set()

    server_process.kill()
    ended.wait(20)
    with pytest.raises(grpc.RpcError):
        call.result()
    server_process.start()
    again = Scene(server_process)
    late = again.queued()
    answer = again.ask("CancelTasks", request)

    assert (answer.matched, answer.affected, len(answer.items)) == (COUNT, COUNT, COUNT)
    assert {item.state for item in answer.items} == {TASK_STATE_CANCELLED}
    assert cancelled(again) == Counter({item.task_id: 1 for item in answer.items})
    assert again.ask("GetTask", task_pb2.GetTaskRequest(task_id=late.task_id)).task.state == TASK_STATE_QUEUED
    again.close()
    scene.close()
