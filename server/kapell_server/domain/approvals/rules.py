"""Rules that decide in the place of somebody ("approve and remember"), or demand that somebody decides.

What a rule has decided is recorded with its id, in the approval, the event and the audit. Refusing
rules come first; of those that approve the earliest. A rule that is over, used up or revoked matches nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_TASK_START,
    APPROVAL_KIND_TOOL_PERMISSION,
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_LOW,
    RISK_LEVEL_MEDIUM,
    RULE_EFFECT_APPROVE,
    RULE_EFFECT_DENY,
    RULE_EFFECT_REQUIRE,
    Approval,
    ApprovalContent,
    ApprovalRule,
    ApprovalRuleSpec,
    CreateApprovalRuleRequest,
    DeleteApprovalRuleRequest,
    DeleteApprovalRuleResponse,
)
from kapell.v1.approval_policy_pb2 import ApprovalDemand
from kapell.v1.error_pb2 import ERROR_REASON_APPROVAL_NOT_FOUND, ERROR_REASON_ID_TAKEN
from kapell.v1.task_pb2 import Task
from kapell.v1.watch_pb2 import (
    ACTOR_KIND_USER,
    EVENT_KIND_APPROVAL_RULE_CREATED,
    EVENT_KIND_APPROVAL_RULE_DELETED,
    EVENT_KIND_APPROVAL_RULE_USED,
)

from kapell_server.domain.approvals import demands
from kapell_server.domain.approvals.content import invalid
from kapell_server.domain.approvals.patterns import (
    matches_command,
    matches_paths,
    matches_word,
    touches_command,
    touches_paths,
)
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.times import SECOND, stamp, timestamp_ns

if TYPE_CHECKING:
    from kapell_server.domain.state import State

MOST_RULES = 500
_MOST_PATHS = 20
_MOST_PATTERN = 200
_REMEMBERED_FOR = 24 * 3600 * SECOND
_DECIDABLE = (APPROVAL_KIND_TASK_START, APPROVAL_KIND_TOOL_PERMISSION)


def create_rule(state: State, request: CreateApprovalRuleRequest) -> ApprovalRule:
    """Creates a rule; refuses one that would approve anything whatever."""
    check(request.spec)
    rule_id = request.rule_id or state.new_id("rule")
    if state.standing.find(ApprovalRule, rule_id) is not None:
        raise KapellError(
            ERROR_REASON_ID_TAKEN,
            f"Rule {rule_id} exists already. Choose another rule_id, or revoke that one first.",
            metadata={"rule_id": rule_id},
        )
    if state.standing.count(ApprovalRule) >= MOST_RULES:
        raise invalid("spec", f"would be rule number {MOST_RULES + 1}", "Revoke rules that are over.")
    rule = ApprovalRule(rule_id=rule_id, spec=request.spec, creator=state.caller.actor())
    if rule.spec.effect == RULE_EFFECT_APPROVE and not rule.spec.max_risk:
        rule.spec.max_risk = RISK_LEVEL_MEDIUM
    stamp(rule.create_time, state.tick_ns())
    return state.approvals.put_rule(rule, EVENT_KIND_APPROVAL_RULE_CREATED)


def remember(state: State, approval: Approval, option_id: str) -> None:
    """Makes the rule that a chosen option asks for, if there is one that says no more than what was shown."""
    if not any(option.option_id == option_id and option.remember for option in approval.options):
        return
    content = state.approvals.content(approval.approval_id)
    texts = (content.tool, content.command, *content.paths)
    says_it = content.tool and (content.command or content.paths) and not content.hosts
    if not says_it or any(sign in text for sign in "*?" for text in texts) or max(map(len, texts)) > _MOST_PATTERN:
        return
    is_for_people = approval.risk.level >= RISK_LEVEL_CRITICAL or approval.policy.quorum > 1
    if is_for_people or len(content.paths) > _MOST_PATHS or state.standing.count(ApprovalRule) >= MOST_RULES:
        return
    spec = ApprovalRuleSpec(
        effect=RULE_EFFECT_APPROVE,
        kinds=[APPROVAL_KIND_TOOL_PERMISSION],
        agent_type=approval.agent_type,
        tool=content.tool,
        commands=[content.command] if content.command else [],
        paths=content.paths,
        root_task_id=approval.root_task_id,
        max_risk=max(approval.risk.level, RISK_LEVEL_LOW),
        reason=f"remembered with the decision about {approval.approval_id}",
    )
    stamp(spec.expire_time, state.now_ns + _REMEMBERED_FOR)
    create_rule(state, CreateApprovalRuleRequest(spec=spec))


def delete_rule(state: State, request: DeleteApprovalRuleRequest) -> DeleteApprovalRuleResponse:
    """Revokes a rule; what it has decided stays decided."""
    rule = state.standing.find(ApprovalRule, request.rule_id)
    if rule is None:
        raise KapellError(
            ERROR_REASON_APPROVAL_NOT_FOUND,
            f"Rule {request.rule_id} was not found: it never existed or was revoked. List the rules to find its id.",
            metadata={"rule_id": request.rule_id},
        )
    gone = state.approvals.put_rule(copied(rule), EVENT_KIND_APPROVAL_RULE_DELETED, deleted=True)
    return DeleteApprovalRuleResponse(revision=gone.revision)


def check(spec: ApprovalRuleSpec) -> None:
    """Refuses a rule that cannot be meant."""
    check_shape(spec)
    if spec.effect != RULE_EFFECT_APPROVE or not is_open(spec):
        return
    if not spec.anything:
        remedy = "Say which tool, commands, paths, task, tree or template; or say `anything`, if that is meant."
        raise invalid("spec", "would approve anything", remedy)
    if spec.max_risk > RISK_LEVEL_MEDIUM:
        raise invalid("spec.max_risk", "must be at most MEDIUM for a rule that approves anything")


def check_shape(spec: ApprovalRuleSpec) -> None:
    """Refuses what has no meaning for the effect of a rule."""
    if spec.HasField("policy") and spec.effect != RULE_EFFECT_REQUIRE:
        raise invalid("spec.policy", "is for the effect REQUIRE")
    if spec.anything and spec.effect != RULE_EFFECT_APPROVE:
        raise invalid("spec.anything", "is for the effect APPROVE")
    if spec.effect == RULE_EFFECT_REQUIRE and (
        APPROVAL_KIND_TOOL_PERMISSION in spec.kinds or spec.commands or spec.paths or spec.tool
    ):
        raise invalid("spec.effect", "REQUIRE is for the start of tasks, which have no tool, commands and paths")


def is_open(spec: ApprovalRuleSpec) -> bool:
    """Whether nothing keeps a rule from matching whatever comes, or any program at all."""
    if spec.task_id or spec.root_task_id or spec.template_id:
        return False
    if list(spec.kinds) == [APPROVAL_KIND_TASK_START]:
        return not narrows(spec.agent_type)
    if spec.commands:
        return not all(narrows(pattern.split(" ", 1)[0]) for pattern in spec.commands)
    return not narrows(spec.tool) and not (spec.paths and all(map(narrows, spec.paths)))


def narrows(pattern: str) -> bool:
    """Whether a pattern has anything in it that keeps something out."""
    return bool(pattern.strip("*?/. "))


def deciding(state: State, approval: Approval, content: ApprovalContent) -> ApprovalRule | None:
    """The rule that decides an approval at once: one that refuses, else one that approves."""
    if approval.kind not in _DECIDABLE or not state.standing.any(ApprovalRule):
        return None
    for effect in (RULE_EFFECT_DENY, RULE_EFFECT_APPROVE):
        for rule in state.standing.all(ApprovalRule):
            if rule.spec.effect != effect or not is_in_force(rule, state.now_ns):
                continue
            may = effect == RULE_EFFECT_DENY or _may_speak(rule, approval)
            if may and matches(rule.spec, approval, content) and not is_too_risky(rule.spec, approval):
                return rule
    return None


def demand(state: State, task: Task) -> None:
    """Writes into a task that rules demand its start to be approved, besides what is demanded already."""
    found = demands_on(state, task)
    if found:
        demands.keep(task.approval, [*found, *demands.demands_of(task.approval)])


def demands_on(state: State, task: Task) -> list[ApprovalDemand]:
    """What rules that are in force demand of the start of a task."""
    if not state.standing.any(ApprovalRule):
        return []
    return [
        ApprovalDemand(policy=rule.spec.policy, demanded_by=rule.rule_id, author=rule.creator)
        for rule in state.standing.all(ApprovalRule)
        if rule.spec.effect == RULE_EFFECT_REQUIRE and is_in_force(rule, state.now_ns) and _in_scope(rule.spec, task)
    ]


def note_use(state: State, used: ApprovalRule) -> None:
    """Counts a use of a rule."""
    rule = copied(state.standing.find(ApprovalRule, used.rule_id) or used)
    rule.uses += 1
    stamp(rule.last_use_time, state.now_ns)
    state.standing.put(rule, EVENT_KIND_APPROVAL_RULE_USED, ("uses", "last_use_time"))


def approves(rule: ApprovalRule) -> bool:
    """Whether a rule approves what it decides."""
    return rule.spec.effect == RULE_EFFECT_APPROVE


def is_in_force(rule: ApprovalRule, now_ns: int) -> bool:
    """Whether a rule is neither over nor used up."""
    if rule.spec.max_uses and rule.uses >= rule.spec.max_uses:
        return False
    return not rule.spec.HasField("expire_time") or timestamp_ns(rule.spec.expire_time) > now_ns


def is_too_risky(spec: ApprovalRuleSpec, approval: Approval) -> bool:
    """Whether a rule leaves what it matches to people: one that approves says up to which risk it does."""
    return spec.effect == RULE_EFFECT_APPROVE and approval.risk.level > (spec.max_risk or RISK_LEVEL_MEDIUM)


def matches(spec: ApprovalRuleSpec, approval: Approval, content: ApprovalContent) -> bool:
    """Whether a rule matches a request, whatever its risk."""
    if spec.kinds and approval.kind not in spec.kinds:
        return False
    if not _in_scope(spec, approval):
        return False
    if spec.effect == RULE_EFFECT_REQUIRE or approval.kind == APPROVAL_KIND_TASK_START:
        return approval.kind == APPROVAL_KIND_TASK_START and not (spec.tool or spec.commands or spec.paths)
    if not matches_word(spec.tool, content.tool):
        return False
    if spec.effect == RULE_EFFECT_DENY:
        return _touches(spec, content)
    if not matches_command(spec.commands, content.command):
        return False
    if not content.paths:
        return not spec.paths
    return matches_paths(spec.paths, content.paths, content.working_directory, content.workspace)


def _touches(spec: ApprovalRuleSpec, content: ApprovalContent) -> bool:
    """Whether a rule that refuses matches: any part of the command, and any of the paths, is enough."""
    if spec.commands and not touches_command(spec.commands, content.command):
        return False
    return not spec.paths or touches_paths(spec.paths, content.paths, content.working_directory, content.workspace)


def _may_speak(rule: ApprovalRule, approval: Approval) -> bool:
    """Whether who wrote a rule that approves may have decided: a rule has no more say than its creator."""
    creator = rule.creator
    if is_open(rule.spec) and not rule.spec.anything:
        return False  # Of a time when that was not refused.
    if creator in (approval.requested_by, approval.asked_with) and not approval.policy.allow_requester:
        return False
    return creator.kind == ACTOR_KIND_USER and not demands.missing(approval.policy, [creator], escalated=False)


def _in_scope(spec: ApprovalRuleSpec, subject: Approval | Task) -> bool:
    """Whether it is of the task, tree, template and agent type that a rule is for."""
    root_id = subject.root_task_id or subject.task_id
    return (
        (not spec.task_id or spec.task_id == subject.task_id)
        and (not spec.root_task_id or spec.root_task_id == root_id)
        and (not spec.template_id or spec.template_id == subject.template_id)
        and matches_word(spec.agent_type, subject.agent_type)
    )
