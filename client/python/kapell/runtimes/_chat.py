"""One call of an endpoint that speaks OpenAI's Chat Completions, streamed; the HTTP of the llm runtime."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpcore2

from kapell._version import __version__
from kapell._worker.outcome import RateLimited, TaskFailed
from kapell.runtimes.contract import Attempt

MAX_ANSWER_CHARACTERS = 1_000_000
DEFAULT_PAUSE = 30.0
"""Seconds until a limited endpoint is asked again where it does not say when."""
_MAX_LINE_BYTES = 1024 * 1024
_MAX_WHOLE_BYTES = 8 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_SHOWN = 500
_BUSY = frozenset({429, 503, 529})
_TIMEOUTS = {"connect": 15.0, "write": 60.0, "pool": 60.0}
"""Seconds; how long an answer may take is for the caller to say."""


@dataclass
class Answer:
    """What a model has said."""

    pieces: list[str] = field(default_factory=list)
    characters: int = 0
    response_id: str = ""
    model: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    more: dict[str, str] = field(default_factory=dict)
    """Other texts of the response that usage is read with."""
    finish: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    def check(self, model: str) -> None:
        """Raises TaskFailed for an answer that is none."""
        match self.finish:
            case "length":
                text = f"{model} was cut off in its answer - raise max_tokens, or ask for less"
                raise TaskFailed("ANSWER_CUT", text, retryable=False)
            case "content_filter":
                raise TaskFailed("ANSWER_FILTERED", f"the provider has filtered the answer of {model}")
            case "tool_calls" | "function_call":
                raise TaskFailed("PROVIDER_ERROR", f"{model} wants to call a tool, and was given none")
            case "":
                raise TaskFailed("PROVIDER_ERROR", f"the answer of {model} broke off")


class ChatEndpoint:
    """Where a model is asked. Keeps connections for a while."""

    def __init__(self, base_url: str) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._host = urlsplit(base_url).hostname or "llm"
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(), max_connections=256, keepalive_expiry=15.0
        )

    async def ask(self, body: Mapping[str, Any], *, key: str, attempt: Attempt) -> Answer:
        """The answer, whose text goes to the log line by line as it comes. Raises TaskFailed and RateLimited."""
        told = {**body, "stream": True, "stream_options": {"include_usage": True}}
        headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream, application/json"),
            ("user-agent", f"kapell/{__version__}"),
        ]
        if key:
            headers.append(("authorization", f"Bearer {key}"))
        try:
            async with self._pool.stream(
                "POST",
                self._url,
                headers=headers,
                content=json.dumps(told).encode(),
                extensions={"timeout": _TIMEOUTS},
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response, attempt)
                return await _read(response, attempt)
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError) as error:
            said = attempt.redactor.text(str(error) or type(error).__name__)[:_SHOWN]
            raise TaskFailed("PROVIDER_ERROR", f"{self._host} could not be asked: {said}") from None

    async def close(self) -> None:
        """Closes what is open."""
        await self._pool.aclose()

    async def _refusal(self, response: httpcore2.Response, attempt: Attempt) -> TaskFailed:
        status = response.status
        headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
        said = attempt.redactor.text(_message(await _beginning(response)))
        answered = f"{self._host} answered {status}" + (f": {said}" if said else "")
        if status in _BUSY:
            return RateLimited(provider_name(self._host), _pause(headers), answered)
        if 300 <= status < 400:
            text = f"{answered} - it redirects, which is not followed with a key; correct base_url"
            return TaskFailed("REQUEST_REFUSED", text, retryable=False)
        if status in (401, 403):
            text = f"{answered} - set the secret that api_key_secret of the profile names"
            return TaskFailed("AUTH_MISSING", text, retryable=False)
        if 400 <= status < 500 and status not in (408, 409, 425):
            return TaskFailed("REQUEST_REFUSED", answered, retryable=False)
        return TaskFailed("PROVIDER_ERROR", answered)


async def _read(response: httpcore2.Response, attempt: Attempt) -> Answer:
    answer = Answer()
    log = _LogLines(attempt)
    streams = any(b"event-stream" in value for name, value in response.headers if name.lower() == b"content-type")
    async for line in _lines(response) if streams else _whole(response):
        data = line.removeprefix(b"data:").strip() if line.startswith((b"data:", b"{")) else b""
        if not data or data == b"[DONE]":
            continue
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise TaskFailed("PROVIDER_ERROR", "the endpoint answered with what is no JSON") from None
        if isinstance(event, dict):
            _take(event, answer, attempt, log)
    log.finish()
    return answer


def _take(event: Mapping[str, Any], answer: Answer, attempt: Attempt, log: _LogLines) -> None:
    """Adds a part of a streamed answer, or a whole one of an endpoint that does not stream."""
    error = event.get("error")
    if error:
        said = attempt.redactor.text(_message(json.dumps({"error": error}).encode()))
        raise TaskFailed("PROVIDER_ERROR", f"the endpoint broke off: {said}")
    for name in ("id", "model"):
        if isinstance(event.get(name), str) and event[name]:
            setattr(answer, "response_id" if name == "id" else name, event[name])
    for name in ("service_tier", "provider"):
        if isinstance(event.get(name), str):
            answer.more[name] = event[name]
    if isinstance(event.get("usage"), dict):
        answer.usage = event["usage"]
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    part = choice.get("delta") or choice.get("message") or {}
    text = part.get("content") if isinstance(part, dict) else None
    if isinstance(text, str) and text:
        answer.pieces.append(text)
        answer.characters += len(text)
        log.add(text)
        attempt.progress(None, "answering", f"{answer.characters} characters")
    if answer.characters > MAX_ANSWER_CHARACTERS:
        raise TaskFailed("ANSWER_CUT", f"the answer has more than {MAX_ANSWER_CHARACTERS} characters", retryable=False)
    if isinstance(choice.get("finish_reason"), str):
        answer.finish = choice["finish_reason"]


class _LogLines:
    """Text that comes in pieces, as lines of the log."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._rest = ""

    def add(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._attempt.log(line)

    def finish(self) -> None:
        if self._rest:
            self._attempt.log(self._rest)
            self._rest = ""


async def _lines(response: httpcore2.Response) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in response.aiter_stream():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        if len(rest) > _MAX_LINE_BYTES:
            raise TaskFailed(
                "PROVIDER_ERROR", f"the endpoint answered with a line of more than {_MAX_LINE_BYTES} bytes"
            )
    yield rest


async def _whole(response: httpcore2.Response) -> AsyncIterator[bytes]:
    """All of an answer of an endpoint that does not stream."""
    data = b""
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) > _MAX_WHOLE_BYTES:
            raise TaskFailed("PROVIDER_ERROR", f"the endpoint answered with more than {_MAX_WHOLE_BYTES} bytes")
    yield data.strip()


async def _beginning(response: httpcore2.Response) -> bytes:
    data = b""
    async for chunk in response.aiter_stream():
        data += chunk
        if len(data) >= _MAX_ERROR_BYTES:
            break
    return data[:_MAX_ERROR_BYTES]


def _message(body: bytes) -> str:
    """What an error's body says, for people."""
    text = body.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return " ".join(text.split())[:_SHOWN]
    error = found.get("error") if isinstance(found, dict) else None
    said = error.get("message") if isinstance(error, dict) else error
    return str(said if isinstance(said, str) and said else text)[:_SHOWN]


def provider_name(host: str) -> str:
    """A host as the name of a provider."""
    return re.sub(r"[^a-zA-Z0-9._/-]", "-", host)[:63].lstrip("._/-") or "llm"


def _pause(headers: Mapping[bytes, str]) -> float:
    """Seconds that Retry-After asks for: a number, or a time, read against the answer's own clock."""
    told = headers.get(b"retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", told):
        return float(told)
    try:
        until = parsedate_to_datetime(told)
        return max((until - parsedate_to_datetime(headers.get(b"date", ""))).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return DEFAULT_PAUSE
