"""The templates that come with Kapell: data files in `templates/`, brought into the database at the start.

A file is YAML: `template_id`, then the fields of TemplateSpec, with parameters and steps in a short form
(see `read_template`). The files are parsed only where the database has not seen exactly these
yet. A file that has changed becomes a new version; earlier versions stay.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict
from kapell.v1.template_pb2 import CreateTemplateRequest, TemplateSpec

from kapell_server.domain.access import system
from kapell_server.engine.facts import TemplatesShipped

if TYPE_CHECKING:
    from kapell_server.engine.engine import Engine

DIRECTORY = Path(__file__).parent / "templates"
_RULES = ("options", "minimum", "maximum", "pattern")


async def install_templates(engine: Engine) -> None:
    """Creates or updates the templates of this version of Kapell."""
    files = sorted(DIRECTORY.glob("*.yaml"))
    texts = [file.read_bytes() for file in files]
    digest = hashlib.sha256(b"\0".join(texts)).hexdigest()
    if await engine.reads.templates.shipped_digest() != digest:
        # Lists begin with the newest: the last to be created is the first by name.
        specs = tuple(read_template(text) for text in reversed(texts))
        await engine.submit(TemplatesShipped(specs, digest), system("templates"))


def shipped() -> Iterator[tuple[str, TemplateSpec]]:
    """All of them by id, in the order of their names."""
    for file in sorted(DIRECTORY.glob("*.yaml")):
        yield read_template(file.read_bytes())


def read_template(text: bytes) -> tuple[str, TemplateSpec]:
    """A file's template. Raises ParseError or yaml.YAMLError for one that cannot be read."""
    import yaml  # takes longer to import than a start without new files

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    document: dict[str, Any] = yaml.load(text, loader)
    template_id = document.pop("template_id")
    declared = [_parameter(name, said) for name, said in document.pop("parameters", {}).items()]
    steps = [_step(name, said) for name, said in document.pop("steps", {}).items()]
    document["locks"] = [_lock(said) for said in document.pop("locks", ())]
    request = ParseDict({"spec": {**document, "parameters": declared, "steps": steps}}, CreateTemplateRequest())
    return template_id, request.spec


def _parameter(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's short form as proto JSON: `type` is a word, its rules stand beside it, `items` may be a word."""
    parameter: dict[str, Any] = {"name": name, "rules": _rules(said)}
    for key, value in said.items():
        if key == "default":
            parameter["default_value"] = value
        elif key == "items":
            parameter["items"] = _rules({"type": value} if isinstance(value, str) else value)
        elif key not in ("type", *_RULES):
            parameter[key] = value
    return parameter


def _step(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A step as proto JSON: its name is its key, `on_failure` is a word."""
    step = {**said, "name": name}
    if "on_failure" in said:
        step["on_failure"] = f"DEPENDENCY_FAILURE_ACTION_{said['on_failure'].upper()}"
    step["locks"] = [_lock(one) for one in said.get("locks", ())]
    return step


def _lock(said: Mapping[str, str]) -> dict[str, str]:
    """A lock as proto JSON: its `mode` is a word."""
    return {**said, "mode": f"LOCK_MODE_{said.get('mode', 'unspecified').upper()}"}


def _rules(said: Mapping[str, Any]) -> dict[str, Any]:
    rules = {key: said[key] for key in _RULES if key in said}
    return {"type": f"PARAMETER_TYPE_{str(said.get('type', 'string')).upper()}", **rules}
