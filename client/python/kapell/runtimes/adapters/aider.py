"""aider: `aider --message-file FILE --no-pretty --no-stream --analytics-log /dev/stdout`.

What it says to people comes as text, and between it, where the analytics log is standard output and that is not
buffered, a line of JSON for each message that it sends and each answer. Its exit code is 0 however it ends: an answer
that has not come tells of a failure. Streamed answers it counts by itself, and caches it tells of in thousands, so
these figures are estimates. The price table of the ledger knows better what they cost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kapell.runtimes.adapters.contract import Effect, Say, Step, Use, Verdict
from kapell.runtimes.adapters.reading import SHOWN, cut, event_of, failure, number, part, text, unfinished

_HINT = (
    "give the profile the key of its provider, such as OPENAI_API_KEY: "
    'env_from_secret = { OPENAI_API_KEY = "name-of-a-secret" }, and name the model by --model'
)
_MOST_LINES = 10_000
_MODEL = re.compile(r"(?:Main model|Model): (\S+) with ")
_EDIT = re.compile(r"(?:Applied edit to|Commit \S+) (.+)")
_CACHE = re.compile(r"(\d+(?:\.\d+)?)([kM]?) cache (hit|write)")
_TIMES = {"": 1, "k": 1_000, "M": 1_000_000}
_GIVEN_UP = re.compile(r"Only \d+ reflections allowed")


def build(argv: Sequence[str]) -> Aider:
    """The adapter for one run."""
    return Aider(streams="--no-stream" not in argv)


class Aider:
    """Reads one run."""

    def __init__(self, *, streams: bool) -> None:
        self._streams = streams
        self._model = ""
        self._lines: list[str] = []
        self._answered = 0
        """How many of the lines are the answer; below it are figures, and what aider says itself."""
        self._cached = {"hit": 0, "write": 0}
        self._is_asking = False
        self._message = ""
        self._given_up = ""
        self._ended = False

    def feed(self, line: str) -> Iterator[Effect]:
        event = event_of(line)
        if event is None or not isinstance(event.get("event"), str) or not isinstance(event.get("properties"), Mapping):
            yield from self._told(line)
            return
        match event["event"]:
            case "message_send_starting":
                self._is_asking = True
                self._lines.clear()
                self._answered = 0
                yield Step("asking", self._model)
            case "message_send":
                self._is_asking = False
                self._message = "\n".join(self._lines[: self._answered or None]).strip()
                yield from self._used(part(event, "properties"))
            case "exit":
                self._ended = True

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        if self._is_asking and self._lines:
            return Verdict(failure=failure("aider", "aider", "\n".join(self._lines), _HINT))
        if self._given_up:
            return Verdict(failure=failure("aider", "aider", self._given_up, _HINT))
        if code:
            return Verdict()
        if self._ended and self._message and not self._is_asking:
            return Verdict(message=self._message)
        said = "\n".join(self._lines[-20:]).strip() if not self._message else ""
        return Verdict(failure=failure("aider", "aider", said, _HINT) if said else unfinished("aider"))

    def _told(self, line: str) -> Iterator[Effect]:
        yield Say(line)
        if found := _MODEL.match(line):
            self._model = found[1]
        elif line.startswith("Tokens: "):
            self._answered = len(self._lines)
            for figure, times, kind in _CACHE.findall(line):
                self._cached[kind] = round(min(float(figure), 1e9) * _TIMES[times])
        elif found := _EDIT.match(line):
            yield Step("edit", found[1])
        elif _GIVEN_UP.match(line):
            self._given_up = f"it could not make the edit that its model wants: {cut(line)}"
        elif len(self._lines) < _MOST_LINES:
            self._lines.append(line[:SHOWN])

    def _used(self, said: Mapping[str, Any]) -> Iterator[Effect]:
        given, out = int(number(said, "prompt_tokens") or 0), int(number(said, "completion_tokens") or 0)
        read, written = self._cached["hit"], self._cached["write"]
        self._cached = {"hit": 0, "write": 0}
        if given <= 0 and out <= 0:
            return
        provider, _, model = (self._model or text(said, "main_model")).rpartition("/")
        yield Use(
            {
                "provider": provider,
                "model": model,
                "input_tokens": max(given, read + written),
                "cache_read_tokens": read,
                "cache_write_5m_tokens": written,
                "output_tokens": out,
                "estimated": self._streams or bool(read or written),
            }
        )
