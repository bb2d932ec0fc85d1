"""The rule that remembers an approval: what it would match, for which scope, and until when."""

from __future__ import annotations

import time
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from kapell.cli.approval_views import RISKS, matches_text
from kapell.cli.times import local
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_TASK_START,
    APPROVAL_KIND_TOOL_PERMISSION,
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_MEDIUM,
    RULE_EFFECT_APPROVE,
    Approval,
    ApprovalRule,
    ApprovalRuleSpec,
    RiskLevel,
)

ENDS = (
    ("1", "1 hour", 3600),
    ("8", "8 hours", 28_800),
    ("d", "1 day", 86_400),
    ("w", "1 week", 604_800),
    ("n", "no end", 0),
)
"""Key, words and seconds of how long a rule may hold."""


def may_be_remembered(approval: Approval) -> bool:
    """Whether a rule could decide its like: questions, budgets and what is critical are for people."""
    kinds = (APPROVAL_KIND_TASK_START, APPROVAL_KIND_TOOL_PERMISSION)
    return approval.kind in kinds and approval.risk.level < RISK_LEVEL_CRITICAL


def scopes(approval: Approval) -> list[tuple[str, str]]:
    """Keys and words of the scopes a rule may have."""
    found = [("t", "this task"), ("w", "its whole tree")]
    if approval.template_id:
        found.append(("m", f"template {approval.template_id}"))
    return [*found, ("e", "everywhere")]


def spec_of(approval: Approval, scope: str, seconds: int, pattern: str) -> ApprovalRuleSpec:
    """A rule for what is like this approval; `pattern` is that of its command, where it has one."""
    content = approval.content
    spec = ApprovalRuleSpec(effect=RULE_EFFECT_APPROVE, kinds=[approval.kind], agent_type=approval.agent_type)
    if approval.kind == APPROVAL_KIND_TOOL_PERMISSION:
        spec.tool = content.tool
        spec.commands.extend([pattern] if content.command else [])
        spec.paths.extend(content.paths[:20])
    if scope == "t":
        spec.task_id = approval.task_id
    elif scope == "w":
        spec.root_task_id = approval.root_task_id or approval.task_id
    elif scope == "m":
        spec.template_id = approval.template_id
    if seconds:
        spec.expire_time.CopyFrom(Timestamp(seconds=int(time.time()) + seconds))
    spec.max_risk = max(approval.risk.level, RISK_LEVEL_MEDIUM)
    return spec


def words_of(spec: ApprovalRuleSpec) -> str:
    """What a rule would approve, and where it ends, in a line."""
    what = "starts" if APPROVAL_KIND_TASK_START in spec.kinds else "what tools ask for"
    scoped = bool(spec.task_id or spec.root_task_id or spec.template_id)
    end = f"until {local(spec.expire_time)}" if spec.HasField("expire_time") else "without an end"
    risk = RISKS[RiskLevel.Name(spec.max_risk)][0]
    where = "" if scoped else ", everywhere"
    return f"The rule: approve {what} of {matches_text(ApprovalRule(spec=spec))}{where}, up to the risk {risk}, {end}."


def keys_text(keys: Sequence[tuple[str, str]]) -> str:
    """As "[t] this task  [e] everywhere"."""
    return "  ".join(f"[{key}] {words}" for key, words in keys)
