"""Templates with steps that cannot be done: refused when they are written, with all that is wrong."""

from __future__ import annotations

import pytest
from kapell.v1.template_pb2 import CreateTemplateRequest, TemplateStep, UpdateTemplateRequest
from kapell_server.domain.templates.template_check import check_spec

from tests.domain.workshop import Workshop, spec, step


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@pytest.mark.parametrize(
    ("steps", "prompt", "path", "says"),
    [
        ([step("a", "b")], "x", "spec.steps[0].depends_on[0]", "there is no step 'b' (there are: a)"),
        ([step("a", "a")], "x", "spec.steps[0].depends_on", "for ever: a → a"),
        ([step("a", "c"), step("b", "a"), step("c", "b")], "x", "spec.steps[0].depends_on", "a → c → b → a"),
        ([step("a"), step("a")], "x", "spec.steps[1].name", "is 'a', as that of steps[0]"),
        ([step("a", prompt=" ")], "x", "spec.steps[0].prompt", "is required"),
        ([step("a", prompt="{nobody}")], "x", "spec.steps[0].prompt", "there is no parameter 'nobody'"),
        ([step("a", prompt="{if what}")], "x", "spec.steps[0].prompt", "has no {end}"),
        ([step("a", prompt="{focus}")], "x", "spec.steps[0].prompt", "'focus' may have no value here"),
        ([step("a", prompt="{focus}", when="not focus")], "x", "spec.steps[0].prompt", "'focus' may have no value"),
        ([step("a", task_name="{nobody}")], "x", "spec.steps[0].task_name", "there is no parameter 'nobody'"),
        ([step("a", task_name="{deps.a.result}")], "x", "spec.steps[0].task_name", "is for prompts"),
        ([step("a", when="nobody")], "x", "spec.steps[0].when", "there is no parameter 'nobody'"),
        ([step("a", when="deps.a.result")], "x", "spec.steps[0].when", "is no tag"),
        ([step("a", when="deep or focus")], "x", "spec.steps[0].when", "'deep or focus' is not understood"),
        ([step("a", when="deep}{what")], "x", "spec.steps[0].when", "is not understood"),
        ([step("a", when=" ")], "x", "spec.steps[0].when", "is blank"),
        (
            [step("a"), step("b", prompt="{deps.a.result}")],
            "x",
            "spec.steps[1].prompt",
            "{deps.a.result} would never have a result: 'a' is no step in depends_on (there are: none)",
        ),
        ([step("a")], "{deps.b.result}", "spec.prompt", "'b' is no step of the template (there are: a)"),
        ([step("a"), step("b", "a", prompt="{if deep}{deps.b.result}{end}")], "x", "spec.steps[1].prompt", "'b' is no"),
    ],
)
def test_a_step_that_cannot_be_done_is_never_stored(
    workshop: Workshop, steps: list[TemplateStep], prompt: str, path: str, says: str
) -> None:
    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.add(*steps, prompt=prompt)

    [(found, what)] = refusals[0].violations
    assert found == path
    assert says in what


def test_all_that_is_wrong_is_named_at_once(workshop: Workshop) -> None:
    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.add(
            step("a", "b", prompt="{x}", when="y"),
            step("b", "a", "c", prompt="{deps.z.result}", task_name="{"),
            prompt="{deps.c.result} {u}",
        )

    assert [path for path, _ in refusals[0].violations] == [
        "spec.prompt",
        "spec.prompt",
        "spec.steps[0].when",
        "spec.steps[0].prompt",
        "spec.steps[1].depends_on[1]",
        "spec.steps[1].prompt",
        "spec.steps[1].task_name",
        "spec.steps[0].depends_on",
    ]


def test_all_prompts_of_a_template_share_one_cap(workshop: Workshop) -> None:
    big = "ü" * 32_000

    workshop.add(*[step(name, prompt=big) for name in "abcd"])
    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.do(CreateTemplateRequest(template_id="u", spec=spec(*[step(n, prompt=big) for n in "abcde"])))

    assert refusals[0].violations[0][0] == "spec.steps"
    assert "320013 bytes together, at most 262144" in refusals[0].message


def test_all_texts_of_a_template_share_one_cap_of_tags(workshop: Workshop) -> None:
    most = [step("a", prompt="{what}" * 2_499, task_name="{what}" * 50), step("b", prompt="{{" * 2_450)]

    workshop.add(*most, prompt="{what}")
    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.do(UpdateTemplateRequest(template_id="t", spec=spec(*most, prompt="{what}", task_name="{what}")))
    with workshop.refuses("REQUEST_INVALID") as of_keys:
        workshop.do(
            CreateTemplateRequest(
                template_id="u", spec=spec(*most, step("c", concurrency_keys=["{what}"]), prompt="{what}")
            )
        )

    [(path, what)] = refusals[0].violations
    assert path == "spec.steps[1].prompt"
    assert "more than 5,000 tags in all its texts" in what
    assert [path for path, _ in of_keys[0].violations] == ["spec.steps[2].concurrency_keys"]


def test_a_template_of_too_many_tags_is_not_parsed() -> None:
    crowded = spec(*[step(f"s{number}", prompt="{wrong}" * 9_000) for number in range(4)], prompt="{wrong")

    assert [path for path, _ in check_spec(crowded)] == ["spec.steps[0].prompt"]


def test_lists_and_events_carry_no_prompt_of_a_step(workshop: Workshop) -> None:
    template = workshop.add(step("a"))

    assert [(said.name, said.prompt) for said in template.spec.steps] == [("a", "")]


def test_an_optional_parameter_that_when_asks_for_is_there(workshop: Workshop) -> None:
    workshop.add(step("a", when="focus", prompt="Mind {focus}", task_name="On {focus}"))

    task = workshop.make({"focus": "the loop"})

    assert workshop.prompt(workshop.steps(task)["a"]) == "Mind the loop"
    assert workshop.steps(task)["a"].display_name == "On the loop"


@pytest.mark.parametrize(
    ("key", "says"),
    [("a b", "is no concurrency key"), ("{nobody}", "no parameter 'nobody'"), ("{deps.a.result}", "is for prompts")],
)
def test_keys_are_checked_when_they_are_written(workshop: Workshop, key: str, says: str) -> None:
    with workshop.refuses("REQUEST_INVALID") as refusals:
        workshop.add(step("a", concurrency_keys=["ok", key]), concurrency_keys=[key])

    assert [path for path, _ in refusals[0].violations] == [
        "spec.concurrency_keys[0]",
        "spec.steps[0].concurrency_keys[1]",
    ]
    assert all(says in what for _, what in refusals[0].violations)
