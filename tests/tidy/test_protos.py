"""The protos: linted, commented, generated from, and compatible where bytes are shared."""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from kapell._third_party.buf.validate import validate_pb2
from kapell.v1 import agent_pb2, approval_pb2, event_pb2, lock_pb2, task_pb2, usage_pb2

from tests.tidy.api import BUF, elements, files, messages, shape
from tests.tidy.sources import ROOT

STUBS = ROOT / "client" / "python"


def test_buf_finds_nothing_to_complain_about() -> None:
    lint = subprocess.run([BUF, "lint"], cwd=ROOT, capture_output=True, text=True)

    assert lint.returncode == 0, lint.stdout + lint.stderr


def test_everything_in_the_protos_has_a_comment() -> None:
    silent = [f"{file.name}: {element.name}" for file in files() for element in elements(file) if not element.comment]

    assert silent == []


def test_the_walk_over_the_comments_sees_them_all() -> None:
    names = {element.name for file in files() for element in elements(file)}

    assert {"TaskService", "TaskService.CreateTask", "Task.prompt", "AgentSpec.runtime"} <= names
    assert {"TaskState.TASK_STATE_QUEUED", "scope", "kapell/v1/task.proto"} <= names


def test_the_committed_stubs_are_those_of_the_protos(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}

    subprocess.run(["proto/gen.sh", str(tmp_path)], cwd=ROOT, check=True, env=environment)

    fresh = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py*")}
    committed = {
        str(path.relative_to(STUBS))
        for package in ("kapell/v1", "kapell/_third_party")
        for path in (STUBS / package).rglob("*.py*")
        if path.suffix in (".py", ".pyi")
    }
    assert committed == fresh, "run `make gen`"
    _, differ, failed = filecmp.cmpfiles(tmp_path, STUBS, sorted(fresh), shallow=False)
    assert (differ, failed) == ([], []), "run `make gen`"


@pytest.mark.parametrize(
    ("part", "own"),
    [
        (task_pb2.TaskEvent.DESCRIPTOR, {"task", "previous_task_state"}),
        (agent_pb2.AgentEvent.DESCRIPTOR, {"agent", "previous_agent_state"}),
        (lock_pb2.LockEvent.DESCRIPTOR, {"lock", "ticket", "session"}),
        (approval_pb2.ApprovalEvent.DESCRIPTOR, {"approval"}),
        (usage_pb2.UsageEvent.DESCRIPTOR, {"usage"}),
    ],
)
def test_the_events_of_one_kind_have_the_wire_format_of_all_events(part: Descriptor, own: set[str]) -> None:
    whole = shape(event_pb2.Event.DESCRIPTOR)
    resources = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["resource"].fields}
    of_some = resources | {"previous_task_state", "previous_agent_state"}

    expected = {number: field for number, field in whole.items() if field[0] in own or field[0] not in of_some}
    assert shape(part) == expected


@pytest.mark.parametrize(
    "response",
    [
        task_pb2.WatchTasksResponse,
        agent_pb2.WatchAgentsResponse,
        approval_pb2.WatchApprovalsResponse,
        usage_pb2.WatchUsageResponse,
        lock_pb2.WatchLocksResponse,
    ],
)
def test_all_watches_answer_in_one_wire_format(response: type) -> None:
    fields = response.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    reference = event_pb2.WatchResponse.DESCRIPTOR.fields_by_name

    assert {name: field.number for name, field in fields.items()} == {"events": 1, "bookmark": 2}
    assert {name: field.number for name, field in reference.items()} == {"events": 1, "bookmark": 2}


def test_a_list_of_an_enum_takes_all_its_values() -> None:
    room = {}
    for field in (field for message in messages() for field in message.fields):
        rules = field.GetOptions().Extensions[validate_pb2.field].repeated
        if field.enum_type is not None and rules.max_items:
            allowed = getattr(rules.items.enum, "in") or {value.number for value in field.enum_type.values}
            room[field.full_name] = rules.max_items - len(set(allowed) - set(rules.items.enum.not_in))

    assert {"kapell.v1.EventFilter.kinds", "kapell.v1.WebhookSpec.kinds"} <= room.keys()
    assert [name for name, left in room.items() if left < 0] == []


def test_breaking_changes_are_looked_for_from_the_first_release_on() -> None:
    make = subprocess.run(["make", "-n", "breaking"], cwd=ROOT, capture_output=True, text=True)

    assert "buf breaking --against" in make.stdout
