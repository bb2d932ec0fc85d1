"""OpenAI Codex: `codex exec --json`.

`turn.completed` has the figures of the whole thread so far, also after `codex exec resume`, so the thread is
the series of its usage. It names no model: where the command line does, that is it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kapell.runtimes.adapters.contract import Effect, Say, Session, Step, Use, Verdict
from kapell.runtimes.adapters.reading import cut, event_of, failure, model_in, part, parts, text, unfinished

_HINT = (
    "log in with `codex login` on this machine, or give the profile CODEX_API_KEY: "
    'env_from_secret = { CODEX_API_KEY = "name-of-a-secret" }'
)


def build(argv: Sequence[str]) -> Codex:
    """The adapter for one run."""
    return Codex(model_in(argv))


class Codex:
    """Reads one run."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._thread = ""
        self._message = ""
        self._error = ""
        self._completed = False

    def feed(self, line: str) -> Iterator[Effect]:
        event = event_of(line)
        if event is None:
            yield Say(line)
            return
        match event.get("type"):
            case "thread.started":
                self._thread = text(event, "thread_id")
                yield Session(self._thread)
                yield Say(f"codex, session {self._thread}")
            case "turn.started":
                yield Step("thinking")
            case "turn.completed":
                self._completed = True
                yield from self._used(event)
            case "turn.failed":
                self._completed = False
                self._error = text(part(event, "error"), "message")
            case "error":
                # Also what it gets over by itself, such as a connection it makes anew.
                self._error = text(event, "message")
                yield Say(f"✗ {cut(self._error)}")
            case "item.started" | "item.updated":
                yield from _begun(part(event, "item"))
            case "item.completed":
                yield from self._item(part(event, "item"), line)
            case _:
                yield Say(line)

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        if self._completed and not code:
            return Verdict(message=self._message)
        if not self._thread and "no rollout found" in stderr:
            return Verdict(session_refused=True, failure=failure("codex", "openai", stderr, _HINT))
        if self._error and not self._completed:
            return Verdict(failure=failure("codex", "openai", self._error, _HINT))
        return Verdict(failure=None if code else unfinished("codex"))

    def _used(self, event: Mapping[str, Any]) -> Iterator[Effect]:
        usage = part(event, "usage")
        if usage and self._thread:
            payload = {"type": "turn.completed", "usage": usage}
            yield Use({**payload, "model": self._model} if self._model else payload, series=f"codex:{self._thread}")

    def _item(self, item: Mapping[str, Any], line: str) -> Iterator[Effect]:
        match item.get("type"):
            case "agent_message":
                self._message = text(item, "text")
                yield Say(self._message)
            case "reasoning":
                yield Say(f"({cut(text(item, 'text'))})")
            case "command_execution":
                yield Say(f"→ {cut(text(item, 'command'))}")
                status = item.get("exit_code")
                mark = "←" if status == 0 else f"✗ exit code {status}"
                yield Say(f"{mark} {cut(text(item, 'aggregated_output'))}")
            case "file_change":
                for change in parts(item, "changes"):
                    yield Say(f"→ {text(change, 'kind')} {text(change, 'path')}")
            case "mcp_tool_call" | "web_search" | "todo_list":
                yield from _begun(item)
                yield Say(f"→ {_about(item)}")
            case "error":
                yield Say(f"✗ {cut(text(item, 'message'))}")
            case _:
                yield Say(line)


def _begun(item: Mapping[str, Any]) -> Iterator[Effect]:
    match item.get("type"):
        case "command_execution":
            yield Step("shell", text(item, "command"))
        case "mcp_tool_call" | "web_search" | "file_change":
            yield Step(str(item["type"]), _about(item))
        case "todo_list":
            plan = parts(item, "items")
            done = sum(one.get("completed") is True for one in plan)
            open_ = next((text(one, "text") for one in plan if one.get("completed") is not True), "")
            yield Step("plan", open_, done / len(plan) if plan else None)


def _about(item: Mapping[str, Any]) -> str:
    match item.get("type"):
        case "mcp_tool_call":
            return f"{text(item, 'server')}.{text(item, 'tool')} {text(item, 'status')}"
        case "web_search":
            return f"search {text(item, 'query')}"
        case "file_change":
            return ", ".join(text(change, "path") for change in parts(item, "changes"))[:500]
    return "; ".join(
        f"{'x' if one.get('completed') is True else '-'} {text(one, 'text')}" for one in parts(item, "items")[:50]
    )
