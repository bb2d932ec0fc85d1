"""Patterns in words: what `^task_[a-z0-9][a-z0-9_-]{0,58}$` allows, for people.

Understands what the rules of the protos are written in: text, classes of characters with a number of
repetitions, one optional group, alternatives. Anything else stays a pattern.
"""

from __future__ import annotations

import re
from functools import lru_cache

_CLASS = re.compile(r"\[(\^?)((?:\\.|[^\]\\])+)\](?:\{(\d+)(,?)(\d*)\}|([*+?]))?")
_MANY = 1 << 30
_NAMED = {"\\x00": "NUL", "\\x5c": "\\", "\\x7f": ""}
_KNOWN = {
    "[0-9]{4}-[0-9]{2}-[0-9]{2}": "a date such as 2026-11-23",
    "[A-Za-z_][A-Za-z0-9_]{0,62}([.][A-Za-z_][A-Za-z0-9_]{0,62}){0,7}:[A-Za-z_][A-Za-z0-9_]{0,62}": (
        "a module and a name in it, such as shop.agents:worker"
    ),
    "(user|agent):[A-Za-z0-9][A-Za-z0-9._@-]{0,63}": "a user or an agent, such as user:alice or agent:agent_42",
    r"[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}(=[^\x00]{0,256})?": "a label such as team, or with its value team=web",
    r"https?://[^\s\x00/?#@]+([/?][^\s\x00#]*)?": "an http or https URL without user and fragment",
    r"[A-Za-z0-9_][^\x00-\x20~^:?*\[\\\x7f]*": "a branch, tag or commit, such as main or release/1.2",
    r"[^\x00/][^\x00]*": "a relative path, such as package.json",
}
"""What is better said by an example."""
_WRONG = re.compile(r"does not match regex pattern `(.+)`")


def in_words(violation: str) -> str:
    """What protovalidate says of a field, with its pattern put in words."""
    found = _WRONG.search(violation)
    return violation if found is None else violation[: found.start()] + allowed(found[1])


@lru_cache(maxsize=256)
def allowed(pattern: str) -> str:
    """As in "must be 'task_' and then 1 to 59 of a-z, 0-9, '_' and '-', the first of them a-z or 0-9"."""
    try:
        return _allowed(pattern)
    except ValueError:
        return f"must match {pattern}"


def _allowed(pattern: str) -> str:
    if not (pattern.startswith("^") and pattern.endswith("$")):
        raise ValueError(pattern)
    body = pattern[1:-1]
    if body in _KNOWN:
        return f"must be {_KNOWN[body]}"
    if body.startswith("(") and body.endswith(")"):
        return "must be " + ", or ".join(map(_sequence, body[1:-1].split("|")))
    if body.startswith("(") and body.endswith(")?"):
        return f"must be empty, or {_sequence(body[1:-2])}"
    group = re.fullmatch(r"([^(]+)\(([^()]+)\)\?", body)
    if group is not None:
        return f"must be {_sequence(group[1])}, and perhaps {_sequence(group[2])}"
    refused = _CLASS.fullmatch(body)
    if refused is not None and refused[1]:
        return _without(refused)
    return f"must be {_sequence(body)}"


def _without(found: re.Match[str]) -> str:
    least, most = _bounds(found)
    names = _characters(found[2])
    if (least, most) == (0, _MANY):
        return f"must not contain {_joined(names, 'or')}"
    size = f"at most {most}" if not least else f"{least} to {most}"
    return f"must be {size} characters without {_joined(names, 'and')}"


def _sequence(body: str) -> str:
    """Text, then one or two classes: the second goes on where the first has begun."""
    if body in _KNOWN:
        return _KNOWN[body]
    text = re.match(r"(?:[^\[\\(){}*+?|.^$]|\[[*]\])*", body)
    assert text is not None
    literal = text[0].replace("[*]", "*")
    classes = list(_CLASS.finditer(body, text.end()))
    if "".join(found[0] for found in classes) != body[text.end() :] or len(classes) > 2:
        raise ValueError(body)
    if any(found[1] for found in classes) or not (literal or classes):
        raise ValueError(body)
    said = [f"'{literal}'"] if literal else []
    if classes:
        said.append(_counted(classes))
    return " and then ".join(said)


def _counted(classes: list[re.Match[str]]) -> str:
    last = classes[-1]
    least, most = _bounds(last)
    first = ""
    if len(classes) == 2:
        if _bounds(classes[0]) != (1, 1):
            raise ValueError(classes[0][0])
        least, most = least + 1, most + 1
        begin = _characters(classes[0][2])
        first = f", the first of them {_joined(begin, 'or')}" if begin != _characters(last[2]) else ""
    size = f"{least} or more" if most >= _MANY else str(least) if least == most else f"{least} to {most}"
    size = f"at most {most}" if not least and most < _MANY else size
    return f"{size} of {_joined(_characters(last[2]), 'and')}{first}"


def _bounds(found: re.Match[str]) -> tuple[int, int]:
    least, comma, most, sign = found[3], found[4], found[5], found[6]
    if sign:
        return {"*": (0, _MANY), "+": (1, _MANY), "?": (0, 1)}[sign]
    if not least:
        return 1, 1
    return int(least), int(most) if most else _MANY if comma else int(least)


def _characters(inside: str) -> list[str]:
    names: list[str] = []
    for part in re.findall(r"\\x..-\\x..|\\x..|\\.|[^\\]-[^\]\\]|[^\\]", inside):
        match part:
            case "\\x00-\\x1f":
                names.append("control characters")
            case " -~":
                names.append("printable ASCII characters")
            case _ if part in _NAMED:
                names.append(f"'{_NAMED[part]}'" if part == "\\x5c" else _NAMED[part])
            case _ if len(part) == 3:
                names.append(part)
            case " ":
                names.append("spaces")
            case _:
                names.append(f"'{part[-1]}'")
    return [name for name in names if name]


def _joined(names: list[str], last: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
