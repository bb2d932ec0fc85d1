"""Templates as YAML files: what `kapell template apply -f` reads and `kapell template export` writes.

    template_id: greet
    agent_type: shell
    description: Says hello.
    parameters:
      name: {type: string, required: true}
      times: {type: int, minimum: 1, default: 1}
      tags: {type: array, items: string}
    prompt: |
      echo Hello {name|shell}

Besides parameters, the fields are those of TemplateSpec in proto JSON form, in snake_case: times
are written as "90s". Rules of a parameter stand beside its type; `items` may be just a type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from kapell.errors import InvalidRequest
from kapell.v1.template_pb2 import CreateTemplateRequest, ParameterType, Template, TemplateSpec

_RULES = ("options", "minimum", "maximum", "pattern")
_TYPE = "PARAMETER_TYPE_"
_WORDS = [name.removeprefix(_TYPE).lower() for name, value in ParameterType.items() if value]


def read_template(text: str | bytes, name: str = "the template") -> tuple[str, TemplateSpec]:
    """The id and spec of a file; `name` is what errors call it. Raises InvalidRequest."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _invalid(name, f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict) or not isinstance(document.get("template_id"), str):
        raise _invalid(name, "must be a mapping with a template_id")
    declared = document.pop("parameters", None) or {}
    if not isinstance(declared, dict) or not all(isinstance(said, dict) for said in declared.values()):
        raise _invalid(name, "parameters must be a mapping of names to mappings, as in `name: {type: string}`")
    template_id = document.pop("template_id")
    try:
        parameters = [_parameter(str(key), said) for key, said in declared.items()]
        request = ParseDict({"spec": {**document, "parameters": parameters}}, CreateTemplateRequest())
    except (ParseError, TypeError, ValueError) as error:
        raise _invalid(name, f"is no template: {error}") from error
    return template_id, request.spec


def _invalid(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{name} cannot be read - it {why} - correct the file", reason="ARGUMENT_INVALID")


def _parameter(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "rules": _rules(said)}
    for key, value in said.items():
        if key == "default":
            parameter["default_value"] = value
        elif key == "items":
            parameter["items"] = _rules({"type": value} if isinstance(value, str) else value)
        elif key not in ("type", *_RULES):
            parameter[key] = value
    return parameter


def _rules(said: Mapping[str, Any]) -> dict[str, Any]:
    rules = {key: said[key] for key in _RULES if key in said}
    word = str(said.get("type", "string"))
    if word not in _WORDS:
        raise ValueError(f"{word!r} is no type; there are {', '.join(_WORDS)}")
    return {"type": f"{_TYPE}{word.upper()}", **rules}


def write_template(template: Template) -> str:
    """The file that `read_template` gives this template's id and spec back from. It must have its prompt."""
    said = MessageToDict(template.spec, preserving_proto_field_name=True)
    prompt = said.pop("prompt", "")
    parameters = {parameter.pop("name"): _short(parameter) for parameter in said.pop("parameters", [])}
    document = {"template_id": template.template_id, **said}
    if parameters:
        document["parameters"] = parameters
    document["prompt"] = prompt
    written: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return written


def _short(parameter: dict[str, Any]) -> dict[str, Any]:
    said = _short_rules(parameter.pop("rules"))
    if "items" in parameter:
        items = _short_rules(parameter.pop("items"))
        said["items"] = items["type"] if len(items) == 1 else items
    if "default_value" in parameter:
        said["default"] = _whole(parameter.pop("default_value"))
    return {**said, **parameter}


def _short_rules(rules: dict[str, Any]) -> dict[str, Any]:
    short = {"type": rules.pop("type").removeprefix(_TYPE).lower(), **rules}
    return {key: _whole(value) for key, value in short.items()}


def _whole(value: Any) -> Any:
    """1.0 as 1, however deep."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(entry) for entry in value]
    return {key: _whole(entry) for key, entry in value.items()} if isinstance(value, dict) else value


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
