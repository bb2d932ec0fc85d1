"""The audit of approvals as a file: complete, in order, of a time, as JSON lines and as CSV."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime

from tests.cli.shell import Shell


def _story(shell: Shell, name: str) -> str:
    """An approval that was asked for and denied."""
    line = ("task", "create", "-t", "shell", "--needs-approval", "--id", f"task_{name}", f"=echo {name}")
    assert shell.pipe(*line).code == 0
    id = shell.pipe("approval", "list", "--task", f"task_{name}", "-o", "id").out.strip()
    assert shell.pipe("approval", "deny", id, "-m", f"not {name}").code == 0
    return id


def _lines(shell: Shell, *more: str) -> list[dict[str, object]]:
    found = shell.pipe("approval", "export", *more)
    assert found.code == 0, found.err
    return [json.loads(line) for line in found.lines]


def test_it_says_who_did_what_when_from_where_and_what_was_shown(shell: Shell) -> None:
    id = _story(shell, "told")

    asked, denied = _lines(shell, "--approval", id)

    assert (asked["action"], denied["action"]) == ("EVENT_KIND_APPROVAL_REQUIRED", "EVENT_KIND_APPROVAL_DECIDED")
    assert all(str(entry["peer"]).startswith("ipv4:") and entry["actionTime"] for entry in (asked, denied))
    assert denied["actor"] == {"kind": "ACTOR_KIND_USER", "id": "admin"}
    assert denied["content"]["prompt"] == "=echo told"  # type: ignore[index]
    assert denied["approval"]["decisions"][0]["comment"] == "not told"  # type: ignore[index]
    assert denied["shownHash"] == denied["approval"]["contentHash"]  # type: ignore[index]


def test_many_pages_are_exported_whole_and_in_order(shell: Shell) -> None:
    ids = [_story(shell, f"page{number}") for number in range(12)]

    entries = _lines(shell)

    revisions = [int(str(entry["revision"])) for entry in entries]
    assert revisions == sorted({*revisions})
    for id in ids:
        assert [entry["action"] for entry in entries if entry.get("approvalId") == id] == [
            "EVENT_KIND_APPROVAL_REQUIRED",
            "EVENT_KIND_APPROVAL_DECIDED",
        ]


def test_a_spreadsheet_gets_the_same_and_no_formula(shell: Shell) -> None:
    id = _story(shell, "sheet")
    shell.pipe("approval", "remember", "deny", "--command", "git push *", "--reason", "by hand")

    found = shell.pipe("approval", "export", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(found.out)))

    asked, denied = [row for row in rows if row["approval_id"] == id]
    assert (denied["action"], denied["by"], denied["option"], denied["comment"]) == (
        "decided",
        "user:admin",
        "deny",
        "not sheet",
    )
    assert denied["from"].startswith("ipv4:")
    assert json.loads(denied["shown"])["prompt"] == "=echo sheet"
    assert asked["title"] == "Start =echo sheet"
    assert all(not value.startswith("=") for row in rows for value in row.values())
    assert any(json.loads(row["rule"])["reason"] == "by hand" for row in rows if row["rule"])
    assert len(rows) == len(_lines(shell))


def test_a_time_is_exported_without_what_was_before_and_after(shell: Shell) -> None:
    ids = [_story(shell, f"time{number}") for number in range(3)]
    entries = _lines(shell, "--approval", ids[1])
    first, last = (datetime.fromisoformat(str(entry["actionTime"])) for entry in entries)

    later = _lines(shell, "--since", last.isoformat())
    within = _lines(shell, "--since", first.isoformat(), "--until", last.isoformat())

    assert {entry["approvalId"] for entry in later} == {ids[1], ids[2]}
    assert [entry["action"] for entry in within] == ["EVENT_KIND_APPROVAL_REQUIRED"]
    assert _lines(shell, "--until", "2001-01-01") == []


def test_what_was_shown_may_be_left_out(shell: Shell) -> None:
    id = _story(shell, "short")

    assert all("content" not in entry for entry in _lines(shell, "--approval", id, "--no-content"))
