"""opencode: `opencode run --format json`.

Each step of the model ends with an event that has its figures and an id. Input excludes what came from caches. No event
names the model: where the command line does, as provider/model, that is it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kapell.runtimes.adapters.contract import Effect, Say, Session, Step, Use, Verdict
from kapell.runtimes.adapters.reading import brief, cut, event_of, failure, model_in, number, part, text, unfinished

_HINT = (
    "log in with `opencode auth login` on this machine, or give the profile the key of its provider as env_from_secret"
)


def build(argv: Sequence[str]) -> Opencode:
    """The adapter for one run."""
    return Opencode(model_in(argv))


class Opencode:
    """Reads one run."""

    def __init__(self, model: str) -> None:
        self._provider, _, self._model = model.rpartition("/")
        self._session = ""
        self._message = ""
        self._error = ""
        self._ended = False

    def feed(self, line: str) -> Iterator[Effect]:
        event = event_of(line)
        if event is None:
            yield Say(line)
            return
        session = text(event, "sessionID")
        if session and session != self._session:
            self._session = session
            yield Session(session)
            yield Say(f"opencode, session {session}")
        about = part(event, "part")
        match event.get("type"):
            case "step_start":
                self._ended = False
                yield Step("thinking")
            case "text":
                self._message = text(about, "text")
                yield Say(self._message)
            case "reasoning":
                yield Say(f"({cut(text(about, 'text'))})")
            case "tool_use":
                yield from _tool(about)
            case "step_finish":
                self._ended = about.get("reason") != "tool-calls"
                yield from self._used(about)
            case "error":
                error = part(event, "error")
                status = part(error, "data").get("statusCode")
                self._error = text(part(error, "data"), "message") or text(error, "name") or "an error without a name"
                self._error += f" (status {status})" if status else ""
                yield Say(f"✗ {cut(self._error)}")
            case _:
                yield Say(line)

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        if self._error:
            return Verdict(failure=failure("opencode", "opencode", self._error, _HINT))
        if not code:
            return Verdict(message=self._message, failure=None if self._ended else unfinished("opencode"))
        return Verdict(session_refused=not self._session and "session not found" in stderr.lower())

    def _used(self, step: Mapping[str, Any]) -> Iterator[Effect]:
        tokens = part(step, "tokens")
        cache = part(tokens, "cache")
        read, written = int(number(cache, "read") or 0), int(number(cache, "write") or 0)
        given, out = int(number(tokens, "input") or 0), int(number(tokens, "output") or 0)
        reasoning = int(number(tokens, "reasoning") or 0)
        if not (given or out or read or written):
            return
        cost = number(step, "cost")
        yield Use(
            {
                "record_id": f"opencode:{text(step, 'id')}"[:200],
                "provider": self._provider,
                "model": self._model,
                "input_tokens": given + read + written,
                "cache_read_tokens": read,
                "cache_write_5m_tokens": written,
                "output_tokens": out + reasoning,
                "reasoning_tokens": reasoning,
                **({"cost": cost} if cost else {}),
            }
        )


def _tool(about: Mapping[str, Any]) -> Iterator[Effect]:
    state = part(about, "state")
    tool, arguments = text(about, "tool"), brief(state.get("input"))
    yield Step(tool, arguments)
    yield Say(f"→ {tool} {arguments}")
    mark = "←" if state.get("status") == "completed" else "✗"
    yield Say(f"{mark} {cut(text(state, 'output') or text(state, 'error'))}")
