"""Approvals on the command line: the card on a screen and on a pipe, decisions, exit codes, keys."""

from __future__ import annotations

import re
import time

import pytest
from google.type.money_pb2 import Money
from kapell.cli.approval_card import card_rows, pipe_lines
from kapell.cli.approval_facts import Facts
from kapell.cli.approval_views import target_of
from kapell.cli.revealed import fitted, revealed, rows_of, worded, wrapped
from kapell.cli.terminal import Terminal, cells
from kapell.cli.terminal import escaped as on_pipe
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_TOOL_PERMISSION,
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_HIGH,
    Approval,
    ApprovalContent,
    ApprovalPrecedent,
    Risk,
    RiskReason,
)
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_PENDING, EXPIRY_ACTION_DENY, ApprovalPolicy
from kapell.v1.watch_pb2 import ACTOR_KIND_AGENT, Actor

from tests.cli.shell import Shell

_COLOUR = re.compile("\x1b\\[[0-9;]*m")


def _terminal(width: int = 80) -> Terminal:
    return Terminal(is_tty=True, colour_out=True, colour_err=True, live=True, marks=True, width=width)


def _facts(title: str = "Clean up", **content: object) -> Facts:
    approval = Approval(
        approval_id="approval_01m835zfne20ev9gwz2jz87ga5",
        kind=APPROVAL_KIND_TOOL_PERMISSION,
        state=APPROVAL_STATE_PENDING,
        title=title,
        task_id="task_01m835zfne20ev9gwz2gss9fzm",
        task_name="Tidy the shop",
        agent_type="builder",
        requested_by=Actor(kind=ACTOR_KIND_AGENT, id="agent_01m835zfne20ev9gwz2gss9fzm"),
        policy=ApprovalPolicy(quorum=1, on_expiry=EXPIRY_ACTION_DENY, reason="it is production"),
        content=ApprovalContent(**content),  # type: ignore[arg-type]
        risk=Risk(
            level=RISK_LEVEL_HIGH,
            reasons=[RiskReason(code="c", level=RISK_LEVEL_HIGH, message=f"reason {n}") for n in range(6)],
        ),
    )
    approval.create_time.seconds = int(time.time()) - 60
    approval.expire_time.seconds = int(time.time()) + 3600
    return Facts(approval=approval, precedent=ApprovalPrecedent(approved=7), blocks=3)


ORDINARY = {
    "command": "git push origin main",
    "tool": "bash",
    "working_directory": "/srv/shop",
    "paths": ["src/a.py", "src/b.py", "src/c.py", "src/d.py", "src/e.py"],
    "hosts": ["github.com"],
    "reversible": False,
    "details": "The release is built and tested.",
    "estimated_cost": Money(currency_code="USD", units=2),
}


def _plain(rows: list[str]) -> str:
    return _COLOUR.sub("", "\n".join(rows))


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 36)])
def test_the_nine_facts_fit_on_one_screen(size: tuple[int, int]) -> None:
    width, height = size
    rows = card_rows(_facts(**ORDINARY), _terminal(width), height - 2)
    text = _plain(rows)

    assert len(rows) <= height - 2
    assert all(cells(row) <= width for row in text.split("\n"))
    for fact in (
        "(builder) wants to use a tool bash: Clean up",
        "HIGH",
        "3 more reasons: --all",
        "$ git push origin main",
        "in /srv/shop; 5 files: src/a.py, src/b.py, src/c.py and 2 more; 1 host: github.com; CANNOT be undone",
        "this step ~$2.00; no budget applies",
        "Tidy the shop task_",
        "expires in ",
        "then it is denied",
        "3 tasks wait for it",
        "7 approved, 0 denied, 0 expired of its kind",
        "The release is built and tested.",
    ):
        assert fact in re.sub(r"\n        ", " ", text), fact


def test_a_diff_of_ten_thousand_lines_is_cut_with_a_count_and_its_end_is_seen() -> None:
    diff = "--- a/x\n+++ b/x\n" + "".join(f"+line {number}\n" for number in range(10_000))
    rows = card_rows(_facts(diff=diff), _terminal(), 22)
    text = _plain(rows)

    assert len(rows) <= 22
    shown = text.count("+line") + 2
    assert f"{10_002 - shown:,} more: kapell approval show approval_" in text
    assert "+line 9999" in text
    assert "\x1b[32m+line 0\x1b[0m" in "\n".join(rows)
    assert _plain(card_rows(_facts(diff=diff), _terminal(), 22, whole=True)).count("+line") == 10_000


def test_a_line_of_a_megabyte_is_cut_with_a_count() -> None:
    rows = card_rows(_facts(command="x" * 1_048_576 + "; rm -rf /"), _terminal(), 22)

    assert len(rows) <= 22
    assert "; rm -rf /" in _plain(rows)
    assert re.search(r"13,4\d\d more: kapell approval show", _plain(rows))


HOSTILE = {
    "\x1b[2J": "\\x1b[2J",
    "a\u202eb": "a\\u202eb",
    "a\u200bb": "a\\u200bb",
    "a\rb": "a\\x0db",
    "a\x00b": "a\\x00b",
    "a\u00a0b": "a\\xa0b",
    "a\u3164b": "a\\u3164b",
    "a\ufeffb": "a\\ufeffb",
    "a\U000e0041b": "a\\ue0041b",
    "a\x9b31mb": "a\\x9b31mb",
    "a\u2028b": "a\\u2028b",
}


@pytest.mark.parametrize(("text", "written"), HOSTILE.items(), ids=repr)
def test_what_hides_is_written_out_wherever_it_stands(text: str, written: str) -> None:
    for content in ({"command": text}, {"diff": f"+{text}"}, {"details": text}, {"working_directory": text}):
        facts = _facts(**content)
        drawn = "\n".join(card_rows(facts, _terminal(), 22))
        piped = "\n".join(pipe_lines(facts))

        assert written in drawn
        assert "hidden character" in drawn
        assert text not in _COLOUR.sub("", drawn)
        assert text not in piped
        assert written.replace("\\x0d", "\\r") in piped
    assert text not in _COLOUR.sub("", "\n".join(card_rows(_facts(title=text), _terminal(), 22)))


def test_writing_of_other_languages_is_left_as_it_is() -> None:
    for text in ("Grüße", "日本語", "עברית", "naïve café", "Привет"):
        assert revealed(text) == (text, 0)


def test_wide_characters_keep_to_the_width_and_nothing_is_lost() -> None:
    line = "日本語 text " * 20

    pieces = list(wrapped(line, 41))

    assert "".join(pieces) == line
    assert all(cells(piece) <= 41 for piece in pieces)
    assert all(cells(piece) <= 41 for piece in worded(line, 41))
    assert list(worded("a " + "b" * 9 + " c", 5)) == ["a", "bbbbb", "bbbb", "c"]


@pytest.mark.parametrize("room", range(1, 12))
def test_what_is_left_out_is_counted_exactly(room: int) -> None:
    rows = rows_of([str(number) for number in range(9)], 10)

    first, left, last = fitted(rows, room)

    assert len(first) + left + len(last) == 9
    assert left or first == rows


def test_what_is_nothing_but_words_has_the_room_of_the_screen() -> None:
    text = "\n".join(f"line {number}" for number in range(5))

    assert "line 4" in _plain(card_rows(_facts(details=text), _terminal(), 22))
    assert "more rows" in _plain(card_rows(_facts(details=text, command="make"), _terminal(), 22))


def test_a_narrow_terminal_shows_the_same_facts() -> None:
    rows = card_rows(_facts(**ORDINARY), _terminal(40), 22)

    assert all(cells(row) <= 40 for row in _plain(rows).split("\n"))
    assert "git push origin main" in _plain(rows)


def test_the_target_of_what_is_critical_can_be_typed() -> None:
    facts = _facts(paths=["/srv/sh\u200bop"], hosts=["db.example"])
    facts.approval.risk.level = RISK_LEVEL_CRITICAL

    assert target_of(facts.approval) == "db.example"
    facts.approval.content.ClearField("hosts")
    facts.approval.task_name = "Löschen"
    assert target_of(facts.approval) == facts.approval.approval_id


# -- against a server ------------------------------------------------------------------------


def _waiting(shell: Shell, *more: str, prompt: str = "echo done", agent_type: str = "shell") -> str:
    made = shell.pipe("task", "create", "-t", agent_type, "--needs-approval", *more, prompt, "-o", "id")
    assert made.code == 0, made.err
    found = shell.pipe("approval", "list", "--task", made.out.strip(), "-o", "id")
    return found.out.strip()


def test_a_card_on_a_pipe_has_everything_and_json_stays(shell: Shell) -> None:
    id = _waiting(shell, "--approver", "bob", "--approver", "admin", "--quorum", "2", "--approve-within", "2h")

    shown = shell.pipe("approval", "show", id)

    lines = dict(line.split("\t", 1) for line in shown.lines)
    assert lines["Prompt"] == "echo done"
    assert lines["Risk"] == "low"
    assert "user:bob, user:admin (2 needed) may decide" in lines["For"]
    assert "then it waits on" in lines["Clock"]
    assert len(lines["Hash"]) == 64
    assert '"contentHash"' in shell.pipe("approval", "show", id, "-o", "json").out


def test_a_card_on_a_terminal_says_what_to_type(shell: Shell) -> None:
    id = _waiting(shell, "--on-expiry", "escalate", "--escalate-to", "carol")

    shown = shell.terminal("approval", "show", id)

    assert "│ echo done" in _COLOUR.sub("", shown.out)
    assert f"kapell approval approve {id}" in shown.out
    assert "others may decide, too" in shown.out


def test_options_of_a_policy_need_the_need(shell: Shell) -> None:
    refused = shell.pipe("task", "create", "-t", "shell", "--quorum", "2", "x")
    assert (refused.code, "--needs-approval" in refused.err) == (2, True)
    refused = shell.pipe("task", "create", "-t", "shell", "--needs-approval", "--escalate-to", "ada", "x")
    assert (refused.code, "--on-expiry escalate" in refused.err) == (2, True)


def test_who_comes_second_is_told_who_decided_what(shell: Shell) -> None:
    id = _waiting(shell)
    assert shell.pipe("approval", "deny", id, "-m", "not today").code == 0

    second = shell.pipe("approval", "approve", id)

    assert second.code == 5
    assert "REJECTED by admin" in second.err


def test_another_hash_than_the_one_that_was_shown_is_refused(shell: Shell) -> None:
    refused = shell.pipe("approval", "approve", _waiting(shell), "--hash", "0" * 64)

    assert refused.code == 5


def test_ids_come_from_stdin(shell: Shell) -> None:
    ids = [_waiting(shell), _waiting(shell)]

    done = shell.pipe("approval", "deny", "-", "-m", "no", stdin="\n".join(ids))

    assert done.code == 0
    assert [line.split("\t")[1] for line in done.lines] == ["rejected", "rejected"]


HIGH = "x\u202ey"
"""A prompt with something that hides is of high risk."""


def test_high_risk_needs_a_yes_on_a_pipe(shell: Shell) -> None:
    id = _waiting(shell, prompt=HIGH)

    refused = shell.pipe("approval", "approve", id)
    assert (refused.code, "--yes" in refused.err) == (2, True)

    assert shell.pipe("approval", "approve", id, "--yes").code == 0


def test_high_risk_asks_once_more_with_the_card_in_sight(shell: Shell) -> None:
    id = _waiting(shell, prompt=HIGH)
    run = shell.open_terminal("approval", "approve", id)

    assert "x\\u202ey" in run.expect(r"\(risk: high\)\? \[y/N\]")
    run.type("n\n")
    assert run.finish().code == 1
    assert shell.pipe("approval", "list", "--state", "pending", "-o", "id").out.count(id) == 1


def test_a_denied_start_ends_what_waits_with_10(shell: Shell) -> None:
    process = shell.process("task", "run", "-t", "shell", "--id", "task_denied", "--needs-approval", "echo no")
    assert process.stderr is not None
    told = process.stderr.readline() + process.stderr.readline()
    id = re.search(r"approval_\w+", told)
    assert id is not None, told
    assert "kapell approval show" in told

    shell.pipe("approval", "deny", id.group(), "-m", "no")

    process.communicate(timeout=30)
    assert process.returncode == 10
    assert shell.pipe("task", "wait", "task_denied").code == 10


def test_a_start_is_approved_where_one_stands(shell: Shell, agent: str) -> None:
    run = shell.open_terminal("task", "run", "-t", "shell", "--needs-approval", "echo it ran")

    run.expect(r"│ .*echo it ran")
    run.expect(r"\[a\].*approve")
    run.type("a")
    run.expect("it ran")

    assert run.finish().code == 0


def test_a_start_is_denied_where_one_stands_with_a_reason(shell: Shell) -> None:
    run = shell.open_terminal("task", "run", "-t", "shell", "--needs-approval", "--id", "task_no", "echo no")

    run.expect(r"\[d\] deny")
    run.type("d")
    run.expect("Why not")
    run.type("too late\r")

    assert run.finish().code == 10
    assert "too late" in shell.pipe("task", "get", "task_no").out


def test_high_risk_takes_a_second_key(shell: Shell) -> None:
    run = shell.open_terminal("task", "run", "-t", "shell", "--needs-approval", "--id", "task_high", HIGH)

    run.expect(r"\[a\] approve")
    run.type("a")
    run.expect("The risk is high")
    run.type("a")
    run.expect(r"\[a\] approve")
    assert "awaiting approval" in shell.pipe("task", "get", "task_high").out
    run.type("l")
    run.expect("Later")
    run.type("\x03")

    assert run.finish().code == 130


def test_what_is_decided_elsewhere_meanwhile_is_told(shell: Shell) -> None:
    run = shell.open_terminal("task", "run", "-t", "shell", "--needs-approval", "--id", "task_else", "echo no")
    run.expect(r"\[a\] approve")

    id = shell.pipe("approval", "list", "--task", "task_else", "-o", "id").out.strip()
    shell.pipe("approval", "deny", id, "-m", "no")
    run.expect(r"refused by admin")

    assert run.finish().code == 10


def test_watch_decides_where_one_stands(shell: Shell) -> None:
    id = _waiting(shell, "--id", "task_watched")
    run = shell.open_terminal("approval", "watch", "--task", "task_watched")

    run.expect(r"\[d\] deny")
    run.type("d")
    run.expect("Why not")
    run.type("\r")
    run.expect("rejected")
    run.type("\x03")

    assert run.finish().code == 130
    assert shell.pipe("approval", "show", id).out.count("rejected") >= 1


def test_a_single_backslash_is_doubled_on_a_pipe() -> None:
    assert on_pipe("a\\nb") == "a\\\\nb"
    assert on_pipe("a\nb") == "a\\nb"


def test_a_rule_is_previewed_before_it_is_made(shell: Shell) -> None:
    _waiting(shell, agent_type="previewed")
    line = ("approval", "remember", "approve", "--type", "previewed", "--template", "none")
    run = shell.open_terminal(*line)

    run.expect(r"0 of the latest \d+ would have\? \[y/N\]")
    run.type("n\n")

    assert run.finish().code == 1
    assert "previewed" not in shell.pipe("approval", "rules").out
    assert shell.pipe(*line, "--dry-run").code == 0


CRITICAL = "rm -rf /"
"""Never run: no agent serves these tests."""


def test_yes_is_not_enough_for_what_is_critical(shell: Shell) -> None:
    id = _waiting(shell, prompt=CRITICAL)

    for line in (("approval", "approve", id), ("approval", "approve", id, "--yes")):
        refused = shell.pipe(*line)
        assert (refused.code, "--yes-critical" in refused.err, "deletes rm -rf /" in refused.err) == (2, True, True)
    assert shell.pipe("approval", "approve", id, "--yes-critical").code == 0


def test_one_that_is_critical_is_left_out_of_a_yes_for_many(shell: Shell) -> None:
    ids = [_waiting(shell), _waiting(shell, prompt=CRITICAL)]

    refused = shell.pipe("approval", "approve", "-", "--yes", stdin="\n".join(ids))

    assert refused.code == 2
    assert {*ids} <= {*shell.pipe("approval", "list", "-o", "id").lines}, "nothing was decided by halves"


@pytest.mark.parametrize("prompt", [HIGH, CRITICAL])
def test_task_approve_asks_as_approval_approve_does(shell: Shell, prompt: str) -> None:
    made = shell.pipe("task", "create", "-t", "shell", "--needs-approval", prompt, "-o", "id")
    id, said = made.out.strip(), "--yes-critical" if prompt == CRITICAL else "--yes"

    refused = shell.pipe("task", "approve", id)
    assert (refused.code, said in refused.err) == (2, True)
    assert shell.pipe("task", "approve", id, said).code == 0


def test_a_rule_that_keeps_nothing_out_is_told_of_and_refused(shell: Shell) -> None:
    line = ("approval", "remember", "approve", "--tool", "*", "--command", "*")

    shown = shell.pipe(*line, "--dry-run")
    assert (shown.code, "needs --anything" in shown.err) == (0, True)
    refused = shell.pipe(*line)
    assert (refused.code, "would approve anything" in refused.err) == (2, True)
    made = shell.pipe(*line, "--anything", "-o", "id")
    assert made.code == 0
    assert shell.pipe("approval", "forget", made.out.strip()).code == 0


def test_what_a_start_takes_is_on_the_card(shell: Shell) -> None:
    id = _waiting(shell, "--lock", "repo/src", "--read-lock", "repo/doc", "--estimate", "$2", agent_type="builder")

    takes = dict(line.split("\t", 1) for line in shell.pipe("approval", "show", id).lines)

    assert takes["Takes"] == "2 locks: repo/doc (shared), repo/src"
    assert "this step ~$2.00" in takes["Money"]
