"""Commands that change things: what they answer, when they ask, and what a dry run leaves alone."""

from __future__ import annotations

import json

import pytest

from tests.cli.shell import Shell


def state(shell: Shell, task_id: str) -> str:
    """The task's state as a word."""
    text: str = json.loads(shell.pipe("task", "get", task_id, "-o", "json").out)["state"]
    return text.removeprefix("TASK_STATE_").lower()


def waiting_tasks(shell: Shell, *names: str) -> list[str]:
    """Tasks that nobody takes, by id."""
    ids = [f"task_{name}" for name in names]
    for id in ids:
        assert shell.pipe("task", "create", "-t", "nobody", "--id", id, "wait").code == 0
    return ids


def revision(shell: Shell) -> str:
    """The newest revision: it moves with every change."""
    text: str = json.loads(shell.pipe("status", "-o", "json").out)["server"].get("revision", "0")
    return text


def test_create_answers_with_the_task(shell: Shell) -> None:
    result = shell.pipe("task", "create", "-t", "nobody", "--id", "task_created", "--name", "A name", "prompt")

    assert result.out.split("\t")[:4] == ["task_created", "queued", "A name", "nobody"]


def test_create_on_a_terminal_tells_how_to_follow(shell: Shell) -> None:
    result = shell.terminal("task", "create", "-t", "nobody", "--id", "task_followed", "prompt", NO_COLOR="1")

    assert "queued  task_followed" in result.out
    assert "kapell task logs --follow task_followed" in result.out
    assert "No agent serves 'nobody'" in result.out


def test_ids_are_read_from_stdin(shell: Shell) -> None:
    ids = waiting_tasks(shell, "in_one", "in_two")

    result = shell.pipe("task", "cancel", "--yes", "-", "-o", "id", stdin="\n".join(ids) + "\n")

    assert result.out.split() == ids
    assert [state(shell, id) for id in ids] == ["cancelled", "cancelled"]


def test_lines_of_a_list_may_be_piped_as_they_are(shell: Shell) -> None:
    waiting_tasks(shell, "piped")
    shell.pipe("task", "cancel", "task_piped")
    listed = shell.pipe("task", "list", "--state", "cancelled", "--limit", "1")

    assert shell.pipe("task", "retry", "-", "-o", "id", stdin=listed.out).out == "task_piped\n"


def test_one_that_fails_does_not_stop_the_others(shell: Shell) -> None:
    ids = waiting_tasks(shell, "bulk_one", "bulk_two")

    result = shell.pipe("task", "cancel", "--yes", ids[0], "task_nobody_knows", ids[1], "-o", "id")

    assert result.code == 3
    assert result.out.split() == ids
    assert "task_nobody_knows" in result.err


def test_update_changes_what_is_named_and_nothing_else(shell: Shell) -> None:
    waiting_tasks(shell, "updated")

    result = shell.pipe("task", "update", "task_updated", "-p", "7", "--label", "a=1", "-o", "json")

    task = json.loads(result.out)
    assert (task["priority"], task["labels"], task["displayName"]) == (7, {"a": "1"}, "wait")
    assert shell.pipe("task", "update", "task_updated").code == 2


def test_a_live_task_is_cancelled_by_the_first_delete(shell: Shell) -> None:
    waiting_tasks(shell, "deleted")

    first = shell.pipe("task", "delete", "--yes", "task_deleted")
    second = shell.pipe("task", "delete", "--yes", "task_deleted")

    assert first.out == "task_deleted\tcancelled\n"
    assert second.out == "task_deleted\tdeleted\n"
    assert shell.pipe("task", "get", "task_deleted").code == 3


@pytest.mark.parametrize(
    "line",
    [
        ("task", "delete", "task_bad"),
        ("task", "cancel", "task_waiting", "task_stopped"),
        ("agent", "terminate", "agent_shell"),
        ("agent", "terminate", "--force", "agent_shell"),
        ("event", "compact", "--older-than", "0"),
    ],
)
def test_a_pipe_is_never_asked(cast: Shell, line: tuple[str, ...]) -> None:
    before = revision(cast)

    result = cast.pipe(*line)

    assert result.code == 2
    assert "--yes" in result.err
    assert revision(cast) == before


def test_a_no_changes_nothing(cast: Shell) -> None:
    screen = cast.open_terminal("task", "delete", "task_bad")
    screen.expect(r"\[y/N\]")

    screen.type("n\n")

    assert screen.finish().code == 1
    assert cast.pipe("task", "get", "task_bad").code == 0


def test_many_need_their_count(shell: Shell) -> None:
    ids = waiting_tasks(shell, "typed_one", "typed_two")
    screen = shell.open_terminal("task", "cancel", *ids)
    assert ids[1] in screen.expect("Type 2 to go on")

    screen.type("2\n")

    assert screen.finish().code == 0
    assert [state(shell, id) for id in ids] == ["cancelled", "cancelled"]


def test_force_needs_the_name(cast: Shell) -> None:
    screen = cast.open_terminal("agent", "terminate", "--force", "agent_shell")
    screen.expect("Type worker to go on")

    screen.type("y\n")

    assert screen.finish().code == 1


@pytest.mark.parametrize(
    "line",
    [
        ("task", "create", "-t", "shell", "echo never"),
        ("task", "run", "-t", "shell", "echo never"),
        ("task", "update", "task_waiting", "--priority", "1"),
        ("task", "cancel", "task_waiting"),
        ("task", "retry", "task_bad"),
        ("task", "delete", "task_bad"),
        ("agent", "spawn", "shell"),
        ("agent", "spawn", "--type", "greet", "--command", "echo {prompt}"),
        ("agent", "drain", "agent_shell"),
        ("agent", "resume", "agent_shell"),
        ("agent", "terminate", "agent_shell"),
        ("agent", "delete", "agent_shell"),
        ("event", "compact", "--older-than", "0"),
    ],
)
def test_a_dry_run_changes_nothing(cast: Shell, line: tuple[str, ...]) -> None:
    before = revision(cast)

    result = cast.pipe(*line, "--dry-run")

    assert result.code == 0, result.err
    assert "Nothing was changed" in result.err
    assert result.out
    assert revision(cast) == before


def test_the_log_is_compacted(shell: Shell) -> None:
    waiting_tasks(shell, "compacted_one", "compacted_two")
    newest = int(revision(shell))

    both = shell.pipe("event", "compact", "--before", "2", "--older-than", "1d")
    done = shell.pipe("event", "compact", "--before", str(newest), "--yes")
    again = shell.pipe("event", "compact", "--before", "1", "--yes", "-o", "json")
    future = shell.pipe("event", "compact", "--before", str(newest + 1000), "--yes")

    assert both.code == 2
    assert done.out == f"The log holds what came after revision {newest - 1}, up to {newest}.\n"
    assert json.loads(again.out)["oldestRevision"] == str(newest - 1)
    assert future.code != 0
    assert f"the newest is {newest}" in future.err


def test_an_agent_lives_from_spawn_to_delete(shell: Shell) -> None:
    spawned = shell.pipe(
        "agent",
        "spawn",
        "--type",
        "greet",
        "--command",
        "echo Hello, {prompt}!",
        "--id",
        "agent_greeter",
        "--slots",
        "2",
    )
    greeted = shell.pipe("task", "run", "-t", "greet", "World")
    drained = shell.pipe("agent", "drain", "agent_greeter")
    resumed = shell.pipe("agent", "resume", "agent_greeter")
    ended = shell.pipe("agent", "terminate", "--yes", "agent_greeter")
    deleted = shell.pipe("agent", "delete", "--yes", "agent_greeter")

    assert spawned.out.split("\t")[:2] == ["agent_greeter", "active"]
    assert greeted.out == "Hello, World!\n"
    assert "draining" in drained.out
    assert "active" in resumed.out
    assert "terminated" in ended.out
    assert deleted.out == "agent_greeter\tdeleted\n"


def test_the_log_of_an_agent_is_shown(cast: Shell) -> None:
    assert "registered" in cast.pipe("agent", "logs", "agent_shell").err + cast.pipe("agent", "logs", "agent_shell").out


@pytest.mark.parametrize(
    "line",
    [
        ("agent", "spawn"),
        ("agent", "spawn", "shell", "--command", "x", "--type", "x"),
        ("agent", "spawn", "shell", "--slots", "2"),
        ("agent", "spawn", "--command", "x"),
        ("task", "create", "-t", "x", "--input", "novalue", "p"),
        ("task", "create", "-t", "x", "--input-json", "[1]", "p"),
        ("task", "create", "-t", "x", "--not-before", "yesterday", "p"),
        ("task", "create", "-t", "x", "--run-timeout", "5 parsecs", "p"),
        ("task", "create", "-t", "x", "--file", "/no/such/file"),
    ],
)
def test_a_line_that_makes_no_sense_is_refused(no_server: Shell, line: tuple[str, ...]) -> None:
    result = no_server.pipe(*line)

    assert result.code in (1, 2)
    assert len(result.err.splitlines()) <= 4
