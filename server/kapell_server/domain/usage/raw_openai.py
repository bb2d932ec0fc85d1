"""OpenAI's shapes: Chat Completions, Responses, and what `codex exec --json` prints.

Input includes what was read from caches, reasoning is a part of the output. Whose model it is is for the price
table to say, since many providers speak these shapes; a payload that names its provider or its cost is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapell_server.domain.usage.figures import Figures, nanos_of_number
from kapell_server.domain.usage.reading import RawUsage, RawUsageError, count, part, text, without

_STANDARD = frozenset({"", "auto", "default", "standard", "on_demand"})


def is_chat(payload: Mapping[str, Any]) -> bool:
    """Whether the payload is of Chat Completions."""
    return "prompt_tokens" in part(payload, "usage")


def is_responses(payload: Mapping[str, Any]) -> bool:
    """Whether the payload is of Responses, or of Codex."""
    if str(payload.get("type", "")).startswith(("response.", "turn.")) or "token_count" in _codex_type(payload):
        return True
    return payload.get("object") == "response" or "input_tokens" in part(payload, "usage")


def _codex_type(payload: Mapping[str, Any]) -> str:
    return str(payload.get("type", "")) + str(part(payload, "payload").get("type", ""))


def read_chat(payload: Mapping[str, Any]) -> list[RawUsage]:
    """One completion, or the last chunk of its stream. Raises RawUsageError."""
    usage = part(payload, "usage")
    if not usage:
        raise RawUsageError("it has no usage; with streams ask for it by stream_options.include_usage")
    prompt = count(usage, "prompt_tokens")
    cached = count(part(usage, "prompt_tokens_details"), "cached_tokens") or count(usage, "prompt_cache_hit_tokens")
    return [
        RawUsage(
            source="openai chat",
            record_id=text(payload, "id"),
            provider="openrouter" if isinstance(payload.get("provider"), str) else "",
            model=text(payload, "model"),
            figures=Figures(
                uncached=without(prompt, cached, "cached_tokens"),
                cache_read=cached,
                output=count(usage, "completion_tokens"),
                reasoning=count(part(usage, "completion_tokens_details"), "reasoning_tokens"),
            ),
            cost=_cost(usage),
            service_tier=_tier(payload),
            derived=("uncached_input_tokens",) if cached else (),
        )
    ]


def read_responses(payload: Mapping[str, Any]) -> list[RawUsage]:
    """One response, the event that ends it, or an event of Codex. Raises RawUsageError."""
    event = part(payload, "payload") or payload
    if event.get("type") == "token_count":
        return [_codex_total(event)]
    response = part(payload, "response") or payload
    usage = part(response, "usage")
    if not usage:
        raise RawUsageError("it has no usage; wait for response.completed")
    return [
        RawUsage(
            source="codex exec" if payload.get("type") == "turn.completed" else "openai responses",
            record_id=text(response, "id"),
            model=text(response, "model"),
            cost=_cost(usage),
            service_tier=_tier(response),
            **_input_and_output(usage),
        )
    ]


def _codex_total(event: Mapping[str, Any]) -> RawUsage:
    """Codex's token_count: running totals of its session, which the caller names as the series."""
    usage = part(part(event, "info"), "total_token_usage")
    if not usage:
        raise RawUsageError("its token_count has no total_token_usage")
    return RawUsage(source="codex token_count", series="*", **_input_and_output(usage))


def _input_and_output(usage: Mapping[str, Any]) -> dict[str, Any]:
    whole = count(usage, "input_tokens")
    details = part(usage, "input_tokens_details")
    cached = count(details, "cached_tokens") or count(usage, "cached_input_tokens")
    written = count(details, "cache_write_tokens")
    reasoning = count(part(usage, "output_tokens_details"), "reasoning_tokens")
    return {
        "figures": Figures(
            uncached=without(whole, cached + written, "cached_tokens"),
            cache_read=cached,
            cache_write_5m=written,
            output=count(usage, "output_tokens"),
            reasoning=reasoning or count(usage, "reasoning_output_tokens"),
        ),
        "derived": ("uncached_input_tokens",) if cached or written else (),
    }


def _cost(usage: Mapping[str, Any]) -> int | None:
    """What a provider says it charged, in dollars, as OpenRouter does."""
    cost = usage.get("cost")
    if not isinstance(cost, (int, float)) or isinstance(cost, bool):
        return None
    try:
        return nanos_of_number(cost)
    except ValueError as error:
        raise RawUsageError(str(error)) from error


def _tier(payload: Mapping[str, Any]) -> str:
    tier = text(payload, "service_tier", most=63)
    return "" if tier in _STANDARD else tier
