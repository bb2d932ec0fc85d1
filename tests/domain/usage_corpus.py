"""Payloads as the providers document them, with totals that were reckoned by hand.

Each case is a way in which one use of a model comes more than once: in the events of a stream, in the lines of an
agent's log, after a resume, in a fork, from a sub-agent, by a retry. `expected` says what the ledger must have in
the end, by record_id: (uncached, cache read, written for 5 minutes, for an hour, output, reasoning) and the cost in
nano-dollars; None for a record that no price is known for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Expected = dict[str, tuple[tuple[int, int, int, int, int, int], int | None]]


class Case(NamedTuple):
    """Payloads in the order in which they come."""

    payloads: list[dict[str, Any]]
    expected: Expected


_HAIKU = "claude-haiku-4-5"
_SONNET = "claude-sonnet-4-5-20250929"


def _message(message_id: str, *, stop: str | None = "end_turn", model: str = _SONNET, **usage: Any) -> dict[str, Any]:
    known = {"id": message_id, "type": "message", "role": "assistant", "model": model}
    return {**known, "stop_reason": stop, "usage": usage}


def _line(message: dict[str, Any], session: str, **more: Any) -> dict[str, Any]:
    """A line of Claude Code's log."""
    return {"type": "assistant", "sessionId": session, "requestId": "req_" + message["id"], "message": message, **more}


_STREAM = [
    {
        "type": "message_start",
        "message": _message("msg_stream", stop=None, input_tokens=25, cache_read_input_tokens=1000, output_tokens=1),
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": 40}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 150}},
    {"type": "message_stop"},
]

_FIRST = _message("msg_1", input_tokens=10, cache_creation_input_tokens=2000, output_tokens=100)
_SECOND = _message(
    "msg_2",
    input_tokens=5,
    cache_read_input_tokens=2000,
    cache_creation_input_tokens=300,
    cache_creation={"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    output_tokens=50,
)


def _chat(response_id: str, prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": "chat.completion",
        "model": "gpt-5-2025-08-07",
        "service_tier": "default",
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        },
    }


def _response(response_id: str, model: str = "gpt-5-mini", tier: str = "default") -> dict[str, Any]:
    return {
        "id": response_id,
        "object": "response",
        "status": "completed",
        "model": model,
        "service_tier": tier,
        "usage": {
            "input_tokens": 1000,
            "input_tokens_details": {"cached_tokens": 600},
            "output_tokens": 300,
            "output_tokens_details": {"reasoning_tokens": 200},
            "total_tokens": 1300,
        },
    }


def _chunk(candidates: int, thoughts: int) -> dict[str, Any]:
    """A chunk of Gemini's stream: its counts are those of all chunks so far."""
    return {
        "responseId": "gem_1",
        "modelVersion": "gemini-2.5-pro",
        "candidates": [{"content": {"role": "model"}}],
        "usageMetadata": {
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 400,
            "candidatesTokenCount": candidates,
            "thoughtsTokenCount": thoughts,
            "toolUsePromptTokenCount": 50,
            "totalTokenCount": 1050 + candidates + thoughts,
        },
    }


def _gemini(response_id: str, candidates: int, thoughts: int, model: str = "gemini-2.5-pro") -> dict[str, Any]:
    """A response that Gemini gives at once, or a later chunk of it."""
    counts = {"promptTokenCount": 1000, "cachedContentTokenCount": 400, "candidatesTokenCount": candidates}
    counts |= {"thoughtsTokenCount": thoughts, "totalTokenCount": 1000 + candidates + thoughts}
    return {"responseId": response_id, "modelVersion": model, "usageMetadata": counts}


def _acp(amount: float) -> dict[str, Any]:
    cost = {"amount": amount, "currency": "USD"}
    update = {"sessionUpdate": "usage_update", "used": 5000, "size": 200000, "cost": cost}
    return {"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "sess_1", "update": update}}


# Sonnet 4.5: 3 in, 15 out, 0.30 read, 3.75 and 6 written; GPT-5: 1.25, 10, 0.125; GPT-5 mini: 0.25, 2, 0.025;
# Gemini 2.5 Pro: 1.25, 10, 0.125 (2.50, 15, 0.25 beyond 200,000), Flash 0.30, 2.50, 0.03. Dollars a million, so
# thousands of nanos a token.
CORPUS: dict[str, Case] = {
    "anthropic-stream": Case(
        [{"events": _STREAM}],
        # 25*3000 + 1000*300 + 150*15000
        {"msg_stream": ((25, 1000, 0, 0, 150, 0), 75_000 + 300_000 + 2_250_000)},
    ),
    "anthropic-blocks-of-one-response-logged-three-times": Case(
        [
            _line(_message("msg_b", stop=None, input_tokens=4, output_tokens=1), "s1"),
            _line(_message("msg_b", stop=None, input_tokens=4, output_tokens=7), "s1"),
            _line(_message("msg_b", stop="tool_use", input_tokens=4, output_tokens=90), "s1"),
        ],
        {"msg_b": ((4, 0, 0, 0, 90, 0), 12_000 + 1_350_000)},
    ),
    "anthropic-resumed-and-forked-session": Case(
        [_line(_FIRST, "s1"), _line(_SECOND, "s1"), _line(_FIRST, "s2"), _line(_SECOND, "s2"), _line(_FIRST, "fork")],
        {
            # 10*3000 + 2000*3750 + 100*15000; 5*3000 + 2000*300 + 100*3750 + 200*6000 + 50*15000
            "msg_1": ((10, 0, 2000, 0, 100, 0), 30_000 + 7_500_000 + 1_500_000),
            "msg_2": ((5, 2000, 100, 200, 50, 0), 15_000 + 600_000 + 375_000 + 1_200_000 + 750_000),
        },
    ),
    "anthropic-sub-agent": Case(
        [
            _line(_message("msg_main", input_tokens=100, output_tokens=10), "s1", isSidechain=False),
            _line(
                _message("msg_sub", model=_HAIKU, input_tokens=200, output_tokens=20),
                "s1",
                isSidechain=True,
            ),
        ],
        {
            "msg_main": ((100, 0, 0, 0, 10, 0), 300_000 + 150_000),
            "msg_sub": ((200, 0, 0, 0, 20, 0), 200_000 + 100_000),
        },
    ),
    "anthropic-retried": Case(
        [
            # The first try broke off in the stream; the second one's line was written twice.
            {"events": [{"type": "message_start", "message": _message("msg_try1", stop=None, input_tokens=500)}]},
            _line(_message("msg_try1", stop=None, input_tokens=500, output_tokens=12), "s1"),
            _line(_message("msg_try2", input_tokens=500, output_tokens=80), "s1"),
            _line(_message("msg_try2", input_tokens=500, output_tokens=80), "s1"),
        ],
        {
            # Both were paid: 500*3000 + 12*15000; 500*3000 + 80*15000
            "msg_try1": ((500, 0, 0, 0, 12, 0), 1_500_000 + 180_000),
            "msg_try2": ((500, 0, 0, 0, 80, 0), 1_500_000 + 1_200_000),
        },
    ),
    "anthropic-batch-and-web-search": Case(
        [
            _message("msg_batch", input_tokens=1000, output_tokens=100, service_tier="batch"),
            _message("msg_web", input_tokens=1000, output_tokens=100, server_tool_use={"web_search_requests": 2}),
        ],
        {
            # (3,000,000 + 1,500,000) / 2; 4,500,000 and two searches for a cent each
            "msg_batch": ((1000, 0, 0, 0, 100, 0), 2_250_000),
            "msg_web": ((1000, 0, 0, 0, 100, 0), 4_500_000 + 20_000_000),
        },
    ),
    "anthropic-long-context": Case(
        [_message("msg_long", input_tokens=1, cache_read_input_tokens=200_000, output_tokens=1)],
        # Beyond 200,000: 6 in, 0.60 read, 22.50 out, for all of the call.
        {"msg_long": ((1, 200_000, 0, 0, 1, 0), 6_000 + 120_000_000 + 22_500)},
    ),
    "openai-chat-retried": Case(
        [
            _chat("chatcmpl-1", 1200, 1000, 500, 300),
            _chat("chatcmpl-1", 1200, 1000, 500, 300),
            _chat("chatcmpl-2", 1200, 0, 500, 300),
        ],
        {
            # 200*1250 + 1000*125 + 500*10000; 1200*1250 + 500*10000
            "chatcmpl-1": ((200, 1000, 0, 0, 500, 300), 250_000 + 125_000 + 5_000_000),
            "chatcmpl-2": ((1200, 0, 0, 0, 500, 300), 1_500_000 + 5_000_000),
        },
    ),
    "openai-chat-stream": Case(
        [
            # Some servers tell the counts so far with every chunk; the last chunk has no choices.
            {**_chat("chatcmpl-s", 1200, 1000, 10, 0), "object": "chat.completion.chunk"},
            {**_chat("chatcmpl-s", 1200, 1000, 450, 300), "object": "chat.completion.chunk"},
            {**_chat("chatcmpl-s", 1200, 1000, 500, 300), "object": "chat.completion.chunk", "choices": []},
        ],
        # 200*1250 + 1000*125 + 500*10000
        {"chatcmpl-s": ((200, 1000, 0, 0, 500, 300), 250_000 + 125_000 + 5_000_000)},
    ),
    "openai-responses-resumed-and-forked": Case(
        [
            _response("resp_a"),
            {**_response("resp_b"), "previous_response_id": "resp_a"},
            # The thread is resumed, and its log begins with what was; then it is forked after resp_a.
            _response("resp_a"),
            {**_response("resp_b"), "previous_response_id": "resp_a"},
            {**_response("resp_f"), "previous_response_id": "resp_a"},
        ],
        # 400*250 + 600*25 + 300*2000, each once
        dict.fromkeys(("resp_a", "resp_b", "resp_f"), ((400, 600, 0, 0, 300, 200), 715000)),
    ),
    "openai-responses-sub-agent": Case(
        [
            _response("resp_main", model="gpt-5"),
            {"type": "response.completed", "response": _response("resp_sub")},
            _response("resp_sub"),
        ],
        {
            # 400*1250 + 600*125 + 300*10000; 715,000 as above
            "resp_main": ((400, 600, 0, 0, 300, 200), 500_000 + 75_000 + 3_000_000),
            "resp_sub": ((400, 600, 0, 0, 300, 200), 715_000),
        },
    ),
    "openai-responses-streamed-and-fetched-again": Case(
        [
            {"type": "response.completed", "response": _response("resp_1")},
            _response("resp_1"),
            _response("resp_2", tier="flex"),
        ],
        {
            # 400*250 + 600*25 + 300*2000, and half of it in the flex tier
            "resp_1": ((400, 600, 0, 0, 300, 200), 100_000 + 15_000 + 600_000),
            "resp_2": ((400, 600, 0, 0, 300, 200), 357_500),
        },
    ),
    "openai-model-without-a-price": Case(
        [_response("resp_x", model="gpt-99")],
        {"resp_x": ((400, 600, 0, 0, 300, 200), None)},
    ),
    "gemini-stream": Case(
        [_chunk(0, 100), _chunk(30, 150), _chunk(80, 150), _chunk(30, 150)],
        # (1000-400+50)*1250 + 400*125 + (80+150)*10000
        {"gem_1": ((650, 400, 0, 0, 230, 150), 812_500 + 50_000 + 2_300_000)},
    ),
    "gemini-resumed-and-forked": Case(
        [
            _gemini("gem_a", 10, 20),
            _gemini("gem_b", 70, 0),
            _gemini("gem_a", 10, 20),
            _gemini("gem_b", 70, 0),
            {"response": _gemini("gem_a", 10, 20)},
            _gemini("gem_f", 5, 5),
        ],
        {
            # 600*1250 + 400*125 + (10+20)*10000; the same and 70*10000; the same and (5+5)*10000
            "gem_a": ((600, 400, 0, 0, 30, 20), 750_000 + 50_000 + 300_000),
            "gem_b": ((600, 400, 0, 0, 70, 0), 750_000 + 50_000 + 700_000),
            "gem_f": ((600, 400, 0, 0, 10, 5), 750_000 + 50_000 + 100_000),
        },
    ),
    "gemini-sub-agent": Case(
        [_gemini("gem_main", 10, 20), _gemini("gem_sub", 10, 20, "models/gemini-2.5-flash")],
        {
            # 1,100,000 as above; 600*300 + 400*30 + 30*2500
            "gem_main": ((600, 400, 0, 0, 30, 20), 1_100_000),
            "gem_sub": ((600, 400, 0, 0, 30, 20), 180_000 + 12_000 + 75_000),
        },
    ),
    "gemini-retried": Case(
        [_gemini("gem_1st", 3, 0), _gemini("gem_2nd", 4, 0), _gemini("gem_2nd", 40, 10), _gemini("gem_2nd", 40, 10)],
        {
            # 800,000 as above and 3*10000; and (40+10)*10000
            "gem_1st": ((600, 400, 0, 0, 3, 0), 830_000),
            "gem_2nd": ((600, 400, 0, 0, 50, 10), 1_300_000),
        },
    ),
    "otel-span": Case(
        [
            {
                "attributes": [
                    {"key": "gen_ai.provider.name", "value": {"stringValue": "anthropic"}},
                    {"key": "gen_ai.response.model", "value": {"stringValue": "claude-sonnet-4-5"}},
                    {"key": "gen_ai.response.id", "value": {"stringValue": "msg_otel"}},
                    {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "1100"}},
                    {"key": "gen_ai.usage.cache_read.input_tokens", "value": {"intValue": "1000"}},
                    {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "10"}},
                ]
            }
        ],
        {"msg_otel": ((100, 1000, 0, 0, 10, 0), 300_000 + 300_000 + 150_000)},
    ),
    "acp-running-cost": Case(
        [_acp(0.01), _acp(0.01), _acp(0.035), _acp(0.02), _acp(0.1)],
        {
            "acp:sess_1#1": ((0, 0, 0, 0, 0, 0), 10_000_000),
            "acp:sess_1#2": ((0, 0, 0, 0, 0, 0), 25_000_000),
            "acp:sess_1#3": ((0, 0, 0, 0, 0, 0), 65_000_000),
        },
    ),
}
