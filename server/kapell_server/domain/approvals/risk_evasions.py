"""What a command line runs that is not spelt out in it: variables that are known, code in code, text that is piped on.

Finds only what can be known without running anything; the rest is for `risk_commands` to call not known.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

import re2

from kapell_server.domain.approvals.shell import SHELLS, Part, Shape

_VARIABLE = re2.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_BETWEEN = re2.compile(r"[\s'\"`()\[\]{},;]+")
_STRING = re2.compile(r"'([^'\n]{3,})'|\"([^\"\n]{3,})\"")
_CODE_OPTIONS = ("-c", "-e", "-E", "-r", "--eval", "--print", "-p", "-command", "-Command")
_NAMES = "python python2 python3 pypy perl ruby node nodejs php lua awk gawk mawk nawk osascript pwsh deno bun tclsh"
INTERPRETERS = SHELLS | frozenset(_NAMES.split())
_ALWAYS_CODE = frozenset({"awk", "gawk", "mawk", "nawk"})
_FETCHING = frozenset({"curl", "wget", "aria2c", "http", "xh", "nc", "ncat", "base64", "base32", "xxd", "openssl"})
_GRAVE = frozenset({"rm", "dd", "shred", "wipefs", "chmod", "chown", "curl", "wget", "nc", "terraform", "sh", "bash"})
_MOST_RESOLVED = 2_000
_MOST_IN_CODE = 8


def plain_name(program: str) -> str:
    """The name of a program without its version: python3.11 is python3."""
    head, dot, tail = program.partition(".")
    if dot and tail.isdigit() and head.startswith(("python", "pypy", "perl", "ruby", "lua", "tclsh")):
        return head
    return head if program.startswith("mkfs.") else program


def resolved(shape: Shape) -> Iterator[Part]:
    """Parts with the values of variables that the command line itself has given."""
    known = {"IFS": " "}
    for part in shape.parts:
        if known.keys() - {"IFS"} or any("IFS" in word for word in part.words):
            words = [piece for word in part.words for piece in _filled(word, known)]
            if words != part.words:
                yield Part(words=words, redirects=part.redirects, piped_from=part.piped_from, depth=part.depth)
        for assignment in [*part.assignments, *(part.words[1:] if part.program == "export" else ())]:
            name, equals, value = assignment.partition("=")
            if equals and len(value) <= _MOST_RESOLVED and len(known) < 50:
                known[name] = _with_known(value, known)


def _filled(word: str, known: dict[str, str]) -> list[str]:
    """A word with the variables that are known; several where a shell would split it."""
    if "$" not in word or len(word) > _MOST_RESOLVED:
        return [word]
    names = {one or other for one, other in _VARIABLE.findall(word)}
    if not names & known.keys():
        return [word]
    return _with_known(word, known).split() or [word]


def _with_known(text: str, known: dict[str, str]) -> str:
    """A text with the variables that are known; the others stay as they stand there."""
    filled = _VARIABLE.sub(lambda match: known.get(match.group(1) or match.group(2), match.group(0)), text)
    return str(filled)[:_MOST_RESOLVED]


def commands_in_code(part: Part) -> Iterator[str]:
    """What an interpreter's inline code seems to run: its strings, and its words as they follow each other."""
    program = plain_name(part.program)
    if program not in INTERPRETERS - SHELLS:
        return
    for index, word in enumerate(part.words[1:], 1):
        is_code = part.words[index - 1].startswith(_CODE_OPTIONS) or program in _ALWAYS_CODE
        if is_code and len(word) <= _MOST_RESOLVED:
            for single, double in _STRING.findall(word):
                yield single or double
            yield from _told_apart(_BETWEEN.split(word))


def _told_apart(pieces: list[str]) -> Iterator[str]:
    """What follows the names of programs that matter, as in run(["rm", "-rf", "/"])."""
    places = [index for index, piece in enumerate(pieces) if piece in _GRAVE or piece.endswith("rmtree")]
    for index in places[:_MOST_IN_CODE]:
        head = "rm -rf" if pieces[index].endswith("rmtree") else pieces[index]
        yield " ".join([head, *pieces[index + 1 : index + 20]])


def echoed_into_shell(part: Part) -> str:
    """The text that a shell is given to run by an echo before it; empty where there is none."""
    before = part.piped_from
    if part.program not in SHELLS or before is None or before.program not in ("echo", "printf"):
        return ""
    return "\n".join(word.replace("\\n", "\n") for word in before.words[1:] if not word.startswith("-"))


def runs_what_it_has_fetched(shape: Shape) -> str:
    """A file that is fetched or decoded, and run in the same line; empty where there is none."""
    fetched: set[str] = set()
    for part in shape.parts:
        for word in part.words[:1] if part.program not in INTERPRETERS | {".", "source"} else part.words[1:]:
            if fetched and posixpath.normpath(word) in fetched:
                return word
        if part.program == "chmod":
            continue
        if _is_fetched(part):
            fetched.update(posixpath.normpath(target) for operator, target in part.redirects if ">" in operator)
            fetched.update(_written_by(part))
    return ""


def _is_fetched(part: Part) -> bool:
    step: Part | None = part
    while step is not None:
        if step.program in _FETCHING:
            return True
        step = step.piped_from
    return False


def _written_by(part: Part) -> Iterator[str]:
    """The files that a program which fetches writes by itself."""
    words = part.words
    for index, word in enumerate(words[1:], 1):
        letters = word[1:] if word.startswith("-") and not word.startswith("--") else ""
        is_named = letters[-1:] in ("o", "O") or word in ("--output", "--output-document", "-out")
        if is_named and index + 1 < len(words):
            yield posixpath.normpath(words[index + 1])
        elif word.startswith(("--output=", "--output-document=")):
            yield posixpath.normpath(word.partition("=")[2])
        elif word.startswith("-o") and len(word) > 2:
            yield posixpath.normpath(word[2:])
        elif "://" in word or part.program == "tee":
            yield posixpath.basename(word)
