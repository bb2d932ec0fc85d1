"""Anthropic's shapes: a message, the events of its stream, a line of an agent's log, and the result of a session.

Input excludes what was read from and written to caches. The same message is logged once for each of its blocks,
and again when a session is resumed or forked: its id makes it one record. Before the end of a stream its output
is not whole, which is marked; the later state of the same message replaces the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kapell_server.domain.usage.figures import Figures, nanos_of_number
from kapell_server.domain.usage.reading import RawUsage, RawUsageError, count, part, parts, text

_PROVIDER = "anthropic"


def is_meant(payload: Mapping[str, Any]) -> bool:
    """Whether the payload is Anthropic's."""
    if payload.get("type") in ("message_start", "message_delta") or part(payload, "modelUsage"):
        return True
    message = part(payload, "message") or payload
    usage = part(message, "usage")
    if "cache_creation_input_tokens" in usage or "cache_read_input_tokens" in usage:
        return True
    if message.get("type") == "message" and "input_tokens" in usage:
        return True
    return any(event.get("type") == "message_start" for event in parts(payload, "events"))


def read(payload: Mapping[str, Any]) -> list[RawUsage]:
    """The one message of the payload, or the models of a session's result. Raises RawUsageError."""
    if part(payload, "modelUsage"):
        return _result(payload)
    events = parts(payload, "events")
    if events:
        return [_stream(events)]
    message = part(payload, "message") or payload
    ended = message.get("stop_reason") is not None
    return [_message(message, part(message, "usage"), ended=ended)]


def _stream(events: Sequence[Mapping[str, Any]]) -> RawUsage:
    """The events of one stream, in order: the figures of message_delta are running totals."""
    message: Mapping[str, Any] = {}
    usage: dict[str, Any] = {}
    ended = False
    for event in events:
        if event.get("type") == "message_start":
            message = part(event, "message")
            usage.update(part(message, "usage"))
        elif event.get("type") == "message_delta":
            usage.update({name: value for name, value in part(event, "usage").items() if value is not None})
            ended = ended or part(event, "delta").get("stop_reason") is not None
    return _message(message, usage, ended=ended)


def _message(message: Mapping[str, Any], usage: Mapping[str, Any], *, ended: bool) -> RawUsage:
    if not usage:
        raise RawUsageError("it has no usage")
    derived: tuple[str, ...] = ()
    writes = part(usage, "cache_creation")
    long = count(writes, "ephemeral_1h_input_tokens")
    short = count(writes, "ephemeral_5m_input_tokens")
    all_writes = count(usage, "cache_creation_input_tokens")
    if all_writes > long + short:
        # Without a breakdown all of it is for five minutes, the default of the API.
        short = all_writes - long
        derived = ("cache_write_5m_tokens",)
    searches = count(part(usage, "server_tool_use"), "web_search_requests")
    tier = text(usage, "service_tier", most=63)
    return RawUsage(
        source="anthropic messages",
        record_id=text(message, "id"),
        provider=_PROVIDER,
        model=text(message, "model"),
        figures=Figures(
            uncached=count(usage, "input_tokens"),
            cache_read=count(usage, "cache_read_input_tokens"),
            cache_write_5m=short,
            cache_write_1h=long,
            output=count(usage, "output_tokens"),
        ),
        units={"web_search_requests": searches} if searches else {},
        service_tier="" if tier == "standard" else tier,
        derived=derived,
        estimated=() if ended else ("output_tokens",),
    )


def _result(payload: Mapping[str, Any]) -> list[RawUsage]:
    """The result of `claude -p --output-format json`: what each model was used for in this run, sub-agents included."""
    run = text(payload, "uuid", "session_id")
    if not run:
        raise RawUsageError("it has neither uuid nor session_id, so it cannot be known again")
    return [_of_model(run, model, said) for model, said in payload["modelUsage"].items() if isinstance(said, Mapping)]


def _of_model(run: str, model: str, said: Mapping[str, Any]) -> RawUsage:
    writes = count(said, "cacheCreationInputTokens")
    searches = count(said, "webSearchRequests")
    cost = said.get("costUSD")
    try:
        reported = nanos_of_number(cost) if isinstance(cost, (int, float)) else None
    except ValueError as error:
        raise RawUsageError(str(error)) from error
    return RawUsage(
        source="claude result",
        record_id=f"{run}/{text({'model': model}, 'model')}"[:200],
        provider=_PROVIDER,
        model=model,
        figures=Figures(
            uncached=count(said, "inputTokens"),
            cache_read=count(said, "cacheReadInputTokens"),
            cache_write_5m=writes,
            output=count(said, "outputTokens"),
        ),
        units={"web_search_requests": searches} if searches else {},
        cost=reported,
        derived=("cache_write_5m_tokens",) if writes else (),
    )
