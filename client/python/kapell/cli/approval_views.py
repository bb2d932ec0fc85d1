"""How approvals, their rules and their audit are listed; the card of one is in `approval_card`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column, moment, peer

if TYPE_CHECKING:
    from kapell.v1.approval_pb2 import (
        Approval,
        ApprovalAuditEntry,
        ApprovalDecision,
        ApprovalRule,
        PreviewApprovalRuleResponse,
    )
    from kapell.v1.watch_pb2 import Actor

STATES = {
    "APPROVAL_STATE_PENDING": ("pending", "yellow", "◔"),
    "APPROVAL_STATE_APPROVED": ("approved", "green", "✓"),
    "APPROVAL_STATE_REJECTED": ("rejected", "red", "✗"),
    "APPROVAL_STATE_EXPIRED": ("expired", "dim", "⊘"),
    "APPROVAL_STATE_CANCELLED": ("cancelled", "dim", "⊘"),
    "APPROVAL_STATE_SUPERSEDED": ("superseded", "dim", "↷"),
}
"""Word, colour and mark of each state; a test proves that all are here."""
KINDS = {
    "APPROVAL_KIND_TASK_START": "start",
    "APPROVAL_KIND_TOOL_PERMISSION": "tool",
    "APPROVAL_KIND_QUESTION": "question",
    "APPROVAL_KIND_BUDGET": "budget",
}
RISKS = {
    "RISK_LEVEL_LOW": ("low", "plain"),
    "RISK_LEVEL_MEDIUM": ("medium", "yellow"),
    "RISK_LEVEL_HIGH": ("high", "red"),
    "RISK_LEVEL_CRITICAL": ("CRITICAL", "red"),
}
EFFECTS = {"RULE_EFFECT_APPROVE": "approve", "RULE_EFFECT_DENY": "deny", "RULE_EFFECT_REQUIRE": "require"}
STATE_WORDS = tuple(word for word, _, _ in STATES.values())


def state_cell(approval: Approval) -> Cell:
    """Word, colour and mark of an approval's state."""
    from kapell.v1.approval_policy_pb2 import ApprovalState

    word, colour, mark = STATES.get(ApprovalState.Name(approval.state), ("unknown", "plain", "?"))
    return Cell("overdue" if approval.overdue and word == "pending" else word, colour, mark)


def kind_word(approval: Approval) -> str:
    """What is asked for, as a word."""
    from kapell.v1.approval_pb2 import ApprovalKind

    return KINDS.get(ApprovalKind.Name(approval.kind), "unknown")


def risk_cell(approval: Approval) -> Cell:
    """The risk as a word and a colour."""
    from kapell.v1.approval_pb2 import RiskLevel

    word, colour = RISKS.get(RiskLevel.Name(approval.risk.level), ("-", "dim"))
    return Cell(word, colour)


def expires_text(approval: Approval, now: float | None = None) -> str:
    """How long there is to decide: "in 23h 58m"; "-" where it is decided or waits without an end."""
    if approval.end_time.seconds or approval.overdue:
        return "-"
    left = approval.expire_time.seconds - (time.time() if now is None else now)
    return f"in {times.short(left)}" if left >= 1 else "now"


def who(actor: Actor) -> str:
    """An actor as people name it."""
    return actor.id or "-"


def decision_text(decision: ApprovalDecision) -> str:
    """One vote in a line: who, what, and why."""
    by = f"rule {decision.rule_id}" if decision.rule_id else who(decision.decider)
    told = f"{by}: {decision.option} at {times.local(decision.decide_time)}"
    edited = ", with another input" if decision.HasField("edited_input") else ""
    return told + edited + (f" - {decision.comment}" if decision.comment else "")


def risk_reasons(approval: Approval) -> list[str]:
    """Why the risk is what it is, the gravest first."""
    from kapell.v1.approval_pb2 import RiskLevel

    return [
        f"{RISKS.get(RiskLevel.Name(reason.level), ('-', ''))[0]}: {reason.message}" for reason in approval.risk.reasons
    ]


def target_of(approval: Approval) -> str:
    """What must be typed to approve what is critical: the file, host, directory or task that it hits."""
    from kapell.cli.revealed import revealed

    content = approval.content
    candidates = [*content.paths[:1], *content.hosts[:1], content.working_directory, approval.task_name]
    typable = [one for one in candidates if one and one == one.strip() and one.isascii() and revealed(one)[1] == 0]
    return typable[0] if typable else approval.approval_id


def who_decides(approval: Approval) -> str:
    """Who may decide, and how many of them must."""
    groups = [(approval.policy.approvers, approval.policy.quorum)]
    groups += [(group.approvers, group.quorum) for group in approval.policy.also]
    told = []
    for approvers, quorum in groups:
        named = ", ".join(approvers) or "everybody who may approve"
        told.append(f"{named} ({quorum} needed)" if quorum > 1 else named)
    return " and ".join(told)


OPEN = "It keeps nothing out: it would approve whatever comes, and needs --anything to be made."


def preview_text(found: PreviewApprovalRuleResponse) -> str:
    """Which of the latest approvals a rule would have decided: "3 of the latest 40; 2 more are riskier than it may"."""
    text = f"{found.matched} of the latest {found.looked_at}"
    if found.too_risky:
        text += f" ({found.too_risky} more are riskier than it may approve, and stay with people)"
    return text


APPROVALS = View(
    columns=(
        Column("APPROVAL", lambda a: a.approval_id),
        Column("STATE", state_cell, spare=True),
        Column("KIND", kind_word, spare=True),
        Column("RISK", risk_cell),
        Column("WANTS", lambda a: a.title, flexible=True, keep=16),
        Column("BLOCKS", lambda a: str(a.blocks or "-"), right=True, spare=True),
        Column("EXPIRES", expires_text, right=True),
        Column("BY", lambda a: who(a.requested_by), wide=True),
        Column("TASK", lambda a: a.task_id or "-", wide=True),
        Column("SIGNATURE", lambda a: a.signature, wide=True),
        Column("AGE", lambda a: times.age(a.create_time), wide=True, right=True),
    ),
    id=lambda a: a.approval_id,
    brief=(
        Column("APPROVAL", lambda a: a.approval_id),
        Column("STATE", state_cell),
        Column("WANTS", lambda a: a.title, flexible=True),
    ),
)


def _effect(rule: ApprovalRule) -> str:
    from kapell.v1.approval_pb2 import RuleEffect

    return EFFECTS.get(RuleEffect.Name(rule.spec.effect), "unknown")


def matches_text(rule: ApprovalRule) -> str:
    """What a rule matches, in a line."""
    spec = rule.spec
    named = (
        ("type", spec.agent_type),
        ("tool", spec.tool),
        ("command", " | ".join(spec.commands)),
        ("path", " | ".join(spec.paths)),
        ("task", spec.task_id),
        ("tree", spec.root_task_id),
        ("template", spec.template_id),
    )
    return "  ".join(f"{name}={value}" for name, value in named if value) or "everything"


def _uses(rule: ApprovalRule) -> str:
    return f"{rule.uses} of {rule.spec.max_uses}" if rule.spec.max_uses else str(rule.uses)


RULES = View(
    columns=(
        Column("RULE", lambda r: r.rule_id),
        Column("EFFECT", _effect),
        Column("MATCHES", matches_text, flexible=True),
        Column("USES", _uses, right=True),
        Column("UNTIL", lambda r: moment(r.spec.expire_time)),
        Column("BY", lambda r: who(r.creator)),
        Column("REASON", lambda r: r.spec.reason, wide=True),
        Column("AGE", lambda r: times.age(r.create_time), wide=True, right=True),
    ),
    id=lambda r: r.rule_id,
    brief=(
        Column("RULE", lambda r: r.rule_id),
        Column("EFFECT", _effect),
        Column("MATCHES", matches_text, flexible=True),
    ),
)


def action_word(entry: ApprovalAuditEntry) -> str:
    """What was done, as a word."""
    from kapell.v1.watch_pb2 import EventKind

    return EventKind.Name(entry.action).removeprefix("EVENT_KIND_APPROVAL_").lower()


AUDIT = View(
    columns=(
        Column("TIME", lambda e: moment(e.action_time)),
        Column("ACTION", action_word),
        Column("BY", lambda e: f"rule {e.rule_id}" if e.rule_id and e.approval_id else who(e.actor)),
        Column("FROM", lambda e: peer(e.peer), spare=True),
        Column("SUBJECT", lambda e: e.approval_id or e.rule_id, spare=True),
        Column("WHAT", lambda e: e.approval.title if e.approval_id else "rule", flexible=True, keep=16),
        Column("HASH", lambda e: e.shown_hash or "-", wide=True),
    ),
    id=lambda e: str(e.revision),
)
