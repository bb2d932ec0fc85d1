"""Templates: immutable versions, aliases, clones, deletion, Kapell's own, and the tasks made from them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from kapell.v1.task_pb2 import CreateTaskRequest, RetryPolicy, Task, TaskSpec, TaskTimeouts
from kapell.v1.template_pb2 import (
    PARAMETER_TYPE_ARRAY,
    PARAMETER_TYPE_STRING,
    CloneTemplateRequest,
    CreateTemplateRequest,
    DeleteTemplateAliasRequest,
    DeleteTemplateRequest,
    SetTemplateAliasRequest,
    Template,
    TemplateSpec,
    UpdateTemplateRequest,
)
from kapell_server.engine.facts import TemplatesShipped

from tests.domain.world import World


def spec(prompt: str = "Review {files} on {branch}", **fields: Any) -> TemplateSpec:
    said: dict[str, Any] = {
        "agent_type": "code",
        "prompt": prompt,
        "parameters": [
            {"name": "files", "rules": {"type": PARAMETER_TYPE_ARRAY}, "required": True},
            {"name": "branch", "rules": {"type": PARAMETER_TYPE_STRING}, "default_value": {"string_value": "main"}},
        ],
    }
    return TemplateSpec(**{**said, **fields})


class Library(World):
    """A world with verbs for templates."""

    def add(self, template_id: str = "review", **fields: Any) -> Template:
        template: Template = self.do(CreateTemplateRequest(template_id=template_id, spec=spec(**fields)))
        return template

    def change(self, template_id: str = "review", **fields: Any) -> Template:
        template: Template = self.do(UpdateTemplateRequest(template_id=template_id, spec=spec(**fields)))
        return template

    def make(self, template: str = "review", **fields: Any) -> Task:
        fields.setdefault("parameters", {"files": ["a.py"]})
        task: Task = self.do(CreateTaskRequest(task=TaskSpec(template=template, **fields)))
        return task


@pytest.fixture
def library() -> Library:
    return Library()


def test_a_new_template_is_version_1_and_has_its_prompt_aside(library: Library) -> None:
    template = library.add()

    assert (template.version, template.latest_version, template.spec.display_name) == (1, 1, "review")
    assert template.spec.prompt == ""
    assert library.events == ["template.created"]


def test_a_change_is_a_new_version_and_leaves_the_old_one(library: Library) -> None:
    library.add()
    library.change(prompt="Look at {files}")

    old, new = library.make("review@1"), library.make()

    assert library.content(old.task_id).prompt == "Review a.py on main"
    assert library.content(new.task_id).prompt == "Look at a.py"
    assert (old.template_id, old.template_version, new.template_version) == ("review", 1, 2)


def test_the_same_spec_again_is_no_version(library: Library) -> None:
    first = library.add()

    assert library.change() == first
    assert library.events == ["template.created"]


def test_an_alias_moves_between_versions_and_goes(library: Library) -> None:
    library.add()
    library.change(prompt="Look at {files}")
    library.do(SetTemplateAliasRequest(template_id="review", alias="stable", version=1))
    assert library.make("review@stable").template_version == 1

    library.do(SetTemplateAliasRequest(template_id="review", alias="stable", version=2))
    assert library.make("review@stable").template_version == 2

    library.do(DeleteTemplateAliasRequest(template_id="review", alias="stable"))
    with library.refuses("TEMPLATE_NOT_FOUND") as refusals:
        library.make("review@stable")
    assert "its versions are 1 to 2, its aliases latest" in refusals[0].message


@pytest.mark.parametrize("selector", ["0", "2", "99999999999", "nothing"])
def test_a_version_that_is_not_there_is_not_found(library: Library, selector: str) -> None:
    library.add()

    with library.refuses("TEMPLATE_NOT_FOUND"):
        library.make(f"review@{selector}")


def test_a_task_has_what_the_template_says_unless_it_says_otherwise(library: Library) -> None:
    library.add(
        priority=700,
        retry_policy=RetryPolicy(max_attempts=2),
        timeouts=TaskTimeouts(run_timeout=Duration(seconds=60), total_timeout=Duration(seconds=600)),
        labels={"kind": "review", "team": "a"},
        task_name="Review\n{files}",
    )

    plain = library.task(library.make().task_id)
    own = library.task(
        library.make(
            agent_type="other",
            display_name="Mine",
            priority=0,
            labels={"team": "b"},
            timeouts=TaskTimeouts(run_timeout=Duration(seconds=5)),
        ).task_id
    )

    assert (plain.agent_type, plain.display_name, plain.priority) == ("code", "Review a.py", 700)
    assert (plain.retry_policy.max_attempts, plain.retry_policy.backoff_multiplier) == (2, 2)
    assert dict(plain.labels) == {"kind": "review", "team": "a"}
    assert (own.agent_type, own.display_name, own.priority) == ("other", "Mine", 0)
    assert dict(own.labels) == {"kind": "review", "team": "b"}
    assert (own.timeouts.run_timeout.seconds, own.timeouts.total_timeout.seconds) == (5, 600)


def test_parameters_with_defaults_are_the_input_of_the_task(library: Library) -> None:
    library.add()

    content = library.content(library.make().task_id)

    assert list(content.input["files"]) == ["a.py"]
    assert content.input["branch"] == "main"


def test_every_wrong_parameter_is_named_with_its_path(library: Library) -> None:
    library.add()

    with library.refuses("TEMPLATE_PARAMETERS_INVALID") as refusals:
        library.make(parameters={"files": ["a", 1], "branch": 2, "x": 1})

    assert [path for path, _ in refusals[0].violations] == [
        "task.parameters.files[1]",
        "task.parameters.branch",
        "task.parameters.x",
    ]


@pytest.mark.parametrize(
    "fields", [{"prompt": "more"}, {"input": {"a": 1}}, {"template": "", "agent_type": "code"}, {"template": ""}]
)
def test_a_task_is_of_a_template_or_not(library: Library, fields: dict[str, Any]) -> None:
    library.add()

    with library.refuses("REQUEST_INVALID"):
        library.do(CreateTaskRequest(task=TaskSpec(**{"template": "review", "parameters": {"files": ["a"]}, **fields})))


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "is required"),
        ("{file}", "line 1: there is no parameter 'file' (there are: files, branch)"),
        ("{if files}", "has no {end}"),
        ("{branch.x}", "'branch' is no object"),
        ("{each branch}{end}", "'branch' is none"),
    ],
)
def test_a_prompt_that_cannot_be_rendered_is_never_stored(library: Library, prompt: str, says: str) -> None:
    with library.refuses("REQUEST_INVALID") as refusals:
        library.add(prompt=prompt)

    assert refusals[0].violations[0][0] == "spec.prompt"
    assert says in refusals[0].violations[0][1]


def test_a_parameter_that_may_be_absent_must_be_asked_for(library: Library) -> None:
    optional = [{"name": "focus", "rules": {"type": PARAMETER_TYPE_STRING}}]

    with library.refuses("REQUEST_INVALID") as refusals:
        library.add(prompt="Mind {focus}", parameters=optional)
    library.add(prompt="{if focus}Mind {focus}{end}", parameters=optional)

    assert "'focus' may have no value here" in refusals[0].violations[0][1]


def test_a_clone_has_its_own_defaults_and_remembers_its_origin(library: Library) -> None:
    library.add()

    clone = library.do(
        CloneTemplateRequest(
            template="review", template_id="mine", defaults={"files": ["x"], "branch": "dev"}, agent_type="mine"
        )
    )
    task = library.make("mine", parameters={})

    assert (clone.cloned_from, clone.built_in, clone.spec.agent_type) == ("review@1", False, "mine")
    assert library.content(task.task_id).prompt == "Review x on dev"


def test_a_clone_refuses_a_default_that_its_parameter_refuses(library: Library) -> None:
    library.add()

    with library.refuses("TEMPLATE_PARAMETERS_INVALID") as refusals:
        library.do(CloneTemplateRequest(template="review", template_id="mine", defaults={"branch": 7, "x": 1}))

    assert [path for path, _ in refusals[0].violations] == ["defaults.branch", "defaults.x"]


def test_a_template_in_use_is_deleted_by_force_only(library: Library) -> None:
    library.add()
    task = library.make()
    with library.refuses("TEMPLATE_IN_USE") as refusals:
        library.do(DeleteTemplateRequest(template_id="review"))
    assert refusals[0].metadata == {"template_id": "review", "tasks": "1"}

    library.do(DeleteTemplateRequest(template_id="review", force=True))

    with library.refuses("TEMPLATE_NOT_FOUND"):
        library.make()
    assert library.task(task.task_id).template_id == "review"


def test_a_template_whose_tasks_have_ended_is_deleted(library: Library) -> None:
    library.add()
    library.cancel(library.make().task_id)

    library.do(DeleteTemplateRequest(template_id="review"))

    assert library.events[-1] == "template.deleted"


def test_a_deleted_id_begins_anew(library: Library) -> None:
    library.add()
    library.change(prompt="Look at {files}")
    library.do(DeleteTemplateRequest(template_id="review"))

    library.add(prompt="Anew {files}")

    task = library.make()
    assert (library.content(task.task_id).prompt, task.template_version) == ("Anew a.py", 1)


def test_deleting_and_creating_in_one_batch_leaves_the_new_one(library: Library) -> None:
    library.add()

    library.do(
        DeleteTemplateRequest(template_id="review"),
        CreateTemplateRequest(template_id="review", spec=spec("Anew {files}")),
    )

    assert library.content(library.make().task_id).prompt == "Anew a.py"


def test_what_ships_with_kapell_cannot_be_changed_or_deleted_but_gets_versions(library: Library) -> None:
    library.do(TemplatesShipped((("review", spec()),), "one"))
    for request in (
        UpdateTemplateRequest(template_id="review", spec=spec("x {files}")),
        DeleteTemplateRequest(template_id="review", force=True),
    ):
        with library.refuses("TEMPLATE_BUILT_IN"):
            library.do(request)

    library.do(TemplatesShipped((("review", spec()),), "one"))
    library.do(TemplatesShipped((("review", spec("Better {files}")),), "two"))

    assert library.events == ["template.created", "template.updated"]
    assert library.make().template_version == 2


def test_a_template_of_a_user_is_not_overwritten_by_one_that_ships(library: Library) -> None:
    mine = library.add()

    library.do(TemplatesShipped((("review", spec("Theirs {files}")),), "one"))

    assert library.state.templates.get("review") == mine
