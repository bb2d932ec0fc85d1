"""What a declaration of parameters may say; whether values obey it is for `kapell.rules.parameters`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import re2
from kapell.rules.parameters import NUMBERS, TEXTS, Problem, check, compiled, plain
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_ARRAY,
    PARAMETER_TYPE_ENUM,
    PARAMETER_TYPE_SECRET,
    TemplateParameter,
    ValueRules,
)

from kapell_server.domain.templates.template_text import RESERVED

_MOST_PATTERN_SIZE = 20_000
_SIZED = (*NUMBERS, *TEXTS, PARAMETER_TYPE_ARRAY)


def check_declarations(declared: Sequence[TemplateParameter], path: str) -> list[Problem]:
    """All that is wrong with the declared parameters themselves."""
    problems: list[Problem] = []
    seen: set[str] = set()
    size = 0
    for index, parameter in enumerate(declared):
        here = f"{path}[{index}]"
        if parameter.name in RESERVED:
            problems.append((f"{here}.name", f"{parameter.name!r} is a word of the prompt's language; take another"))
        if parameter.name in seen:
            problems.append((f"{here}.name", f"{parameter.name!r} is declared twice"))
        seen.add(parameter.name)
        problems += _wrong_rules(parameter.rules, f"{here}.rules")
        problems += _wrong_items(parameter, here)
        if parameter.HasField("default_value") and not problems:
            problems += _wrong_default(parameter, here)
        size += _pattern_size(parameter.rules.pattern) + _pattern_size(parameter.items.pattern)
        if size > _MOST_PATTERN_SIZE:
            what = f"the patterns of the template are too much together, more than {_MOST_PATTERN_SIZE:,} instructions"
            problems.append((f"{here}.rules.pattern", f"{what}; repeat less, or use smaller classes of characters"))
            break
    return problems


def _wrong_items(parameter: TemplateParameter, here: str) -> Iterator[Problem]:
    if not parameter.HasField("items"):
        return
    if parameter.rules.type != PARAMETER_TYPE_ARRAY:
        yield f"{here}.items", "is for arrays only"
    elif parameter.items.type == PARAMETER_TYPE_SECRET:
        yield f"{here}.items.type", "must not be a secret; declare a parameter for each"
    elif parameter.items.type == PARAMETER_TYPE_ARRAY:
        yield f"{here}.items.type", "must not be an array; use an object with lists in it"
    else:
        yield from _wrong_rules(parameter.items, f"{here}.items")


def _wrong_default(parameter: TemplateParameter, here: str) -> Iterator[Problem]:
    path = f"{here}.default_value"
    value = plain(parameter.default_value)
    if parameter.required:
        yield path, "has no effect on a required parameter; leave out one of the two"
    elif value is None:
        yield path, "must not be null; leave it out"
    else:
        yield from check(parameter, value, path)


def _wrong_rules(rules: ValueRules, here: str) -> Iterator[Problem]:
    kind = rules.type
    if (kind == PARAMETER_TYPE_ENUM) is not bool(rules.options):
        yield f"{here}.options", "must be given for an enum, and for nothing else"
    if rules.pattern:
        if kind not in TEXTS:
            yield f"{here}.pattern", "is for text and paths only"
        elif why := _pattern_error(rules.pattern):
            yield f"{here}.pattern", f"is no RE2 expression: {why}"
    bounds = [rules.HasField("minimum"), rules.HasField("maximum")]
    if any(bounds) and kind not in _SIZED:
        yield f"{here}.minimum" if bounds[0] else f"{here}.maximum", "is for numbers, text and arrays only"
    elif all(bounds) and rules.minimum > rules.maximum:
        yield f"{here}.minimum", f"must not be greater than maximum, {rules.maximum:g}"


def _pattern_error(pattern: str) -> str:
    try:
        compiled(pattern)
    except re2.error as error:
        why = error.args[0] if error.args else ""
        return why.decode(errors="replace") if isinstance(why, bytes) else str(why)
    return ""


def _pattern_size(pattern: str) -> int:
    """What compiling it costs, in instructions of RE2; one that is too large has cost as much as many."""
    try:
        return compiled(pattern).programsize if pattern else 0
    except re2.error as error:
        return _MOST_PATTERN_SIZE // 4 if "too large" in str(error) else 0
