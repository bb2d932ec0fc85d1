"""The llm runtime against a scripted model on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kapell import runtimes
from kapell._worker.outcome import RateLimited, TaskFailed
from kapell.rules.secrets import LLM_KEY
from kapell.runtimes._chat import provider_name
from kapell.v1.agent_pb2 import AgentSpec, LlmRuntime
from kapell.v1.task_pb2 import Task

from tests.host.attempts import RecordedAttempt
from tests.support.model_endpoint import ModelEndpoint, Refusal, Reply, model_endpoint

KEY = "sk-very-secret-0123456789"
TASK = Task(task_id="task_one", prompt="How many?")
SSE = {"content-type": "text/event-stream"}
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def ask(model: ModelEndpoint, attempt: RecordedAttempt | None = None, **fields: Any) -> object:
    spec = LlmRuntime(base_url=f"{model.url}/v1/", model="small", **fields)
    runtime = runtimes.build(AgentSpec(llm=spec), agent_id="agent_one", directory=Path())
    try:
        return await runtime.run(attempt or RecordedAttempt(), TASK)
    finally:
        await runtime.close()


async def failure_of(model: ModelEndpoint, attempt: RecordedAttempt | None = None, **fields: Any) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        await ask(model, attempt, **fields)
    return caught.value


def schema(fields: Mapping[str, Any] = NUMBER) -> dict[str, Any]:
    return {"output_schema": fields}


async def test_the_answer_is_the_result_and_streams_into_the_log(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    async with model_endpoint(Reply(text="one\ntwo and\nthree", pieces=5)) as model:
        result = await ask(model, attempt)

    assert result == "one\ntwo and\nthree"
    assert attempt.stdout == ["one", "two and", "three"]
    assert attempt.progress_seen[0] == (None, "asking", "small")
    assert attempt.progress_seen[-1] == (None, "answering", "17 characters")


async def test_the_model_is_told_the_prompts_and_the_limits() -> None:
    async with model_endpoint(Reply(text="3")) as model:
        await ask(model, system_prompt="Be short.", max_tokens=9, temperature=0.0)

    [asked] = model.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "small",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How many?"}],
        "max_tokens": 9,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "authorization" not in asked.headers


async def test_what_was_used_is_told_under_an_id_that_no_other_answer_has() -> None:
    attempt = RecordedAttempt()

    async with model_endpoint(Reply(text="3", input_tokens=7, output_tokens=5)) as model:
        await ask(model, attempt)

    [used] = attempt.used
    assert (used["id"], used["model"]) == ("chatcmpl-1", "small")
    assert used["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert attempt.record_ids == ["llm:task_one.1.0"]


async def test_the_key_is_sent_and_never_told() -> None:
    attempt = RecordedAttempt(secrets={LLM_KEY: KEY})

    async with model_endpoint(Refusal(status=401, message=f"bad key {KEY}")) as model:
        failure = await failure_of(model, attempt, api_key_secret="my-key")

    assert model.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert (failure.reason, failure.retryable) == ("AUTH_MISSING", False)
    assert "bad key [secret]" in failure.message
    assert "api_key_secret" in failure.message


async def test_a_key_that_the_profile_does_not_name_is_not_sent() -> None:
    async with model_endpoint(Reply(text="3")) as model:
        await ask(model, RecordedAttempt(secrets={LLM_KEY: KEY}))

    assert "authorization" not in model.asked[0].headers


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (429, {"Retry-After": "7"}, 7),
        (503, {"Retry-After": "0.5"}, 0.5),
        (529, {}, 30),
        (429, {"Retry-After": "soon"}, 30),
        (429, {"Retry-After": "nan"}, 30),
        (
            429,
            {"Date": "Mon, 23 Nov 2026 04:00:00 GMT", "Retry-After": "Mon, 23 Nov 2026 04:01:30 GMT"},
            90,
        ),
    ],
)
async def test_a_limit_gives_the_attempt_back_for_as_long_as_it_says(
    status: int, headers: dict[str, str], wait: float
) -> None:
    async with model_endpoint(Refusal(status=status, headers=headers, message="slow down")) as model:
        failure = await failure_of(model)

    assert isinstance(failure, RateLimited)
    assert (failure.provider, failure.reset_after) == ("127.0.0.1", wait)
    assert "slow down" in failure.message


@pytest.mark.parametrize(
    ("reply", "reason", "words", "retryable"),
    [
        (Refusal(status=404, message="no such model"), "REQUEST_REFUSED", "no such model", False),
        (Refusal(status=500, body="<h1>oops</h1>"), "PROVIDER_ERROR", "answered 500: <h1>oops</h1>", None),
        (Refusal(status=302, headers={"Location": "http://example.com"}), "REQUEST_REFUSED", "not followed", False),
        (Refusal(status=200, body="data: {nonsense\n\n", headers=SSE), "PROVIDER_ERROR", "no JSON", None),
        (Refusal(status=200, body="\n"), "PROVIDER_ERROR", "broke off", None),
        (
            Refusal(status=200, body='data: {"error":{"message":"overloaded"}}\n\n', headers=SSE),
            "PROVIDER_ERROR",
            "overloaded",
            None,
        ),
        (Reply(text="3", finish="length"), "ANSWER_CUT", "raise max_tokens", False),
        (Reply(text="", finish="content_filter"), "ANSWER_FILTERED", "filtered", None),
        (Reply(text="", finish="tool_calls"), "PROVIDER_ERROR", "tool", None),
    ],
)
async def test_what_went_wrong_is_told_in_words(
    reply: Reply | Refusal, reason: str, words: str, retryable: bool | None
) -> None:
    async with model_endpoint(reply) as model:
        failure = await failure_of(model)

    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert words in failure.message


async def test_an_endpoint_that_does_not_stream_is_understood() -> None:
    attempt = RecordedAttempt()
    said = {"choices": [{"message": {"content": "3"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}

    async with model_endpoint(Refusal(status=200, body=json.dumps(said, indent=2))) as model:
        result = await ask(model, attempt)

    assert (result, len(attempt.used)) == ("3", 1)


def test_a_host_becomes_the_name_of_a_provider() -> None:
    names = [provider_name(host) for host in ("example.com", "::1", "ü", "x" * 80)]

    assert names == ["example.com", "1", "llm", "x" * 63]
    assert all(RateLimited(name, 1) for name in names)


async def test_nobody_there_is_told_in_words() -> None:
    async with model_endpoint() as model:
        pass

    failure = await failure_of(model)

    assert failure.reason == "PROVIDER_ERROR"
    assert "could not be asked" in failure.message


async def test_an_answer_that_fulfils_the_schema_is_the_result() -> None:
    async with model_endpoint(Reply(text='```json\n{"n": 3}\n```')) as model:
        result = await ask(model, **schema())

    assert result == {"n": 3}
    assert '"required": ["n"]' in model.asked[0].body["messages"][0]["content"]


async def test_an_answer_that_does_not_is_asked_for_again_with_what_is_wrong() -> None:
    attempt = RecordedAttempt()

    async with model_endpoint(Reply(text="three"), Reply(text='{"n": "3"}'), Reply(text='{"n": 3}')) as model:
        result = await ask(model, attempt, **schema())

    assert result == {"n": 3}
    last = model.asked[2].body["messages"]
    assert [message["role"] for message in last] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "not one JSON value" in last[3]["content"]
    assert "$.n: '3' is not of type 'integer'" in last[5]["content"]
    assert len(attempt.used) == len(set(attempt.record_ids)) == 3


async def test_it_is_not_asked_for_again_for_ever() -> None:
    async with model_endpoint(Reply(text="a"), Reply(text="b"), Reply(text="c")) as model:
        failure = await failure_of(model, schema_retries=1, **schema())

    assert (failure.reason, len(model.asked)) == ("OUTPUT_INVALID", 2)


async def test_a_schema_that_is_none_or_refers_elsewhere_is_refused(tmp_path: Path) -> None:
    async with model_endpoint(Reply(text="{}")) as model:
        with pytest.raises(ValueError, match="output_schema is no JSON Schema"):
            await ask(model, **schema({"type": "nonsense"}))
        elsewhere = await failure_of(model, **schema({"$ref": f"{model.url}/schema.json"}))

    assert (elsewhere.reason, elsewhere.retryable) == ("OUTPUT_INVALID", False)
    assert len(model.asked) == 1


async def test_a_cancel_closes_the_connection_at_once() -> None:
    attempt = RecordedAttempt()

    async with model_endpoint(Reply(text="one\ntwo\n", hangs=True)) as model:
        running = asyncio.create_task(ask(model, attempt))
        await attempt.until_stdout(1)
        attempt.cancel()
        with pytest.raises(TaskFailed) as caught:
            await asyncio.wait_for(running, 20)
        await asyncio.wait_for(model.hung_up.wait(), 20)

    assert caught.value.reason == "CANCELLED"


async def test_an_answer_that_takes_too_long_is_ended() -> None:
    spec = LlmRuntime(model="small")
    spec.timeout.FromMilliseconds(50)

    async with model_endpoint(Reply(text="one\ntwo\n", hangs=True)) as model:
        failure = await failure_of(model, timeout=spec.timeout)
        await asyncio.wait_for(model.hung_up.wait(), 20)

    assert failure.reason == "TIMEOUT"
