"""From a provider's payload to figures of the one algebra: told by its shape, refused where it contradicts itself.

Pure. Nothing is guessed in silence: a figure that was reckoned from others is named in `derived`, one that
took a guess in `estimated`. What a payload does not say (its task, its time) is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kapell.v1.usage_pb2 import (
    RAW_USAGE_FORMAT_ACP,
    RAW_USAGE_FORMAT_ANTHROPIC_MESSAGES,
    RAW_USAGE_FORMAT_GEMINI,
    RAW_USAGE_FORMAT_OPENAI_CHAT,
    RAW_USAGE_FORMAT_OPENAI_RESPONSES,
    RAW_USAGE_FORMAT_OTEL_GENAI,
    RAW_USAGE_FORMAT_UNSPECIFIED,
    RawUsageFormat,
)

from kapell_server.domain.usage import raw_acp, raw_anthropic, raw_gemini, raw_openai, raw_otel
from kapell_server.domain.usage.reading import RawUsage, RawUsageError

_READERS: dict[RawUsageFormat.ValueType, Callable[[Mapping[str, Any]], list[RawUsage]]] = {
    RAW_USAGE_FORMAT_ANTHROPIC_MESSAGES: raw_anthropic.read,
    RAW_USAGE_FORMAT_OPENAI_CHAT: raw_openai.read_chat,
    RAW_USAGE_FORMAT_OPENAI_RESPONSES: raw_openai.read_responses,
    RAW_USAGE_FORMAT_GEMINI: raw_gemini.read,
    RAW_USAGE_FORMAT_OTEL_GENAI: raw_otel.read,
    RAW_USAGE_FORMAT_ACP: raw_acp.read,
}
_SHAPES = (
    (raw_gemini.is_meant, RAW_USAGE_FORMAT_GEMINI),
    (raw_acp.is_meant, RAW_USAGE_FORMAT_ACP),
    (raw_otel.is_meant, RAW_USAGE_FORMAT_OTEL_GENAI),
    (raw_anthropic.is_meant, RAW_USAGE_FORMAT_ANTHROPIC_MESSAGES),
    (raw_openai.is_responses, RAW_USAGE_FORMAT_OPENAI_RESPONSES),
    (raw_openai.is_chat, RAW_USAGE_FORMAT_OPENAI_CHAT),
)
"""How a payload is told whose it is, the surest signs first."""


def read_raw(payload: Mapping[str, Any], said: RawUsageFormat.ValueType) -> list[RawUsage]:
    """The uses of models that a payload tells of, one at least. Raises RawUsageError."""
    known = said if said != RAW_USAGE_FORMAT_UNSPECIFIED else format_of(payload)
    found = _READERS[known](payload)
    if not found:
        raise RawUsageError("it tells of no usage")
    for one in found:
        if one.figures.reasoning > one.figures.output:
            raise RawUsageError(
                f"it has {one.figures.reasoning} reasoning tokens, more than its {one.figures.output} output tokens"
            )
    return found


def format_of(payload: Mapping[str, Any]) -> RawUsageFormat.ValueType:
    """Whose shape the payload has. Raises RawUsageError."""
    for is_meant, known in _SHAPES:
        if is_meant(payload):
            return known
    raise RawUsageError("its shape is none that is known; set raw_format, or send tokens instead of raw")
