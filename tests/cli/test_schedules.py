"""`kapell schedule`: from create to delete, as a user and as a script types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import Shell

LEAP_DAY = ("--cron", "0 0 29 2 *")
TASK = ("--type", "nobody", "--prompt", "tidy up")


@pytest.fixture(scope="module")
def yearly(shell: Shell) -> Shell:
    """The shell, with a schedule `yearly` that no test lives to see run."""
    line = ("schedule", "create", "yearly", "--cron", "@yearly", "-z", "Europe/Berlin", *TASK, "--label", "team=web")
    assert shell.pipe(*line, "--name", "Every year").code == 0
    return shell


def made(shell: Shell, name: str, *options: str) -> str:
    """A new schedule's name."""
    result = shell.pipe("schedule", "create", name, *LEAP_DAY, *TASK, *options, "-o", "id")
    assert result.out == f"schedule_{name}\n", result.err
    return name


def test_a_schedule_is_shown_in_words(yearly: Shell) -> None:
    card = yearly.terminal("schedule", "get", "yearly", NO_COLOR="1").out

    for part in (
        "schedule_yearly",
        "Every year",
        "@yearly Europe/Berlin",
        "in ",
        "skip",
        "none yet",
        "tidy up",
        "team=web",
    ):
        assert part in card
    listed = yearly.terminal("schedule", "list", NO_COLOR="1").lines
    assert listed[0].split()[:4] == ["SCHEDULE", "WHEN", "NEXT", "LAST"]
    assert any(line.startswith("yearly") and "@yearly Europe/Berlin" in line for line in listed)


def test_json_is_the_message_as_it_is(yearly: Shell) -> None:
    read = json.loads(yearly.pipe("schedule", "get", "schedule_yearly", "-o", "json").out)

    assert read["scheduleId"] == "schedule_yearly"
    assert (read["spec"]["cron"], read["spec"]["timeZone"]) == ("@yearly", "Europe/Berlin")
    assert read["spec"]["task"]["prompt"] == "tidy up"
    assert read["nextRunTime"].endswith("T23:00:00Z")


def test_a_preview_shows_the_clocks_of_the_zone(shell: Shell, yearly: Shell) -> None:
    line = ("schedule", "preview", "--cron", "30 2 * * *", "-z", "Europe/Berlin", "--start", "2031-03-29T12:00:00Z")

    result = shell.pipe(*line, "-n", "2", "-o", "id")
    shown = shell.pipe(*line, "-n", "2")

    assert result.out.splitlines() == ["2031-03-30T01:00:00.000Z", "2031-03-31T00:30:00.000Z"]
    assert "Sun 2031-03-30 03:00:00 +0200" in shown.out
    assert len(shell.pipe("schedule", "preview", "yearly").out.splitlines()) == 5
    assert shell.pipe("schedule", "preview").code == 2
    assert shell.pipe("schedule", "preview", "yearly", "--every", "1h").code == 2


def test_a_schedule_of_a_template_gets_typed_parameters(shell: Shell, tmp_path: Path) -> None:
    files = tmp_path / "list.txt"
    files.write_text("a.py\nb.py\n")

    line = ("schedule", "create", "review", "--every", "6h", "--template", "code-review", "-P", f"files=@{files}")
    assert shell.pipe(*line, "--paused").code == 0

    spec = json.loads(shell.pipe("schedule", "get", "review", "-o", "json").out)["spec"]
    assert (spec["interval"], spec["task"]["template"]) == ("21600s", "code-review")
    assert spec["task"]["parameters"] == {"files": ["a.py", "b.py"]}
    assert shell.pipe("schedule", "list", "--template", "code-review", "-o", "id").out == "schedule_review\n"
    wrong = shell.pipe("schedule", "create", "x", "--every", "6h", "--template", "code-review")
    assert (wrong.code, "--param files: is required" in wrong.err) == (2, True)


def test_pause_resume_and_delete_take_many_from_stdin(shell: Shell) -> None:
    names = [made(shell, f"many-{number}") for number in range(2)]
    ids = "".join(f"schedule_{name}\n" for name in names)

    paused = shell.pipe("schedule", "pause", "-", "--reason", "holidays", "-o", "json", stdin=ids)
    assert [schedule["pauseReason"] for schedule in json.loads(paused.out)] == ["holidays"] * 2
    assert "paused" in shell.pipe("schedule", "list").out
    assert shell.pipe("schedule", "resume", *names, "-o", "id").out == ids
    assert shell.pipe("schedule", "delete", *names).code == 2, "not without a yes"
    assert shell.pipe("schedule", "delete", *names, "--dry-run", "-o", "id").out == ids
    assert shell.pipe("schedule", "delete", "--yes", "-", "-o", "id", stdin=ids).out == ids
    assert shell.pipe("schedule", "get", names[0]).code == 3


def test_a_trigger_names_the_task_or_says_why_there_is_none(shell: Shell) -> None:
    name = made(shell, "by-hand")

    task_id = shell.pipe("schedule", "trigger", name, "-o", "id").out.strip()
    second = shell.pipe("schedule", "trigger", name, "-o", "id")
    third = shell.pipe("schedule", "trigger", name, "--overlap", "allow", "-o", "json")

    assert "schedule_by-hand" in shell.pipe("task", "get", task_id, "-o", "json").out
    assert (second.code, second.out) == (0, "")
    assert f"the run is skipped, since {task_id} has not ended" in second.err
    assert json.loads(third.out)["task"]["scheduleId"] == "schedule_by-hand"
    on_terminal = shell.terminal("schedule", "trigger", name, "--overlap", "cancel", NO_COLOR="1")
    assert "Follow it with: kapell task logs --follow task_" in on_terminal.out
    card = shell.terminal("schedule", "get", name, NO_COLOR="1").out
    assert "3 ran, 1 skipped" in card
    events = shell.pipe("event", "list", "--schedule", name, "--oldest")
    kinds = [line.split("\t")[2] for line in events.out.splitlines()]
    assert kinds == ["schedule.created", "schedule.triggered", "schedule.skipped"] + ["schedule.triggered"] * 2


def test_an_update_sets_what_is_given_and_resets_what_is_named(shell: Shell) -> None:
    name = made(shell, "changing", "--jitter", "5m", "--overlap", "queue")

    dry = shell.pipe("schedule", "update", name, "--every", "1h", "--dry-run")
    shell.pipe("schedule", "update", name, "--every", "12h", "--reset", "jitter", "--type", "other", "--prompt", "x")

    assert len(dry.out.splitlines()) == 5
    spec = json.loads(shell.pipe("schedule", "get", name, "-o", "json").out)["spec"]
    assert (spec["interval"], spec["overlapPolicy"], "jitter" in spec) == ("43200s", "OVERLAP_POLICY_QUEUE", False)
    assert spec["task"] == {"agentType": "other", "prompt": "x"}
    assert shell.pipe("schedule", "update", name).code == 2


def test_a_dry_run_shows_times_and_makes_nothing(shell: Shell) -> None:
    result = shell.pipe("schedule", "create", "never", *LEAP_DAY, *TASK, "--dry-run", "-o", "json")

    assert len(json.loads(result.out)) == 5
    assert "Nothing was changed" in result.err
    assert shell.pipe("schedule", "get", "never").code == 3


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (TASK, "--cron or --every"),
        ((*LEAP_DAY, "--every", "1h", *TASK), "not both"),
        (LEAP_DAY, "--template, or by --type"),
        ((*LEAP_DAY, "--prompt", "x"), "--type"),
        ((*LEAP_DAY, *TASK, "-P", "a=b"), "go with --template"),
        ((*LEAP_DAY, "--template", "code-review", "--prompt", "x"), "no prompt"),
        (("--cron", "0 25 * * *", *TASK), "hour that cannot be: '25'"),
        ((*LEAP_DAY, "-z", "Mars/Base", *TASK), "no time zone"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(shell: Shell, options: tuple[str, ...], what: str) -> None:
    result = shell.pipe("schedule", "create", "wrong", *options)

    assert result.code == 2
    assert what in result.err
