"""Words that adapters share: careful reading of events, and failures that several programs have."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kapell._worker.outcome import RateLimited, TaskFailed

SHOWN = 2000
"""Characters of a tool's output that are shown in the log; all of it is in the program's own records."""
_BRIEF = 200
_LIMIT_WITHOUT_A_TIME = 60.0
_STATUS = r"(?:\(|(?:status|code|http|error)\W{{0,4}}(?:code\W{{0,4}})?|^)({codes})\b"
_LIMITED = re.compile(
    _STATUS.format(codes="429|529") + r"|too many requests|rate.?limit|usage limit|quota exceeded|resource.?exhausted",
    re.I,
)
_NO_ACCESS = re.compile(
    _STATUS.format(codes="401|403") + r"|unauthori[sz]ed|not logged in|invalid (x-)?api.?key|incorrect api key"
    r"|api key (is )?(not valid|missing|invalid)|no api key|authentication|auth method|permission_denied",
    re.I,
)
_WAIT = re.compile(r"(?:try again|retry|reset\w*) (?:in|after) ((?:\d[\d.]*\s*[a-z]+[\s,]*(?:and )?)+)", re.I)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|milli|s|m|h|d)[a-z]*", re.I)
_SECONDS = {"ms": 0.001, "milli": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def event_of(line: str) -> Mapping[str, Any] | None:
    """The JSON object of a line; None where it holds none."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def part(event: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object under a name; an empty one where there is none."""
    found = event.get(name)
    return found if isinstance(found, Mapping) else {}


def parts(event: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """The objects in the list under a name."""
    found = event.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def text(event: Mapping[str, Any], *names: str) -> str:
    """The first text under one of the names; empty where there is none."""
    for name in names:
        found = event.get(name)
        if isinstance(found, str) and found:
            return found
    return ""


def number(event: Mapping[str, Any], name: str) -> float | None:
    """The number under a name; none that is not finite."""
    found = event.get(name)
    if isinstance(found, bool) or (isinstance(found, float) and not math.isfinite(found)):
        return None
    return found if isinstance(found, int | float) else None


def cut(shown: str, most: int = SHOWN) -> str:
    """The beginning of a long text, and how much is left out."""
    shown = shown.strip("\n")
    return shown if len(shown) <= most else f"{shown[:most]} … ({len(shown) - most} more characters)"


def brief(arguments: object) -> str:
    """What a tool was called with, on one line: what it is about where that can be told, else all of it."""
    shown = arguments
    if isinstance(arguments, Mapping):
        wanted = (
            "command",
            "cmd",
            "file_path",
            "filePath",
            "path",
            "absolute_path",
            "pattern",
            "query",
            "url",
            "prompt",
        )
        shown = text(arguments, *wanted) or arguments
    if not isinstance(shown, str):
        try:
            shown = json.dumps(shown, ensure_ascii=False, default=str)
        except (ValueError, RecursionError):
            shown = "…"
    flat = " ".join(shown[: 4 * _BRIEF].split())
    return flat if len(flat) <= _BRIEF else flat[: _BRIEF - 1] + "…"


def failure(program: str, provider: str, said: str, hint: str) -> TaskFailed:
    """The failure that a program's own words tell of: no access, a limit of the provider, or another."""
    said = cut(said.strip()) or "it did not say why"
    if _LIMITED.search(said):
        return RateLimited(provider, wait_of(said), f"{program}: {said}")
    if _NO_ACCESS.search(said):
        return TaskFailed("AUTH_MISSING", f"{program} has no access to its model: {said} - {hint}", retryable=False)
    return TaskFailed("AGENT_ERROR", f"{program} failed: {said}")


def unfinished(program: str) -> TaskFailed:
    """Where a program ended well, but its output broke off."""
    return TaskFailed("AGENT_ERROR", f"{program} ended without saying how its work ended")


def wait_of(said: str) -> float:
    """Seconds until a limit is over, as the words of a program tell; a minute where they do not."""
    found = _WAIT.search(said)
    spans = _SPAN.findall(found[1]) if found else []
    return sum(float(count) * _SECONDS[unit.lower()] for count, unit in spans) or _LIMIT_WITHOUT_A_TIME


def model_in(argv: Sequence[str]) -> str:
    """The model that a command line names by -m or --model; empty where it names none."""
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("-m", "--model"):
            return value if equals else next(iter(argv[position + 1 :]), "")
    return ""
