"""What was acknowledged is there after kill -9, on the same port and with the same token."""

from __future__ import annotations

import grpc
import pytest
from kapell.v1.task_pb2 import CreateTaskRequest, GetTaskRequest, TaskSpec
from kapell.v1.task_pb2_grpc import TaskServiceStub

from tests.support.server_process import ServerProcess


def tasks_of(server: ServerProcess, channel: grpc.Channel) -> TaskServiceStub:
    grpc.channel_ready_future(channel).result(timeout=10)
    return TaskServiceStub(channel)


def test_an_acknowledged_task_survives_kill_9(server_process: ServerProcess) -> None:
    bearer = (("authorization", f"Bearer {server_process.admin_token}"),)
    with grpc.insecure_channel(server_process.address) as channel:
        created = tasks_of(server_process, channel).CreateTask(
            CreateTaskRequest(task=TaskSpec(agent_type="none", prompt="remember me")), metadata=bearer, timeout=10
        )
    address = server_process.address

    server_process.restart()

    assert server_process.address == address
    with grpc.insecure_channel(server_process.address) as channel:
        found = tasks_of(server_process, channel).GetTask(
            GetTaskRequest(task_id=created.task.task_id), metadata=bearer, timeout=10
        )
    assert found.task.prompt == "remember me"
    assert found.task.etag == created.task.etag


def test_a_stop_that_was_asked_for_ends_with_code_0(server_process: ServerProcess) -> None:
    assert server_process.stop() == 0


def test_a_server_that_cannot_start_says_why(server_process: ServerProcess) -> None:
    second = ServerProcess(server_process.data_dir)

    with pytest.raises(AssertionError, match="exit code 1"):
        second.start()
