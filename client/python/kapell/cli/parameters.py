"""`--param KEY=VALUE`: what was typed, as the values that a template's parameters take.

The form is settled by the declared type; what has no such form counts as text. Whether the values
obey is judged before anything is sent, by the same rules as the server's, all violations at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kapell.cli import options

if TYPE_CHECKING:
    from kapell.v1.template_pb2 import Template, TemplateParameter

_F = TypeVar("_F", bound=Callable[..., Any])
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parameters(function: _F) -> _F:
    """--param and --params-json; the command hands both to `values_given`."""
    document = click.option(
        "--params-json", metavar="OBJECT", help="Parameters as one JSON object; - is stdin, @FILE a file."
    )
    one = click.option(
        "-P",
        "--param",
        "params",
        multiple=True,
        metavar="KEY=VALUE",
        help="A parameter. @FILE reads it from a file, @- from stdin; lists take a,b or one line an entry.",
    )
    return one(document(function))


def values_given(
    params: Sequence[str], params_json: str | None, declared: Iterable[TemplateParameter]
) -> dict[str, Any]:
    """The parameters as plain JSON values. Raises BadParameter for what cannot be read."""
    values = _object(params_json) if params_json is not None else {}
    types = {parameter.name: parameter for parameter in declared}
    lists: dict[str, list[Any]] = {}
    for typed in params:
        name, equals, text = typed.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{typed!r} has no value; write KEY=VALUE", param_hint="--param")
        parameter = types.get(name)
        if parameter is not None and type_word(parameter.rules.type) == "array":
            lists.setdefault(name, []).extend(_entries(parameter, text))
        else:
            is_file = text.startswith("@") and len(text) > 1
            shown = _read(text[1:]) if is_file else text
            values[name] = _value(type_word(parameter.rules.type) if parameter is not None else "", shown)
    return {**values, **lists}


def parameters_of(
    template: Template, params: Sequence[str], params_json: str | None, *, path: str = "parameters"
) -> dict[str, Any]:
    """The parameters as `values_given`, which the template takes; else every violation is named."""
    from kapell.templates import check_parameters

    given = values_given(params, params_json, template.spec.parameters)
    check_parameters(template, given, path)
    return given


def _entries(parameter: TemplateParameter, text: str) -> list[Any]:
    """What one `--param` adds to a list: the lines of a file, a JSON list, or entries between commas."""
    kind = type_word(parameter.items.type) if parameter.HasField("items") else "string"
    if text.startswith("@") and len(text) > 1:
        return [_value(kind, line) for line in _read(text[1:]).splitlines() if line.strip()]
    if text.startswith("["):
        found = _json(text)
        if isinstance(found, list):
            return found
    parts = [text] if kind in ("text", "object") else text.split(",")
    return [_value(kind, part) for part in parts]


def _value(kind: str, text: str) -> Any:
    match kind:
        case "bool":
            return _WORDS.get(text.strip().lower(), text)
        case "int" | "number" | "object":
            found = _json(text)
            return text if found is None else found
        case "string" | "path" | "enum":
            return text.removesuffix("\n")
        case _:
            return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _object(text: str) -> dict[str, Any]:
    source = sys.stdin.read() if text == "-" else _read(text[1:]) if text.startswith("@") else text
    found = _json(source)
    if not isinstance(found, dict):
        raise click.BadParameter('must be a JSON object, as in \'{"files": ["a.py"]}\'', param_hint="--params-json")
    return found


def _read(name: str) -> str:
    return options.text_of(name, "--param")


def type_word(value: int) -> str:
    """A ParameterType as files and people write it: "array"."""
    from kapell.v1.template_pb2 import ParameterType

    return ParameterType.Name(value).removeprefix("PARAMETER_TYPE_").lower()  # type: ignore[arg-type]
