"""A gRPC tool that knows nothing of Kapell works by reflection: one line lists, one creates, one watches.

The tool is `buf curl`, which comes with the tools of development; grpcurl takes the same JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from google.rpc import error_details_pb2
from kapell_server.rpc.methods import services

from tests.rpc.scene import METHODS
from tests.support.server_process import ServerProcess
from tests.tidy.api import BUF

pytestmark = pytest.mark.timeout(60)

SECONDS = 30


class Shell:
    """Runs lines of `buf curl` against one server."""

    def __init__(self, server: ServerProcess) -> None:
        self._base = f"http://{server.address}"
        self._options = ("--http2-prior-knowledge", "--protocol", "grpc")
        self._bearer = ("-H", f"authorization: Bearer {server.admin_token}")

    def line(self, method: str, body: str = "{}", *, token: bool = True) -> list[str]:
        """The command line for a method such as "TaskService/CreateTask"."""
        bearer = self._bearer if token else ()
        return [BUF, "curl", *self._options, *bearer, "-d", body, f"{self._base}/kapell.v1.{method}"]

    def run(self, method: str, body: str = "{}") -> dict[str, Any]:
        """The answer of a unary method."""
        done = subprocess.run(self.line(method, body), capture_output=True, text=True, timeout=SECONDS, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def list(self, what: str) -> set[str]:
        """What `--list-services` or `--list-methods` prints, by reflection and without a token."""
        command = [BUF, "curl", *self._options, f"--list-{what}", self._base]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
        return set(done.stdout.split())


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """One server for all lines of this file."""
    with ServerProcess(tmp_path_factory.mktemp("shell") / "data") as server:
        yield Shell(server)


def messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The messages of a stream as they come, whatever lines they are printed on."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        try:
            message = json.loads(text)
        except json.JSONDecodeError:
            continue
        text = ""
        yield message


def test_the_services_and_methods_are_listed(shell: Shell) -> None:
    names = {service.full_name for service in services()}

    assert names <= shell.list("services")
    assert {method.path.removeprefix("/") for method in METHODS.values()} <= shell.list("methods")


def test_a_task_is_created_and_watched_with_one_line_each(shell: Shell) -> None:
    watch = subprocess.Popen(
        shell.line("TaskService/WatchTasks"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        stream = messages(watch)
        first = next(stream)
        created = shell.run("TaskService/CreateTask", '{"task":{"agentType":"shell","prompt":"echo hi"}}')
        second = next(stream)
    finally:
        watch.kill()
        watch.communicate()

    assert "bookmark" in first
    assert created["task"]["state"] == "TASK_STATE_QUEUED"
    [event] = second["events"]
    assert (event["kind"], event["task"]["taskId"]) == ("EVENT_KIND_TASK_CREATED", created["task"]["taskId"])
    assert event["revision"] == created["revision"]


def test_a_file_is_uploaded_and_downloaded_with_one_line_a_step(shell: Shell) -> None:
    data = b"from a shell"
    task = shell.run("TaskService/CreateTask", '{"task":{"agentType":"nobody"}}')["task"]
    begin = {"taskId": task["taskId"], "name": "note.txt"}
    artifact_id = shell.run("ArtifactService/CreateArtifact", json.dumps(begin))["artifact"]["artifactId"]
    chunk = {"artifactId": artifact_id, "data": base64.b64encode(data).decode()}
    uploaded = shell.run("ArtifactService/UploadArtifact", json.dumps(chunk))
    end = {"artifactId": artifact_id, "sha256": hashlib.sha256(data).hexdigest()}
    done = shell.run("ArtifactService/CompleteArtifact", json.dumps(end))["artifact"]

    download = shell.line("ArtifactService/DownloadArtifact", json.dumps({"artifactId": artifact_id, "offset": 5}))
    with subprocess.Popen(download, stdout=subprocess.PIPE, text=True) as process:
        received = [base64.b64decode(message.get("data", "")) for message in messages(process)]

    assert (uploaded["nextOffset"], done["state"]) == ("12", "ARTIFACT_STATE_READY")
    assert b"".join(received) == b"a shell"


def test_a_command_runs_in_an_agent_with_three_lines(shell: Shell) -> None:
    agent = shell.run("AgentService/SpawnAgent", '{"profile":"shell","wait":"15s"}')["agent"]
    task = shell.run("TaskService/CreateTask", '{"task":{"agentType":"shell","prompt":"echo hi"}}')["task"]
    done = shell.run("TaskService/WaitTask", json.dumps({"taskId": task["taskId"], "wait": "15s"}))["task"]

    assert agent["state"] == "AGENT_STATE_ACTIVE"
    assert (done["state"], done["result"].strip()) == ("TASK_STATE_SUCCEEDED", "hi")


@pytest.mark.parametrize(
    "method",
    [
        "TaskService/ListTasks",
        "TaskService/CountTasks",
        "AgentService/ListAgents",
        "AgentService/ListAgentProfiles",
        "EventService/ListEvents",
        "EventService/GetLogInfo",
        "AdminService/GetServerInfo",
        "AdminService/GetDiagnostics",
    ],
)
def test_an_empty_request_is_a_sensible_default(shell: Shell, method: str) -> None:
    assert isinstance(shell.run(method), dict)


def test_a_refusal_says_what_to_do_and_carries_its_reason(shell: Shell) -> None:
    missing = subprocess.run(
        shell.line("TaskService/GetTask", '{"taskId":"task_nothing"}'), capture_output=True, text=True, timeout=SECONDS
    )
    anonymous = subprocess.run(
        shell.line("TaskService/ListTasks", token=False), capture_output=True, text=True, timeout=SECONDS
    )

    assert missing.returncode != 0
    error = json.loads(missing.stderr)
    assert error["code"] == "not_found"
    assert "task_nothing" in error["message"]
    [info] = [detail for detail in error["details"] if detail["type"] == "google.rpc.ErrorInfo"]
    assert error_details_pb2.ErrorInfo.FromString(base64.b64decode(info["value"] + "==")).reason == "TASK_NOT_FOUND"
    assert anonymous.returncode != 0
    assert "authorization: Bearer" in anonymous.stderr
