"""Sessions that go on: a later attempt at a task, and all tasks of one agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kapell.runtimes import Runtime
from kapell.v1.agent_pb2 import ACP_SESSION_PER_AGENT
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt
from tests.runtimes.test_acp import Make, make, notes
from tests.runtimes.test_conformance import TASK, begun, failure_of

__all__ = ["make"]

LOADS = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
RESUMES = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True, "sessionCapabilities": {"resume": {}}}}


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    """Fields of a profile: a directory to work in, and a HOME."""
    (tmp_path / "shop").mkdir()
    return {"working_directory": str(tmp_path / "shop"), "env": {"HOME": str(tmp_path)}}


def opened(tmp_path: Path) -> list[tuple[str, str]]:
    """How sessions were opened, and which."""
    calls = [note.split(" ", 1) for note in notes(tmp_path)]
    return [
        (method, json.loads(given).get("sessionId", "")) for method, given in calls if method.startswith("session/")
    ]


async def crashed(agent: Runtime) -> str:
    """The session of an attempt that has died."""
    attempt = RecordedAttempt()
    await failure_of(begun(agent, attempt))
    [line] = [remark for remark in attempt.remarks if remark.startswith("session ")]
    return line.split()[1]


@pytest.mark.parametrize(("welcome", "method"), [(LOADS, "session/load"), (RESUMES, "session/resume")])
async def test_attempt_after_a_crash_goes_on_with_the_session(
    make: Make, tmp_path: Path, place: dict[str, Any], welcome: dict[str, Any], method: str
) -> None:
    earlier = await crashed(make(["crash"], profile=place, initialize=welcome))
    attempt = RecordedAttempt(attempt=2)
    history = [{"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "said before\n"}}]

    agent = make(["said_prompt"], profile=place, initialize=welcome, history=history)
    result = await agent.run(attempt, TASK)

    assert opened(tmp_path) == [("session/new", ""), (method, earlier)]
    assert str(result).startswith("Your work on the following task was interrupted.")
    assert str(result).endswith("hello")
    assert f"session {earlier} goes on" in attempt.remarks
    assert "said before" not in attempt.stdout


async def test_first_attempt_and_one_after_a_success_begin_anew(
    make: Make, tmp_path: Path, place: dict[str, Any]
) -> None:
    await crashed(make(["crash"], profile=place, initialize=LOADS))

    await make(["say", "x"], profile=place, initialize=LOADS).run(RecordedAttempt(), TASK)
    await make(["say", "x"], profile=place, initialize=LOADS).run(RecordedAttempt(attempt=2), TASK)

    assert [method for method, _ in opened(tmp_path)] == ["session/new"] * 3


@pytest.mark.parametrize(
    ("welcome", "answer"),
    [({"protocolVersion": 1}, {}), (LOADS, {"error": {"code": -32002, "message": "Resource not found"}})],
)
async def test_agent_that_cannot_go_on_begins_anew_and_the_log_says_so(
    make: Make, place: dict[str, Any], welcome: dict[str, Any], answer: dict[str, Any]
) -> None:
    earlier = await crashed(make(["crash"], profile=place, initialize=LOADS))
    attempt = RecordedAttempt(attempt=2)

    agent = make(["said_prompt"], profile=place, initialize=welcome, **{"session/load": answer})
    result = await agent.run(attempt, TASK)

    assert result == "hello"
    assert any(f"begins in the place of {earlier}" in remark for remark in attempt.remarks)


async def test_task_retried_by_hand_and_other_places_begin_anew(
    make: Make, tmp_path: Path, place: dict[str, Any]
) -> None:
    await crashed(make(["crash"], profile=place, initialize=LOADS))
    elsewhere = {**place, "working_directory": str(tmp_path)}
    fresh = {"env": place["env"]}

    retried = Task(task_id=TASK.task_id, prompt="hello", retries=1)
    await make(["say", "x"], profile=place, initialize=LOADS).run(RecordedAttempt(attempt=2), retried)
    for profile in (elsewhere, fresh):
        await make(["say", "x"], profile=profile, initialize=LOADS).run(RecordedAttempt(attempt=2), TASK)

    assert [method for method, _ in opened(tmp_path)] == ["session/new"] * 4


async def test_session_that_the_agent_dies_of_is_not_tried_again(
    make: Make, tmp_path: Path, place: dict[str, Any]
) -> None:
    await crashed(make(["crash"], profile=place, initialize=LOADS))

    dying = make(profile=place, initialize=LOADS, **{"session/load": "exit"})
    await failure_of(begun(dying, RecordedAttempt(attempt=2)))
    await make(["say", "x"], profile=place, initialize=LOADS).run(RecordedAttempt(attempt=3), TASK)

    assert [method for method, _ in opened(tmp_path)] == ["session/new"] * 2


async def test_session_of_an_agent_is_kept_for_all_its_tasks(make: Make, tmp_path: Path, place: dict[str, Any]) -> None:
    profile = {**place, "session": ACP_SESSION_PER_AGENT}
    agent = make(["said_prompt"], profile=profile, initialize=LOADS)

    await agent.run(RecordedAttempt(task_id="task_one"), Task(task_id="task_one", prompt="one"))
    second = await agent.run(RecordedAttempt(task_id="task_two"), Task(task_id="task_two", prompt="two"))

    (new, _), (load, kept) = opened(tmp_path)
    assert (new, load) == ("session/new", "session/load")
    assert kept.startswith("session-")
    assert second == "two"
