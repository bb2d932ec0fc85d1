"""The blocking client, against a server in a thread of its own."""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Iterator

import kapell.sync
import pytest
from kapell import Client, SyncClient, errors
from kapell.sync import LoopThread
from kapell.v1 import task_pb2, watch_pb2
from kapell.v1.event_pb2 import Event

from tests.clients.fake_server import FakeServer, serving


class ServerThread:
    """A fake server and the loop it runs in."""

    def __init__(self, loop: LoopThread, fake: FakeServer) -> None:
        self._loop = loop
        self.fake = fake

    def create(self, task_id: str) -> None:
        self._loop.run(self.fake.create(task_id))

    def end(self, task_id: str) -> None:
        kind, state = watch_pb2.EVENT_KIND_TASK_COMPLETED, task_pb2.TASK_STATE_SUCCEEDED
        self._loop.run(self.fake.change(task_id, kind, state=state))


@pytest.fixture
def server() -> Iterator[ServerThread]:
    loop = LoopThread()

    async def make() -> FakeServer:
        return FakeServer()

    fake = loop.run(make())
    context = serving(fake)
    loop.run(context.__aenter__())
    yield ServerThread(loop, fake)

    async def leave() -> None:
        await context.__aexit__(None, None, None)

    loop.close(leave())


@pytest.fixture
def client(server: ServerThread) -> Iterator[SyncClient]:
    with SyncClient(server.fake.address, token="secret-token") as client:
        yield client


def test_verbs_block_and_answer(server: ServerThread, client: SyncClient) -> None:
    task = client.tasks.create("shell", "true", task_id="task_1")
    page = client.tasks.list()

    assert task.task_id == "task_1"
    assert [task.task_id for task in page.tasks] == ["task_1"]
    assert server.fake.metadata["authorization"] == "Bearer secret-token"


def test_errors_are_the_same_exceptions(client: SyncClient) -> None:
    with pytest.raises(errors.NotFound) as caught:
        client.tasks.get("task_none")

    assert caught.value.reason == "TASK_NOT_FOUND"


def test_pages_are_a_plain_iterator(server: ServerThread, client: SyncClient) -> None:
    for number in range(5):
        server.create(f"task_{number}")

    assert [task.task_id for task in client.tasks.iterate(page_size=2)] == [f"task_{n}" for n in range(5)]


def test_a_watch_is_a_plain_iterator(server: ServerThread, client: SyncClient) -> None:
    with client.watch() as events:
        server.create("task_1")
        server.create("task_2")
        seen = [next(events).task.task_id, next(events).task.task_id]

    assert seen == ["task_1", "task_2"]
    assert list(events) == []


def test_closing_from_another_thread_ends_a_waiting_iterator(client: SyncClient) -> None:
    with client.watch() as events:
        closer = threading.Thread(target=events.close)
        closer.start()
        rest = list(events)
        closer.join()

    assert rest == []


def test_wait_blocks_until_the_end(server: ServerThread, client: SyncClient) -> None:
    server.create("task_1")
    ender = threading.Thread(target=server.end, args=("task_1",))
    ender.start()

    task = client.tasks.wait("task_1", timeout=20)
    ender.join()

    assert task.state == task_pb2.TASK_STATE_SUCCEEDED


def test_several_threads_may_share_a_client(server: ServerThread, client: SyncClient) -> None:
    threads = [
        threading.Thread(target=client.tasks.create, args=("shell",), kwargs={"task_id": f"task_{n}"}) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(server.fake.log.resources) == 8


def test_a_callback_may_use_the_client(server: ServerThread, client: SyncClient) -> None:
    answers: queue.Queue[str] = queue.Queue()

    @client.on("task.created")
    def ask(event: Event) -> None:
        answers.put(client.tasks.get(event.task.task_id).task_id)

    server.create("task_1")
    assert answers.get(timeout=20) == "task_1"

    client.off("task.created", ask)
    client.off("task.created", ask)


def test_the_blocking_faces_have_every_verb_of_the_asynchronous_ones() -> None:
    names = ("tasks", "agents", "templates", "schedules", "budgets", "alerts", "webhooks", "usage", "prices")
    for name in (*names, "events", "admin"):
        face = getattr(Client("127.0.0.1:1", token=""), name)
        blocking = getattr(kapell.sync, f"Sync{name.capitalize()}")
        for verb, function in inspect.getmembers(type(face), inspect.isfunction):
            if not verb.startswith("_"):
                assert getattr(blocking, verb).__wrapped__ is function


def test_closing_twice_is_fine(server: ServerThread) -> None:
    client = SyncClient(server.fake.address)
    client.admin.server_info()

    client.close()
    client.close()
