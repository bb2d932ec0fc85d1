"""The card on a real terminal: editing, batches, rules, and that nothing hangs whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from kapell.cli.card_edit import difference, editor
from kapell.cli.card_rule import may_be_remembered, scopes, spec_of
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_BUDGET,
    APPROVAL_KIND_TASK_START,
    APPROVAL_KIND_TOOL_PERMISSION,
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_HIGH,
    RISK_LEVEL_LOW,
    RISK_LEVEL_MEDIUM,
    Approval,
    ApprovalContent,
    Risk,
)

from tests.cli.cards import KEYS, run_here, script, waiting
from tests.cli.shell import Shell

# -- edit -------------------------------------------------------------------------------------


def test_an_edited_prompt_is_shown_as_a_diff_and_approved(shell: Shell, agent: str, tmp_path: Path) -> None:
    run = run_here(shell, "edited", EDITOR=script(tmp_path, "sed -i s/one/two/ $1"))

    run.type("e")
    shown = run.expect(r"\[y\] yes")
    assert "-echo one" in shown
    assert "+echo two" in shown
    run.type("y")
    run.expect("two")

    assert run.finish().code == 0
    assert "two" in shell.pipe("task", "get", "task_edited", "-o", "json").out


def test_an_edit_that_changes_nothing_decides_nothing(shell: Shell, tmp_path: Path) -> None:
    run = run_here(shell, "same", EDITOR=script(tmp_path, "true"))

    run.type("e")
    run.expect("Nothing was changed")
    run.expect(KEYS)
    run.type("d")
    run.expect("Why not")
    run.type("\r")

    assert run.finish().code == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [("echo '[]' > $1", "must be one JSON object"), ("echo '{' > $1", "it is no JSON"), ("exit 3", "ended with 3")],
)
def test_an_edit_that_cannot_be_goes_back_to_the_card(shell: Shell, tmp_path: Path, text: str, said: str) -> None:
    name = said.split()[-1].lower()
    run = run_here(shell, name, "echo one", "--input-json", '{"a": 1}', EDITOR=script(tmp_path, text))

    run.type("e")
    run.expect(said)
    run.expect(KEYS)
    run.type("\x03")

    assert run.finish().code == 130


def test_the_server_has_the_last_word_on_an_edit(shell: Shell, tmp_path: Path) -> None:
    template = tmp_path / "greet.yaml"
    template.write_text(
        "template_id: greet-desk\nagent_type: shell\nprompt: echo {name}\n"
        "parameters:\n  name: {type: string, required: true, pattern: '[a-z]+'}\napproval: {}\n"
    )
    applied = shell.pipe("template", "apply", "-f", str(template))
    assert applied.code == 0, applied.err
    environment = {"EDITOR": script(tmp_path, "sed -i s/ann/BOB/ $1")}
    run = shell.open_terminal("run", "greet-desk", "--param", "name=ann", **environment)
    run.expect(KEYS)

    run.type("e")
    run.expect(r"\[y\] yes")
    run.type("y")
    run.expect("name")
    run.expect(KEYS)
    run.type("\x03")

    assert run.finish().code == 130


def test_an_editor_that_is_not_there_is_told(shell: Shell) -> None:
    run = run_here(shell, "no_editor", EDITOR="/nowhere/editor")

    run.type("e")
    run.expect("Nothing was decided")
    run.type("\x03")

    assert run.finish().code == 130


# -- batch ------------------------------------------------------------------------------------


def test_its_like_is_listed_and_decided_together(shell: Shell) -> None:
    ids = [waiting(shell, f"batch{number}", "batched", f"echo {number}") for number in range(3)]
    run = shell.open_terminal("approval", "watch", "--task", "task_batch0")

    run.expect(r"\[b\] 3 alike")
    run.type("b")
    listed = run.expect(r"approve these 3")
    assert all(id in listed for id in ids)
    run.type("a")
    run.expect("3 of 3 were decided: approve")
    run.type("\x03")

    assert run.finish().code == 130
    assert "awaiting" not in shell.pipe("task", "get", "task_batch2").out


def test_a_batch_is_refused_with_one_reason_for_all(shell: Shell) -> None:
    for number in range(2):
        waiting(shell, f"refuse{number}", "refused")
    run = shell.open_terminal("approval", "watch", "--task", "task_refuse0")

    run.expect(r"\[b\] 2 alike")
    run.type("b")
    run.expect("deny these 2")
    run.type("d")
    run.expect("Why not")
    run.type("no more\r")
    run.expect("2 of 2 were decided: deny")
    run.type("\x03")

    assert run.finish().code == 130
    assert "no more" in shell.pipe("task", "get", "task_refuse1").out


def test_what_is_riskier_is_in_no_batch(shell: Shell) -> None:
    waiting(shell, "risky0", "mixed")
    waiting(shell, "risky1", "mixed", "x\u202ey")
    run = shell.open_terminal("approval", "watch", "--task", "task_risky0")

    assert "alike" not in run.expect(KEYS)
    run.type("\x03")

    assert run.finish().code == 130


# -- one after the other ----------------------------------------------------------------------


def test_what_became_of_one_is_told_before_the_next_comes(shell: Shell) -> None:
    for number in range(2):
        waiting(shell, f"next{number}", f"next{number}")
    run = shell.open_terminal("approval", "watch", "--task", "task_next0", "--task", "task_next1")
    run.expect(KEYS)

    run.type("a")

    assert "(approved by admin)" in run.expect(KEYS)
    run.type("\x03")
    assert run.finish().code == 130


def test_a_vote_is_told_of_where_more_are_needed(shell: Shell) -> None:
    run = run_here(shell, "voted", "echo one", "--quorum", "2")

    run.type("a")
    run.expect("Your vote is taken in: 1 of 2 votes")
    run.type("\x03")

    assert run.finish().code == 130


# -- rule -------------------------------------------------------------------------------------


def test_an_approval_may_be_remembered(shell: Shell) -> None:
    waiting(shell, "first", "remembered")
    run = shell.open_terminal("approval", "watch", "--task", "task_first")
    run.expect(r"\[r\] rule")

    run.type("r")
    run.expect("Where")
    run.type("e")
    run.expect("For how long")
    run.type("8")
    run.expect(r"approve starts of type=remembered, everywhere, up to the risk medium, until ")
    run.expect(r"1 of the latest \d+")
    run.expect(r"its like by the rule\? \[y\]")
    run.type("y")
    run.expect("is made; revoke it with")
    run.expect("approved")
    run.type("\x03")

    assert run.finish().code == 130
    rules = shell.pipe("approval", "rules").out
    assert "type=remembered" in rules
    _ = shell.pipe("task", "create", "-t", "remembered", "--needs-approval", "--id", "task_second", "echo x")
    assert "awaiting" not in shell.pipe("task", "get", "task_second").out


def test_a_rule_that_is_broken_off_is_not_made(shell: Shell) -> None:
    waiting(shell, "broken", "unremembered")
    run = shell.open_terminal("approval", "watch", "--task", "task_broken")
    run.expect(KEYS)

    run.type("r")
    run.expect("Where")
    run.type("e")
    run.expect("For how long")
    run.type("\x1b")
    run.expect(KEYS)
    run.type("\x03")

    assert run.finish().code == 130
    assert "unremembered" not in shell.pipe("approval", "rules").out


def _approval(**fields: object) -> Approval:
    return Approval(approval_id="approval_a", task_id="task_a", root_task_id="task_r", agent_type="build", **fields)  # type: ignore[arg-type]


def test_the_rule_for_a_command_is_as_narrow_as_the_command() -> None:
    content = ApprovalContent(tool="bash", command="git push", paths=["src"])
    approval = _approval(kind=APPROVAL_KIND_TOOL_PERMISSION, content=content, template_id="ship")

    spec = spec_of(approval, "w", 3600, "git push *")

    assert (spec.tool, list(spec.commands), list(spec.paths)) == ("bash", ["git push *"], ["src"])
    assert (spec.root_task_id, spec.task_id, spec.template_id) == ("task_r", "", "")
    assert (spec.max_risk, spec.HasField("expire_time")) == (RISK_LEVEL_MEDIUM, True)
    assert [key for key, _ in scopes(approval)] == ["t", "w", "m", "e"]
    assert not spec_of(approval, "e", 0, "git push").HasField("expire_time")


def test_a_rule_says_no_higher_risk_than_what_was_approved() -> None:
    start = _approval(kind=APPROVAL_KIND_TASK_START, risk=Risk(level=RISK_LEVEL_HIGH))

    assert spec_of(start, "t", 0, "").max_risk == RISK_LEVEL_HIGH
    assert may_be_remembered(start)
    assert not may_be_remembered(_approval(kind=APPROVAL_KIND_TASK_START, risk=Risk(level=RISK_LEVEL_CRITICAL)))
    assert not may_be_remembered(_approval(kind=APPROVAL_KIND_BUDGET, risk=Risk(level=RISK_LEVEL_LOW)))


# -- edits by themselves ------------------------------------------------------------------------


def test_the_editor_is_the_one_people_have_chosen() -> None:
    assert editor({}) == ["vi"]
    assert editor({"EDITOR": "nano -w"}) == ["nano", "-w"]
    assert editor({"EDITOR": "nano", "VISUAL": "code --wait"}) == ["code", "--wait"]


def test_a_difference_has_what_was_and_what_is() -> None:
    assert difference("a\nb\n", "a\nc\n") == ["@@ -1,2 +1,2 @@", " a", "-b", "+c"]
    assert difference("a\n", "a\n") == []
