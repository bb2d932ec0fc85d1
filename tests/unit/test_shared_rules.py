"""The rules that server and clients share: patterns put in words, and the same words on both sides."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator

import kapell.v1
import pytest
from google.protobuf.descriptor import Descriptor
from kapell._third_party.buf.validate import validate_pb2
from kapell.errors import InvalidRequest
from kapell.rules.patterns import allowed, in_words
from kapell.templates import check_parameters
from kapell.v1.template_pb2 import Template, TemplateSpec, TemplateVersion
from kapell_server.domain.errors import KapellError
from kapell_server.domain.templates.template_version import compile_version

PARAMETERS = [
    {"name": "files", "required": True, "rules": {"type": "PARAMETER_TYPE_ARRAY", "maximum": 2}},
    {"name": "depth", "rules": {"type": "PARAMETER_TYPE_INT", "maximum": 3}},
    {"name": "branch", "rules": {"type": "PARAMETER_TYPE_STRING", "pattern": "[a-z]+"}},
]


def every_pattern() -> Iterator[str]:
    """The patterns of all rules of all messages."""
    for module in pkgutil.iter_modules(kapell.v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"kapell.v1.{module.name}").DESCRIPTOR
            for message in descriptor.message_types_by_name.values():
                yield from _patterns(message)


def _patterns(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        rules = str(field.GetOptions().Extensions[validate_pb2.field])
        yield from (found.encode().decode("unicode_escape") for found in re.findall(r'pattern: "(.*)"', rules))
    for nested in message.nested_types:
        yield from _patterns(nested)


def test_every_pattern_of_the_protos_is_told_in_words() -> None:
    patterns = sorted(set(every_pattern()))

    assert len(patterns) > 15
    assert [pattern for pattern in patterns if allowed(pattern).startswith("must match")] == []


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"^[^\x00]*$", "must not contain NUL"),
        (r"^task_[a-z0-9][a-z0-9_-]{0,58}$", "must be 'task_' and then 1 to 59 of a-z, 0-9, '_' and '-', the first"),
        (r"^([*]|[a-z]{1,3})$", "must be '*', or 1 to 3 of a-z"),
        ("^(user|agent):[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$", "must be a user or an agent, such as user:alice"),
        (r"^([0-9a-f]{64})?$", "must be empty, or 64 of 0-9 and a-f"),
        (r"^[a-z]+(@[0-9]{1,32})?$", "must be 1 or more of a-z, and perhaps '@' and then 1 to 32 of 0-9"),
        (r"^(?i)x.*y$", "must match ^(?i)x.*y$"),
    ],
)
def test_a_pattern_in_words(pattern: str, words: str) -> None:
    assert allowed(pattern).startswith(words)
    assert in_words(f"does not match regex pattern `{pattern}`").startswith(words)
    assert in_words("must be at least 1") == "must be at least 1"


def test_clients_refuse_parameters_as_the_server_does() -> None:
    spec = TemplateSpec(prompt="x", agent_type="shell", parameters=PARAMETERS)
    given = {"files": ["a", "b", "c"], "depth": 9, "branch": "A", "nothing": 1}
    compiled = compile_version(TemplateVersion(template_id="t", version=1, spec=spec))

    with pytest.raises(KapellError) as servers:
        compiled.render(given, "parameters")
    with pytest.raises(InvalidRequest) as clients:
        check_parameters(Template(template_id="t", spec=spec), given)

    assert clients.value.message == servers.value.message
    assert [(one.field, one.description) for one in clients.value.violations] == list(servers.value.violations)
    assert clients.value.reason == servers.value.reason_name
    assert len(clients.value.violations) == 4
