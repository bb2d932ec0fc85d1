"""What a field of a request is called on the command line: `task.agent_type` was said by --type."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import click

_WORD = re.compile(r"[a-z_]+")
_SUBSCRIPT = re.compile(r"\[[^\]]*\]")
_KEY = re.compile(r'\["([^"]*)"\]$')
# Fields whose option has another name than they.
_ALIASES = {
    "display_name": "name",
    "not_before_time": "not_before",
    "time_zone": "timezone",
    "interval": "every",
    "start_time": "start",
    "end_time": "end",
    "overlap_policy": "overlap",
    "catch_up_window": "catch_up",
    "input": "inputs",
    "parameters": "params",
    "defaults": "params",
    "start_rate": "rate",
    "items": "paths",
}


def said_as(params: Sequence[click.Parameter]) -> Callable[[str], str]:
    """Tells, for a command that takes these parameters, how the user said the field of a violation."""
    names = {param.name: _shown(param) for param in params if param.name}

    def name(field: str) -> str:
        words = _WORD.findall(_SUBSCRIPT.sub("", field))
        for word in words:
            known = names.get(_ALIASES.get(word, word)) or names.get(word)
            if known is None or (word == "template" and word != words[-1]):
                continue
            key = field.partition(f"{word}.")[2] if known == "--param" else "".join(_KEY.findall(field))
            return f"{known} {key}" if key else known
        return field

    return name


def _shown(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.make_metavar(click.Context(click.Command("kapell"))).strip("[].")
