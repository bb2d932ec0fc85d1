"""What the agent tells while it works: log, progress, usage, and at the end its last message as the result.

Text comes in fragments, so that it is logged line by line, masked also where a value is spread over
several. A message ends where something else begins; the last one is the result.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from acp.schema import (
    AgentMessageChunk,
    AgentPlanUpdate,
    AgentThoughtChunk,
    FileEditToolCallContent,
    SessionNotification,
    ToolCallProgress,
    ToolCallStart,
    ToolCallUpdate,
    UsageUpdate,
)

from kapell.rules.redaction import StreamRedactor
from kapell.runtimes._output import Kept, Lines
from kapell.runtimes._result import TEXT_BYTES
from kapell.runtimes.acp.protocol import call_tokens
from kapell.runtimes.acp.spending import Spending
from kapell.runtimes.contract import Attempt
from kapell.v1.common_pb2 import LOG_STREAM_STDOUT, LOG_STREAM_SYSTEM, LogStream

OVER = ("completed", "failed")
_MOST_CALLS = 100
"""Tool calls that are remembered; what an update leaves out is what was told before."""
_MOST_DIFF_CHARS = 1024 * 1024
_MOST_INPUT_CHARS = 256 * 1024
_MOST_ENTRIES = 100
_MOST_WHY = 500


@dataclass(kw_only=True, slots=True)
class ToolCall:
    """A call of a tool by the agent, as far as it was told."""

    title: str = ""
    kind: str = ""
    status: str = ""
    locations: tuple[str, ...] = ()
    diffs: tuple[FileEditToolCallContent, ...] = ()
    changed: tuple[str, ...] = ()
    """The files of the diffs, also where these were too large."""
    input: Any = None
    left_out: str = ""
    """What was too large to be remembered, in words."""

    def take(self, told: ToolCallStart | ToolCallUpdate) -> None:
        """What is told anew takes the place of what was; what is left out stays."""
        self.title = told.title or self.title
        self.kind = told.kind or self.kind
        self.status = told.status or self.status
        if told.raw_input is not None:
            is_small = len(json.dumps(told.raw_input, default=str)) <= _MOST_INPUT_CHARS
            self.input = told.raw_input if is_small else None
            self.left_out = "" if is_small else "its input is too large to be shown"
        if told.locations is not None:
            self.locations = tuple(
                place.path if place.line is None else f"{place.path}:{place.line}" for place in told.locations
            )
        if told.content is not None:
            self._take_diffs([part for part in told.content if isinstance(part, FileEditToolCallContent)])
        if self.status in OVER:
            self.diffs, self.input = (), None

    def _take_diffs(self, diffs: list[FileEditToolCallContent]) -> None:
        self.changed = tuple(dict.fromkeys(diff.path for diff in diffs))
        if sum(len(diff.new_text) + len(diff.old_text or "") for diff in diffs) > _MOST_DIFF_CHARS:
            self.left_out = "its change is too large to be shown"
            diffs = []
        self.diffs = tuple(diffs)

    @property
    def paths(self) -> list[str]:
        """The files it names, each once."""
        places = [place.rpartition(":")[0] if place.rpartition(":")[2].isdigit() else place for place in self.locations]
        return list(filter(None, dict.fromkeys([*places, *self.changed])))

    def __str__(self) -> str:
        where = ", ".join(self.locations[:5])
        return f"{self.kind or 'tool'}: {self.title or 'untitled'}" + (f" ({where})" if where else "")


class Speech:
    """One of the agent's voices: fragments in, lines of the log out."""

    def __init__(self, attempt: Attempt, stream: LogStream.ValueType, *, keep: int, prefix: str = "") -> None:
        self.kept = Kept(keep)
        """The end of what was said last."""
        self._keep = keep
        self._attempt = attempt
        self._stream = stream
        self._prefix = prefix
        self._is_open = False
        self._begin()

    def say(self, text: str) -> None:
        if not self._is_open:
            self.kept = Kept(self._keep)
            self._is_open = True
        self._take(self._masked.feed(text.encode(errors="replace")))

    def end(self) -> None:
        """The message is complete; what is said next is another one."""
        if self._is_open:
            self._take(self._masked.finish())
            for piece in self._lines.finish():
                self._log(piece.text)
            self._begin()

    def _begin(self) -> None:
        self._is_open = False
        self._lines = Lines()
        self._masked = StreamRedactor(self._attempt.redactor)

    def _take(self, data: bytes) -> None:
        self.kept.add(data)
        for piece in self._lines.feed(data):
            self._log(piece.text)

    def _log(self, line: bytes) -> None:
        self._attempt.log(self._prefix + line.decode(errors="replace"), self._stream)


class Updates:
    """Everything that is told in one attempt."""

    def __init__(self, attempt: Attempt, *, hide_thoughts: bool) -> None:
        self.is_muted = False
        """An earlier session is told again; none of it is news."""
        self.calls: OrderedDict[str, ToolCall] = OrderedDict()
        self._is_over = False
        self._attempt = attempt
        self._message = Speech(attempt, LOG_STREAM_STDOUT, keep=TEXT_BYTES)
        self._thoughts = Speech(attempt, LOG_STREAM_SYSTEM, keep=1, prefix="thinks: ")
        self._hide_thoughts = hide_thoughts
        self._message_id: str | None = None
        self._fraction: float | None = None
        self._plan: tuple[str, ...] = ()
        self.spending = Spending(attempt)

    @property
    def result(self) -> Kept:
        """The last message."""
        return self._message.kept

    def take(self, notification: SessionNotification, payload: dict[str, Any]) -> None:
        """One update; `payload` is how it came."""
        update = notification.update
        if self._is_over and not isinstance(update, UsageUpdate):
            return
        if not isinstance(update, AgentThoughtChunk):
            self._thoughts.end()
        if isinstance(update, ToolCallStart | ToolCallProgress):
            self._tool(update)
            return
        if self.is_muted:
            return
        match update:
            case AgentMessageChunk():
                self._say(update)
                if tokens := call_tokens(payload["update"]):
                    self.spending.call(tokens)
            case AgentThoughtChunk():
                if not self._hide_thoughts:
                    self._thoughts.say(_text_of(update.content))
            case AgentPlanUpdate():
                self._take_plan(update)
            case UsageUpdate():
                self.spending.cost(payload)

    def pause(self) -> None:
        """What was being said is complete: a question follows, or the turn is over."""
        self._message.end()
        self._thoughts.end()

    def finish(self) -> None:
        """All turns are over, or the agent is; but for usage, what is told from now on is none of it."""
        self._is_over = True
        self.pause()
        self.spending.finish()

    def call(self, told: ToolCallStart | ToolCallUpdate) -> ToolCall:
        """The call of a tool as it is known now."""
        call = self.calls.setdefault(told.tool_call_id, ToolCall())
        call.take(told)
        if len(self.calls) > _MOST_CALLS:
            self.calls.popitem(last=False)
        return call

    def _say(self, update: AgentMessageChunk) -> None:
        message_id = getattr(update, "message_id", None)
        if message_id and self._message_id and message_id != self._message_id:
            self._message.end()
        self._message_id = message_id
        self._message.say(_text_of(update.content))

    def _tool(self, update: ToolCallStart | ToolCallProgress) -> None:
        is_new = update.tool_call_id not in self.calls
        before = "" if is_new else self.calls[update.tool_call_id].status
        call = self.call(update)
        if self.is_muted:
            return
        self._message.end()
        if is_new:
            self._attempt.log(str(call), LOG_STREAM_SYSTEM)
        elif call.status == "failed" != before:
            why = _why(update)
            self._attempt.log(f"failed: {call}" + (f": {why}" if why else ""), LOG_STREAM_SYSTEM)
        if call.status not in OVER:
            self._attempt.progress(self._fraction, call.title, ", ".join(call.locations[:5]))

    def _take_plan(self, update: AgentPlanUpdate) -> None:
        self._message.end()
        entries = update.entries[:_MOST_ENTRIES]
        if not entries:
            return
        done = sum(entry.status == "completed" for entry in entries)
        self._fraction = done / len(entries)
        current = next((entry.content for entry in entries if entry.status == "in_progress"), "")
        self._attempt.progress(self._fraction, current, f"{done} of {len(entries)} steps of the plan are done")
        plan = tuple(entry.content for entry in entries)
        if plan != self._plan:
            self._plan = plan
            self._attempt.log("plan:\n" + "\n".join(_numbered(plan)), LOG_STREAM_SYSTEM)


def _numbered(entries: Iterable[str]) -> list[str]:
    return [f"  {number}. {entry}" for number, entry in enumerate(entries, 1)]


def _why(update: ToolCallStart | ToolCallProgress) -> str:
    """What a tool that has failed says about it."""
    texts = [_text_of(part.content) for part in update.content or () if part.type == "content"]
    return " ".join(" ".join(texts).split())[:_MOST_WHY]


def _text_of(content: Any) -> str:
    """A block of content as text."""
    match content.type:
        case "text":
            return str(content.text)
        case "resource_link":
            return f"[{content.uri}]"
        case "resource":
            return str(getattr(content.resource, "text", f"[{content.resource.uri}]"))
    return f"[{content.type}]"
