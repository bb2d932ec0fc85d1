"""Claude Code: `claude -p --output-format stream-json --verbose`.

Each block of a message is an event of its own, with the same message and its id. The figures in it are those
of the beginning of the stream, so the output is not whole: what a run has used, sub-agents included, is told by its
last event, and only where that is missing are the messages counted. A run that resumes a session counts anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kapell._worker.outcome import RateLimited, TaskFailed
from kapell.runtimes.adapters.contract import Effect, Say, Session, Step, Use, Verdict
from kapell.runtimes.adapters.reading import (
    brief,
    cut,
    event_of,
    failure,
    number,
    part,
    parts,
    text,
    unfinished,
    wait_of,
)

_HINT = (
    "log in with `claude` on this machine, or give the profile ANTHROPIC_API_KEY: "
    'env_from_secret = { ANTHROPIC_API_KEY = "name-of-a-secret" }'
)
_MOST_MESSAGES = 10_000
_BUSY = (429, 529)


def build(argv: Sequence[str]) -> Claude:
    """The adapter for one run."""
    return Claude()


class Claude:
    """Reads one run."""

    def __init__(self) -> None:
        self._result: Mapping[str, Any] = {}
        self._messages: dict[str, Mapping[str, Any]] = {}
        self._error = ""
        self._resets_at = 0.0

    def feed(self, line: str) -> Iterator[Effect]:
        event = event_of(line)
        if event is None:
            yield Say(line)
            return
        match event.get("type"), event.get("subtype"):
            case "system", "init":
                yield from self._begun(event)
            case "system", "api_retry":
                yield Say(
                    f"the provider refused: {text(event, 'error')} {event.get('error_status') or ''}; trying again"
                )
            case "assistant", _:
                yield from self._message(event)
            case "user", _:
                yield from _answers(event)
            case "result", _:
                self._result = event
            case "rate_limit_event", _:
                info = part(event, "rate_limit_info")
                if info.get("status") == "rejected":
                    self._resets_at = number(info, "resetsAt") or 0.0
                    yield Say("the limit of the account is used up")
            case _:
                yield Say(line)

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        result = self._result
        if not result:
            used = [Use(message) for message in self._messages.values()]
            return Verdict(used=used, failure=None if code else unfinished("claude"))
        kept = {name: result[name] for name in ("uuid", "session_id", "modelUsage") if name in result}
        used = [Use(kept)] if part(result, "modelUsage") else []
        if not result.get("is_error"):
            return Verdict(message=_last_word(result), used=used)
        said = text(result, "result") or "; ".join(one for one in _errors(result)) or text(result, "subtype")
        refused = said.startswith("No conversation found")
        return Verdict(used=used, failure=self._failure(said, now), session_refused=refused)

    def _begun(self, event: Mapping[str, Any]) -> Iterator[Effect]:
        session = text(event, "session_id")
        yield Session(session)
        yield Say(f"claude {text(event, 'claude_code_version')}, model {text(event, 'model')}, session {session}")

    def _message(self, event: Mapping[str, Any]) -> Iterator[Effect]:
        message = part(event, "message")
        self._error = text(event, "error")
        name = text(message, "id")
        if name and part(message, "usage") and message.get("model") != "<synthetic>":
            self._remember(name, message)
        inset = "  " if event.get("parent_tool_use_id") else ""
        for block in parts(message, "content"):
            match block.get("type"):
                case "text":
                    yield Say(inset + text(block, "text"))
                case "thinking" | "redacted_thinking":
                    yield Step("thinking")
                case "tool_use" | "server_tool_use":
                    tool, about = text(block, "name"), brief(block.get("input"))
                    yield Step(tool, about)
                    yield Say(f"{inset}→ {tool} {about}")
                case _:
                    yield Say(f"{inset}[{block.get('type')}]")

    def _remember(self, name: str, message: Mapping[str, Any]) -> None:
        """The same message may come once for each of its blocks; it is counted once."""
        if name in self._messages or len(self._messages) < _MOST_MESSAGES:
            kept = {field: message[field] for field in ("id", "model", "usage", "stop_reason") if field in message}
            self._messages[name] = {"type": "message", **kept}

    def _failure(self, said: str, now: float) -> TaskFailed:
        result = self._result
        if result.get("api_error_status") in _BUSY or self._error == "rate_limit":
            wait = self._resets_at - now if self._resets_at > now else wait_of(said)
            return RateLimited("anthropic", wait, f"claude: {said}")
        match result.get("subtype"):
            case "error_max_turns":
                turns = result.get("num_turns")
                text_ = f"claude has used all its turns ({turns}) - raise --max-turns, or make the task smaller"
                return TaskFailed("MAX_TURNS", text_)
            case "error_max_budget_usd":
                return TaskFailed("MAX_BUDGET", "claude has used up what --max-budget-usd allows it", retryable=False)
        if self._error == "authentication_failed" or result.get("api_error_status") in (401, 403):
            return TaskFailed("AUTH_MISSING", f"claude has no access to its model: {said} - {_HINT}", retryable=False)
        return failure("claude", "anthropic", said, _HINT)


def _answers(event: Mapping[str, Any]) -> Iterator[Effect]:
    """What tools have answered."""
    inset = "  " if event.get("parent_tool_use_id") else ""
    for block in parts(part(event, "message"), "content"):
        if block.get("type") != "tool_result":
            continue
        said = text(block, "content") or "\n".join(text(one, "text") for one in parts(block, "content"))
        mark = "✗" if block.get("is_error") else "←"
        yield Say(f"{inset}{mark} {cut(said)}")


def _last_word(result: Mapping[str, Any]) -> str:
    """The result's text; where the run had a JSON schema, the JSON that it asked for."""
    structured = result.get("structured_output")
    if structured is None:
        return text(result, "result")
    return json.dumps(structured, ensure_ascii=False)


def _errors(result: Mapping[str, Any]) -> list[str]:
    found = result.get("errors")
    return [str(one)[:1000] for one in found[:10]] if isinstance(found, list) else []
