"""Gemini CLI: `gemini -o stream-json`.

Its last event tells what each model was used for, sub-agents included; before that nothing is known of usage.
Its totals include thoughts, its output does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kapell.runtimes.adapters.contract import Effect, Say, Step, Use, Verdict
from kapell.runtimes.adapters.reading import brief, cut, event_of, failure, number, part, text, unfinished

_HINT = (
    "log in with `gemini` on this machine, or give the profile GEMINI_API_KEY: "
    'env_from_secret = { GEMINI_API_KEY = "name-of-a-secret" }'
)
_MOST_CHARACTERS = 256 * 1024
_NO_ACCESS = 41
_TURNS = 53


def build(argv: Sequence[str]) -> Gemini:
    """The adapter for one run."""
    return Gemini()


class Gemini:
    """Reads one run."""

    def __init__(self) -> None:
        self._session = ""
        self._saying: list[str] = []
        self._message = ""
        self._result: Mapping[str, Any] = {}

    def feed(self, line: str) -> Iterator[Effect]:
        event = event_of(line)
        if event is None:
            yield Say(line)
            return
        if event.get("type") != "message" or event.get("role") != "assistant":
            yield from self._said()
        match event.get("type"):
            case "init":
                self._session = text(event, "session_id")
                yield Say(f"gemini, model {text(event, 'model')}, session {self._session}")
            case "message":
                if event.get("role") == "assistant":
                    self._saying.append(text(event, "content"))
            case "tool_use":
                tool, about = text(event, "tool_name"), brief(event.get("parameters"))
                yield Step(tool, about)
                yield Say(f"→ {tool} {about}")
            case "tool_result":
                mark = "←" if event.get("status") == "success" else "✗"
                yield Say(f"{mark} {cut(text(event, 'output') or text(part(event, 'error'), 'message'))}")
            case "error":
                yield Say(f"✗ {cut(text(event, 'message'))}")
            case "result":
                self._result = event
            case _:
                yield Say(line)

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        list(self._said())
        used = list(self._used())
        if self._result.get("status") == "success" and not code:
            return Verdict(message=self._message, used=used)
        said = text(part(self._result, "error"), "message")
        if not said and code == _NO_ACCESS:
            said = f"authentication failed: {cut(stderr)}"
        if not said and code == _TURNS:
            said = "it has used all its turns - raise model.maxSessionTurns in its settings"
        if said:
            return Verdict(used=used, failure=failure("gemini", "google", said, _HINT))
        return Verdict(used=used, failure=None if code else unfinished("gemini"))

    def _said(self) -> Iterator[Effect]:
        """What came in pieces, once it is whole."""
        if self._saying:
            self._message = "".join(self._saying)[-_MOST_CHARACTERS:]
            self._saying.clear()
            yield Say(self._message)

    def _used(self) -> Iterator[Use]:
        models = part(part(self._result, "stats"), "models")
        for model, said in models.items():
            if not isinstance(said, Mapping) or not number(said, "total_tokens"):
                continue
            given, out = number(said, "input_tokens") or 0, number(said, "output_tokens") or 0
            counts = {
                "promptTokenCount": given,
                "cachedContentTokenCount": number(said, "cached") or 0,
                "candidatesTokenCount": out,
                "thoughtsTokenCount": max(0, (number(said, "total_tokens") or 0) - given - out),
            }
            run = f"gemini:{self._session}/{model}"[:200]
            yield Use({"responseId": run, "modelVersion": model, "usageMetadata": counts})
