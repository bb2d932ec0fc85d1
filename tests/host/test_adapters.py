"""Adapters: what each makes of the output of its program, line by line, and of output that is none of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kapell._worker.outcome import RateLimited, TaskFailed
from kapell.runtimes.adapters import _ADAPTERS, adapter_for
from kapell.runtimes.adapters.contract import Effect, Recording, Say, Session, Step, Use, Verdict
from kapell.runtimes.adapters.reading import event_of
from kapell.v1 import agent_pb2

TRANSCRIPTS = Path(__file__).parent / "transcripts"
OUTPUTS = {name: output for output, name in _ADAPTERS.items()}
KINDS = (".jsonl", ".txt")
NOW = 1_800_000_000.0


@dataclass
class Run:
    """A program that was read to its end."""

    effects: list[Effect]
    verdict: Verdict

    @property
    def said(self) -> list[str]:
        return [effect.text for effect in self.effects if isinstance(effect, Say)]

    @property
    def steps(self) -> list[tuple[str, str, float | None]]:
        return [(one.step, one.message, one.fraction) for one in self.effects if isinstance(one, Step)]

    @property
    def used(self) -> list[Use]:
        return [one for one in self.effects if isinstance(one, Use)] + self.verdict.used

    @property
    def sessions(self) -> list[str]:
        return [one.session_id for one in self.effects if isinstance(one, Session)]

    @property
    def failure(self) -> TaskFailed:
        assert self.verdict.failure is not None
        return self.verdict.failure


def transcript(name: str) -> list[str]:
    [file] = (TRANSCRIPTS / f"{name}{kind}" for kind in KINDS if (TRANSCRIPTS / f"{name}{kind}").exists())
    return file.read_text(encoding="utf-8").splitlines()


def read(
    name: str,
    lines: Sequence[str] | None = None,
    *,
    code: int = 0,
    stderr: str = "",
    argv: Sequence[str] = (),
    record: str = "",
) -> Run:
    adapter = adapter_for(OUTPUTS[name], argv or [name])
    assert adapter is not None
    if record:
        assert isinstance(adapter, Recording)
        adapter.take_record(record)
    effects = [effect for line in (transcript(name) if lines is None else lines) for effect in adapter.feed(line)]
    return Run(effects, adapter.end(code=code, stderr=stderr, now=NOW))


def said_of(event: dict[str, Any]) -> str:
    return json.dumps(event)


def test_every_output_of_the_api_is_read_and_has_a_transcript() -> None:
    in_the_api = set(agent_pb2.ProgramOutput.values()) - {
        agent_pb2.PROGRAM_OUTPUT_UNSPECIFIED,
        agent_pb2.PROGRAM_OUTPUT_PLAIN,
    }

    assert set(_ADAPTERS) == in_the_api
    assert {path.stem for path in TRANSCRIPTS.iterdir() if path.suffix in KINDS} == set(OUTPUTS)
    assert adapter_for(agent_pb2.PROGRAM_OUTPUT_PLAIN, ["sh"]) is None


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_whole_run_ends_with_its_last_message_and_is_told_without_raw_events(name: str) -> None:
    run = read(name)

    assert run.verdict.failure is None
    assert run.verdict.message == "All done"
    assert "I will make it" in run.said
    assert not [line for line in run.said if line.startswith("{")]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_run_that_breaks_off_did_not_succeed(name: str) -> None:
    broken = read(name, transcript(name)[:-1])
    silent = read(name, [])

    assert (broken.failure.reason, silent.failure.reason) == ("AGENT_ERROR", "AGENT_ERROR")


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_no_event_or_not_known_stays_in_the_log(name: str) -> None:
    strange = ["warming up", '{"type":"from_the_future","a":1}', "{not json", "[1]", ""]

    assert read(name, strange, code=1).said == strange


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_exit_code_without_a_word_is_left_to_the_runtime(name: str) -> None:
    run = read(name, transcript(name)[:1], code=3)

    assert run.verdict.failure is None
    assert not run.verdict.session_refused


def test_claude_tells_of_tools_sub_agents_and_retries() -> None:
    run = read("claude")

    assert run.said == [
        "claude 2.1.197, model claude-opus-4-8[1m], session 8f736718-519f-472d-b727-145f17e4af37",
        "the provider refused: overloaded 529; trying again",
        "I will make it",
        "→ Write made.txt",
        "← File created successfully at: made.txt",
        "  the sub-agent looks",
        "All done",
    ]
    assert run.steps == [("Write", "made.txt", None)]
    assert run.sessions == ["8f736718-519f-472d-b727-145f17e4af37"]


def test_claude_counts_a_run_once_by_its_end_sub_agents_included() -> None:
    [use] = read("claude").used

    assert set(use.payload) == {"uuid", "session_id", "modelUsage"}
    assert {model: said["outputTokens"] for model, said in use.payload["modelUsage"].items()} == {
        "claude-opus-4-8[1m]": 43,
        "claude-haiku-4-5": 7,
    }


def test_claude_that_is_cut_off_counts_each_message_once() -> None:
    used = read("claude", transcript("claude")[:-1], code=1).used

    assert [use.payload["id"] for use in used] == ["msg_1", "msg_2", "msg_3"]
    assert {use.payload["type"] for use in used} == {"message"}


def a_result(**fields: Any) -> str:
    return said_of({"type": "result", "subtype": "success", "is_error": True, "uuid": "u", "modelUsage": {}, **fields})


def no_access(error: str, message: str) -> str:
    return said_of({"type": "assistant", "error": error, "message": {"content": [{"type": "text", "text": message}]}})


@pytest.mark.parametrize(
    ("lines", "reason", "words", "retryable"),
    [
        (
            [no_access("authentication_failed", "Not logged in"), a_result(result="Not logged in · Please run /login")],
            "AUTH_MISSING",
            "ANTHROPIC_API_KEY",
            False,
        ),
        ([a_result(result="Invalid API key", api_error_status=401)], "AUTH_MISSING", "log in with `claude`", False),
        ([a_result(subtype="error_max_turns", num_turns=7)], "MAX_TURNS", "all its turns (7)", None),
        ([a_result(subtype="error_max_budget_usd")], "MAX_BUDGET", "--max-budget-usd", False),
        ([a_result(subtype="error_during_execution", errors=["it broke"])], "AGENT_ERROR", "it broke", None),
    ],
)
def test_claude_says_in_words_why_it_failed(lines: list[str], reason: str, words: str, retryable: bool | None) -> None:
    failure = read("claude", lines, code=1).failure

    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert words in failure.message


def test_claude_waits_for_its_limit_until_the_time_that_it_was_told() -> None:
    limit = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": NOW + 900}}

    told = read("claude", [said_of(limit), a_result(api_error_status=429, result="API Error: slow")], code=1).failure
    untold = read("claude", [a_result(api_error_status=429, result="API Error: slow")], code=1).failure

    assert isinstance(told, RateLimited)
    assert isinstance(untold, RateLimited)
    assert (told.provider, told.reset_after, untold.reset_after) == ("anthropic", 900, 60)


def test_claude_says_when_it_does_not_know_a_session() -> None:
    lost = read("claude", [a_result(errors=["No conversation found with session ID: x"])], code=1)

    assert lost.verdict.session_refused
    assert not read("claude").verdict.session_refused


def test_claude_with_a_schema_answers_with_what_it_asks_for() -> None:
    run = read("claude", [a_result(is_error=False, result="as asked", structured_output={"ok": True})])

    assert json.loads(run.verdict.message) == {"ok": True}


def test_codex_tells_of_its_plan_commands_and_files() -> None:
    run = read("codex")

    assert run.said == [
        "codex, session 01a206ad-5cf8-71a2-9671-4832116452fb",
        "✗ Reconnecting... 1/5 (unexpected status 502 Bad Gateway)",
        "(**Looking at the directory**)",
        "I will make it",
        "→ /bin/bash -lc 'echo hi > made.txt; false'",
        "✗ exit code 1 out",
        "→ update made.txt",
        "→ docs.search completed",
        "→ search how to make it",
        "All done",
    ]
    assert ("plan", "look at it", 0.5) in run.steps
    assert run.sessions == ["01a206ad-5cf8-71a2-9671-4832116452fb"]


def test_codex_counts_its_thread_as_a_running_total_of_the_model_it_was_given() -> None:
    [named] = read("codex", argv=["codex", "exec", "-m", "gpt-5", "-"]).used
    [unnamed] = read("codex").used

    assert named.series == "codex:01a206ad-5cf8-71a2-9671-4832116452fb"
    assert (named.payload["model"], named.payload["usage"]["cached_input_tokens"]) == ("gpt-5", 40)
    assert "model" not in unnamed.payload


@pytest.mark.parametrize(
    ("said", "reason", "wait"),
    [
        ("unexpected status 401 Unauthorized: bad key", "AUTH_MISSING", None),
        ("exceeded retry limit, last status: 429 Too Many Requests", "RATE_LIMITED", 60),
        ("Rate limit reached for gpt-5. Please try again in 1.5s.", "RATE_LIMITED", 1.5),
        ("You've hit your usage limit. Try again in 2 days 3 hours 4 minutes.", "RATE_LIMITED", 86_400),
        ("stream disconnected before completion at line 429", "AGENT_ERROR", None),
    ],
)
def test_codex_says_in_words_why_it_failed(said: str, reason: str, wait: float | None) -> None:
    lines = [*transcript("codex")[:2], said_of({"type": "turn.failed", "error": {"message": said}})]

    failure = read("codex", lines, code=1).failure

    assert failure.reason == reason
    assert said.rstrip(".") in failure.message
    if wait is not None:
        assert isinstance(failure, RateLimited)
        assert failure.reset_after == wait


def test_codex_that_got_over_an_error_has_not_failed() -> None:
    assert any("Reconnecting" in line for line in read("codex").said)
    assert read("codex").verdict.failure is None


def test_codex_says_when_it_does_not_know_a_session() -> None:
    lost = read("codex", [], code=1, stderr="Error: thread/resume failed: no rollout found for thread id x")

    assert lost.verdict.session_refused


def test_gemini_joins_what_it_says_and_shows_refusals() -> None:
    run = read("gemini")

    assert run.said == [
        "gemini, model gemini-2.5-pro, session 7940a24b-51da-4249-9305-365a1a664f8f",
        "I will make it",
        "→ write_file made.txt",
        "← ",
        "✗ Tool run_shell_command is not allowed",
        "All done",
    ]
    assert run.steps == [("write_file", "made.txt", None)]


def test_gemini_counts_each_model_with_its_thoughts() -> None:
    [use] = read("gemini").used

    assert use.payload == {
        "responseId": "gemini:7940a24b-51da-4249-9305-365a1a664f8f/gemini-2.5-pro",
        "modelVersion": "gemini-2.5-pro",
        "usageMetadata": {
            "promptTokenCount": 300,
            "cachedContentTokenCount": 20,
            "candidatesTokenCount": 43,
            "thoughtsTokenCount": 7,
        },
    }


def test_gemini_says_in_words_why_it_failed() -> None:
    bad_key = {"message": '[API Error: {"error":{"message":"bad key","code":401}}]'}
    refused = read("gemini", [said_of({"type": "result", "status": "error", "error": bad_key})], code=145).failure
    missing = read("gemini", [], code=41, stderr="Please set an Auth method in your settings.json").failure
    turns = read("gemini", [], code=53).failure

    assert [one.reason for one in (refused, missing, turns)] == ["AUTH_MISSING", "AUTH_MISSING", "AGENT_ERROR"]
    assert "Please set an Auth method" in missing.message
    assert "GEMINI_API_KEY" in missing.message
    assert "maxSessionTurns" in turns.message


def test_opencode_counts_each_step_with_what_came_from_the_cache() -> None:
    run = read("opencode", argv=["opencode", "run", "--model=open/router/m"])

    first, second = (use.payload for use in run.used)
    assert (first["record_id"], first["provider"], first["model"]) == ("opencode:prt_4", "open/router", "m")
    assert (first["input_tokens"], first["cache_read_tokens"], first["output_tokens"]) == (210, 10, 33)
    assert (first["cost"], "cost" in second) == (0.002, False)
    assert run.sessions == ["ses_df94a73faffe"]
    assert run.said[2:4] == ["→ write made.txt", "← Wrote file successfully."]


def test_opencode_says_in_words_why_it_failed() -> None:
    error = {"name": "APIError", "data": {"message": "bad key", "statusCode": 401}}

    failure = read("opencode", [said_of({"type": "error", "sessionID": "ses_1", "error": error})], code=1).failure

    assert failure.reason == "AUTH_MISSING"
    assert "bad key" in failure.message
    assert "opencode auth login" in failure.message


def test_aider_tells_its_steps_and_counts_what_was_sent() -> None:
    run = read("aider", argv=["aider", "--no-stream"])

    assert [step for step, _, _ in run.steps] == ["asking", "asking"]
    assert ("asking", "openai/small", None) in run.steps
    assert not [line for line in run.said if '"event"' in line]
    assert [use.payload for use in run.used] == [
        {
            "provider": "openai",
            "model": "small",
            "input_tokens": given,
            "cache_read_tokens": 0,
            "cache_write_5m_tokens": 0,
            "output_tokens": out,
            "estimated": False,
        }
        for given, out in ((1200, 33), (100, 10))
    ]


def test_what_aider_says_below_an_answer_is_not_the_models() -> None:
    lines = transcript("aider")
    told = max(number for number, line in enumerate(lines) if line.startswith("Tokens: "))

    run = read("aider", [*lines[: told + 1], "HTTPSConnectionPool: Max retries exceeded", *lines[told + 1 :]])

    assert run.verdict.message == "All done"


def test_what_aider_counts_by_itself_or_rounds_is_an_estimate() -> None:
    lines = transcript("aider")
    cached = [line.replace("1.2k sent,", "1.2k sent, 1.1k cache hit,") for line in lines]

    streamed, first = (
        read("aider").used[0].payload,
        read("aider", cached, argv=["aider", "--no-stream"]).used[0].payload,
    )

    assert streamed["estimated"]
    assert (first["input_tokens"], first["cache_read_tokens"], first["estimated"]) == (1200, 1100, True)


@pytest.mark.parametrize(
    ("said", "reason", "words"),
    [
        (
            "litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided",
            "AUTH_MISSING",
            "env_from_secret",
        ),
        ("litellm.RateLimitError: RateLimitError: OpenAIException - slow down", "RATE_LIMITED", "slow down"),
        ("litellm.BadRequestError: OpenAIException - bad request", "AGENT_ERROR", "bad request"),
    ],
)
def test_aider_that_got_no_answer_has_failed_though_it_exits_with_0(said: str, reason: str, words: str) -> None:
    lines = transcript("aider")
    asked = next(number for number, line in enumerate(lines) if "message_send_starting" in line)

    failure = read("aider", [*lines[: asked + 1], said, "", lines[-1]]).failure

    assert failure.reason == reason
    assert words in failure.message


def test_aider_that_gives_an_edit_up_has_failed() -> None:
    lines = transcript("aider")

    failure = read("aider", [*lines[:-1], "Only 3 reflections allowed, stopping.", lines[-1]]).failure

    assert failure.reason == "AGENT_ERROR"
    assert "could not make the edit" in failure.message


def trajectory(**info: Any) -> str:
    kept = json.loads((TRANSCRIPTS / "mini.trajectory.json").read_text(encoding="utf-8"))
    kept["info"].update(info)
    return json.dumps(kept)


def test_mini_tells_its_steps_and_leaves_its_instructions_out() -> None:
    run = read("mini")

    assert [step for step, _, _ in run.steps] == ["step 1", "step 2"]
    assert "echo made > made.txt; cat made.txt" in run.said
    assert not [line for line in run.said if line.startswith("─") or "instructions" in line]


def test_mini_counts_the_answers_in_its_trajectory_each_with_an_id_of_its_own() -> None:
    used = read("mini", record=trajectory()).used

    assert [use.payload["usage"]["prompt_tokens"] for use in used] == [200, 100]
    assert {use.payload["model"] for use in used} == {"small"}
    assert len({use.record_id for use in used}) == 2
    assert all(use.record_id.startswith("mini:chatcmpl-") for use in used)


def test_minis_result_is_what_it_submits() -> None:
    run = read("mini", [], record=trajectory(submission="made it\n"))

    assert (run.verdict.message, run.verdict.failure) == ("made it", None)


@pytest.mark.parametrize(
    ("status", "reason"),
    [("LimitsExceeded", "MAX_BUDGET"), ("RepeatedFormatError", "AGENT_ERROR"), ("AuthenticationError", "AUTH_MISSING")],
)
def test_mini_says_in_words_why_it_failed(status: str, reason: str) -> None:
    said = ["Exit:", "litellm.AuthenticationError: Incorrect API key provided", "Saved trajectory to 't.json'"]

    run = read("mini", said, record=trajectory(exit_status=status, submission=""))

    assert run.failure.reason == reason
    assert len(run.used) == 2


def test_the_file_of_mini_is_the_one_that_its_command_line_names() -> None:
    for argv in (["mini", "-o", "/srv/t.json"], ["mini", "--output=/srv/t.json", "-y"]):
        adapter = adapter_for(OUTPUTS["mini"], argv)
        assert isinstance(adapter, Recording)
        assert adapter.record == "/srv/t.json"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("name", OUTPUTS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_line_makes_an_adapter_fail(name: str, data: st.DataObject) -> None:
    lines = transcript(name)
    for at in data.draw(st.sets(st.integers(0, len(lines) - 1), max_size=10)):
        lines[at] = _distorted(lines[at], data)
    lines += data.draw(st.lists(st.text(max_size=40), max_size=3))
    record = TRANSCRIPTS / f"{name}.trajectory.json"
    kept = "\n".join(_distorted(record.read_text(), data).splitlines()) if record.exists() else ""

    run = read(name, lines, code=data.draw(st.integers(0, 255)), stderr=data.draw(st.text(max_size=40)), record=kept)

    assert all(isinstance(text, str) for text in (run.verdict.message, *run.said, *run.sessions))
    assert all(isinstance(step, str) and isinstance(message, str) for step, message, _ in run.steps)


def _distorted(line: str, data: st.DataObject) -> str:
    """A line of a transcript with one of its values replaced by another kind of value, or a part of it by text."""
    event = event_of(line)
    if event is None:
        return line[: data.draw(st.integers(0, len(line)))] + data.draw(st.text(max_size=8))
    place: Any = event
    for _ in range(data.draw(st.integers(0, 4))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        deeper = [key for key in keys if isinstance(place[key], (dict, list)) and place[key]]
        if not deeper:
            break
        place = place[data.draw(st.sampled_from(deeper))]
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    if keys:
        place[data.draw(st.sampled_from(keys))] = data.draw(_JSON)
    return json.dumps(event)
