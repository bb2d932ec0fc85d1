"""`kapell template …` and `kapell run`: from a file to a finished task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.cli.template_views import DRY_RUNS
from kapell.v1.template_pb2 import RenderTemplateResponse, StartBlocker

from tests.cli.shell import Shell

GREET = """
template_id: greet
agent_type: shell
description: Says hello.
parameters:
  name: {type: string, required: true}
  times: {type: int, minimum: 1, maximum: 5, default: 1}
  loud: {type: bool, default: false}
  files: {type: array, items: path}
  extra: {type: object}
prompt: |
  for i in $(seq {times}); do echo Hello {name|shell}{if loud}'!'{end}; done
  {each files}
  echo {index} {item|shell}
  {end}
"""


@pytest.fixture(scope="module")
def greet(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose template is applied."""
    file = tmp_path_factory.mktemp("templates") / "greet.yaml"
    file.write_text(GREET)
    assert shell.pipe("template", "apply", "-f", str(file), "-o", "id").out == "greet\n"
    return file


def test_run_makes_a_task_follows_it_and_exits_with_its_outcome(shell: Shell, agent: str, greet: Path) -> None:
    result = shell.pipe("run", "greet", "--param", "name=it's Ada", "-P", "times=2", "-P", "loud=yes")

    assert result.out == "Hello it's Ada!\nHello it's Ada!\n"
    assert result.code == 0


def test_a_list_is_typed_with_commas_by_repeating_from_a_file_or_as_json(
    shell: Shell, agent: str, greet: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "list.txt"
    lines.write_text("c.py\n\nd e.py\n")

    result = shell.pipe(
        "run", "greet", "-P", "name=x", "-P", "files=a.py,b.py", "-P", f"files=@{lines}", "-P", 'files=["f,g.py"]'
    )

    assert result.out.splitlines()[1:] == ["1 a.py", "2 b.py", "3 c.py", "4 d e.py", "5 f,g.py"]


def test_parameters_come_from_files_stdin_and_json(shell: Shell, greet: Path) -> None:
    from_stdin = shell.pipe("template", "render", "greet", "-P", "name=@-", "--prompt", stdin="Ada\n")
    document = '{"name": "Grace", "extra": {"a": 1}}'
    from_json = shell.pipe("template", "render", "greet", "--params-json", "-", "-o", "json", stdin=document)

    assert "echo Hello Ada;" in from_stdin.out
    assert json.loads(from_json.out)["parameters"] == {
        "extra": {"a": 1},
        "loud": False,
        "name": "Grace",
        "times": 1,
    }


def test_all_wrong_parameters_are_named_at_once(shell: Shell, greet: Path) -> None:
    result = shell.pipe("run", "greet", "-P", "times=9", "-P", "nam=Ada")

    assert result.code == 2
    for part in ("--param name: is required", "times: must be at most 5, not 9", "did you mean 'name'?"):
        assert part in result.err
    assert "kapell template get greet" in result.err


def test_a_dry_run_of_run_makes_no_task(shell: Shell, greet: Path) -> None:
    before = shell.pipe("task", "list", "--template", "greet", "-o", "id").out

    result = shell.pipe("run", "greet", "-P", "name=x", "--dry-run", "-o", "json")

    assert json.loads(result.out)["displayName"] == "greet"
    assert "Nothing was changed" in result.err
    assert shell.pipe("task", "list", "--template", "greet", "-o", "id").out == before


def test_a_dry_run_says_what_is_in_the_way(shell: Shell, greet: Path) -> None:
    shell.pipe("queue", "pause", "shell", "--reason", "a flood")
    try:
        result = shell.pipe("template", "render", "greet", "-P", "name=Ada")
    finally:
        shell.pipe("queue", "resume", "shell")

    assert "The queue shell is paused: a flood. Nothing starts until it is resumed." in result.out


def test_a_limit_that_ends_by_itself_is_shown_with_its_time() -> None:
    blocker = StartBlocker(message="At its limit of starts.", until_time=Timestamp(seconds=86400))
    run = RenderTemplateResponse(template_id="greet", blockers=[blocker])

    assert DRY_RUNS.card is not None
    shown = {line.label: line.value for line in DRY_RUNS.card(run)}

    assert "At its limit of starts. Until 1970-01-0" in str(shown["Blocked by"])


def test_applying_again_changes_nothing_and_a_change_is_a_version(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "count.yaml"
    file.write_text("template_id: count\nagent_type: shell\nprompt: echo one\n")
    first = shell.pipe("template", "apply", "-f", str(file), "-o", "json")
    again = shell.pipe("template", "apply", "-f", "-", "-o", "json", stdin=file.read_text())
    second = shell.pipe("template", "apply", "-f", "-", "-o", "json", stdin=file.read_text() + "tags: [new]\n")

    assert json.loads(first.out) == json.loads(again.out)
    assert json.loads(second.out)["latestVersion"] == 2
    assert shell.pipe("template", "versions", "count", "-o", "id").out.split() == ["count@2", "count@1"]
    alias = shell.pipe("template", "alias", "count", "old", "1", "-o", "json")
    assert json.loads(alias.out)["aliases"] == {"old": 1}
    assert "tags" not in shell.pipe("template", "export", "count@old").out
    assert "aliases" not in json.loads(shell.pipe("template", "alias", "count", "old", "--remove", "-o", "json").out)


def test_an_exported_template_is_applied_unchanged(shell: Shell, greet: Path) -> None:
    exported = shell.pipe("template", "export", "greet").out

    shell.pipe("template", "apply", "-f", "-", stdin=exported)

    assert shell.pipe("template", "versions", "greet", "-o", "id").out == "greet@1\n"


def test_validate_says_all_that_is_wrong_with_a_file(shell: Shell, greet: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("template_id: wrong\nagent_type: shell\nprompt: '{x}'\ntask_name: '{if}'\n")

    good = shell.pipe("template", "validate", "-f", str(greet), "-P", "name=Ada")
    bad = shell.pipe("template", "validate", "-f", str(wrong))

    assert (good.code, "is right" in good.err) == (0, True)
    assert "echo Hello Ada" in good.out
    assert bad.code == 2
    assert "spec.prompt" in bad.err
    assert "spec.task_name" in bad.err


def test_a_clone_has_other_defaults_and_can_be_deleted(shell: Shell, greet: Path) -> None:
    shell.pipe("template", "clone", "greet", "greet-ada", "-P", "name=Ada", "--name", "For Ada")

    assert "Hello Ada" in shell.pipe("template", "render", "greet-ada", "--prompt").out
    assert "greet-ada" in shell.pipe("template", "list", "--mine", "-o", "id").out.split()
    assert shell.pipe("template", "delete", "greet-ada").code == 2, "not without a yes"
    assert shell.pipe("template", "delete", "greet-ada", "--yes", "-o", "id").out == "greet-ada\n"
    assert shell.pipe("template", "get", "greet-ada").code == 3


def test_what_came_with_kapell_is_not_deleted_but_cloned(shell: Shell) -> None:
    result = shell.pipe("template", "delete", "code-review", "--yes")

    assert result.code == 5
    assert "kapell template clone code-review" in result.err


def test_the_task_says_what_it_was_made_from(shell: Shell, greet: Path) -> None:
    made = shell.pipe("run", "greet", "-P", "name=x", "--id", "task_greeting", "--type", "nobody", "--timeout", "0.1s")

    assert made.code == 8
    assert "greet@1" in shell.terminal("task", "get", "task_greeting", NO_COLOR="1").out
    listed = shell.pipe("event", "list", "--template", "greet")
    assert listed.out.split()[2:] == ["template.created", "greet", "version", "1", "greet"]
    refused = shell.pipe("template", "delete", "greet", "--yes")
    assert refused.code == 5
    assert "kapell task list --template greet" in refused.err
