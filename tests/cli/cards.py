"""Cards on a terminal for the tests of the desk: a task that waits where one stands, and an editor."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.cli.shell import Shell, TerminalRun

KEYS = r"\[\?\] keys"
"""What the line of keys ends with."""


def script(directory: Path, text: str) -> str:
    """An editor: a shell script that gets the file as $1."""
    file = directory / "editor.sh"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return str(file)


def run_here(shell: Shell, name: str, prompt: str = "echo one", *more: str, **environment: str) -> TerminalRun:
    """`task run` of a task whose start waits for an approval, as its card stands there."""
    line = ("task", "run", "-t", "shell", "--needs-approval", "--id", f"task_{name}", *more, prompt)
    run = shell.open_terminal(*line, **environment)
    run.expect(KEYS)
    return run


def waiting(shell: Shell, name: str, agent_type: str, prompt: str = "echo x") -> str:
    """The id of the approval for which a new task waits."""
    line = ("task", "create", "-t", agent_type, "--needs-approval", "--id", f"task_{name}", prompt, "-o", "id")
    made = shell.pipe(*line)
    assert made.code == 0, made.err
    return shell.pipe("approval", "list", "--task", f"task_{name}", "-o", "id").out.strip()
