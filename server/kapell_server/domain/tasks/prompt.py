"""Results in prompts: where they go, and what is written there. The form is described in dependency.proto.

A prompt is split once, when its task is created, into text and places; from then on only the
places are filled. So neither a result nor a parameter's value is ever read as a place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from kapell.v1.dependency_pb2 import PromptPart

MAX_PROMPT_BYTES = 262_144
_NAME_LENGTH = 80

_INNER = r"deps\.([a-z0-9][a-z0-9_-]{0,62})\.result((?:\.[A-Za-z0-9_-]+)*)"
_PLACE = re.compile(rf"\{{{_INNER}\}}")
_TAG = re.compile(_INNER)
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the result of a dependency goes, or an entry of it."""

    dependency: str
    path: tuple[str, ...]

    def __str__(self) -> str:
        return "{" + ".".join(("deps", self.dependency, "result", *self.path)) + "}"


Part = str | Place


def first_line(prompt: str) -> str:
    """What a task is called that has no other name."""
    line = prompt.lstrip()[: _NAME_LENGTH * 4].split("\n", 1)[0].rstrip()
    return line if len(line) <= _NAME_LENGTH else line[: _NAME_LENGTH - 1] + "…"


def place_of(tag: str) -> Place | None:
    """The place that a tag without its braces stands for; None for any other tag."""
    found = _TAG.fullmatch(tag)
    return None if found is None else _place(found)


def _place(found: re.Match[str]) -> Place:
    return Place(found[1], tuple(found[2].split(".")[1:]))


def split(prompt: str) -> list[Part]:
    """The prompt in pieces; a single one where it has no places."""
    parts: list[Part] = []
    at = 0
    for found in _PLACE.finditer(prompt):
        if found.start() > at:
            parts.append(prompt[at : found.start()])
        parts.append(_place(found))
        at = found.end()
    if at < len(prompt):
        parts.append(prompt[at:])
    return parts


def joined(parts: Iterable[Part]) -> str:
    """The pieces as the text they came from."""
    return "".join(map(str, parts))


def as_messages(parts: Iterable[Part]) -> list[PromptPart]:
    """The pieces as they are kept; text that follows text is joined to it."""
    messages: list[PromptPart] = []
    text: list[str] = []
    for part in parts:
        if isinstance(part, str):
            text.append(part)
            continue
        if text:
            messages.append(PromptPart(text="".join(text)))
            text.clear()
        messages.append(PromptPart(dependency=part.dependency, path=part.path))
    if text:
        messages.append(PromptPart(text="".join(text)))
    return messages


def from_messages(messages: Iterable[PromptPart]) -> list[Part]:
    """The pieces as they were kept."""
    return [Place(part.dependency, tuple(part.path)) if part.dependency else part.text for part in messages]


def filled(parts: Iterable[Part], write: Callable[[Place], str]) -> str | None:
    """The text with every place written; None where it gets longer than a prompt may be."""
    texts: list[str] = []
    size = 0
    for part in parts:
        text = part if isinstance(part, str) else write(part)
        size += len(text.encode(errors="replace"))
        if size > MAX_PROMPT_BYTES:
            return None
        texts.append(text)
    return "".join(texts)


def entry_of(result: Any, path: tuple[str, ...]) -> tuple[bool, Any]:
    """Whether a plain JSON value has an entry at `path`, and the entry."""
    for step in path:
        if isinstance(result, dict) and step in result:
            result = result[step]
        elif isinstance(result, list) and _INDEX.fullmatch(step) and int(step) < len(result):
            result = result[int(step)]
        else:
            return False, None
    return True, result


def written(value: Any) -> str:
    """A plain JSON value in a prompt: text as it is, anything else as compact JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
