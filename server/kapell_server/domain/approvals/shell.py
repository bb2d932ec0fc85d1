"""A command line taken apart as a POSIX shell would, as far as that can be known without running it.

For rules and risk only: nothing is ever executed. Whatever is doubtful is marked as such, so that no
pattern matches it: what a shell would put together when it runs (`$(…)`, backticks, variables as
programs), files that are written, text that does not end. Linear in the length of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import re2

MOST_BYTES = 16_384
"""A longer command is not looked at beyond this: it counts as unreadable."""
MOST_PARTS = 200
"""More parts than this are not looked at: the command counts as unreadable."""
_DEEPEST = 6
_OPERATORS = ("&&", "||", "|&", ";;", ";", "|", "&", "\n", "(", ")")
_REDIRECTS = ("&>>", "&>", ">>", ">|", ">&", "<<<", "<<", "<&", "<>", ">", "<")
_RESERVED = frozenset({"if", "then", "else", "elif", "fi", "do", "done", "while", "until", "!", "{", "}"})
SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox"})
PREFIXES: dict[str, frozenset[str]] = {
    "sudo": frozenset({"-u", "-g", "-h", "-p", "-C", "-T", "-R", "-D", "--user", "--group"}),
    "doas": frozenset({"-u", "-C"}),
    "env": frozenset({"-u", "-C", "-S", "--unset", "--chdir"}),
    "nohup": frozenset(),
    "nice": frozenset({"-n"}),
    "ionice": frozenset({"-c", "-n", "-p"}),
    "timeout": frozenset({"-k", "-s", "--signal", "--kill-after"}),
    "stdbuf": frozenset({"-i", "-o", "-e"}),
    "setsid": frozenset(),
    "xargs": frozenset({"-I", "-n", "-P", "-L", "-d", "-a", "-E", "-s"}),
    "exec": frozenset({"-a"}),
    "command": frozenset(),
    "builtin": frozenset(),
    "pkexec": frozenset({"--user"}),
    "chroot": frozenset(),
    "watch": frozenset({"-n"}),
    "strace": frozenset({"-o", "-e", "-p"}),
    "coproc": frozenset(),
    "time": frozenset({"-f", "-o"}),
    "parallel": frozenset({"-j", "-a", "-I"}),
    "flock": frozenset({"-w", "-E"}),
    "taskset": frozenset(),
    "unshare": frozenset(),
}
"""Programs that run the rest of their words, with those of their options that take a value."""
_BY_SHELL = frozenset({"watch", "parallel"})
"""Those that give the rest of their words to a shell, as one text."""
_BY_OPTION = {"su": ("-c", "--command"), "runuser": ("-c", "--command"), "script": ("-c", "--command")}
"""Programs that take a command behind an option."""
_OF_SSH = frozenset({f"-{letter}" for letter in "bcDEFIiJLlmOopRSWw"})
_OPERANDS = {"timeout": 1, "chroot": 1, "flock": 1, "taskset": 1}
"""How many words of its own such a program takes before the rest."""


_ESCAPE = re2.compile(r"(?s)\\(x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{1,4}|U[0-9a-fA-F]{1,8}|[0-7]{1,3}|.)")
_LETTERS = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b", "E": "\x1b"}


def _spelt(match: Any) -> str:
    """The character of an escape."""
    text = match.group(1)
    if text[0] in "xuU" and len(text) > 1:
        return chr(min(int(text[1:], 16), 0xD7FF))
    return chr(int(text, 8)) if text[0] in "01234567" else _LETTERS.get(text, text)


@dataclass(slots=True)
class Part:
    """One simple command."""

    words: list[str] = field(default_factory=list)
    """Without quotes and assignments; the first one is the program."""
    assignments: list[str] = field(default_factory=list)
    redirects: list[tuple[str, str]] = field(default_factory=list)
    """(operator, target)."""
    piped_from: Part | None = None
    """The command whose output it reads."""
    is_dynamic: bool = False
    """Whether the shell puts some of it together only when it runs."""
    depth: int = 0

    @property
    def program(self) -> str:
        """The name of the program, without its directory; empty where there is none."""
        return self.words[0].rsplit("/", 1)[-1] if self.words else ""


@dataclass(slots=True)
class Shape:
    """A whole command line."""

    parts: list[Part] = field(default_factory=list)
    """What would run, and what runs within it: in substitutions, by `sh -c`, by sudo and its like."""
    is_readable: bool = True
    """False where quotes do not end or it is too long to look at: nothing can be said of it."""

    @property
    def is_plain(self) -> bool:
        """Whether it is known beforehand what each of its parts runs, and no file is written."""
        return self.is_readable and all(
            not part.is_dynamic and not part.assignments and not _writes(part) for part in self.parts
        )


def _writes(part: Part) -> bool:
    return any(operator not in ("<", "<<<") and target != "/dev/null" for operator, target in part.redirects)


@lru_cache(maxsize=64)
def take_apart(text: str) -> Shape:
    """The shape of a command line. Not to be altered: rules, risk and signature ask for the same."""
    shape = Shape()
    _read(text[:MOST_BYTES], shape, 0)
    shape.is_readable = shape.is_readable and len(text) <= MOST_BYTES
    return shape


def _read(text: str, shape: Shape, depth: int) -> None:
    """Adds the parts of `text`, and what runs within them."""
    if depth > _DEEPEST:
        shape.is_readable = False
        return
    reader = _Reader(text, shape, depth)
    for part in reader.parts():
        if len(shape.parts) >= MOST_PARTS:
            shape.is_readable = False
            return
        shape.parts.append(part)
        _unwrap(part, shape, depth)


def _unwrap(part: Part, shape: Shape, depth: int) -> None:
    """Adds what a part runs in its turn."""
    for inner in _run_by(part):
        if isinstance(inner, str):
            _read(inner, shape, depth + 1)
        elif depth < _DEEPEST and len(shape.parts) < MOST_PARTS:
            below = Part(words=inner, piped_from=part.piped_from, is_dynamic=part.is_dynamic, depth=depth + 1)
            shape.parts.append(below)
            _unwrap(below, shape, depth + 1)
        else:
            shape.is_readable = False


def _run_by(part: Part) -> Iterator[str | list[str]]:
    """The texts and words that the program of a part takes for commands."""
    words, program = part.words, part.program
    if program == "busybox":
        if len(words) > 1:
            yield words[1:]
    elif program in SHELLS:
        yield from _script_of(words[1:])
        yield from (target for operator, target in part.redirects if operator == "<<<")
    elif program == "eval":
        yield " ".join(words[1:])
    elif program in PREFIXES:
        if program == "env":
            yield from _split_by_env(words)
        rest = _behind_options(words[1:], PREFIXES[program])[_OPERANDS.get(program, 0) :]
        while program == "env" and rest and "=" in rest[0]:
            rest = rest[1:]
        if rest:
            yield " ".join(rest) if program in _BY_SHELL else rest
    elif program == "trap":
        yield from words[1:2]
    elif program == "alias":
        yield from (word.partition("=")[2] for word in words[1:])
    elif program in _BY_OPTION:
        yield from (words[index + 1] for index, word in enumerate(words[:-1]) if word in _BY_OPTION[program])
    elif program == "function":
        yield " ".join(words[2:])
    elif program == "find":
        for index, word in enumerate(words):
            if word in ("-exec", "-execdir", "-ok", "-okdir"):
                rest = words[index + 1 :]
                ends = [place for place, one in enumerate(rest) if one in (";", "+")]
                if rest:
                    yield rest[: ends[0]] if ends else rest
    elif program == "ssh":
        rest = _behind_options(words[1:], _OF_SSH)
        if len(rest) > 1:
            yield " ".join(rest[1:])


def _script_of(words: list[str]) -> Iterator[str]:
    """What a shell with these words takes for its script: that of `-c`, behind all options."""
    index, is_command = 0, False
    while index < len(words) and words[index][:1] in ("-", "+") and words[index] not in ("-", "--"):
        option = words[index]
        is_command |= option[0] == "-" and not option.startswith("--") and "c" in option
        is_named = option in ("--rcfile", "--init-file")
        index += 2 if is_named or (not option.startswith("--") and option[-1] in "oO") else 1
    index += words[index : index + 1] in (["-"], ["--"])
    if is_command:
        yield from words[index : index + 1]


def _split_by_env(words: list[str]) -> Iterator[str]:
    """The commands that `env -S` takes apart itself."""
    for index, word in enumerate(words[1:], 1):
        if word in ("-S", "--split-string"):
            yield " ".join(words[index + 1 :])
        elif word.startswith("--split-string="):
            yield " ".join([word.partition("=")[2], *words[index + 1 :]])
        elif word.startswith("-") and not word.startswith("--") and "S" in word:
            yield " ".join([word.partition("S")[2], *words[index + 1 :]])


def _is_variable(name: str) -> bool:
    """Whether what stands before `=` makes a word an assignment: `a=`, `a+=`, `a[0]=`."""
    name = name.removesuffix("+")
    return (name.partition("[")[0] if name.endswith("]") else name).isidentifier()


def _behind_options(words: list[str], with_value: frozenset[str]) -> list[str]:
    index = 0
    while index < len(words) and words[index].startswith("-") and words[index] != "-":
        if words[index] == "--":
            return words[index + 1 :]
        index += 2 if words[index] in with_value else 1
    return words[index:]


class _Reader:
    """Reads one text, character by character."""

    def __init__(self, text: str, shape: Shape, depth: int) -> None:
        self._text = text
        self._shape = shape
        self._depth = depth
        self._at = 0
        self._part = Part(depth=depth)
        self._word: list[str] | None = None
        self._redirect = ""
        self._inner: list[str] = []

    def parts(self) -> Iterator[Part]:
        """The simple commands, in their order; those in substitutions after the one they stand in."""
        before: Part | None = None
        while self._at < len(self._text):
            operator = self._step()
            if not operator:
                continue
            done = self._end_part(before)
            yield from self._given(done)
            before = done if operator in ("|", "|&") and done is not None else None
        yield from self._given(self._end_part(before))

    def _given(self, part: Part | None) -> Iterator[Part]:
        if part is not None:
            yield part
        inner, self._inner = self._inner, []
        for text in inner:
            _read(text, self._shape, self._depth + 1)

    def _step(self) -> str:
        """Reads one character or operator; the operator where it ends a command."""
        text, at = self._text, self._at
        char = text[at]
        if text.startswith("\\\n", at):
            self._at += 2  # The line goes on, and so does the word, if there is one.
        elif char == "\\":
            self._add(text[at + 1 : at + 2], 2)
        elif char == "'":
            self._add(self._until("'", at + 1), None)
        elif char == '"':
            self._quoted()
        elif char == "$" or char == "`":
            self._substitution()
        elif text.startswith(("<(", ">("), at):
            self._part.is_dynamic = True
            self._inner.append(self._bracketed(at + 1))
            self._add("", None)
        elif char in " \t":
            self._end_word()
            self._at += 1
        elif char == "#" and self._word is None:
            end = text.find("\n", at)
            self._at = len(text) if end < 0 else end
        else:
            return self._operator(char)
        return ""

    def _operator(self, char: str) -> str:
        for redirect in _REDIRECTS:
            if self._text.startswith(redirect, self._at):
                if self._word is not None and "".join(self._word).isdigit():
                    self._word = None
                self._end_word()
                self._redirect = redirect
                self._at += len(redirect)
                if redirect == "<<":
                    self._part.is_dynamic = True  # What follows is data of the command; no pattern is to match it.
                return ""
        for operator in _OPERATORS:
            if self._text.startswith(operator, self._at):
                self._at += len(operator)
                return operator
        if char == "{" and not self._text.startswith(("{}", "{ ", "{\n"), self._at):
            self._part.is_dynamic = True  # One word becomes several: {rm,-rf,/}.
        elif char in "*?[" and not self._part.words and not self._redirect:
            self._part.is_dynamic = True  # Which program that is depends on the files there are.
        self._add(char, 1)
        return ""

    def _add(self, text: str, length: int | None) -> None:
        """Adds to the word at hand; `length` is what was read, None where `_at` was moved already."""
        if self._word is None:
            self._word = []
        self._word.append(text)
        if length is not None:
            self._at += length

    def _until(self, end: str, start: int) -> str:
        stop = self._text.find(end, start)
        if stop < 0:
            self._shape.is_readable = False
            stop = len(self._text)
        self._at = stop + 1
        return self._text[start:stop]

    def _quoted(self) -> None:
        """Text in double quotes, in which a shell still substitutes."""
        self._add("", 1)
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                return
            if char == "\\" and self._text[self._at + 1 : self._at + 2] in ('"', "\\", "$", "`", "\n"):
                self._add(self._text[self._at + 1].removesuffix("\n"), 2)
            elif char in "$`":
                self._substitution()
            else:
                self._add(char, 1)
        self._shape.is_readable = False

    def _substitution(self) -> None:
        text, at = self._text, self._at
        if text[at] == "`":
            self._inner.append(self._until("`", at + 1))
            self._add("`…`", None)
            self._part.is_dynamic = True
        elif text.startswith("$'", at):
            self._part.is_dynamic = True  # Escapes that spell any character; no pattern is to match them.
            self._escaped(at + 2)
        elif text.startswith("$(", at):
            self._inner.append(self._bracketed(at + 1))
            self._add("$(…)", None)
            self._part.is_dynamic = True
        elif text.startswith("${", at):
            self._expansion(self._until("}", at + 2))
        else:
            after = text[at + 1 : at + 2]
            self._part.is_dynamic |= after.isalnum() or (after != "" and after in '_@*#?-$!"[')
            self._add("$", 1)

    def _escaped(self, start: int) -> None:
        """Text in $'…', with what its escapes spell."""
        at, text = start, self._text
        while at < len(text) and text[at] != "'":
            at += 2 if text[at] == "\\" else 1
        self._shape.is_readable = self._shape.is_readable and at < len(text)
        self._at = at + 1
        self._add(_ESCAPE.sub(_spelt, text[start:at]), None)

    def _expansion(self, text: str) -> None:
        """What stands in `${…}`; a default may run commands."""
        if "$(" in text or "`" in text:
            self._inner.append(text)
        self._add("${" + text + "}", None)
        self._part.is_dynamic = True

    def _bracketed(self, opening: int) -> str:
        """The text between a bracket and the one that closes it."""
        depth, at, text = 0, opening, self._text
        quote = ""
        while at < len(text):
            char = text[at]
            if char == "\\" and quote != "'":
                at += 1
            elif quote:
                quote = "" if char == quote else quote
            elif char in "'\"":
                quote = char
            elif char == "(":
                depth += 1
            elif char == ")":
                depth -= 1
                if depth == 0:
                    self._at = at + 1
                    return text[opening + 1 : at]
            at += 1
        self._shape.is_readable = False
        self._at = len(text)
        return text[opening + 1 :]

    def _end_word(self) -> None:
        if self._word is None:
            return
        word = "".join(self._word)
        self._word = None
        part = self._part
        name, equals, _ = word.partition("=")
        if self._redirect:
            part.redirects.append((self._redirect, word))
            self._redirect = ""
        elif equals and _is_variable(name) and not part.words:
            part.assignments.append(word)
        elif word not in _RESERVED or part.words:
            part.words.append(word)

    def _end_part(self, before: Part | None) -> Part | None:
        self._end_word()
        part, self._part = self._part, Part(depth=self._depth)
        self._redirect = ""
        if not part.words and not part.redirects and not part.assignments:
            return None
        part.piped_from = before
        return part
