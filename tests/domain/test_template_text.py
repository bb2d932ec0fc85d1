"""The language of prompts: what a tag stands for, what is refused, and that nothing breaks out or runs on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell_server.domain.templates.template_text import MAX_DEPTH, TextError, parse, render, uses

VALUES: dict[str, Any] = {
    "name": "Ada",
    "files": ["a.py", "b c.py"],
    "deep": True,
    "off": False,
    "empty": "",
    "count": 3,
    "team": {"lead": "Grace", "size": 2, "in": {"x": [1]}},
    "people": [{"name": "Ada"}, {"name": "Alan"}],
    "absent": None,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {name}!", "Hello Ada!"),
        ("{{name}} {{", "{name} {"),
        ("{files}", "a.py, b c.py"),
        ("{files|list}", "- a.py\n- b c.py"),
        ("{files|lines}", "a.py\nb c.py"),
        ("{files|json}", '["a.py", "b c.py"]'),
        ("{files|shell}", "a.py 'b c.py'"),
        ("{name|quote}", "> Ada"),
        ("{name|fence}", "```\nAda\n```"),
        ("{count} {deep} {team.lead} {team.in.x}", "3 true Grace 1"),
        ("{team|json}", '{"lead": "Grace", "size": 2, "in": {"x": [1]}}'),
        ("{if name}yes{else}no{end}", "yes"),
        ("{if off}yes{else}no{end}{if empty}yes{end}{if absent}yes{end}{if unknown}yes{end}", "no"),
        ("{if not off}yes{end}", "yes"),
        ("{if name is Ada}yes{end}{if name is not Ada}no{end}{if count is 3}three{end}", "yesthree"),
        ("{each files}{index}:{item} {end}", "1:a.py 2:b c.py "),
        ("{each people}{if item.name is Ada}{item.name}{end}{end}", "Ada"),
        ("{each absent}x{end}", ""),
    ],
)
def test_a_tag_stands_for(text: str, expected: str) -> None:
    assert render(parse(text), VALUES) == expected


def test_a_line_with_nothing_but_a_block_tag_disappears() -> None:
    text = "before\n  {if name}\nHello\n  {end}\nafter {if name}inline{end}\n{each files}\n- {item}\n{end}"

    assert render(parse(text), VALUES) == "before\nHello\nafter inline\n- a.py\n- b c.py\n"


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    rendered = render(parse("{x|fence}"), {"x": "a\n````\nb"})

    assert rendered == "`````\na\n````\nb\n`````"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a { b", "line 1: a single {"),
        ("\n\na } b", "line 3: a single }"),
        ("{Name}", "is no tag"),
        ("{name.__class__}{}", "is no tag"),
        ("{name!r}", "is no tag"),
        ("{name:>10}", "is no tag"),
        ("{name|upper}", "unknown form; there are list"),
        ("{if}x{end}", "is not understood"),
        ("{if name}x", "{if name} has no {end}"),
        ("x{end}", "{end} ends nothing"),
        ("{each files}{else}{end}", "{else} belongs to no {if}"),
        ("{if a}{else}{else}{end}", "{else} belongs to no {if}"),
        ("{if a}" * (MAX_DEPTH + 1), "blocks are within each other"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(text: str, where: str) -> None:
    with pytest.raises(TextError, match=r"line [0-9]+: ") as caught:
        parse(text)

    assert where in str(caught.value)


@pytest.mark.parametrize("text", ["{unknown}", "{absent}", "{team.nobody}", "{name.upper}", "{files.append}"])
def test_a_value_that_is_not_there_is_an_error_and_attributes_are_none(text: str) -> None:
    with pytest.raises(TextError, match="has no value"):
        render(parse(text), VALUES)


def test_a_value_is_put_in_as_it_is_and_never_read_as_a_template() -> None:
    assert render(parse("{x}"), {"x": "{name} {{ {if}"}) == "{name} {{ {if}"


def test_the_output_is_capped() -> None:
    with pytest.raises(TextError, match="longer than"):
        render(parse("{each a}{each a}{text}{end}{end}"), {"a": [1] * 1000, "text": "x" * 1000})


def test_the_time_is_capped_however_little_is_written() -> None:
    nodes = parse("{each a}{each a}{each a}{if b}{end}{end}{end}{end}")
    began = time.process_time()

    with pytest.raises(TextError, match="steps"):
        render(nodes, {"a": [0] * 1000})

    assert time.process_time() - began < 2, "a cap of steps is a cap of time"


@pytest.mark.parametrize(
    ("form", "value"), [("fence", "\n" * 60_000), ("fence", [""] * 1_000), ("quote", " " * 60_000)]
)
def test_what_is_read_counts_where_less_is_written(form: str, value: str | list[str]) -> None:
    text = parse(f"{{x|{form}}}")

    assert len(render(text, {"x": value})) < 1_100
    with pytest.raises(TextError, match="longer than"):
        render(text * 300, {"x": value})


def test_bytes_are_what_is_capped_not_characters() -> None:
    with pytest.raises(TextError, match="longer than 10 bytes"):
        render(parse("{x}"), {"x": "äöüäöü"}, limit=10)


def test_uses_name_every_parameter_and_whether_it_is_asked_for_before() -> None:
    text = "{a}{if b}{b}{else}{b}{end}{if not c}{c}{else}{c}{end}{each d}{item}{index}{d}{end}{if e is x}{e}{end}"

    found = [(str(use.name), use.kind, use.guarded) for use in uses(parse(text))]

    assert found == [
        ("a", "put", False),
        ("b", "if", False),
        ("b", "put", True),
        ("b", "put", False),
        ("c", "if", False),
        ("c", "put", False),
        ("c", "put", True),
        ("d", "each", False),
        ("d", "put", True),
        ("e", "if", False),
        ("e", "put", True),
    ]


TAGS = st.sampled_from(
    [
        "{a}",
        "{b|list}",
        "{c.d}",
        "{if a}",
        "{if not b}",
        "{if a is x}",
        "{else}",
        "{end}",
        "{each b}",
        "{item}",
        "{index}",
    ]
)
TEXTS = st.lists(TAGS | st.sampled_from(["{", "}", "{{", "}}", "\n", " ", "|", "."]) | st.text(max_size=8), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(TEXTS.map("".join), st.dictionaries(st.sampled_from(["a", "b", "c"]), JSON))
def test_any_text_with_any_values_gives_a_text_or_a_text_error(text: str, values: dict[str, Any]) -> None:
    try:
        rendered = render(parse(text), values)
    except TextError as error:
        assert str(error)
    else:
        assert len(rendered.encode(errors="replace")) <= 262_144


@given(st.text())
def test_a_text_with_doubled_braces_comes_out_as_it_was(text: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")

    assert render(parse(doubled), {}) == text


@given(st.text(), st.text())
def test_a_value_comes_out_between_what_stands_around_it(before: str, value: str) -> None:
    around = before.replace("{", "{{").replace("}", "}}")

    assert render(parse(around + "{x}" + around), {"x": value}) == before + value + before
