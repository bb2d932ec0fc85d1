"""Templates with steps from the command line: files, dry runs, and a run with a line for each step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.shell import Shell, compare, forget

RELAY = """
template_id: relay
agent_type: shell
retry_policy: {max_attempts: 1}
parameters:
  name: {type: string, required: true}
  loud: {type: bool, default: false}
  broken: {type: bool, default: false}
steps:
  first: {prompt: "echo {name|shell}", description: Says who.}
  shout: {depends_on: [first], when: loud, prompt: "echo '{deps.first.result}!'"}
  last:
    depends_on: [shout]
    prompt: |
      {if broken}
      echo no; exit 3
      {else}
      echo 'last: {deps.shout.result}'
      {end}
prompt: |
  echo 'all: {deps.first.result}, {deps.last.result}'
"""


@pytest.fixture(scope="module")
def relay(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose template is applied."""
    file = tmp_path_factory.mktemp("templates") / "relay.yaml"
    file.write_text(RELAY)
    assert shell.pipe("template", "apply", "-f", str(file), "-o", "id").out == "relay\n"
    return file


def _ended(err: str) -> list[str]:
    """The lines about steps that have ended, without their times."""
    return [
        re.sub(r" in [0-9.]+s", " in N", line) for line in err.splitlines() if re.match(r"\S (first|shout|last) ", line)
    ]


def test_a_run_says_when_each_step_has_ended(shell: Shell, agent: str, relay: Path) -> None:
    result = shell.pipe("run", "relay", "-P", "name=Ada", "-P", "loud=yes")

    assert (result.code, result.out) == (0, "all: Ada, last: Ada!\n")
    assert _ended(result.err) == [
        "✓ first  succeeded in N",
        "✓ shout  succeeded in N",
        "✓ last  succeeded in N",
    ]


def test_a_step_left_out_is_nowhere_in_the_run(shell: Shell, agent: str, relay: Path) -> None:
    result = shell.pipe("run", "relay", "-P", "name=Ada")

    assert (result.code, result.out) == (0, "all: Ada, last: (step shout was left out)\n")
    assert _ended(result.err) == ["✓ first  succeeded in N", "✓ last  succeeded in N"]


def test_a_failed_step_is_told_with_its_reason_and_fails_the_run(shell: Shell, agent: str, relay: Path) -> None:
    result = shell.pipe("run", "relay", "-P", "name=Ada", "-P", "broken=yes")

    assert result.code == 7
    assert "✗ last  failed in N: EXIT_CODE" in _ended(result.err)[-1]
    assert "DEPENDENCY_FAILED" in result.err


def test_an_exported_template_has_its_steps(shell: Shell, relay: Path) -> None:
    exported = shell.pipe("template", "export", "relay").out

    shell.pipe("template", "apply", "-f", "-", stdin=exported)

    assert shell.pipe("template", "versions", "relay", "-o", "id").out == "relay@1\n"


def test_validate_names_what_is_wrong_with_steps_or_shows_their_prompts(
    shell: Shell, relay: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(RELAY.replace("when: loud", "when: laud").replace("[shout]", "[shoot]"))

    good = shell.pipe("template", "validate", "-f", str(relay), "-P", "name=Ada")
    bad = shell.pipe("template", "validate", "-f", str(wrong))

    assert good.out == (
        "[first]\necho Ada\n\n[shout]\n(left out)\n\n[last]\necho 'last: (step shout was left out)'\n\n"
        "echo 'all: {deps.first.result}, {deps.last.result}'\n"
    )
    assert bad.code == 2
    for part in ("spec.steps[1].when", "spec.steps[2].depends_on[0]", "spec.steps[2].prompt"):
        assert part in bad.err


def test_a_dry_run_shows_the_steps(shell: Shell, relay: Path) -> None:
    rendered = json.loads(shell.pipe("run", "relay", "-P", "name=Ada", "--dry-run", "-o", "json").out)

    assert [(step["name"], step.get("leftOut", False), step.get("dependsOn")) for step in rendered["steps"]] == [
        ("first", False, None),
        ("shout", True, None),
        ("last", False, ["first"]),
    ]


def test_steps_on_a_terminal(shell: Shell, agent: str, relay: Path) -> None:
    card = shell.terminal("template", "get", "relay").out
    dry_run = shell.terminal("template", "render", "relay", "-P", "name=Ada").out

    compare("template-steps", forget(f"{_from_steps(card)}\n{_from_steps(dry_run)}", {}))


def _from_steps(card: str) -> str:
    return "".join(card.splitlines(keepends=True)[["Steps" in line for line in card.splitlines()].index(True) :])


CHAIN = """
template_id: chain
agent_type: shell
retry_policy: {max_attempts: 1}
parameters:
  marker: {type: string, required: true}
steps:
  first: {prompt: "echo looking; test -e {marker|shell}"}
  last: {depends_on: [first], prompt: "echo last"}
prompt: echo {deps.last.result}
"""


def again(screen: str) -> list[list[str]]:
    """The commands after "once more", as arguments."""
    [line] = re.findall("once more: +(.*)", screen)
    return [command.split()[1:] for command in line.split(" && ")]


def test_the_hints_after_a_failed_step_work(shell: Shell, agent: str, tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text(CHAIN)
    assert shell.pipe("template", "apply", "-f", str(tmp_path / "chain.yaml")).code == 0

    screen = shell.terminal("run", "chain", "-P", f"marker={tmp_path / 'marker'}", NO_COLOR="1").out
    [look] = re.findall("look closer: kapell (.*)", screen)
    assert "looking" in shell.pipe(*look.split()).out

    (tmp_path / "marker").touch()
    for command in again(screen):
        assert shell.pipe(*command, *(["--yes"] if "--root" in command else [])).code == 0, command
    assert shell.pipe("task", "wait", again(screen)[-1][-1]).code == 0


def test_a_run_whose_dependency_has_failed_ends_at_once_and_says_how_to_mend_it(
    shell: Shell, agent: str, tmp_path: Path
) -> None:
    shell.pipe("task", "run", "-t", "shell", "--id", "task_cause", "--max-attempts", "1", f"test -e {tmp_path}/there")
    line = ("-t", "shell", "--after", "task_cause", "--id", "task_after_it", "echo after")

    screen = shell.terminal("task", "run", *line, NO_COLOR="1").out

    assert "look closer: kapell task logs task_cause" in screen
    assert again(screen) == [["task", "retry", "task_cause"], ["task", "retry", "task_after_it"]]
    (tmp_path / "there").touch()
    for command in again(screen):
        assert shell.pipe(*command).code == 0
    assert shell.pipe("task", "wait", "task_after_it").code == 0


def test_a_task_that_fails_as_it_is_created_says_why(shell: Shell, agent: str) -> None:
    shell.pipe("task", "run", "-t", "shell", "--id", "task_broken", "--max-attempts", "1", "exit 3")
    line = ("task", "create", "-t", "nobody-serves", "--after", "task_broken", "x")

    screen = shell.terminal(*line, NO_COLOR="1").out
    piped = shell.pipe(*line, "-o", "id")

    assert "failed: DEPENDENCY_FAILED: its dependency task_broken has failed" in screen
    assert again(screen)[0] == ["task", "retry", "task_broken"]
    assert "No agent serves" not in screen
    assert "Follow it" not in screen
    assert (piped.code, len(piped.out.splitlines()), "DEPENDENCY_FAILED" in piped.err) == (0, 1, True)
