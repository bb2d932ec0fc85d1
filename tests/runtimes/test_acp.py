"""What an ACP agent says and does not say: the turn, its end, and every way in which it goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from kapell._worker.outcome import RateLimited
from kapell.messages import struct
from kapell.runtimes import Runtime, build
from kapell.v1.agent_pb2 import AcpRuntime, AgentSpec
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt
from tests.runtimes import casts
from tests.runtimes.test_conformance import TASK, begun, failure_of

Make = Callable[..., Runtime]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes the runtime of an agent with a script; fields of AcpRuntime go by `profile`."""
    made: list[Runtime] = []

    def build_one(*steps: list[Any], profile: dict[str, Any] | None = None, **script: Any) -> Runtime:
        script["notes"] = str(tmp_path / "notes")
        spec = casts.acp(tmp_path, {"steps": steps, **script}, **(profile or {}))
        made.append(build(spec, agent_id="agent_one", directory=tmp_path / f"agent-{len(made)}"))
        return made[-1]

    yield build_one
    for runtime in made:
        await runtime.close()


def notes(tmp_path: Path) -> list[str]:
    """What the agent was called with."""
    file = tmp_path / "notes"
    return file.read_text().splitlines() if file.exists() else []


async def test_fragments_become_lines_and_the_last_message_is_the_result(make: Make) -> None:
    attempt = RecordedAttempt()
    tool = {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "Read a.py", "kind": "read"}

    agent = make(["chunk", "I loo"], ["chunk", "k.\nNow"], ["update", tool], ["chunk", "All "], ["chunk", "done"])

    result = await agent.run(attempt, TASK)

    assert attempt.stdout == ["I look.", "Now", "All done"]
    assert result == "All done"


async def test_secret_that_is_spread_over_fragments_is_masked(make: Make) -> None:
    attempt = RecordedAttempt(secrets={"API_KEY": "tops3cret-value"})

    result = await make(["chunk", "it is tops3"], ["chunk", "cret-value, you know"]).run(attempt, TASK)

    assert "tops3" not in f"{attempt.lines}{result}"
    assert "you know" in str(result)


async def test_prompt_is_given_with_the_input_unless_a_template_has_put_that_in(make: Make) -> None:
    given = Task(task_id="task_one", prompt="Add these", input=struct({"numbers": [1, 2]}))
    rendered = Task(task_id="task_one", prompt="Add 1, 2", input=struct({"numbers": [1, 2]}), template_id="add")

    first = await make(["said_prompt"]).run(RecordedAttempt(), given)
    second = await make(["said_prompt"]).run(RecordedAttempt(), rendered)

    assert str(first).startswith("Add these\n\nThe input of the task, as JSON:")
    assert '"numbers"' in str(first)
    assert second == "Add 1, 2"


async def test_thoughts_are_logged_or_left_out(make: Make) -> None:
    told, hidden = RecordedAttempt(), RecordedAttempt()

    await make(["think", "hm"], ["say", "yes"]).run(told, TASK)
    await make(["think", "hm"], ["say", "yes"], profile={"hide_thoughts": True}).run(hidden, TASK)

    assert "thinks: hm" in told.remarks
    assert not any("hm" in remark for remark in hidden.remarks)


async def test_tool_calls_are_progress_and_log_with_places(make: Make) -> None:
    attempt = RecordedAttempt()
    call = {
        "sessionUpdate": "tool_call",
        "toolCallId": "1",
        "title": "Edit a.py",
        "kind": "edit",
        "status": "in_progress",
        "locations": [{"path": "/srv/a.py", "line": 7}],
    }
    failed = {"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "failed"}

    await make(["update", call], ["update", failed]).run(attempt, TASK)

    assert "edit: Edit a.py (/srv/a.py:7)" in attempt.remarks
    assert "failed: edit: Edit a.py (/srv/a.py:7)" in attempt.remarks
    assert attempt.progress_seen == [(None, "Edit a.py", "/srv/a.py:7")]


async def test_plan_is_progress_and_is_logged_when_it_changes(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(["progress", 20, "weigh"], ["progress", 20, "weigh"]).run(attempt, TASK)

    assert attempt.progress_seen[-1] == (0.2, "weigh", "2 of 10 steps of the plan are done")
    assert len([remark for remark in attempt.remarks if remark.startswith("plan:")]) == 1


async def test_cost_is_reported_once_for_each_figure_by_its_session(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(["usage", 0.1], ["usage", 0.1], ["usage", 0.3]).run(attempt, TASK)

    costs = [used["update"]["cost"]["amount"] for used in attempt.used]  # type: ignore[index]
    assert costs == [0.1, 0.3]
    assert all(str(used["sessionId"]).startswith("session-") for used in attempt.used)


async def test_cost_that_has_not_changed_is_no_news(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(["usage", 0.1], ["usage", 0.1]).run(attempt, TASK)

    assert len(attempt.used) == 1


async def test_what_is_said_after_the_turn_is_no_part_of_it(make: Make) -> None:
    attempt = RecordedAttempt()

    result = await make(["say", "done"], ["answer", {"result": {"stopReason": "end_turn"}}], ["say", "late"]).run(
        attempt, TASK
    )

    assert result == "done"


async def test_update_that_nobody_knows_is_nobodys_news(make: Make) -> None:
    agent = make(["update", {"sessionUpdate": "of_tomorrow", "x": 1}], ["say", "hello"])

    result = await agent.run(RecordedAttempt(), TASK)

    assert result == "hello"


@pytest.mark.parametrize(
    ("stop", "reason", "retryable"),
    [
        ("max_tokens", "MAX_TOKENS", None),
        ("max_turn_requests", "MAX_TURN_REQUESTS", None),
        ("refusal", "REFUSED", False),
        ("cancelled", "AGENT_ERROR", None),
        ("of_tomorrow", "PROTOCOL_ERROR", None),
    ],
)
async def test_turn_that_ends_otherwise_fails(make: Make, stop: str, reason: str, retryable: bool | None) -> None:
    failure = await failure_of(begun(make(["answer", {"result": {"stopReason": stop}}]), RecordedAttempt()))

    assert (failure.reason, failure.retryable) == (reason, retryable)


async def test_refused_prompt_says_why(make: Make) -> None:
    error = {"code": -32603, "message": "Internal error", "data": {"details": "the model is unknown"}}

    failure = await failure_of(begun(make(["answer", {"error": error}]), RecordedAttempt()))

    assert failure.reason == "AGENT_ERROR"
    assert "Internal error: the model is unknown" in failure.message


async def test_provider_that_takes_no_more_calls_costs_no_attempt(make: Make) -> None:
    error = {"code": 429, "message": "Rate limit exceeded"}

    failure = await failure_of(begun(make(["answer", {"error": error}]), RecordedAttempt()))

    assert isinstance(failure, RateLimited)


async def test_cancelled_agent_may_end_its_turn(make: Make) -> None:
    attempt = RecordedAttempt()
    runtime = make(["say", "up"], ["await_cancel"], ["say", "tidied"], profile=patient())
    running = begun(runtime, attempt)
    await attempt.until_stdout(1)

    attempt.cancel()
    failure = await failure_of(running)

    assert failure.reason == "CANCELLED"
    assert attempt.stdout == ["up", "tidied"]


async def test_sign_in_is_explained(make: Make) -> None:
    ways = [{"id": "oauth", "name": "Log in with a browser"}, {"id": "key", "name": "Use an API key"}]
    runtime = make(**{"after authenticate": True}, initialize={"protocolVersion": 1, "authMethods": ways})

    failure = await failure_of(begun(runtime, RecordedAttempt()))

    assert (failure.reason, failure.retryable) == ("AUTH_REQUIRED", False)
    assert "run it once by hand" in failure.message
    assert "Log in with a browser (oauth), Use an API key (key)" in failure.message


async def test_way_to_sign_in_of_the_profile_is_taken(make: Make, tmp_path: Path) -> None:
    runtime = make(["say", "in"], **{"after authenticate": True}, profile={"auth_method": "key"})

    result = await runtime.run(RecordedAttempt(), TASK)

    assert result == "in"
    assert 'authenticate {"methodId": "key"}' in notes(tmp_path)


async def test_mode_and_model_are_chosen(make: Make, tmp_path: Path) -> None:
    new = {
        "sessionId": "s",
        "modes": {"currentModeId": "ask", "availableModes": [{"id": "plan", "name": "Plan"}]},
        "configOptions": [
            {
                "id": "llm",
                "name": "Model",
                "category": "model",
                "type": "select",
                "currentValue": "small",
                "options": [{"value": "small", "name": "Small"}, {"value": "large", "name": "Large"}],
            }
        ],
    }

    agent = make(["say", "x"], profile={"mode": "plan", "model": "large"}, **{"session/new": new})
    await agent.run(RecordedAttempt(), TASK)
    refusal = make(profile={"model": "huge"}, **{"session/new": new})
    failure = await failure_of(begun(refusal, RecordedAttempt()))

    assert 'session/set_mode {"modeId": "plan", "sessionId": "s"}' in notes(tmp_path)
    assert 'session/set_config_option {"configId": "llm", "sessionId": "s", "value": "large"}' in notes(tmp_path)
    assert (failure.reason, failure.retryable) == ("SETUP_FAILED", False)
    assert "no model 'huge'; it has: small, large" in failure.message


async def test_version_that_we_do_not_speak_is_named(make: Make) -> None:
    failure = await failure_of(begun(make(initialize={"protocolVersion": 2}), RecordedAttempt()))

    assert (failure.reason, failure.retryable) == ("PROTOCOL_ERROR", False)
    assert "speaks version 2" in failure.message


@pytest.mark.parametrize("silent", ["initialize", "session/new"])
async def test_agent_that_does_not_answer_is_given_up(make: Make, silent: str) -> None:
    runtime = make(profile=impatient(), **{silent: "silence"})

    failure = await failure_of(begun(runtime, RecordedAttempt()))

    assert failure.reason == "NO_ANSWER"
    assert f"did not answer {silent} within 0.3 s" in failure.message


async def test_agent_that_ends_before_its_answer_is_told_with_its_last_words(make: Make) -> None:
    early = await failure_of(begun(make(initialize="exit"), RecordedAttempt()))
    late = await failure_of(begun(make(["stderr", "no more money"], ["exit", 0]), RecordedAttempt()))

    assert (early.reason, early.details) == ("EXIT_CODE", {"exit_code": 5})
    assert late.reason == "PROTOCOL_ERROR"
    assert late.message.endswith("ended before it had answered:\nno more money")


async def test_program_that_prints_anything_but_messages_is_no_agent(tmp_path: Path) -> None:
    spec = AgentSpec(acp=AcpRuntime(argv=["sh", "-c", "yes 'usage: use me rightly'"]))
    runtime = build(spec, agent_id="agent_one", directory=tmp_path)

    failure = await failure_of(begun(runtime, RecordedAttempt()))
    await runtime.close()

    assert failure.reason == "PROTOCOL_ERROR"
    assert "does not speak the Agent Client Protocol" in failure.message


async def test_message_beyond_all_measure_is_refused(make: Make) -> None:
    failure = await failure_of(begun(make(["raw_flood", 100 * 1024 * 1024]), RecordedAttempt()))

    assert failure.reason == "PROTOCOL_ERROR"
    assert "a line of more than 33554432 bytes" in failure.message


@pytest.mark.parametrize(
    "nonsense",
    [
        '{"id": [1], "result": {}}',
        '{"id": 0, "error": 7}',
        '{"method": 7, "id": 1}',
        '{"method": "session/update", "params": 7}',
        '{"method": "session/update"}',
        "[" * 100_000,
        "[]",
        '{"id": 99, "result": {}}',
        r'{"method": "session/update", "params": {"sessionId": "s", "update": {"sessionUpdate": "tool_call", '
        r'"toolCallId": "1", "title": "\ud800"}}}',
    ],
)
async def test_messages_that_are_none_do_no_harm(make: Make, nonsense: str) -> None:
    result = await make(["raw", nonsense + "\n"], ["say", "hello"]).run(RecordedAttempt(), TASK)

    assert result == "hello"


async def test_request_that_nobody_serves_is_answered(make: Make) -> None:
    attempt = RecordedAttempt()

    await make(["call", "of/tomorrow", {}], ["call", "fs/read_text_file", {}]).run(attempt, TASK)

    assert '"code": -32601' in attempt.stdout[0]
    assert "path: Field required" in attempt.stdout[1]


async def test_missing_program_says_how_to_install_it(tmp_path: Path) -> None:
    spec = AgentSpec(acp=AcpRuntime(argv=["gemini", "--acp"], env={"PATH": "/nowhere"}))
    runtime = build(spec, agent_id="agent_one", directory=tmp_path)

    failure = await failure_of(begun(runtime, RecordedAttempt()))
    await runtime.close()

    assert failure.reason == "PROGRAM_NOT_FOUND"
    assert "npm install -g @google/gemini-cli" in failure.message


async def test_result_file_is_the_result(make: Make) -> None:
    command = "printf '{\"n\": 1}' > $KAPELL_RESULT_FILE"

    result = await make(
        ["ask", "terminal/create", {"command": command}],
        ["ask", "terminal/wait_for_exit", {"terminalId": "terminal-1"}],
        ["say", "done"],
    ).run(RecordedAttempt(), TASK)

    assert result == {"n": 1}


def patient() -> dict[str, Any]:
    runtime = AcpRuntime()
    runtime.kill_grace.FromSeconds(20)
    return {"kill_grace": runtime.kill_grace}


def impatient() -> dict[str, Any]:
    runtime = AcpRuntime()
    runtime.start_timeout.FromMilliseconds(300)
    return {"start_timeout": runtime.start_timeout}
