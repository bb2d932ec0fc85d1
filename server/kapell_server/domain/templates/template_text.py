"""The language of prompts: text with tags in single braces, and nothing that could run.

The tags are described at the top of template.proto. A text is parsed once and rendered often.
Rendering only looks up values by name, so there is nothing to break out of; it takes a number of
steps and yields a length that are both capped, so it always ends soon. The surprise: a line with
nothing but one if, else, each or end disappears whole, so that prompts can be laid out freely.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from kapell_server.domain.tasks.prompt import Part, Place, joined, place_of

MAX_RENDERED = 262_144
"""Most characters, and most bytes, of a rendered text."""
MAX_STEPS = 20_000
"""Most tags that rendering may visit, each turn of a loop counted."""
MAX_DEPTH = 16
"""Most blocks within each other."""
MAX_TAGS = 5_000
"""Most tags of all texts of a template: what checking it, and holding it parsed, costs at most."""

RESERVED = frozenset({"if", "else", "each", "end", "item", "index", "not", "is", "deps"})
"""Words of the language, which no parameter may be named."""

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_LINE_END = re.compile(r"[ \t]*(?:\n|\Z)")
_NAME = r"[a-z][a-z0-9_]{0,62}(?:\.[A-Za-z0-9_-]+)*"
_VALUE = re.compile(rf"({_NAME})(?:\|([a-z]+))?")
_IF = re.compile(rf"if[ \t]+(not[ \t]+)?({_NAME})")
_IF_IS = re.compile(rf"if[ \t]+({_NAME})[ \t]+is[ \t]+(not[ \t]+)?(\S(?:[^{{}}]*\S)?)")
_EACH = re.compile(rf"each[ \t]+({_NAME})")


class TextError(ValueError):
    """A text that cannot be parsed or rendered; says where, why and what to write instead."""


@dataclass(frozen=True, slots=True)
class Name:
    """A value by its name, and then by the entries of objects."""

    root: str
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.root, *self.fields))


@dataclass(frozen=True, slots=True)
class Put:
    """A tag that stands for a value."""

    name: Name
    form: str
    line: int


@dataclass(frozen=True, slots=True)
class If:
    """Two branches. `word` is None where only having a value counts."""

    name: Name
    negated: bool
    word: str | None
    then: list[Node]
    otherwise: list[Node]
    line: int


@dataclass(frozen=True, slots=True)
class Each:
    """A body for every entry of an array."""

    name: Name
    body: list[Node]
    line: int


Node = str | Put | If | Each | Place


@dataclass(slots=True)
class _Open:
    """A block whose end has not been seen."""

    node: If | Each
    in_else: bool = False


def count_tags(texts: Iterable[str], limit: int) -> int:
    """How many tags, doubled and stray braces the texts have together; counts no further than one beyond `limit`."""
    found = (part for text in texts for part in _PART.finditer(text))
    return sum(1 for _ in islice(found, limit + 1))


def parse(text: str) -> list[Node]:
    """The text as nodes. Raises TextError for the first tag that is none."""
    parser = _Parser(text)
    for part in _PART.finditer(text):
        parser.take(part)
    return parser.finish()


@dataclass(slots=True)
class _Parser:
    text: str
    nodes: list[Node] = field(default_factory=list)
    open: list[_Open] = field(default_factory=list)
    at: int = 0
    line: int = 1
    counted: int = 0

    def take(self, part: re.Match[str]) -> None:
        """One tag, doubled brace or stray brace, and the text before it."""
        if part.start() < self.at:
            return
        self.line += self.text.count("\n", self.counted, part.start())
        self.counted = part.start()
        tag = part.group(1)
        if part.group() in ("{{", "}}"):
            self._add(self.text[self.at : part.start()] + part.group()[0])
            self.at = part.end()
        elif tag is None:
            raise self._error(f"a single {part.group()}; a brace that is meant as one is doubled")
        elif tag.split(" ", 1)[0].split("\t", 1)[0] in ("if", "else", "each", "end"):
            self._skip_to(part)
            self._block(tag.strip())
        else:
            self._add(self.text[self.at : part.start()])
            self._add(self._put(tag.strip()))
            self.at = part.end()

    def finish(self) -> list[Node]:
        """The nodes of the whole text."""
        self._add(self.text[self.at :])
        if self.open:
            node = self.open[-1].node
            word = "if" if isinstance(node, If) else "each"
            raise TextError(f"line {node.line}: {{{word} {node.name}}} has no {{end}}")
        return self.nodes

    def _skip_to(self, part: re.Match[str]) -> None:
        """Adds the text before a block's tag; a line that holds nothing else is dropped."""
        line_start = self.text.rfind("\n", self.at, part.start()) + 1
        begins_line = line_start > 0 or self.at == 0 or self.text[self.at - 1] == "\n"
        line_start = max(line_start, self.at)
        rest = _LINE_END.match(self.text, part.end())
        if begins_line and rest is not None and not self.text[line_start : part.start()].strip(" \t"):
            self._add(self.text[self.at : line_start])
            self.at = rest.end()
        else:
            self._add(self.text[self.at : part.start()])
            self.at = part.end()

    def _block(self, tag: str) -> None:
        match tag:
            case "end":
                if not self.open:
                    raise self._error("{end} ends nothing; there is no {if} or {each} before it")
                self.open.pop()
            case "else":
                if not self.open or not isinstance(self.open[-1].node, If) or self.open[-1].in_else:
                    raise self._error("{else} belongs to no {if}")
                self.open[-1].in_else = True
            case _:
                self._begin(tag)

    def _begin(self, tag: str) -> None:
        node: If | Each
        if found := _EACH.fullmatch(tag):
            node = Each(_name(found[1]), [], self.line)
        elif found := _IF_IS.fullmatch(tag):
            node = If(_name(found[1]), bool(found[2]), found[3], [], [], self.line)
        elif found := _IF.fullmatch(tag):
            node = If(_name(found[2]), bool(found[1]), None, [], [], self.line)
        else:
            raise self._error(
                f"{{{tag}}} is not understood; write {{if name}}, {{if not name}}, {{if name is word}} or {{each name}}"
            )
        if len(self.open) >= MAX_DEPTH:
            raise self._error(f"more than {MAX_DEPTH} blocks are within each other")
        self._add(node)
        self.open.append(_Open(node))

    def _put(self, tag: str) -> Put | Place:
        place = place_of(tag)
        if place is not None:
            return place
        found = _VALUE.fullmatch(tag)
        if found is None:
            raise self._error(
                f"{{{_cut(tag)}}} is no tag; a tag is a parameter's name, and a brace that is meant as one is doubled"
            )
        form = found[2] or ""
        if form not in FORMS:
            raise self._error(f"{{{tag}}} asks for an unknown form; there are {', '.join(filter(None, FORMS))}")
        return Put(_name(found[1]), form, self.line)

    def _add(self, node: Node) -> None:
        if node == "":
            return
        target = self.nodes
        if self.open:
            block = self.open[-1]
            if isinstance(block.node, Each):
                target = block.node.body
            else:
                target = block.node.otherwise if block.in_else else block.node.then
        target.append(node)

    def _error(self, what: str) -> TextError:
        return TextError(f"line {self.line}: {what}")


def condition(text: str) -> If:
    """What stands behind an if, as in "not fast" or "mode is deep", with empty branches. Raises TextError."""
    said = f"if {text.strip()}"
    if found := _IF_IS.fullmatch(said):
        return If(_name(found[1]), bool(found[2]), found[3], [], [], 1)
    if found := _IF.fullmatch(said):
        return If(_name(found[2]), bool(found[1]), None, [], [], 1)
    raise TextError(f"{_cut(text)!r} is not understood; write name, not name, name is word or name is not word")


def _name(text: str) -> Name:
    root, *fields = text.split(".")
    return Name(root, tuple(fields))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# -- rendering -----------------------------------------------------------------------------------


def render(nodes: list[Node], values: Mapping[str, Any], *, limit: int = MAX_RENDERED) -> str:
    """The text with `values` put in: plain JSON values by parameter, None counting as absent.

    Raises TextError for what is absent and not asked for with if, and beyond the caps.
    """
    return joined(Renderer(values, limit=limit).parts(nodes))


class Renderer:
    """Renders the texts of one template for the same values; what they cost is capped for all together.

    In place of the results of dependencies in `left_out` a few words are written.
    """

    def __init__(self, values: Mapping[str, Any], left_out: Collection[str] = (), *, limit: int = MAX_RENDERED) -> None:
        self.values = values
        self._left_out = left_out
        self._limit = limit
        self._size = 0
        self._steps = 0

    def parts(self, nodes: list[Node]) -> list[Part]:
        """The text, with the places of results kept apart. Raises TextError."""
        rendering = _Rendering(self._limit, self._left_out, self._size, self._steps)
        rendering.run(nodes, self.values)
        self._size += len(joined(rendering.parts).encode(errors="replace"))
        self._steps = rendering.steps
        if self._size > self._limit:
            raise rendering.too_long()
        return rendering.parts

    def line(self, nodes: list[Node], limit: int) -> str:
        """A short text as one line; its length does not count towards the cap of the others."""
        return " ".join(self.text(nodes, limit).split())

    def text(self, nodes: list[Node], limit: int, instead: Mapping[str, Any] | None = None) -> str:
        """A short text as it is, which does not count either; with other values for some names. Raises TextError."""
        rendering = _Rendering(limit, (), 0, self._steps)
        rendering.run(nodes, {**self.values, **instead} if instead else self.values)
        self._steps = rendering.steps
        return joined(rendering.parts)


def places(nodes: list[Node]) -> Iterator[Place]:
    """Every place of a result, in the order of the text."""
    for node in nodes:
        match node:
            case Place():
                yield node
            case If():
                yield from places(node.then)
                yield from places(node.otherwise)
            case Each():
                yield from places(node.body)


@dataclass(slots=True)
class _Rendering:
    limit: int
    left_out: Collection[str]
    length: int
    steps: int
    parts: list[Part] = field(default_factory=list)

    def run(self, nodes: list[Node], values: Mapping[str, Any]) -> None:
        for node in nodes:
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise TextError(f"it takes more than {MAX_STEPS:,} steps; shorten the lists it loops over")
            match node:
                case str():
                    self._write(node)
                case Place():
                    left_out = node.dependency in self.left_out
                    self._write(f"(step {node.dependency} was left out)" if left_out else node)
                case Put():
                    self._put(node, _existing(node.name, values, node.line))
                case If():
                    self.run(node.then if holds(node, values) else node.otherwise, values)
                case Each():
                    self._each(node, values)

    def _put(self, node: Put, value: Any) -> None:
        text = FORMS[node.form](value)
        if node.form in _SHRINKING:
            # What is read counts where less of it is written, or a blank text could be read for ever.
            self.length += max(0, _bulk(value) - len(text))
        self._write(text)

    def _each(self, node: Each, values: Mapping[str, Any]) -> None:
        entries = _find(node.name, values)
        if entries is None:
            return
        if not isinstance(entries, list):
            raise TextError(f"line {node.line}: {{each {node.name}}} needs a list, and {node.name} is none")
        inner = dict(values)
        for index, entry in enumerate(entries, 1):
            inner["item"], inner["index"] = entry, index
            self.run(node.body, inner)
            # An empty body costs a turn, too.
            self.steps += 1

    def _write(self, part: Part) -> None:
        self.length += len(part) if isinstance(part, str) else len(str(part))
        if self.length > self.limit:
            raise self.too_long()
        self.parts.append(part)

    def too_long(self) -> TextError:
        return TextError(f"it gets longer than {self.limit:,} bytes; pass paths instead of contents")


def _find(name: Name, values: Mapping[str, Any]) -> Any:
    """The value, or None where there is none on the way."""
    value = values.get(name.root)
    for step in name.fields:
        if not isinstance(value, dict):
            return None
        value = value.get(step)
    return value


def _existing(name: Name, values: Mapping[str, Any], line: int) -> Any:
    value = _find(name, values)
    if value is None:
        raise TextError(f"line {line}: {{{name}}} has no value; give it one, or ask with {{if {name}}} before")
    return value


def holds(node: If, values: Mapping[str, Any]) -> bool:
    """Whether a condition is true of the values."""
    value = _find(node.name, values)
    if node.word is None:
        there = value is not None and value is not False and value not in ("", [], {})
    else:
        there = value is not None and not isinstance(value, (list, dict)) and _bare(value) == node.word
    return there is not node.negated


def _bare(value: Any) -> str:
    """Text as it is, lists joined, everything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_scalar, value))
    return _scalar(value)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _entries(value: Any) -> list[str]:
    return [_scalar(entry) for entry in value] if isinstance(value, list) else [_scalar(value)]


def _list(value: Any) -> str:
    return "\n".join("- " + entry.replace("\n", "\n  ") for entry in _entries(value))


def _fence(value: Any) -> str:
    """A code block; its fence is longer than any run of backticks in it."""
    text = "\n".join(_entries(value)).rstrip("\n")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _quote(value: Any) -> str:
    return "\n".join(f"> {line}".rstrip() for line in "\n".join(_entries(value)).split("\n"))


FORMS: dict[str, Callable[[Any], str]] = {
    "": _bare,
    "list": _list,
    "lines": lambda value: "\n".join(_entries(value)),
    "comma": _bare,
    "json": lambda value: json.dumps(value, ensure_ascii=False),
    "fence": _fence,
    "quote": _quote,
    "shell": lambda value: " ".join(map(shlex.quote, _entries(value))),
}
"""How a value is written, by the word behind the bar."""


_SHRINKING = frozenset({"fence", "quote"})
"""The forms that leave out blanks."""


def _bulk(value: Any) -> int:
    """How many characters of text a value has, a break for each entry counted."""
    return sum(
        len(entry) + 1 if isinstance(entry, str) else 1 for entry in (value if isinstance(value, list) else [value])
    )


# -- what a text asks for --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Use:
    """A place where a text names a value. `guarded` where it is known there to have one."""

    name: Name
    line: int
    kind: str
    """"put", "if" or "each"."""
    guarded: bool


def uses(nodes: list[Node], known: frozenset[str] = frozenset(), local: frozenset[str] = frozenset()) -> Iterator[Use]:
    """Every use of a name that is not `item` or `index` of a loop around it.

    `known` are names that have a value here, `local` those of loops around.
    """
    for node in nodes:
        if isinstance(node, (str, Place)):
            continue
        root = node.name.root
        if root not in local:
            kind = {Put: "put", If: "if", Each: "each"}[type(node)]
            yield Use(node.name, node.line, kind, root in known)
        match node:
            case If():
                here = known if node.name.fields else known | {root}
                sure = not node.negated
                yield from uses(node.then, here if sure else known, local)
                yield from uses(node.otherwise, known if sure or node.word is not None else here, local)
            case Each():
                yield from uses(node.body, known | {root}, local | {"item", "index"})
