"""The llm runtime: one question to a model for each task, at any endpoint that speaks OpenAI's Chat Completions.

The answer streams into the log and is the result, or, where the spec has a schema, the JSON in it; an
answer that does not fulfil the schema is asked for again, with what is wrong. How it fails:

    429, 503, 529               the attempt goes back until the endpoint takes calls again, and costs none
    401, 403                    AUTH_MISSING
    another refusal             REQUEST_REFUSED
    an error, a broken answer   PROVIDER_ERROR
    no answer in time           TIMEOUT
    not as the schema says      OUTPUT_INVALID
    cut off, filtered           ANSWER_CUT, ANSWER_FILTERED

The key goes to `base_url` and nowhere else: certificates are verified, redirects are not followed, and
what is logged or told is masked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from kapell._worker.outcome import TaskFailed
from kapell._worker.values import from_struct, to_value
from kapell.rules.secrets import LLM_KEY
from kapell.runtimes import _usage
from kapell.runtimes._chat import Answer, ChatEndpoint
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import AgentSpec, LlmRuntime
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task

DEFAULT_TIMEOUT = 600.0
DEFAULT_SCHEMA_RETRIES = 2
_MOST_ERRORS = 5


def build(spec: AgentSpec, *, agent_id: str, directory: Path) -> Llm:
    """The runtime of a spec. Raises ValueError for a schema that is none."""
    return Llm(spec.llm)


class Llm:
    """Asks the model of `spec`."""

    def __init__(self, spec: LlmRuntime) -> None:
        self._spec = spec
        self._schema = from_struct(spec.output_schema) if spec.HasField("output_schema") else None
        self._validator = None if self._schema is None else _validator(self._schema)
        self._endpoint = ChatEndpoint(spec.base_url)
        self._timeout = spec.timeout.ToMilliseconds() / 1000 if spec.HasField("timeout") else DEFAULT_TIMEOUT

    async def run(self, attempt: Attempt, task: Task) -> object:
        """Asks and returns the answer; see Runtime.run. A cancel closes the connection at once."""
        work = asyncio.create_task(self._converse(attempt, task), name=f"answer for {task.task_id}")
        stop = asyncio.create_task(attempt.cancelled.wait(), name=f"cancel of {task.task_id}")
        try:
            await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait((work,))
        if work.cancelled():
            raise TaskFailed("CANCELLED", "the call was ended because the task was cancelled")
        return work.result()

    async def close(self) -> None:
        await self._endpoint.close()

    async def _converse(self, attempt: Attempt, task: Task) -> object:
        messages = self._first_messages(task)
        retries = self._spec.schema_retries if self._spec.HasField("schema_retries") else DEFAULT_SCHEMA_RETRIES
        wrong = ""
        for number in range(retries + 1):
            answer = await self._ask(attempt, messages, number)
            if self._validator is None:
                return answer.text
            value, wrong = _judged(answer.text, self._validator)
            if not wrong:
                return value
            attempt.log(f"answer {number + 1} does not fulfil the schema: {wrong}", LOG_STREAM_SYSTEM)
            messages += [
                {"role": "assistant", "content": answer.text},
                {
                    "role": "user",
                    "content": f"That is not what is asked for: {wrong}. Answer with the mended JSON alone.",
                },
            ]
        raise TaskFailed(
            "OUTPUT_INVALID",
            f"{retries + 1} answers of {self._spec.model} did not fulfil the schema; the last: {wrong}",
        )

    async def _ask(self, attempt: Attempt, messages: list[dict[str, str]], number: int) -> Answer:
        body: dict[str, Any] = {"model": self._spec.model, "messages": messages}
        if self._spec.max_tokens:
            body["max_tokens"] = self._spec.max_tokens
        if self._spec.HasField("temperature"):
            body["temperature"] = self._spec.temperature
        if attempt.paused.is_set():
            attempt.log("paused: a budget has no room for more, so the model is not asked yet", LOG_STREAM_SYSTEM)
        await attempt.budget_room()
        attempt.progress(None, "asking", f"{self._spec.model}, answer {number + 1}" if number else self._spec.model)
        try:
            async with asyncio.timeout(self._timeout) as limit:
                answer = await self._endpoint.ask(body, key=self._key(attempt), attempt=attempt)
        except TimeoutError:
            if not limit.expired():
                raise
            raise TaskFailed(
                "TIMEOUT",
                f"{self._spec.model} had not answered after {self._timeout:g} s - raise the timeout of the profile",
            ) from None
        _report(answer, attempt, number)
        answer.check(self._spec.model)
        return answer

    def _key(self, attempt: Attempt) -> str:
        return attempt.secrets.get(LLM_KEY, "") if self._spec.api_key_secret else ""

    def _first_messages(self, task: Task) -> list[dict[str, str]]:
        told = [self._spec.system_prompt] if self._spec.system_prompt else []
        if self._schema is not None:
            told.append(
                "Answer with one JSON value alone, without any other text, that fulfils this JSON Schema:\n"
                + json.dumps(self._schema, ensure_ascii=False)
            )
        system = [{"role": "system", "content": "\n\n".join(told)}] if told else []
        return [*system, {"role": "user", "content": task.prompt}]


def _report(answer: Answer, attempt: Attempt, number: int) -> None:
    """Tells the ledger what an answer has used, whatever becomes of it."""
    if not answer.usage:
        attempt.log("the endpoint does not tell what was used", LOG_STREAM_SYSTEM)
        return
    payload = {"id": answer.response_id, "model": answer.model, "usage": answer.usage, **answer.more}
    # Small servers count their answers, or draw from a few hundred numbers; only a long id is one of its own.
    is_unique = len(answer.response_id) >= 20
    record_id = "" if is_unique else f"llm:{attempt.task_id}.{attempt.attempt}.{number}"
    _usage.tell(payload, attempt, "usage that the endpoint told of", record_id=record_id)


def _validator(schema: Mapping[str, Any]) -> Draft202012Validator:
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"output_schema is no JSON Schema: {error.message[:300]}") from error
    # An empty registry: nothing is fetched for a $ref.
    return Draft202012Validator(schema, registry=Registry())


def _judged(text: str, validator: Draft202012Validator) -> tuple[object, str]:
    """The JSON of an answer, and what is wrong with it; empty where nothing is."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```"):
        bare = bare[3:-3].partition("\n")[2].strip()
    try:
        value = json.loads(bare)
        to_value(value)
    except (ValueError, RecursionError) as error:
        return None, f"it is not one JSON value ({str(error)[:200]})"
    try:
        errors = [
            f"{error.json_path}: {error.message[:200]}"
            for error, _ in zip(validator.iter_errors(value), range(_MOST_ERRORS), strict=False)
        ]
    except Unresolvable as error:
        raise TaskFailed(
            "OUTPUT_INVALID", f"the profile's schema refers to what is not in it: {error.ref}", retryable=False
        ) from error
    return value, "; ".join(errors)
