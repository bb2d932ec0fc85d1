"""Every reading command as a user and as a script sees it: terminal, pipe, JSON."""

from __future__ import annotations

import json

import pytest
from kapell.cli.picture import Picture, headline
from kapell.v1.admin_pb2 import GetServerInfoResponse

from tests.cli.shell import Result, Shell, compare, forget

READING = {
    "task-list": ("task", "list"),
    "task-list-filtered": ("task", "list", "--state", "failed", "--state", "queued", "--oldest"),
    "task-get-succeeded": ("task", "get", "task_good"),
    "task-get-failed": ("task", "get", "task_bad"),
    "task-get-waiting": ("task", "get", "task_waiting"),
    "task-attempts": ("task", "attempts", "task_good"),
    "task-logs": ("task", "logs", "task_good"),
    "task-wait": ("task", "wait", "task_bad"),
    "agent-list": ("agent", "list"),
    "agent-get": ("agent", "get", "agent_shell"),
    "profile-list": ("profile", "list"),
    "template-list": ("template", "list", "--tag", "bug"),
    "template-get": ("template", "get", "bug-fix"),
    "template-render": ("template", "render", "code-explanation", "--param", "targets=src/a.py"),
    "event-list": ("event", "list", "--task", "task_good", "--oldest"),
    "schedule-list": ("schedule", "list"),
    "schedule-get": ("schedule", "get", "backup"),
    "schedule-preview": (
        *("schedule", "preview", "--cron", "30 2 * * *", "-z", "Europe/Berlin"),
        *("--start", "2031-03-29T12:00:00Z", "-n", "3"),
    ),
    "status": ("status",),
    "version": ("version",),
    "error-not-found": ("task", "get", "task_nobody_knows"),
    "error-conflict": ("task", "cancel", "task_good"),
    "error-parameters": ("run", "code-review", "--param", "branch=a", "--param", "file=b"),
    "error-usage": ("task", "list", "--state", "sleeping"),
    "error-unknown-command": ("task", "lst"),
}


# Errors have none, and the JSON of the others holds a map, which comes in any order.
WITHOUT_JSON = ("error-", "status", "template-render")


@pytest.mark.parametrize("name", READING)
def test_transcript(cast: Shell, name: str) -> None:
    line = READING[name]
    runs = [
        (" ".join(line), cast.terminal(*line)),
        (" ".join((*line, "| cat")), cast.pipe(*line)),
    ]
    if not name.startswith(WITHOUT_JSON):
        runs.append((" ".join((*line, "-o json | cat")), cast.pipe(*line, "-o", "json")))

    compare(name, forget("\n".join(_transcript(*run) for run in runs), _places(cast)))


def _transcript(line: str, result: Result) -> str:
    err = "".join(f"(stderr) {written}\n" for written in result.err.splitlines())
    return f"$ kapell {line}\n{result.out}{err}[exit {result.code}]\n"


def _places(shell: Shell) -> dict[str, str]:
    return {shell.environment["KAPELL_DATA_DIR"]: "DATA-DIR"}


@pytest.mark.parametrize("format", ["wide", "jsonl", "yaml", "id"])
def test_formats_of_a_list(cast: Shell, format: str) -> None:
    result = cast.pipe("task", "list", "-o", format)

    assert result.code == 0
    compare(f"format-{format}", forget(result.out, _places(cast)))


def test_json_is_the_same_on_terminal_and_pipe(cast: Shell) -> None:
    on_terminal = cast.terminal("task", "get", "task_good", "-o", "json")
    on_pipe = cast.pipe("task", "get", "task_good", "-o", "json")

    assert on_terminal.out == on_pipe.out


@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
)
def test_colour_obeys_the_environment(cast: Shell, environment: dict[str, str], is_coloured: bool) -> None:
    assert ("\x1b[" in cast.terminal("task", "list", **environment).out) is is_coloured


def test_a_pipe_gets_colour_when_it_is_forced(cast: Shell) -> None:
    forced = Shell({**cast.environment, "FORCE_COLOR": "1"})

    assert "\x1b[31merror:" in forced.pipe("task", "get", "task_nobody_knows").err
    assert "\x1b[" not in cast.pipe("task", "get", "task_nobody_knows").err


def test_status_as_json_holds_what_the_screen_shows(cast: Shell) -> None:
    picture = json.loads(cast.pipe("status", "-o", "json").out)

    assert picture["waitsForYou"] == [
        "1 task of type 'nobody': no agent serves it",
        "1 failed task in the last hour",
    ]
    assert picture["taskCounts"]["succeeded"] == 1
    assert [agent["agentId"] for agent in picture["agents"]] == ["agent_shell"]
    assert picture["server"]["principal"] == "admin"


def test_status_fits_a_small_terminal(cast: Shell) -> None:
    assert len(cast.terminal("status").lines) <= 24


def test_the_first_line_of_status_adds_up_what_waits_for_an_agent() -> None:
    picture = Picture(
        info=GetServerInfoResponse(),
        address="",
        counts={},
        agents=[],
        running=[],
        failed_lately=1,
        unserved={"build": 3, "review": 1},
        profiles=[],
    )

    assert headline(picture) == "Waits for you: 4 tasks without an agent, 1 failed task."
