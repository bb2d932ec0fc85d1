"""Templates as YAML files: what `kapell template apply -f` reads and `kapell template export` writes.

    template_id: greet
    agent_type: shell
    description: Says hello.
    parameters:
      name: {type: string, required: true}
      times: {type: int, minimum: 1, default: 1}
      tags: {type: array, items: string}
    steps:
      look: {prompt: "uname", on_failure: run}
    prompt: |
      echo Hello {name|shell}

Besides parameters and steps, the fields are those of TemplateSpec in proto JSON form, in snake_case:
times are written as "90s". Rules of a parameter stand beside its type; `items` may be just a type.
Steps are a mapping, too; `on_failure` is fail, skip or run. A lock is a path, or a path with its `mode`,
which is exclusive or shared.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from kapell.errors import InvalidRequest
from kapell.v1.dependency_pb2 import DependencyFailureAction
from kapell.v1.lock_pb2 import LockMode
from kapell.v1.template_pb2 import (
    CreateTemplateRequest,
    ParameterType,
    Template,
    TemplateParameter,
    TemplateSpec,
    TemplateStep,
)

_RULES = ("options", "minimum", "maximum", "pattern")
_TYPE = "PARAMETER_TYPE_"
_ACTION = "DEPENDENCY_FAILURE_ACTION_"
_MODE = "LOCK_MODE_"
_MODES = [name.removeprefix(_MODE).lower() for name, value in LockMode.items() if value]
_ACTIONS = [name.removeprefix(_ACTION).lower() for name, value in DependencyFailureAction.items() if value]
_UNKNOWN = re.compile(r'Message type "kapell\.v1\.(\w+)" has no field named "([^"]*)"')
_FIELDS = {
    "TemplateSpec": {*(field.name for field in TemplateSpec.DESCRIPTOR.fields), "template_id"},
    "TemplateParameter": {
        *(field.name for field in TemplateParameter.DESCRIPTOR.fields if field.name not in ("name", "rules")),
        *("type", "default", *_RULES),
    },
    "TemplateStep": {field.name for field in TemplateStep.DESCRIPTOR.fields} - {"name"},
}
"""What a file may say, by message."""
_NOT_READ = re.compile(r"Failed to parse (\w+) field: (.+)")
_WORDS = [name.removeprefix(_TYPE).lower() for name, value in ParameterType.items() if value]


def read_template(text: str | bytes, name: str = "the template") -> tuple[str, TemplateSpec]:
    """The id and spec of a file; `name` is what errors call it. Raises InvalidRequest."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _invalid(name, f"is not YAML: {_said_by_yaml(error)}") from error
    if not isinstance(document, dict) or not isinstance(document.get("template_id"), str):
        raise _invalid(name, "must be a mapping with a template_id")
    declared = _mappings(document, "parameters", name, "`name: {type: string}`")
    named = _mappings(document, "steps", name, "`plan: {prompt: Plan it}`")
    template_id = document.pop("template_id")
    try:
        document["parameters"] = [_parameter(key, said) for key, said in declared.items()]
        document["steps"] = [_step(key, said) for key, said in named.items()]
        _spell_modes(document)
        request = ParseDict({"spec": document}, CreateTemplateRequest())
    except (ParseError, TypeError, ValueError) as error:
        raise _invalid(name, f"is no template: {_said_by_parser(str(error), text)}") from error
    return template_id, request.spec


def _invalid(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{name} cannot be read - it {why} - correct the file", reason="ARGUMENT_INVALID")


def _said_by_yaml(error: yaml.YAMLError) -> str:
    """What is wrong and where, as in "line 3, column 9: mapping values are not allowed here"."""
    mark = getattr(error, "problem_mark", None)
    what = str(getattr(error, "problem", None) or " ".join(str(error).split()))
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark is not None else what


def _said_by_parser(error: str, text: str | bytes) -> str:
    """A refusal of protobuf's parser in words, with the line of the field that it names."""
    error = " ".join(error.split())
    unknown = _UNKNOWN.search(error)
    wrong = _NOT_READ.search(error)
    if unknown is not None:
        message, field = unknown.groups()
        known = sorted(_FIELDS.get(message, ()))
        close = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}" if known else ""
        what = f"there is no field {field!r}" + (f"; {hint}" if hint else "")
    elif wrong is not None:
        field, what = wrong[1], f"{wrong[1]} cannot be read: {wrong[2].rstrip('.')}"
    else:
        return error
    line = _line_of(text, field)
    return f"line {line}: {what}" if line else what


def _line_of(text: str | bytes, key: str) -> int:
    """The first line that has the key; 0 where none does."""
    nodes = [yaml.compose(text)]
    found: list[int] = []
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            found += [name.start_mark.line + 1 for name, _ in node.value if name.value == key]
            nodes += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return min(found, default=0)


def _mappings(document: dict[str, Any], field: str, name: str, example: str) -> dict[str, dict[str, Any]]:
    """Takes a mapping of names to mappings out of the document."""
    found = document.pop(field, None) or {}
    if not isinstance(found, dict) or not all(isinstance(said, dict) for said in found.values()):
        raise _invalid(name, f"{field} must be a mapping of names to mappings, as in {example}")
    return {str(key): said for key, said in found.items()}


def _spell_modes(said: dict[str, Any]) -> None:
    """Locks as people write them, `path: "{repo}"` with `mode: shared`, or the path alone, as messages have them."""
    if "locks" not in said:
        return
    if not isinstance(said["locks"], list):
        raise ValueError("locks must be a list of paths, or of mappings with path and mode")
    said["locks"] = [_lock(lock) for lock in said["locks"]]


def _lock(said: Any) -> dict[str, Any]:
    lock = {"path": said} if isinstance(said, str) else dict(said)
    if "mode" in lock:
        word = str(lock["mode"])
        if word not in _MODES:
            raise ValueError(f"the mode of a lock is {word!r}; there are {', '.join(_MODES)}")
        lock["mode"] = f"{_MODE}{word.upper()}"
    return lock


def _step(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    step = {**said, "name": name}
    _spell_modes(step)
    if "on_failure" in said:
        word = str(said["on_failure"])
        if word not in _ACTIONS:
            raise ValueError(f"steps.{name}.on_failure is {word!r}; there are {', '.join(_ACTIONS)}")
        step["on_failure"] = f"{_ACTION}{word.upper()}"
    return step


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
    steps = {step.pop("name"): _short_step(step) for step in said.pop("steps", [])}
    _shorten_locks(said)
    document = {"template_id": template.template_id, **said}
    if parameters:
        document["parameters"] = parameters
    if steps:
        document["steps"] = steps
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


def _short_step(step: dict[str, Any]) -> dict[str, Any]:
    prompt = step.pop("prompt", "")
    if "on_failure" in step:
        step["on_failure"] = step["on_failure"].removeprefix(_ACTION).lower()
    _shorten_locks(step)
    return {**step, "prompt": prompt}


def _shorten_locks(said: dict[str, Any]) -> None:
    for lock in said.get("locks", ()):
        if "mode" in lock:
            lock["mode"] = lock["mode"].removeprefix(_MODE).lower()


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
