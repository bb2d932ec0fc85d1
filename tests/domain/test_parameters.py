"""Typed parameters: every type and rule, all violations at once with their paths, and declarations that cannot be."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st
from kapell.rules.parameters import as_struct, check, plain_struct, resolve
from kapell.v1.template_pb2 import ParameterType, TemplateParameter
from kapell_server.domain.templates.declarations import check_declarations


def parameter(name: str = "p", type: str = "string", **said: Any) -> TemplateParameter:
    """A declaration; rules stand beside its type."""
    rules = {key: said.pop(key) for key in ("options", "minimum", "maximum", "pattern") if key in said}
    items = said.pop("items", None)
    document = {"name": name, "rules": {"type": f"PARAMETER_TYPE_{type.upper()}", **rules}, **said}
    if items is not None:
        document["items"] = {"type": f"PARAMETER_TYPE_{items.upper()}"}
    if "default" in document:
        document["default_value"] = document.pop("default")
    return ParseDict(document, TemplateParameter())


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (parameter(type="string", minimum=1, maximum=3, pattern="[a-c]+"), "abc"),
        (parameter(type="text"), "one\ntwo"),
        (parameter(type="int", minimum=-1, maximum=3), 3),
        (parameter(type="int"), 3.0),
        (parameter(type="number"), 0.5),
        (parameter(type="bool"), False),
        (parameter(type="enum", options=["a", "b"]), "b"),
        (parameter(type="array", items="int", minimum=1), [1, 2]),
        (parameter(type="array"), []),
        (parameter(type="object"), {"a": [None, {"b": 1}]}),
        (parameter(type="path"), "src/a b.py"),
        (parameter(type="path"), "/abs/olute"),
    ],
)
def test_a_value_that_obeys_is_taken(declared: TemplateParameter, value: Any) -> None:
    assert check(declared, value, "p") == []


@pytest.mark.parametrize(
    ("declared", "value", "problems"),
    [
        (parameter(type="string"), 3, [("p", "must be text, not the number 3")]),
        (parameter(type="string"), "a\nb", [("p", "must be one line without control characters")]),
        (parameter(type="string", minimum=2), "a", [("p", "must have at least 2 characters, not 1")]),
        (parameter(type="string", maximum=2), "abc", [("p", "must have at most 2 characters, not 3")]),
        (parameter(type="string", pattern="[a-c]"), "abc", [("p", "must match [a-c]")]),
        (parameter(type="text"), "a\0", [("p", "must not contain NUL")]),
        (parameter(type="int"), 1.5, [("p", "must be a whole number, not 1.5")]),
        (parameter(type="int"), True, [("p", "must be a number, not true")]),
        (parameter(type="int"), "3", [("p", "must be a number, not text")]),
        (parameter(type="number", minimum=1), 0, [("p", "must be at least 1, not 0")]),
        (parameter(type="number"), math.inf, [("p", "must be a number, not the number inf")]),
        (parameter(type="bool"), "yes", [("p", "must be true or false, not text")]),
        (parameter(type="enum", options=["a", "b"]), "c", [("p", "must be one of: a, b")]),
        (parameter(type="array", items="int"), [1, "x", None], [
            ("p[1]", "must be a number, not text"),
            ("p[2]", "must be a number, not null"),
        ]),
        (parameter(type="array", maximum=1), ["a", "b"], [("p", "must have at most 1 entries, not 2")]),
        (parameter(type="array"), "a", [("p", "must be a list, not text")]),
        (parameter(type="object"), [], [("p", "must be an object, not a list")]),
        (parameter(type="path"), "../secret", [("p", "must not contain '..'")]),
        (parameter(type="path"), "", [("p", "must not be empty")]),
    ],
)  # fmt: skip
def test_a_value_that_does_not_obey_is_named(
    declared: TemplateParameter, value: Any, problems: list[tuple[str, str]]
) -> None:
    assert check(declared, value, "p") == problems


def test_all_that_is_wrong_is_found_at_once() -> None:
    declared = [
        parameter("files", "array", items="path", required=True, description="What to review."),
        parameter("branch", default="main"),
        parameter("depth", "int", minimum=1),
    ]

    values, problems = resolve(declared, {"fils": ["a"], "depth": 0, "zzz": 1}, "task.parameters")

    assert problems == [
        ("task.parameters.files", "is required: What to review"),
        ("task.parameters.depth", "must be at least 1, not 0"),
        ("task.parameters.fils", "is no parameter of the template; did you mean 'files'?"),
        ("task.parameters.zzz", "is no parameter of the template; there are: files, branch, depth"),
    ]
    assert values["branch"] == "main"


def test_what_is_not_given_gets_its_default_and_null_counts_as_not_given() -> None:
    declared = [parameter("a", default="x"), parameter("b", "int", default=3), parameter("c")]

    assert resolve(declared, {"a": None, "c": None}, "p") == ({"a": "x", "b": 3}, [])


@pytest.mark.parametrize(
    ("declared", "field", "says"),
    [
        ([parameter("a"), parameter("a")], "parameters[1].name", "declared twice"),
        ([parameter("item")], "parameters[0].name", "is a word of the prompt's language"),
        ([parameter(type="secret", default="value")], "parameters[0].default_value", "must name a secret"),
        ([parameter(type="enum")], "parameters[0].rules.options", "must be given for an enum"),
        ([parameter(options=["a"])], "parameters[0].rules.options", "and for nothing else"),
        ([parameter(pattern="(")], "parameters[0].rules.pattern", "is no RE2 expression: missing )"),
        ([parameter(type="int", pattern="a")], "parameters[0].rules.pattern", "text and paths only"),
        ([parameter(type="bool", minimum=1)], "parameters[0].rules.minimum", "for numbers, text and arrays only"),
        ([parameter(minimum=2, maximum=1)], "parameters[0].rules.minimum", "not be greater than maximum, 1"),
        ([parameter(items="int")], "parameters[0].items", "for arrays only"),
        ([parameter(type="array", items="array")], "parameters[0].items.type", "must not be an array"),
        ([parameter(type="array", items="secret")], "parameters[0].items.type", "must not be a secret"),
        ([parameter(type="int", default="x")], "parameters[0].default_value", "must be a number, not text"),
        ([parameter(default="x", required=True)], "parameters[0].default_value", "no effect on a required"),
        ([parameter(default=None)], "parameters[0].default_value", "must not be null"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(declared: list[TemplateParameter], field: str, says: str) -> None:
    [(path, what)] = check_declarations(declared, "parameters")

    assert path == field
    assert says in what


@pytest.mark.parametrize("pattern", [r"\p{L}{38}", r"\p{L}{100}"])
def test_all_patterns_of_a_template_share_one_cap_of_size(pattern: str) -> None:
    few = [parameter(name=f"p{number}", type="text", pattern=r"\p{L}{5}" + "x" * number) for number in range(3)]
    many = [parameter(name=f"p{number}", type="text", pattern=pattern + "x" * number) for number in range(64)]

    problems = check_declarations(many, "parameters")

    assert check_declarations(few, "parameters") == []
    assert "are too much together" in problems[-1][1]
    assert len(problems) < 10


def test_a_pattern_takes_linear_time_whatever_it_is_matched_against() -> None:
    declared = parameter(type="text", pattern="(a+)+b")
    began = time.process_time()

    problems = check(declared, "a" * 60_000, "p")

    assert problems == [("p", "must match (a+)+b")]
    assert time.process_time() - began < 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)
TYPES = [name.removeprefix("PARAMETER_TYPE_").lower() for name in ParameterType.keys()[1:]]


@given(st.sampled_from(TYPES), JSON)
def test_any_value_is_taken_or_named(type: str, value: Any) -> None:
    declared = parameter(type=type, **({"options": ["a"]} if type == "enum" else {}))

    for path, what in check(declared, value, "p"):
        assert path.startswith("p")
        assert what


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_an_object_survives_the_message(values: dict[str, Any]) -> None:
    struct = Struct.FromString(as_struct(values).SerializeToString())

    assert plain_struct(struct) == values
