"""The card of one approval: nine facts on one screen, so that it can be decided in ten seconds.

The sentence, the risk, the exact thing, its reach, the money, who and why, the clock, what waits behind it, and how
its like went before. Only the exact thing, and what the agent says about it, may be longer than the screen: then the
beginning and the end are shown, with how much is left out and the command that shows it all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.approval_views import (
    decision_text,
    expires_text,
    risk_cell,
    risk_reasons,
    state_cell,
    who,
    who_decides,
)
from kapell.cli.money import cost_of, nanos, shown
from kapell.cli.output import as_data
from kapell.cli.revealed import escaped, fitted, lines_of, rows_of, worded
from kapell.cli.terminal import Terminal

if TYPE_CHECKING:
    from kapell.cli.approval_facts import Facts
    from kapell.v1.approval_pb2 import Approval, ApprovalOption

_LABEL = 8
_LEAST_BODY = 5
_MOST_FACT = 2
"""Rows of a fact that agents may write at length."""
_MOST_REASONS = 3
_WANTS = {2: "to use a tool", 3: "an answer", 4: "to spend more"}


def card_rows(facts: Facts, terminal: Terminal, height: int, *, whole: bool = False) -> list[str]:
    """The card for a terminal, at most `height` rows where what is asked for is ordinary; with `whole` all of it."""
    drawing = _Drawing(terminal, whole)
    approval = facts.approval
    drawing.fact("", [_sentence(approval)], "bold")
    risk = risk_cell(approval)
    drawing.fact(
        "Risk", [risk.text.upper(), *_told(risk_reasons(approval), whole)], risk.colour, most=_MOST_REASONS + 2
    )
    after = _Drawing(terminal, whole)
    for label, text in _facts(facts):
        after.fact(label, [text])
    if approval.content.details:
        most = _MOST_FACT if _texts(approval) else max(_MOST_FACT, height - len(drawing.rows) - len(after.rows) - 1)
        after.fact("Why", [approval.content.details.strip("\n").expandtabs(4)], most=most)
    body, hidden = _body(approval, terminal)
    room = height - len(drawing.rows) - len(after.rows)
    if hidden + drawing.hidden + after.hidden:
        number = hidden + drawing.hidden + after.hidden
        note = f"{number} hidden character{'s' * (number > 1)}, written out as \\x… and \\u…"
        after.rows.append(terminal.out(note, "red"))
        room -= 1
    drawing.body(body, approval.approval_id, max(room, _LEAST_BODY))
    return drawing.rows + after.rows


def pipe_lines(facts: Facts) -> list[str]:
    """The same facts for a pipe, each on a line behind its label, whole."""
    approval = facts.approval
    named = [
        ("Approval", approval.approval_id),
        ("Wants", _sentence(approval)),
        ("State", state_cell(approval).text),
        ("Risk", "\n".join([risk_cell(approval).text, *risk_reasons(approval)])),
        *_texts(approval),
        *((label, text) for label, text in _facts(facts) if label != "State"),
        ("Decided", "; ".join(filter(None, [approval.state_reason, *map(decision_text, approval.decisions)]))),
        ("Why", approval.content.details),
        ("Hash", approval.content_hash),
    ]
    return [f"{label}\t{escaped(text)}" for label, text in named if text]


class _Drawing:
    """Rows of a card as they are drawn. `hidden` counts what had to be written out."""

    def __init__(self, terminal: Terminal, whole: bool) -> None:
        self._terminal = terminal
        self._whole = whole
        self.rows: list[str] = []
        self.hidden = 0

    def fact(self, label: str, texts: list[str], colour: str = "plain", *, most: int = 4) -> None:
        """One fact below its label, in at most `most` rows; what is left out is counted."""
        told = []
        for text in texts:
            lines, hidden = lines_of(text)
            self.hidden += hidden
            told += lines
        width = self._terminal.width - (_LABEL if label else 0)
        rows = [row for line in told for row in worded(line, width)]
        if len(rows) > most and not self._whole:
            left = len(rows) - most
            dots = "…" if self._terminal.marks else "..."
            rows = [*rows[: most - 1], f"{rows[most - 1][: width - 24]}{dots} {left} more row{'s' * (left > 1)}: --all"]
        head = self._terminal.out(f"{label:<{_LABEL}}", "dim") if label else ""
        for number, row in enumerate(rows):
            lead = head if number == 0 else " " * (_LABEL if label else 0)
            self.rows.append(lead + self._terminal.out(row, colour))

    def body(self, texts: list[tuple[str, list[str]]], approval_id: str, room: int) -> None:
        """The exact thing, framed by a bar at its left."""
        terminal = self._terminal
        bar = terminal.out("│ " if terminal.marks else "| ", "dim")
        width = terminal.width - 2
        drawn = [(title, rows_of(lines, width)) for title, lines in texts]
        shares = _shares([len(rows) for _, rows in drawn], room)
        for (title, rows), share in zip(drawn, shares, strict=True):
            first, left, last = (rows, 0, []) if self._whole else fitted(rows, share)
            self.rows += [bar + terminal.out(row.text, _colour(title, row.line)) for row in first]
            if left:
                told = f"{left:,} more: kapell approval show {approval_id} --all"
                self.rows += [bar + terminal.out(row.text, "yellow") for row in rows_of([told], width)]
            self.rows += [bar + terminal.out(row.text, _colour(title, row.line)) for row in last]


def _shares(wanted: list[int], room: int) -> list[int]:
    """How many rows each of several texts gets: short ones all they need, the others what is left in equal parts."""
    shares = [0] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda at: wanted[at])
    for number, at in enumerate(order):
        shares[at] = max(_LEAST_BODY, min(wanted[at], room // (len(order) - number)))
        room -= min(shares[at], wanted[at])
    return shares


def _colour(title: str, line: str) -> str:
    if title == "Command":
        return "cyan"
    if title == "Diff":
        if line.startswith(("+++", "---", "diff ", "index ")):
            return "bold"
        return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "plain")
    return "plain"


def _texts(approval: Approval) -> list[tuple[str, str]]:
    """The exact thing, by what it is."""
    content = approval.content
    texts = [("Command", content.command), ("Diff", content.diff), ("Prompt", content.prompt)]
    if content.HasField("input"):
        texts.append(("Input", json.dumps(as_data(content.input), ensure_ascii=False, indent=1, sort_keys=True)))
    texts.append(("Options", "\n".join(map(_answer, approval.options))))
    return [(title, text) for title, text in texts if text]


def _answer(option: ApprovalOption) -> str:
    """What may be chosen. What it does besides is said in our words: those of the option are the agent's."""
    besides = "\n  also approves the same in this task and below it, for 24 h, by a rule" if option.remember else ""
    return f"{option.option_id}: {option.label} {option.description}".rstrip() + besides


def _body(approval: Approval, terminal: Terminal) -> tuple[list[tuple[str, list[str]]], int]:
    found, hidden = [], 0
    for title, text in _texts(approval):
        lines, count = lines_of(text, tabs=title != "Command")
        hidden += count
        mark = "$" if title == "Command" and len(lines) == 1 else ""
        found.append((title, [f"{mark} {lines[0]}".strip() if mark else lines[0], *lines[1:]]))
    return found, hidden


def _sentence(approval: Approval) -> str:
    from kapell.v1.approval_pb2 import APPROVAL_KIND_TASK_START

    asker = who(approval.requested_by)
    if approval.kind == APPROVAL_KIND_TASK_START:
        return f"{asker} wants an agent of type {approval.agent_type} to start: {approval.task_name}"
    kind = f" ({approval.agent_type})" if approval.agent_type else ""
    tool = f" {approval.content.tool}" if approval.content.tool else ""
    wants = _WANTS.get(approval.kind, "something")
    return f"{asker}{kind} wants {wants}{tool}: {approval.title}"


def _told(reasons: list[str], whole: bool) -> list[str]:
    if whole or len(reasons) <= _MOST_REASONS:
        return reasons
    return [*reasons[:_MOST_REASONS], _more(len(reasons) - _MOST_REASONS)]


def _more(left: int) -> str:
    return f"{left} more reason{'s' * (left > 1)}: --all"


def _facts(facts: Facts) -> list[tuple[str, str]]:
    """The facts that take a line each."""
    approval = facts.approval
    past = facts.precedent
    state = state_cell(approval).text
    votes = "; ".join(map(decision_text, approval.decisions))
    blocks = (
        "what its budget holds back"
        if approval.budget_id
        else "not known"
        if facts.blocks is None
        else f"{facts.blocks} tasks wait for it"
        if facts.blocks != 1
        else "1 task waits for it"
    )
    task = f"{approval.task_name} {approval.task_id}".strip()
    found = [
        ("Reach", _reach(approval)),
        ("Takes", _takes(approval)),
        ("Money", _money(facts)),
        ("For", f"{task}; {who_decides(approval)} may decide" if task else f"{who_decides(approval)} may decide"),
        ("Policy", approval.policy.reason),
        ("Clock", _clock(approval)),
        ("Behind", blocks if state in ("pending", "overdue") else ""),
        ("Before", f"{past.approved} approved, {past.rejected} denied, {past.expired} expired of its kind"),
        ("State", "" if state == "pending" and not votes else "; ".join(filter(None, [approval.state_reason, votes]))),
        ("Instead", approval.superseded_by),
    ]
    return [(label, text) for label, text in found if text]


def _reach(approval: Approval) -> str:
    content = approval.content
    parts = [f"in {content.working_directory}" if content.working_directory else ""]
    parts += [_listed("file", "files", [*content.paths]), _listed("host", "hosts", [*content.hosts])]
    if content.HasField("reversible"):
        parts.append("can be undone, the agent says" if content.reversible else "CANNOT be undone")
    return "; ".join(part for part in parts if part) or "not said"


def _takes(approval: Approval) -> str:
    """What a start would be given and hold besides; empty for all else."""
    from kapell.v1.lock_pb2 import LOCK_MODE_SHARED

    start = approval.content.start
    locks = [f"{lock.path}{' (shared)' if lock.mode == LOCK_MODE_SHARED else ''}" for lock in start.locks]
    secrets = [secret if name == secret else f"{secret} as {name}" for name, secret in sorted(start.secrets.items())]
    version = f"template {approval.content.template_id}@{start.template_version}" if start.template_version else ""
    tokens = f"~{start.estimate.tokens:,} tokens" if start.estimate.HasField("tokens") else ""
    named = f"budget {start.budget_id}" if start.budget_id else ""
    told = [_listed("lock", "locks", locks), _listed("secret", "secrets", secrets), named, tokens, version]
    return "; ".join(filter(None, told))


def _listed(one: str, many: str, items: list[str]) -> str:
    """As "5 files: a, b, c and 2 more"; empty where there are none."""
    if not items:
        return ""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{len(items)} {one if len(items) == 1 else many}: {', '.join(items[:3])}{more}"


def _money(facts: Facts) -> str:
    parts = []
    if facts.task is not None:
        used = facts.task.usage
        parts.append(f"{cost_of(used)} spent by the task" if used.records else "nothing spent yet")
    content = facts.approval.content
    parts.append(f"this step ~{shown(content.estimated_cost)}" if content.HasField("estimated_cost") else "no estimate")
    priced = [one for one in facts.budgets if one.status.remaining.WhichOneof("amount") == "cost"]
    if priced:
        tightest = min(priced, key=lambda one: nanos(one.status.remaining.cost))
        parts.append(f"{shown(tightest.status.remaining.cost)} left of budget {tightest.spec.display_name}")
    else:
        parts.append("no budget applies")
    return "; ".join(parts)


def _clock(approval: Approval) -> str:
    from kapell.v1.approval_policy_pb2 import ExpiryAction

    asked = f"asked {times.age(approval.create_time)} ago"
    if approval.end_time.seconds:
        return f"{asked}, over {times.age(approval.end_time)} ago"
    if approval.overdue:
        return f"{asked}, its time is over, it waits on"
    then = {"DENY": "it is denied", "HOLD": "it waits on", "ESCALATE": "others may decide, too"}
    word = ExpiryAction.Name(approval.policy.on_expiry).removeprefix("EXPIRY_ACTION_")
    return f"{asked}, expires {expires_text(approval)}, then {then.get(word, word)}"
