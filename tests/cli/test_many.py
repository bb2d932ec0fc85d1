"""Many tasks by filter, and tasks that are edited: what is asked, what is done, what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import Shell
from tests.cli.test_write import revision, state


def create(shell: Shell, *ids: str, label: str, agent_type: str = "nobody") -> list[str]:
    for id in ids:
        shell.pipe("task", "create", "-t", agent_type, "--id", id, "--label", f"many={label}", "wait")
    return list(ids)


def task(shell: Shell, task_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(shell.pipe("task", "get", task_id, "-o", "json").out)
    return found


def test_all_that_match_are_cancelled(shell: Shell) -> None:
    ids = create(shell, "task_many_1", "task_many_2", label="c")
    [other] = create(shell, "task_many_3", label="d")

    result = shell.pipe("task", "cancel", "--state", "queued", "--label", "many=c", "--yes")

    assert result.out == "".join(f"{id}\tcancelled\t-\n" for id in ids)
    assert state(shell, other) == "queued"


def test_a_pipe_is_not_asked_and_changes_nothing(shell: Shell) -> None:
    create(shell, "task_many_4", label="e")
    before = revision(shell)

    result = shell.pipe("task", "cancel", "--label", "many=e")

    assert (result.code, revision(shell)) == (2, before)
    assert "--yes" in result.err


def test_a_terminal_shows_the_tasks_and_takes_their_number(shell: Shell) -> None:
    ids = create(shell, "task_many_5", "task_many_6", label="f")
    screen = shell.open_terminal("task", "cancel", "--label", "many=f", NO_COLOR="1")
    for words in (*ids, "Cancel 2 tasks"):
        screen.expect(words)

    screen.type("2\n")
    result = screen.finish()

    assert result.code == 0
    assert "Cancelled 2 tasks." in result.out


def test_a_dry_run_names_the_tasks_and_changes_nothing(shell: Shell) -> None:
    ids = create(shell, "task_many_7", label="g")
    before = revision(shell)

    result = shell.pipe("task", "cancel", "--label", "many=g", "--dry-run")

    [line] = result.out.splitlines()
    assert (result.code, line.split("\t")[:3], revision(shell)) == (0, [*ids, "queued", "wait"], before)
    assert "would cancel 1 task" in result.err


def test_what_is_left_alone_is_named_with_the_reason(shell: Shell) -> None:
    create(shell, "task_many_8", label="h")

    result = shell.pipe("task", "retry", "--state", "queued", "--label", "many=h", "--yes", "-o", "jsonl")

    assert json.loads(result.out) == {
        "taskId": "task_many_8",
        "state": "TASK_STATE_QUEUED",
        "reason": "ERROR_REASON_TASK_STATE_CONFLICT",
        "message": "it is QUEUED",
    }


def test_more_than_allowed_are_refused(shell: Shell) -> None:
    create(shell, "task_many_9", "task_many_10", label="i")

    result = shell.pipe("task", "cancel", "--label", "many=i", "--max", "1", "--yes")
    partly = shell.pipe("task", "cancel", "--label", "many=i", "--max", "1", "--partial", "--yes", "-o", "id")

    assert result.code == 5
    assert "--max 2" in result.err
    assert partly.out == "task_many_9\n"


def test_nothing_that_matches_is_no_failure(shell: Shell) -> None:
    result = shell.pipe("task", "cancel", "--label", "many=nothing", "--yes")

    assert (result.code, result.out) == (0, "")


@pytest.mark.parametrize(
    "line",
    [
        ("task", "cancel"),
        ("task", "retry"),
        ("task", "cancel", "task_1", "--state", "queued"),
        ("task", "reprioritize", "--state", "queued"),
        ("task", "reprioritize", "task_1", "soon"),
        ("task", "retry", "--failed", "--prompt-file", "-"),
        ("task", "retry", "task_1", "task_2", "--priority", "1"),
    ],
)
def test_what_is_not_clear_is_a_question_of_usage(shell: Shell, line: tuple[str, ...]) -> None:
    assert shell.pipe(*line).code == 2


def test_priorities_are_set_by_id_and_by_filter(shell: Shell) -> None:
    one, two = create(shell, "task_many_11", "task_many_12", label="j")

    by_id = shell.pipe("task", "reprioritize", one, "900", "-o", "id")
    by_filter = shell.pipe("task", "reprioritize", "--state", "queued", "--label", "many=j", "--to", "800", "--yes")

    by_option = shell.pipe("task", "reprioritize", one, "-p", "800", "-o", "id")

    assert by_id.out == by_option.out == f"{one}\n"
    assert by_filter.out.split("\n")[0].split("\t") == [one, "queued", "-"]
    assert [task(shell, id)["priority"] for id in (one, two)] == [800, 800]


def test_dead_tasks_are_listed_and_retried_by_their_reason(shell: Shell) -> None:
    shell.pipe("task", "create", "-t", "nobody", "--id", "task_dead", "--queue-timeout", "1ms", "wait")
    shell.pipe("task", "wait", "task_dead")

    listed = shell.pipe("task", "list", "--failed", "--reason", "QUEUE_TIMEOUT", "-o", "id")
    other = shell.pipe("task", "list", "--failed", "--reason", "AGENT_LOST", "-o", "id")
    retried = shell.pipe(
        "task", "retry", "--failed", "--type", "nobody", "--reason", "QUEUE_TIMEOUT", "--yes", "-o", "id"
    )

    assert (listed.out, other.out, retried.out) == ("task_dead\n", "", "task_dead\n")


def test_a_retry_with_another_prompt_shows_what_was_there_before(shell: Shell, tmp_path: Path) -> None:
    [id] = create(shell, "task_edited", label="k")
    shell.pipe("task", "cancel", id)
    better = tmp_path / "better.md"
    better.write_text("better")

    shell.pipe("task", "retry", id, "--prompt-file", str(better), "--input", "n=1", "-p", "7")

    found = task(shell, id)
    assert (found["prompt"], found["input"], found["priority"]) == ("better", {"n": 1}, 7)
    assert (found["retries"], found["edited"]) == (1, True)
    assert "kapell task edits task_edited" in shell.terminal("task", "get", id, NO_COLOR="1").out
    assert shell.pipe("task", "edits", id).out.split("\t")[1:] == ["admin", "1", "prompt,input", "wait\n"]
    assert json.loads(shell.pipe("task", "edits", id, "-o", "json").out)[0]["prompt"] == "wait"


def test_parameters_of_a_template_are_given_anew(shell: Shell) -> None:
    said = ("--type", "nobody", "--id", "task_of_template", "--param", "targets=a.py", "--timeout", "0.1s")
    assert shell.pipe("run", "code-explanation", *said).code == 8
    shell.pipe("task", "cancel", "task_of_template")

    result = shell.pipe("task", "retry", "task_of_template", "--param", "targets=b.py", "-o", "id")

    assert result.out == "task_of_template\n"
    assert "b.py" in str(task(shell, "task_of_template")["prompt"])


def test_update_takes_times_and_content(shell: Shell) -> None:
    [id] = create(shell, "task_later", label="l")

    first = shell.pipe("task", "update", id, "--run-timeout", "30m", "--max-attempts", "9", "--not-before", "2h")
    second = shell.pipe("task", "update", id, "--queue-timeout", "1h", "--input", "a=1")
    dry = shell.pipe("task", "update", id, "--not-before", "3h", "--input", "a=2", "--total-timeout", "1h", "--dry-run")

    found = task(shell, id)
    assert (first.code, second.code, dry.code) == (0, 0, 0)
    assert found["state"] == "TASK_STATE_PENDING"
    assert found["timeouts"] == {"queueTimeout": "3600s", "runTimeout": "1800s"}
    assert (found["retryPolicy"]["maxAttempts"], found["input"]) == (9, {"a": 1})  # type: ignore[index]
