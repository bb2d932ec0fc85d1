"""A model on loopback that says what a test has written down, in the words of each provider.

It speaks OpenAI chat and responses, Anthropic messages and Gemini generateContent, streamed and not, so that
real agents can be driven without any account. Replies are used up one by one, whoever asks:

    async with model_endpoint(Reply(calls=[Call("shell", {"command": "touch x"})]), Reply("done")) as model:
        ... model.url ...
        model.asked[0].body
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

DEADLINE = 30.0
Event = tuple[str, dict[str, Any]]
"""The name of a streamed event, which may be empty, and its data."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the model wants to be called."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. `pieces` is how many parts its text is streamed in; with `hangs` it is never ended.

    `finish` is why it has ended, as chat has it, where that is not told by the calls.
    """

    text: str = ""
    calls: tuple[Call, ...] = ()
    input_tokens: int = 100
    output_tokens: int = 10
    pieces: int = 2
    hangs: bool = False
    finish: str = ""

    def parts(self) -> list[str]:
        size = max(1, -(-len(self.text) // self.pieces))
        return [self.text[at : at + size] for at in range(0, len(self.text), size)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An answer that is none."""

    status: int
    message: str = "refused"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class ModelEndpoint:
    """Answers by its script; once that is used up, with a plain "done"."""

    def __init__(self, *script: Reply | Refusal, tools_only: bool = False) -> None:
        self.script = deque(script)
        self.tools_only = tools_only
        self.url = ""
        """Without a path: OpenAI is below /v1, Gemini and Anthropic are where they say."""
        self.asked: list[Asked] = []
        self.beside: list[Asked] = []
        """Requests of agents with tools that offer none, as for a title; they are answered with "beside"."""
        self.hung_up = asyncio.Event()
        """Set when a client has left before its answer had ended."""
        self.hangs = asyncio.Event()
        """Set when an answer was begun that is never ended."""
        self._count = 0
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            self._running.discard(task)
            writer.close()

    async def close(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        data = await _body(reader, headers)
        path = target.partition("?")[0]
        if method != "POST" or _shape(path) is None:
            _write(writer, 404 if method == "POST" else 200, json.dumps({"data": [], "models": []}))
            return await writer.drain()
        body: dict[str, Any] = json.loads(data)
        if path.endswith(("count_tokens", ":countTokens")):
            _write(writer, 200, json.dumps({"input_tokens": 1, "totalTokens": 1}))
            return await writer.drain()
        reply = self._next(Asked(path, headers, body))
        if isinstance(reply, Refusal):
            said = json.dumps({"error": {"message": reply.message, "code": reply.status, "type": "refused"}})
            _write(writer, reply.status, said if reply.body is None else reply.body, reply.headers)
            return await writer.drain()
        self._count += 1
        shape = _shape(path)
        assert shape is not None
        if not (body.get("stream") or "stream" in path):
            _write(writer, 200, json.dumps(shape.whole(self._count, body, reply)))
            return await writer.drain()
        return await self._stream(reader, writer, shape, reply, body)

    def _next(self, asked: Asked) -> Reply | Refusal:
        if self.tools_only and not asked.body.get("tools"):
            self.beside.append(asked)
            return Reply(text="beside", input_tokens=1, output_tokens=1)
        self.asked.append(asked)
        return self.script.popleft() if self.script else Reply(text="done")

    async def _stream(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        shape: type[_Chat],
        reply: Reply,
        body: Mapping[str, Any],
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        events = list(shape.stream(self._count, body, reply))
        if reply.hangs:
            events = events[: max(1, len(events) // 2)]
        for name, event in events:
            prefix = f"event: {name}\n" if name else ""
            writer.write(f"{prefix}data: {json.dumps(event)}\n\n".encode())
            await writer.drain()
        if reply.hangs:
            # Nothing more is said; the client is to leave.
            self.hangs.set()
            await reader.read()
            self.hung_up.set()
        elif shape is _Chat:
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()


class _Chat:
    """OpenAI's Chat Completions."""

    @classmethod
    def whole(cls, number: int, body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.calls:
            message["tool_calls"] = cls._calls(number, reply)
        choice = {"index": 0, "message": message, "finish_reason": cls._finish(reply)}
        head = {"id": f"chatcmpl-{number}", "object": "chat.completion", "created": 1, "model": body.get("model", "m")}
        return {**head, "choices": [choice], "usage": cls._usage(reply)}

    @classmethod
    def stream(cls, number: int, body: Mapping[str, Any], reply: Reply) -> Iterator[Event]:
        model = body.get("model", "m")
        head = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1, "model": model}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> Event:
            return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield chunk({"role": "assistant", "content": ""})
        for part in reply.parts():
            yield chunk({"content": part})
        for index, call in enumerate(cls._calls(number, reply)):
            yield chunk({"tool_calls": [{"index": index, **call}]})
        yield chunk({}, cls._finish(reply))
        if body.get("stream_options", {}).get("include_usage"):
            yield "", {**head, "choices": [], "usage": cls._usage(reply)}

    @staticmethod
    def _finish(reply: Reply) -> str:
        return reply.finish or ("tool_calls" if reply.calls else "stop")

    @staticmethod
    def _calls(number: int, reply: Reply) -> list[dict[str, Any]]:
        return [
            {
                "id": f"call_{number}_{index}",
                "type": "function",
                "function": {"name": call.tool, "arguments": json.dumps(call.arguments)},
            }
            for index, call in enumerate(reply.calls)
        ]

    @staticmethod
    def _usage(reply: Reply) -> dict[str, Any]:
        total = reply.input_tokens + reply.output_tokens
        return {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": total,
        }


class _Responses(_Chat):
    """OpenAI's Responses."""

    @classmethod
    def whole(cls, number: int, body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
        usage = {
            "input_tokens": reply.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": reply.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.input_tokens + reply.output_tokens,
        }
        head = {"id": f"resp_{number}", "object": "response", "created_at": 1, "model": body.get("model", "m")}
        return {**head, "status": "completed", "output": cls._items(number, reply), "usage": usage}

    @classmethod
    def stream(cls, number: int, body: Mapping[str, Any], reply: Reply) -> Iterator[Event]:
        whole = cls.whole(number, body, reply)
        started = {**whole, "status": "in_progress", "output": [], "usage": None}
        yield "response.created", {"type": "response.created", "response": started}
        for index, item in enumerate(whole["output"]):
            begun = {**item, "content": []} if item["type"] == "message" else {**item, "arguments": ""}
            yield (
                "response.output_item.added",
                {"type": "response.output_item.added", "output_index": index, "item": begun},
            )
            if item["type"] == "message":
                for part in reply.parts():
                    delta = {"type": "response.output_text.delta", "item_id": item["id"], "output_index": index}
                    yield "response.output_text.delta", {**delta, "content_index": 0, "delta": part}
            yield (
                "response.output_item.done",
                {"type": "response.output_item.done", "output_index": index, "item": item},
            )
        yield "response.completed", {"type": "response.completed", "response": whole}

    @staticmethod
    def _items(number: int, reply: Reply) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        if reply.text:
            content = [{"type": "output_text", "text": reply.text, "annotations": []}]
            head = {"type": "message", "role": "assistant", "id": f"msg_{number}", "status": "completed"}
            items.append({**head, "content": content})
        for index, call in enumerate(reply.calls):
            head = {"type": "function_call", "id": f"fc_{number}_{index}", "call_id": f"call_{number}_{index}"}
            items.append({**head, "name": call.tool, "arguments": json.dumps(call.arguments), "status": "completed"})
        return items


class _Messages(_Chat):
    """Anthropic's messages."""

    @classmethod
    def whole(cls, number: int, body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
        head = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": body.get("model", "m")}
        stop = {"stop_reason": "tool_use" if reply.calls else "end_turn", "stop_sequence": None}
        return {
            **head,
            "content": cls._blocks(number, reply),
            **stop,
            "usage": cls._counted(reply, reply.output_tokens),
        }

    @classmethod
    def stream(cls, number: int, body: Mapping[str, Any], reply: Reply) -> Iterator[Event]:
        whole = cls.whole(number, body, reply)
        begun = {**whole, "content": [], "stop_reason": None, "usage": cls._counted(reply, 1)}
        yield "message_start", {"type": "message_start", "message": begun}
        for index, block in enumerate(whole["content"]):
            empty = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
            yield (
                "content_block_start",
                {"type": "content_block_start", "index": index, "content_block": empty},
            )
            for delta in cls._deltas(block, reply):
                yield "content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta}
            yield "content_block_stop", {"type": "content_block_stop", "index": index}
        stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        usage = {"output_tokens": reply.output_tokens}
        yield "message_delta", {"type": "message_delta", "delta": stop, "usage": usage}
        yield "message_stop", {"type": "message_stop"}

    @staticmethod
    def _blocks(number: int, reply: Reply) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": reply.text}] if reply.text else []
        for index, call in enumerate(reply.calls):
            head = {"type": "tool_use", "id": f"toolu_{number}_{index}", "name": call.tool}
            blocks.append({**head, "input": dict(call.arguments)})
        return blocks

    @staticmethod
    def _deltas(block: Mapping[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
        if block["type"] == "text":
            for part in reply.parts():
                yield {"type": "text_delta", "text": part}
        else:
            yield {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}

    @staticmethod
    def _counted(reply: Reply, output: int) -> dict[str, Any]:
        return {
            "input_tokens": reply.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output,
        }


class _Generate(_Chat):
    """Gemini's generateContent."""

    @classmethod
    def whole(cls, number: int, body: Mapping[str, Any], reply: Reply) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"text": reply.text}] if reply.text else []
        parts += [{"functionCall": {"name": call.tool, "args": dict(call.arguments)}} for call in reply.calls]
        return cls._said(number, reply, parts, ended=True)

    @classmethod
    def stream(cls, number: int, body: Mapping[str, Any], reply: Reply) -> Iterator[Event]:
        *first, last = [*([{"text": part}] for part in reply.parts()), []]
        for parts in first:
            yield "", cls._said(number, reply, parts, ended=False)
        last = [{"functionCall": {"name": call.tool, "args": dict(call.arguments)}} for call in reply.calls]
        yield "", cls._said(number, reply, last or [{"text": ""}], ended=True)

    @staticmethod
    def _said(number: int, reply: Reply, parts: list[dict[str, Any]], *, ended: bool) -> dict[str, Any]:
        candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": parts}}
        if ended:
            candidate["finishReason"] = "STOP"
        usage = {
            "promptTokenCount": reply.input_tokens,
            "candidatesTokenCount": reply.output_tokens,
            "totalTokenCount": reply.input_tokens + reply.output_tokens,
        }
        head = {"responseId": f"gen_{number}", "modelVersion": "gemini-scripted"}
        return {"candidates": [candidate], "usageMetadata": usage, **head}


def _shape(path: str) -> type[_Chat] | None:
    if path.endswith("/chat/completions"):
        return _Chat
    if path.endswith("/responses"):
        return _Responses
    if "/messages" in path:
        return _Messages
    if "enerateContent" in path or path.endswith(":countTokens"):
        return _Generate
    return None


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    data = b""
    while size := int((await reader.readline()).strip(), 16):
        data += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return data


def _write(writer: asyncio.StreamWriter, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
    lines = {"content-type": "application/json", "content-length": str(len(body.encode())), "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**lines, **(headers or {})}.items())
    writer.write(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n{body}".encode())


@asynccontextmanager
async def model_endpoint(*script: Reply | Refusal, tools_only: bool = False) -> AsyncIterator[ModelEndpoint]:
    """An endpoint that listens. With `tools_only` what is asked without tools, as for a title, uses nothing up."""
    model = ModelEndpoint(*script, tools_only=tools_only)
    server = await asyncio.start_server(model.serve, "127.0.0.1", 0, limit=2**24)
    model.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield model
    finally:
        server.close()
        await model.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), DEADLINE)
