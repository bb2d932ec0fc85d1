"""`kapell task run`: a real command in a real agent, its output live, its outcome as the exit code."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterable

import pytest
from kapell.sync import SyncClient
from kapell.v1.usage_pb2 import TokenCounts, UsageRecord

from tests.cli.shell import Result, Shell

pytestmark = pytest.mark.usefixtures("agent")


def run(shell: Shell, *args: str) -> Result:
    """As a process, so that stdout and stderr are truly apart."""
    process = shell.process("task", "run", "--type", "shell", *args)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def test_output_of_the_program_comes_out_as_it_would_by_itself(shell: Shell) -> None:
    result = run(shell, "echo to stdout; echo to stderr >&2")

    assert result.code == 0
    assert result.out == "to stdout\n"
    assert "to stderr\n" in result.err
    assert "succeeded" in result.err


def test_words_after_two_dashes_are_quoted_for_the_shell(shell: Shell) -> None:
    assert run(shell, "--", "printf", "%s|", "a b", "$HOME", "c").out == "a b|$HOME|c|\n"


def test_a_failed_task_gives_7_and_its_reason(shell: Shell) -> None:
    result = run(shell, "--max-attempts", "1", "echo before; exit 3")

    assert result.code == 7
    assert result.out == "before\n"
    assert "EXIT_CODE" in result.err


def test_every_attempt_is_shown(shell: Shell) -> None:
    result = run(shell, "--max-attempts", "2", 'echo "try $KAPELL_ATTEMPT"; test "$KAPELL_ATTEMPT" -ge 2')

    assert result.code == 0
    assert result.out == "try 1\ntry 2\n"
    assert "-- attempt 2 --" in result.err


def test_json_leaves_stdout_to_the_task(shell: Shell) -> None:
    result = run(shell, "-o", "json", "echo hello")

    task = json.loads(result.out)
    assert task["state"] == "TASK_STATE_SUCCEEDED"
    assert task["result"] == "hello"
    assert "hello\n" in result.err


def test_a_cancelled_task_gives_7(shell: Shell) -> None:
    process = shell.process("task", "run", "-t", "shell", "--id", "task_cancelled_run", "echo on; sleep 60")
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"

    assert shell.pipe("task", "cancel", "task_cancelled_run").code == 0

    _, err = process.communicate(timeout=60)
    assert process.returncode == 7
    assert "cancelled" in err


def test_when_the_time_is_up_the_task_goes_on(shell: Shell) -> None:
    result = run(shell, "--id", "task_slow_run", "--timeout", "500ms", "sleep 60")

    assert result.code == 8
    assert "goes on" in result.err
    assert "kapell task logs --follow task_slow_run" in result.err
    assert shell.pipe("task", "cancel", "task_slow_run").code == 0


def test_ctrl_c_leaves_the_task_and_tells_how_to_come_back(shell: Shell) -> None:
    process = shell.process("task", "run", "-t", "shell", "--id", "task_left_alone", "echo on; sleep 60")
    assert process.stdout is not None
    process.stdout.readline()

    process.send_signal(signal.SIGINT)

    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "kapell task logs --follow task_left_alone" in err
    assert "Traceback" not in err
    assert json.loads(shell.pipe("task", "get", "task_left_alone", "-o", "json").out)["state"] == "TASK_STATE_RUNNING"
    assert shell.pipe("task", "cancel", "task_left_alone").code == 0


def test_progress_stands_below_the_log_on_a_terminal(shell: Shell) -> None:
    screen = shell.open_terminal("task", "run", "-t", "shell", "echo first; echo ::progress 40% half way; sleep 60")

    drawn = screen.expect(r"first[\s\S]*half way")
    screen.type("\x03")
    result = screen.finish()

    assert "40%" in drawn
    assert "::progress" not in drawn
    assert result.code == 130


def test_nothing_is_drawn_on_a_pipe(shell: Shell) -> None:
    result = run(shell, "echo ::progress 40% half way; echo done")

    assert "\r" not in result.err
    assert "\x1b" not in result.err
    assert "half way" not in result.out


def test_a_type_that_nobody_serves_is_told(shell: Shell) -> None:
    process = shell.process("task", "run", "-t", "unheard-of", "--id", "task_unserved", "x")
    assert process.stderr is not None

    assert "No agent serves 'unheard-of'" in process.stderr.readline()

    assert shell.pipe("task", "cancel", "task_unserved").code == 0
    assert process.wait(60) == 7
    process.communicate()


def test_escape_sequences_of_a_program_cannot_move_the_cursor(shell: Shell) -> None:
    on_terminal = shell.terminal("task", "run", "-t", "shell", r"printf '\033[31mred\033[0m \033[2Jgone\n'")

    assert "\x1b[31mred" in on_terminal.out
    assert "\x1b[2Jgone" not in on_terminal.out
    assert "\\x1b[2Jgone" in on_terminal.out


def test_input_and_labels_reach_the_task(shell: Shell) -> None:
    created = run(
        shell, "--input", "pr=17", "--input", "who=me", "--label", "team=web", "-o", "json", 'cat "$KAPELL_INPUT_FILE"'
    )

    task = json.loads(created.out)
    assert task["input"] == {"pr": 17, "who": "me"}
    assert task["labels"] == {"team": "web"}
    assert json.loads(task["result"]) == {"pr": 17, "who": "me"}


def test_the_prompt_may_come_from_stdin(shell: Shell) -> None:
    process = shell.process("task", "run", "-t", "shell", "--file", "-", stdin=subprocess.PIPE)

    out, _ = process.communicate("echo from stdin\n", timeout=60)

    assert out == "from stdin\n"


def _until_next(lines: Iterable[str]) -> str:
    """What was written until a command that helps was named."""
    said = ""
    for line in lines:
        said += line
        if "next: " in line:
            break
    return said


def test_a_task_that_waits_for_a_budget_says_which_and_what_helps(shell: Shell) -> None:
    line = ("budget", "create", "tight", "--limit", "$2", "--scope", "label:purse=tight", "--window", "daily")
    assert shell.pipe(*line).code == 0
    labelled = ("--label", "purse=tight", "--estimate", "$5")
    process = shell.process("task", "run", "-t", "shell", "--id", "task_tight", *labelled, "true")
    assert process.stderr is not None

    said = _until_next(process.stderr)
    shell.pipe("budget", "resume", "tight", "--add", "$10")

    assert "It waits: Budget tight has spent $0.00 and reserved $0.00 of $2.00; the task needs $5.00" in said
    assert "until " in said
    assert said.endswith("next: kapell budget resume tight\n")
    assert process.wait(30) == 0
    process.communicate()


def test_a_task_that_is_paused_says_why_and_what_helps(shell: Shell) -> None:
    limit = ("--limit", "10 tokens", "--estimate", "10 tokens", "--scope", "label:purse=edge")
    assert shell.pipe("budget", "create", "edge", *limit).code == 0
    labelled = ("--id", "task_edge", "--label", "purse=edge")
    process = shell.process("task", "run", "-t", "shell", *labelled, "echo up; sleep 300")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"

    used = UsageRecord(record_id="edge", task_id="task_edge", model="m", tokens=TokenCounts(output_tokens=10))
    with SyncClient(data_dir=shell.environment["KAPELL_DATA_DIR"]) as client:
        client.usage.record([used])
    said = _until_next(process.stderr)
    shown = shell.pipe("task", "get", "task_edge").out
    shell.pipe("task", "cancel", "task_edge")

    assert "it has used the 10 tokens that were reserved of budget edge" in said
    assert said.endswith("next: kapell budget resume edge\n")
    assert "budget edge" in shown
    assert process.wait(30) == 7
    process.communicate()


def test_a_task_that_waits_says_why(shell: Shell) -> None:
    assert shell.pipe("limit", "set", "gate", "--max", "0").code == 0
    process = shell.process("task", "run", "-t", "shell", "--id", "task_held", "--concurrency-key", "gate", "true")
    assert process.stderr is not None

    said = process.stderr.readline()
    shell.pipe("task", "cancel", "task_held")

    assert "It waits: Concurrency key gate lets 0 tasks at a time run" in said
    assert process.wait(30) == 7
    process.communicate()
