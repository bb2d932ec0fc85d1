"""Typed parameters: whether values obey what a template declares.

Every violation is found at once and named by its path, so that a form or a shell can show all of
them. Patterns are RE2 expressions, which take linear time whatever they are matched against.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import re2
from google.protobuf.struct_pb2 import Struct, Value

from kapell.rules import secrets
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_ARRAY,
    PARAMETER_TYPE_BOOL,
    PARAMETER_TYPE_ENUM,
    PARAMETER_TYPE_INT,
    PARAMETER_TYPE_NUMBER,
    PARAMETER_TYPE_OBJECT,
    PARAMETER_TYPE_PATH,
    PARAMETER_TYPE_SECRET,
    PARAMETER_TYPE_STRING,
    PARAMETER_TYPE_TEXT,
    ParameterType,
    TemplateParameter,
    ValueRules,
)

Problem = tuple[str, str]
"""The path of a field, and what is wrong with it."""

_LONGEST_TEXT = 65_536
_LONGEST_PATH = 1_024
_MOST_ENTRIES = 1_000
_WHOLE = 2**53
NUMBERS = (PARAMETER_TYPE_INT, PARAMETER_TYPE_NUMBER)
TEXTS = (PARAMETER_TYPE_STRING, PARAMETER_TYPE_TEXT, PARAMETER_TYPE_PATH)
_STRINGS = ValueRules(type=PARAMETER_TYPE_STRING)


def resolve(
    declared: Iterable[TemplateParameter], given: Mapping[str, Any], path: str
) -> tuple[dict[str, Any], list[Problem]]:
    """The values of all parameters that have one, defaults filled in, and all that is wrong.

    `given` are plain JSON values; None counts as not given. `path` is where they stand in the request.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    names: list[str] = []
    for parameter in declared:
        name = parameter.name
        names.append(name)
        value = given.get(name)
        if value is not None:
            problems += check(parameter, value, f"{path}.{name}")
            values[name] = value
        elif parameter.HasField("default_value"):
            values[name] = plain(parameter.default_value)
        elif parameter.required:
            what = f": {parameter.description.rstrip('.')}" if parameter.description else ""
            problems.append((f"{path}.{name}", f"is required{what}"))
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            known = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names) or 'none'}"
            problems.append((f"{path}.{name}", f"is no parameter of the template; {known}"))
    return values, problems


def refusal_text(template_id: str, problems: list[Problem]) -> str:
    """How a refusal of parameters begins; at least one problem."""
    field, what = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"Template {template_id} does not take these parameters: {field}: {what}{more}. Correct them and try again."


def check(parameter: TemplateParameter, value: Any, path: str) -> list[Problem]:
    """All that is wrong with a value; empty where it obeys."""
    if parameter.rules.type != PARAMETER_TYPE_ARRAY:
        return [(path, what) for what in _wrongs(parameter.rules, value)]
    if not isinstance(value, list):
        return [(path, f"must be a list, not {_kind(value)}")]
    found = [(path, what) for what in _wrong_size(parameter.rules, len(value), "entries", _MOST_ENTRIES)]
    items = parameter.items if parameter.HasField("items") else _STRINGS
    return found + [
        (f"{path}[{index}]", what)
        for index, entry in enumerate(value[:_MOST_ENTRIES])
        for what in _wrongs(items, entry)
    ]


def _wrongs(rules: ValueRules, value: Any) -> Iterator[str]:
    """What is wrong with one value that is no list."""
    match rules.type:
        case t if t in TEXTS:
            if not isinstance(value, str):
                yield f"must be text, not {_kind(value)}"
            else:
                yield from _wrong_text(rules, value)
        case t if t in NUMBERS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                yield f"must be a number, not {_kind(value)}"
            elif t == PARAMETER_TYPE_INT and (value != int(value) or abs(value) > _WHOLE):
                yield f"must be a whole number, not {value}"
            else:
                yield from _wrong_size(rules, value, "", None)
        case t if t == PARAMETER_TYPE_BOOL:
            if not isinstance(value, bool):
                yield f"must be true or false, not {_kind(value)}"
        case t if t == PARAMETER_TYPE_ENUM:
            if value not in rules.options:
                yield f"must be one of: {', '.join(rules.options)}"
        case t if t == PARAMETER_TYPE_SECRET:
            if not secrets.name_of(value):
                yield secrets.EXPECTED
        case t if t == PARAMETER_TYPE_OBJECT:
            if not isinstance(value, dict):
                yield f"must be an object, not {_kind(value)}"
        case _:
            yield f"has a type that is not supported: {ParameterType.Name(rules.type)}"


def _wrong_text(rules: ValueRules, text: str) -> Iterator[str]:
    is_path = rules.type == PARAMETER_TYPE_PATH
    yield from _wrong_size(rules, len(text), "characters", _LONGEST_PATH if is_path else _LONGEST_TEXT)
    if rules.type == PARAMETER_TYPE_TEXT:
        if "\0" in text:
            yield "must not contain NUL"
    elif any(ord(letter) < 32 and letter != "\t" for letter in text):
        yield "must be one line without control characters"
    if is_path and not text:
        yield "must not be empty"
    if is_path and ".." in text.split("/"):
        yield "must not contain '..'"
    if rules.pattern and len(text) <= _LONGEST_TEXT and compiled(rules.pattern).fullmatch(text) is None:
        yield f"must match {rules.pattern}"


def _wrong_size(rules: ValueRules, size: float, unit: str, most: int | None) -> Iterator[str]:
    unit = f" {unit}" if unit else ""
    verb = "have" if unit else "be"
    if rules.HasField("minimum") and size < rules.minimum:
        yield f"must {verb} at least {rules.minimum:g}{unit}, not {size:g}"
    maximum = rules.maximum if rules.HasField("maximum") else most
    if maximum is not None and size > maximum:
        yield f"must {verb} at most {maximum:g}{unit}, not {size:g}"


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"the number {value:g}"


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    return options


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """A pattern, ready to match. Raises re2.error."""
    return re2.compile(pattern, _options())


# -- values ----------------------------------------------------------------------------------------


def plain(value: Value) -> Any:
    """A value as Python's own; whole numbers become int."""
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if math.isfinite(number) and number.is_integer() and abs(number) <= _WHOLE else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain_struct(value.struct_value)
        case "list_value":
            return [plain(entry) for entry in value.list_value.values]
        case _:
            return None


def plain_struct(struct: Struct) -> dict[str, Any]:
    """An object as Python's own, in the order of its keys."""
    return {name: plain(struct.fields[name]) for name in sorted(struct.fields)}


def as_struct(values: Mapping[str, Any]) -> Struct:
    """Plain values as a message."""
    struct = Struct()
    struct.update(dict(values))
    return struct
