"""What happens while a card stands: nothing hangs, in whatever dialogue somebody is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cards import KEYS, run_here, script, waiting
from tests.cli.shell import Shell, TerminalRun


def _into_deny(run: TerminalRun) -> None:
    run.type("d")
    run.expect("Why not")


def _into_edit(run: TerminalRun) -> None:
    run.type("e")
    run.expect("EDITING")


def _into_difference(run: TerminalRun) -> None:
    run.type("e")
    run.expect(r"\[y\] yes")


def _into_rule(run: TerminalRun) -> None:
    run.type("r")
    run.expect("Where")


def _into_batch(run: TerminalRun) -> None:
    run.type("b")
    run.expect("approve these")


DIALOGUES = [_into_deny, _into_edit, _into_difference, _into_rule, _into_batch]
EDITORS = {_into_edit: "echo EDITING; exec tail -f /dev/null", _into_difference: "echo more >> $1"}


def _in_dialogue(shell: Shell, directory: Path, into: Callable[[TerminalRun], None], name: str) -> TerminalRun:
    agent_type = f"{name}{into.__name__.replace('_', '-')}"
    waiting(shell, f"{name}{into.__name__}_other", agent_type)
    line = ("task", "run", "-t", agent_type, "--needs-approval", "--id", f"task_{name}{into.__name__}", "echo one")
    run = shell.open_terminal(*line, EDITOR=script(directory, EDITORS.get(into, "true")))
    run.expect(KEYS)
    into(run)
    return run


@pytest.mark.parametrize("into", DIALOGUES)
def test_ctrl_c_leaves_every_dialogue(shell: Shell, tmp_path: Path, into: Callable[[TerminalRun], None]) -> None:
    run = _in_dialogue(shell, tmp_path, into, "left")

    run.type("\x03")

    assert run.finish().code == 130


@pytest.mark.parametrize("into", DIALOGUES)
def test_a_decision_made_elsewhere_ends_every_dialogue(
    shell: Shell, tmp_path: Path, into: Callable[[TerminalRun], None]
) -> None:
    run = _in_dialogue(shell, tmp_path, into, "else")

    id = shell.pipe("approval", "list", "--task", f"task_else{into.__name__}", "-o", "id").out.strip()
    shell.pipe("approval", "deny", id, "-m", "no")
    run.expect("refused by admin")

    assert run.finish().code == 10


@pytest.mark.parametrize("into", [_into_deny, _into_rule, _into_batch, _into_difference])
def test_a_terminal_that_goes_away_leaves_nothing_behind(
    shell: Shell, tmp_path: Path, into: Callable[[TerminalRun], None]
) -> None:
    run = _in_dialogue(shell, tmp_path, into, "gone")

    run.hang_up()

    assert run.process.wait(30) != 0


def test_a_new_size_draws_the_card_anew_and_answers_nothing(shell: Shell) -> None:
    run = run_here(shell, "resized", "x\u202ey" + "z" * 100)

    run.type("a")
    run.expect(r"\[y\] yes")
    run.resize(40, 120)
    run.type("n")
    run.expect(KEYS)
    run.resize(40, 130)
    assert "z" * 100 in run.expect(KEYS)
    assert "awaiting" in shell.pipe("task", "get", "task_resized").out
    run.type("\x03")

    assert run.finish().code == 130


def test_the_keys_are_named_and_ctrl_d_puts_off(shell: Shell) -> None:
    run = run_here(shell, "named")

    run.type("?")
    assert "in $EDITOR" in run.expect(KEYS)
    run.type("\x04")
    run.expect("Later: kapell approval show")
    run.type("\x03")

    assert run.finish().code == 130
