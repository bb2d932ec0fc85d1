"""What a handler wants beside context and task: parameters with type hints, which the task's input fills.

    @worker.task("forecast")
    async def forecast(ctx: TaskContext, task: Task, city: str, days: int = 3) -> object: ...

The input of a task that was made from a template is its parameters. What is missing or of another type
fails the attempt with words that name all of it; entries that no parameter asks for are no error.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from kapell._worker.outcome import TaskFailed

_PLAIN: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    types.NoneType: "null",
}


class UnusableHints(ValueError):
    """A parameter whose hint is nothing that JSON can be; the text names it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One parameter of a handler."""

    name: str
    hint: Any
    is_required: bool


def wanted_by(function: Callable[..., Any]) -> list[Wanted]:
    """The parameters after context and task. Raises UnusableHints."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    if not parameters:
        return []
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise UnusableHints(f"its type hints cannot be read: {error}") from error
    wanted = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name not in hints and parameter.default is not parameter.empty:
            # A value that the function keeps for itself, as in `def f(ctx, task, n=n)`, is nobody's to replace.
            continue
        if parameter.name not in hints or parameter.kind is parameter.POSITIONAL_ONLY:
            raise UnusableHints(f"its parameter {parameter} needs a type hint, and to be filled by name")
        hint = hints[parameter.name]
        _named(hint)
        wanted.append(Wanted(parameter.name, hint, parameter.default is parameter.empty))
    return wanted


def filled(wanted: list[Wanted], given: Mapping[str, object], handler: str) -> dict[str, object]:
    """The arguments for a task's input. Raises TaskFailed with INPUT_INVALID."""
    problems = []
    for one in wanted:
        if one.name not in given:
            if one.is_required:
                problems.append(f"{one.name} is missing, which is {_named(one.hint)}")
        elif not _fits(given[one.name], one.hint):
            problems.append(f"{one.name} must be {_named(one.hint)}, not {given[one.name]!r:.80}")
    if problems:
        raise TaskFailed(
            "INPUT_INVALID",
            f"the task's input is not what {handler} takes: {'; '.join(problems)} - "
            "correct the input, the template's parameters, or the function",
            retryable=False,
        )
    return {one.name: _as(given[one.name], one.hint) for one in wanted if one.name in given}


def _fits(value: object, hint: Any) -> bool:
    if hint is Any or hint is object:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, inner[1]) for one in value.values())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _as(value: object, hint: Any) -> object:
    """JSON has one kind of number, so that 3 may be meant as 3.0."""
    return float(value) if hint is float and isinstance(value, int) else value


def _named(hint: Any) -> str:
    """A hint in words. Raises UnusableHints for one that JSON has nothing for."""
    if hint is Any or hint is object:
        return "any value"
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_named(one) for one in inner)
    if origin is list and inner:
        return f"a list, each {_named(inner[0])}"
    if origin is dict and inner and inner[0] is str:
        return f"an object, each entry {_named(inner[1])}"
    raise UnusableHints(
        f"{hint!r} is no type of JSON - there are str, bool, int, float, list, dict, None, Literal, Any "
        "and unions of them"
    )
