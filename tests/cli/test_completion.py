"""Completion: scripts that shells accept, names and live ids behind Tab, silence when the server is away."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.cli.shell import KAPELL, Shell


def tab(shell: Shell, line: str) -> list[str]:
    """What bash offers at the end of `line`."""
    words = line.split(" ")
    done = subprocess.run(
        KAPELL,
        env={
            **shell.environment,
            "_KAPELL_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return [offer.partition(",")[2] for offer in done.stdout.splitlines() if offer]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_is_for_the_shell(no_server: Shell, name: str) -> None:
    script = no_server.pipe("completion", name)

    assert script.code == 0
    assert "_KAPELL_COMPLETE" in script.out
    if program := shutil.which(name):
        subprocess.run([program, "-n"], input=script.out, text=True, check=True, timeout=60)


def test_an_unknown_shell_is_a_usage_error(no_server: Shell) -> None:
    assert no_server.pipe("completion", "tcsh").code == 2


def test_commands_and_choices_are_offered_without_a_server(no_server: Shell) -> None:
    assert tab(no_server, "kapell ta") == ["task"]
    assert "cancel" in tab(no_server, "kapell task ")
    assert tab(no_server, "kapell task list --state f") == ["failed"]


def test_ids_are_offered_live(cast: Shell) -> None:
    assert sorted(tab(cast, "kapell task get task_")) == ["task_bad", "task_good", "task_stopped", "task_waiting"]
    assert tab(cast, "kapell agent get agent_s") == ["agent_shell"]
    assert tab(cast, "kapell agent spawn sh") == ["shell"]


def test_without_a_server_nothing_is_offered_and_nothing_is_said(no_server: Shell) -> None:
    assert tab(no_server, "kapell task get task_") == []
