"""OpenTelemetry's attributes of generative AI (gen_ai.usage.…), as an object or as OTLP's list of key and value.

By the conventions the input includes what was read from and written to caches. Some instrumentations of
Anthropic leave it out all the same, which shows where the parts are more than the whole; this is marked. The
log event api_request of Claude Code has names of its own and Anthropic's way of counting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapell_server.domain.usage.figures import Figures, nanos_of_number
from kapell_server.domain.usage.reading import RawUsage, RawUsageError, count, part, parts, text

_USAGE = "gen_ai.usage."
_PROVIDERS = {
    "gcp.gemini": "google",
    "gcp.gen_ai": "google",
    "gcp.vertex_ai": "google",
    "vertex_ai": "google",
    "gemini": "google",
    "azure.ai.openai": "azure",
    "aws.bedrock": "bedrock",
    "mistral_ai": "mistral",
    "x_ai": "xai",
}


def is_meant(payload: Mapping[str, Any]) -> bool:
    """Whether the payload has such attributes."""
    found = _attributes(payload)
    return any(name.startswith(_USAGE) for name in found) or _is_api_request(found) or _is_codex_response(found)


def read(payload: Mapping[str, Any]) -> list[RawUsage]:
    """The one call that the attributes are of. Raises RawUsageError."""
    found = _attributes(payload)
    if _is_api_request(found):
        return [_api_request(found)]
    if _is_codex_response(found):
        return [_codex_response(found)]
    provider = text(found, "gen_ai.provider.name", "gen_ai.system", most=63).lower()
    whole = count(found, _USAGE + "input_tokens", _USAGE + "prompt_tokens")
    read_from = count(found, _USAGE + "cache_read.input_tokens", _USAGE + "cache_read_input_tokens")
    written = count(found, _USAGE + "cache_creation.input_tokens", _USAGE + "cache_creation_input_tokens")
    derived: tuple[str, ...] = ("uncached_input_tokens",) if read_from or written else ()
    estimated: tuple[str, ...] = ()
    uncached = whole - read_from - written
    if uncached < 0:
        uncached, derived, estimated = whole, (), ("uncached_input_tokens",)
    return [
        RawUsage(
            source="otel gen_ai",
            record_id=text(found, "gen_ai.response.id"),
            provider=_PROVIDERS.get(provider, provider),
            model=text(found, "gen_ai.response.model", "gen_ai.request.model"),
            figures=Figures(
                uncached=uncached,
                cache_read=read_from,
                cache_write_5m=written,
                output=count(found, _USAGE + "output_tokens", _USAGE + "completion_tokens"),
                reasoning=count(found, _USAGE + "reasoning.output_tokens", _USAGE + "reasoning_tokens"),
            ),
            derived=derived + (("cache_write_5m_tokens",) if written else ()),
            estimated=estimated,
        )
    ]


def _is_api_request(found: Mapping[str, Any]) -> bool:
    return str(found.get("event.name", "")).removeprefix("claude_code.") == "api_request" and "input_tokens" in found


def _api_request(found: Mapping[str, Any]) -> RawUsage:
    """One call of Claude Code. Its cost is the program's own reckoning, so it is REPORTED."""
    cost = found.get("cost_usd")
    try:
        reported = nanos_of_number(cost) if isinstance(cost, (int, float, str)) and cost != "" else None
    except ValueError as error:
        raise RawUsageError(str(error)) from error
    written = count(found, "cache_creation_tokens")
    return RawUsage(
        source="claude-code otel",
        record_id=text(found, "request_id", "event.id"),
        provider="anthropic",
        model=text(found, "model"),
        figures=Figures(
            uncached=count(found, "input_tokens"),
            cache_read=count(found, "cache_read_tokens"),
            cache_write_5m=written,
            output=count(found, "output_tokens"),
        ),
        cost=reported,
        derived=("cache_write_5m_tokens",) if written else (),
    )


def _is_codex_response(found: Mapping[str, Any]) -> bool:
    return found.get("event.name") == "codex.sse_event" and found.get("event.kind") == "response.completed"


def _codex_response(found: Mapping[str, Any]) -> RawUsage:
    """One response to Codex. Cached input is a part of the input, reasoning a part of the output."""
    whole, cached = count(found, "input_token_count"), count(found, "cached_token_count")
    return RawUsage(
        source="codex otel",
        record_id=text(found, "response.id", "event.id"),
        provider="openai",
        model=text(found, "model", "slug"),
        figures=Figures(
            uncached=max(whole - cached, 0),
            cache_read=min(cached, whole),
            output=count(found, "output_token_count"),
            reasoning=count(found, "reasoning_token_count"),
        ),
        derived=("uncached_input_tokens",) if cached else (),
    )


def _attributes(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Attributes by name, whether they are an object or a list of key and value."""
    listed = parts(payload, "attributes")
    if listed:
        return {str(one.get("key", "")): _value(part(one, "value")) for one in listed}
    return part(payload, "attributes") or payload


def _value(value: Mapping[str, Any]) -> Any:
    for name in ("stringValue", "intValue", "doubleValue", "boolValue"):
        if name in value:
            return value[name]
    return None
