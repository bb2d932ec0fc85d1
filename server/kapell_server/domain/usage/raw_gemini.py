"""Gemini's shape: generateContent and the chunks of its stream, whose counts are running totals of one response.

The prompt includes what was read from a cache; thoughts are counted beside the candidates, so the output is the
sum of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kapell_server.domain.usage.figures import Figures
from kapell_server.domain.usage.reading import RawUsage, count, part, text, without


def is_meant(payload: Mapping[str, Any]) -> bool:
    """Whether the payload is Gemini's."""
    return bool(part(payload, "usageMetadata") or part(part(payload, "response"), "usageMetadata"))


def read(payload: Mapping[str, Any]) -> list[RawUsage]:
    """The one response of the payload. Raises RawUsageError."""
    response = part(payload, "response") or payload
    usage = part(response, "usageMetadata")
    cached = count(usage, "cachedContentTokenCount")
    thoughts = count(usage, "thoughtsTokenCount")
    tools = count(usage, "toolUsePromptTokenCount")
    derived = []
    if cached or tools:
        derived.append("uncached_input_tokens")
    if thoughts:
        derived.append("output_tokens")
    return [
        RawUsage(
            source="gemini generateContent",
            record_id=text(response, "responseId"),
            provider="google",
            model=text(response, "modelVersion").removeprefix("models/"),
            figures=Figures(
                uncached=without(count(usage, "promptTokenCount"), cached, "cachedContentTokenCount") + tools,
                cache_read=cached,
                output=count(usage, "candidatesTokenCount") + thoughts,
                reasoning=thoughts,
            ),
            derived=tuple(derived),
        )
    ]
