"""`kapell budget`, `alert` and `webhook`: from create to delete, as a user and as a script types it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.shell import Shell, compare, forget

GUIDE = Path(__file__).resolve().parents[2] / "server/docs/how-to/keep-to-a-budget.md"


@pytest.fixture(scope="module")
def rich(shell: Shell) -> Shell:
    """The shell, with a budget of everything and one of a type that has nothing left, whose task waits."""
    for line in (
        ("budget", "create", "team", "--limit", "$5", "--scope", "label:team=search", "--window", "24h"),
        ("budget", "create", "broke", "--limit", "0 attempts", "--scope", "type:broke", "--at", "100:approval"),
        ("task", "create", "-t", "broke", "--id", "task_broke", "--estimate", "$0.20", "spend"),
    ):
        result = shell.pipe(*line)
        assert result.code == 0, (line, result.err)
    return shell


READING = {
    "budget-list": ("budget", "list"),
    "budget-list-wide": ("budget", "list", "-o", "wide"),
    "budget-get": ("budget", "get", "broke"),
    "budget-explain": ("task", "explain", "task_broke"),
    "alert-list": ("alert", "list"),
    "error-budget-not-found": ("budget", "get", "nobody-made-it"),
    "error-budget-amount": ("budget", "create", "x", "--limit", "5 euros"),
}


@pytest.mark.parametrize("name", READING)
def test_transcript(rich: Shell, name: str) -> None:
    line = READING[name]
    runs = [(" ".join(line), rich.terminal(*line)), (" ".join((*line, "| cat")), rich.pipe(*line))]
    text = "\n".join(
        f"$ kapell {shown}\n{run.out}"
        + "".join(f"(stderr) {written}\n" for written in run.err.splitlines())
        + f"[exit {run.code}]\n"
        for shown, run in runs
    )

    text = re.sub(r"alert_[0-9a-z]{26}", "alert_ID", forget(text, {}))
    compare(name, re.sub(r"(Revision\S*\s+)\d+", r"\1N", text))


def test_a_budget_from_create_to_delete(shell: Shell) -> None:
    created = shell.pipe("budget", "create", "nightly", "--limit", "$2", "--window", "daily", "-z", "Europe/Berlin")
    assert created.code == 0, created.err
    assert shell.pipe("budget", "create", "nightly", "--limit", "$2").code == 5
    changed = shell.pipe("budget", "update", "nightly", "--limit", "$3", "--at", "90:stop", "-o", "json")
    said = json.loads(changed.out)["spec"]
    assert (said["limit"]["cost"]["units"], said["thresholds"][0]["percent"]) == ("3", 90)
    resumed = json.loads(shell.pipe("budget", "resume", "nightly", "--add", "$1", "-o", "json").out)
    assert resumed["status"]["remaining"]["cost"]["units"] == "4"
    assert "nightly" in shell.pipe("budget", "list").out

    assert "would delete" in shell.pipe("budget", "delete", "nightly", "--dry-run").err
    assert shell.pipe("budget", "delete", "nightly", "--yes").code == 0

    assert shell.pipe("budget", "get", "nightly").code == 3


@pytest.mark.parametrize(
    "line",
    [
        ("budget", "create", "x", "--limit", "$1", "--at", "80"),
        ("budget", "create", "x", "--limit", "$1", "--at", "101:stop"),
        ("budget", "create", "x", "--limit", "$1", "--at", "50:explode"),
        ("budget", "create", "x", "--limit", "$1", "--window", "fortnightly"),
        ("budget", "create", "x", "--limit", "$1", "--scope", "colour:red"),
        ("budget", "update", "x"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(shell: Shell, line: tuple[str, ...]) -> None:
    result = shell.pipe(*line)

    assert result.code == 2, result.err


def test_an_alert_is_acknowledged(rich: Shell) -> None:
    found = rich.pipe("alert", "list", "--state", "firing", "-o", "id").out
    assert found.startswith("alert_")

    noted = rich.pipe("alert", "ack", "-", "--comment", "raised it", "--until", "2h", "-o", "json", stdin=found)

    assert noted.code == 0, noted.err
    rich.pipe("budget", "resume", "broke", "--add", "0 attempts")
    assert rich.pipe("alert", "ack", "alert_none").code == 3


def test_a_webhook_from_create_to_delete(shell: Shell) -> None:
    created = shell.pipe("webhook", "create", "pager", "--url", "http://127.0.0.1:9/secret", "--event", "task.deleted")
    assert re.fullmatch(r"webhook_pager\twhsec_[A-Za-z0-9+/=]{44}\n", created.out), created.err
    listed = json.loads(shell.pipe("webhook", "list", "-o", "json").out)
    assert [one["spec"]["url"] for one in listed] == ["http://127.0.0.1:9/…"]

    tested = shell.pipe("webhook", "test", "pager")
    assert tested.code == 1
    assert "It did not arrive" in tested.err
    ids = shell.pipe("webhook", "deliveries", "pager", "--state", "failed", "-o", "id").out
    assert shell.pipe("webhook", "resend", "pager", "-", stdin=ids).code == 0

    assert shell.pipe("webhook", "delete", "pager", "--yes").code == 0
    assert shell.pipe("webhook", "deliveries", "pager").code == 3


def test_the_guide_says_what_works(shell: Shell) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]

    for line in lines:
        if "ALERT_ID" in line or line.startswith("kapell webhook test"):
            continue
        words = shlex.split(line)
        assert words[0] == "kapell"
        result = shell.pipe(*words[1:])
        assert result.code == 0, (line, result.err)
