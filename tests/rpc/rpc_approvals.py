"""The part of rpc_table about approvals and their rules."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from kapell.v1 import approval_pb2, task_pb2, template_pb2
from kapell.v1.approval_policy_pb2 import APPROVAL_STATE_APPROVED, APPROVAL_STATE_CANCELLED, ApprovalPolicy
from kapell.v1.common_pb2 import LIST_ORDER_NEWEST_FIRST
from kapell.v1.task_pb2 import TASK_STATE_QUEUED

from tests.rpc.rpc_cases import Case, Make, of_lease, of_task, of_watch
from tests.rpc.rpc_templates import template
from tests.rpc.scene import Ask, Scene

_NOTHING = "approval_nothing"
_HASH = "0" * 64
_RULE = approval_pb2.ApprovalRuleSpec(effect=approval_pb2.RULE_EFFECT_APPROVE, tool="nobody-has-it", commands=["ls"])


def start(scene: Scene, **policy: Any) -> approval_pb2.Approval:
    """The approval of the start of a new task."""
    task = scene.queued(approval=ApprovalPolicy(**policy))
    request = approval_pb2.GetApprovalRequest(approval_id=task.approval.approval_id)
    found: approval_pb2.Approval = scene.ask("GetApproval", request).approval
    return found


def asked(scene: Scene, **fields: Any) -> tuple[approval_pb2.Approval, str]:
    """What the agent of a running task has asked for, and its token."""
    running = scene.running()
    request = approval_pb2.RequestApprovalRequest(lease_token=running.lease_token, title="Run make", **fields)
    return scene.call("RequestApproval", Ask(request, running.worker.token)).approval, running.worker.token


def rule(scene: Scene) -> str:
    """The id of a new rule."""
    return str(scene.ask("CreateApprovalRule", approval_pb2.CreateApprovalRuleRequest(spec=_RULE)).rule.rule_id)


def _request(scene: Scene, **fields: Any) -> Ask:
    running = scene.running()
    said = {"title": "Run make", **fields}
    return Ask(approval_pb2.RequestApprovalRequest(lease_token=running.lease_token, **said), running.worker.token)


def _cancelled(scene: Scene) -> Ask:
    running = scene.running()
    scene.ask("CancelTask", task_pb2.CancelTaskRequest(task_id=running.task_id))
    return Ask(
        approval_pb2.RequestApprovalRequest(lease_token=running.lease_token, title="Run make"), running.worker.token
    )


def _decide(approval: approval_pb2.Approval, option: str = "approve", **fields: Any) -> Ask:
    said = {"shown_hash": approval.content_hash, **fields}
    return Ask(approval_pb2.DecideApprovalRequest(approval_id=approval.approval_id, option=option, **said))


def _decided(scene: Scene) -> approval_pb2.Approval:
    approval = start(scene)
    scene.call("DecideApproval", _decide(approval, comment="go on"))
    return approval


def _of_template(scene: Scene) -> approval_pb2.Approval:
    spec = task_pb2.TaskSpec(template=template(scene), approval=ApprovalPolicy())
    spec.parameters.update({"name": "Ada"})
    task = scene.ask("CreateTask", task_pb2.CreateTaskRequest(task=spec)).task
    request = approval_pb2.GetApprovalRequest(approval_id=task.approval.approval_id)
    found: approval_pb2.Approval = scene.ask("GetApproval", request).approval
    return found


def _batch(*approvals: approval_pb2.Approval) -> Ask:
    shown = [approval_pb2.ShownApproval(approval_id=one.approval_id, shown_hash=one.content_hash) for one in approvals]
    return Ask(approval_pb2.BatchDecideApprovalsRequest(approvals=shown, option="approve"))


def _approve_task(approval: approval_pb2.Approval, **fields: Any) -> Ask:
    return Ask(task_pb2.ApproveTaskRequest(task_id=approval.task_id, **fields))


def _without_template(scene: Scene) -> Ask:
    approval = _of_template(scene)
    delete = template_pb2.DeleteTemplateRequest(template_id=approval.template_id, force=True)
    scene.ask("DeleteTemplate", delete)
    return _approve_task(approval, parameters={"name": "Bob"})


def _of_another_agent(scene: Scene, name: str) -> Ask:
    approval, _ = asked(scene)
    request = getattr(approval_pb2, f"{name}Request")(approval_id=approval.approval_id)
    return Ask(request, scene.worker().token)


def _cancelled_by_another(scene: Scene, approval_id: str = "") -> Ask:
    approval_id = approval_id or asked(scene)[0].approval_id
    other = scene.running()
    request = approval_pb2.CancelApprovalRequest(approval_id=approval_id, lease_token=other.lease_token)
    return Ask(request, other.worker.token)


def _probed(scene: Scene, name: str) -> Ask:
    """What an agent asks to find out if there is such an approval."""
    request = getattr(approval_pb2, f"{name}Request")(approval_id=_NOTHING)
    return Ask(request, scene.worker().token)


def of_approval(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusal of every rpc about one approval."""
    return {"APPROVAL_NOT_FOUND": lambda scene: Ask(request(approval_id=_NOTHING, **fields))}


def _page_of_another_filter(scene: Scene) -> Ask:
    for _ in range(2):
        start(scene)
    newest = approval_pb2.APPROVAL_ORDER_NEWEST_FIRST
    page = scene.ask("ListApprovals", approval_pb2.ListApprovalsRequest(page_size=1, order=newest))
    other = approval_pb2.ApprovalFilter(task_ids=["task_x"])
    return Ask(approval_pb2.ListApprovalsRequest(page_token=page.next_page_token, filter=other, order=newest))


_DECISIONS: dict[str, Make] = {
    "APPROVAL_ALREADY_DECIDED": lambda scene: _decide(_decided(scene)),
    "APPROVAL_CHANGED": lambda scene: _decide(start(scene), shown_hash=_HASH),
    "SELF_APPROVAL": lambda scene: _decide(start(scene, allow_requester=False)),
    "NOT_APPROVER": lambda scene: _decide(start(scene, approvers=["user:somebody-else"])),
}

APPROVALS: dict[str, Case] = {
    "RequestApproval": Case(
        works=lambda scene: Ask(_request(scene).request),
        holds=lambda answer: len(answer.approval.content_hash) == 64 and not answer.parked,
        refused={
            **of_lease(approval_pb2.RequestApprovalRequest, title="Run make"),
            "TASK_STATE_CONFLICT": _cancelled,
            "REQUEST_INVALID: a text is for questions": lambda scene: _request(scene, free_text=True),
        },
        malformed=({"leaseToken": "t", "title": ""}, "title"),
    ),
    "GetApproval": Case(
        works=lambda scene: Ask(approval_pb2.GetApprovalRequest(approval_id=start(scene).approval_id)),
        holds=lambda answer: answer.approval.content.prompt == "wait",
        refused={
            **of_approval(approval_pb2.GetApprovalRequest),
            "NOT_OWNER": lambda scene: _of_another_agent(scene, "GetApproval"),
            "NOT_OWNER: there is none": lambda scene: _probed(scene, "GetApproval"),
        },
        malformed=({}, "approval_id"),
    ),
    "ListApprovals": Case(
        works=lambda scene: Ask(
            approval_pb2.ListApprovalsRequest(filter=approval_pb2.ApprovalFilter(task_ids=[start(scene).task_id]))
        ),
        holds=lambda answer: answer.total == 1 and answer.approvals[0].blocks == 1,
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(
                approval_pb2.ListApprovalsRequest(page_token="not-a-token")
            ),
            "PAGE_TOKEN_INVALID: of another filter": _page_of_another_filter,
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "DecideApproval": Case(
        works=lambda scene: _decide(start(scene), comment="go on"),
        holds=lambda answer: answer.approval.state == APPROVAL_STATE_APPROVED,
        refused={
            **of_approval(approval_pb2.DecideApprovalRequest, option="approve", shown_hash=_HASH),
            **_DECISIONS,
            "REQUEST_INVALID: no such option": lambda scene: _decide(start(scene), "blue"),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: _decide(_of_template(scene), edited_input={"no": "such"}),
        },
        malformed=({"approvalId": "approval_a", "option": "approve"}, "shown_hash"),
    ),
    "BatchDecideApprovals": Case(
        works=lambda scene: _batch(start(scene), start(scene)),
        holds=lambda answer: [one.state for one in answer.outcomes] == [APPROVAL_STATE_APPROVED] * 2,
        refused={
            "APPROVAL_NOT_FOUND": lambda scene: _batch(approval_pb2.Approval(approval_id=_NOTHING, content_hash=_HASH)),
            "REQUEST_INVALID: one of them twice": lambda scene: _batch(*[start(scene)] * 2),
        },
        malformed=({"approvals": [], "option": "approve"}, "approvals"),
    ),
    "CancelApproval": Case(
        works=lambda scene: Ask(approval_pb2.CancelApprovalRequest(approval_id=asked(scene)[0].approval_id)),
        holds=lambda answer: answer.approval.state == APPROVAL_STATE_CANCELLED,
        refused={
            **of_approval(approval_pb2.CancelApprovalRequest),
            "APPROVAL_ALREADY_DECIDED": lambda scene: Ask(
                approval_pb2.CancelApprovalRequest(approval_id=_decided(scene).approval_id)
            ),
            "LEASE_LOST: never minted": lambda scene: _of_another_agent(scene, "CancelApproval"),
            "NOT_OWNER": _cancelled_by_another,
            "NOT_OWNER: there is none": lambda scene: _cancelled_by_another(scene, _NOTHING),
            "REQUEST_INVALID: of a start": lambda scene: Ask(
                approval_pb2.CancelApprovalRequest(approval_id=start(scene).approval_id)
            ),
        },
        malformed=({"approvalId": "approval_a", "reason": "x" * 501}, "reason"),
    ),
    "WaitApproval": Case(
        works=lambda scene: Ask(approval_pb2.WaitApprovalRequest(approval_id=_decided(scene).approval_id)),
        holds=lambda answer: answer.approval.decisions[0].comment == "go on",
        refused={
            **of_approval(approval_pb2.WaitApprovalRequest),
            "NOT_OWNER": lambda scene: _of_another_agent(scene, "WaitApproval"),
            "NOT_OWNER: there is none": lambda scene: _probed(scene, "WaitApproval"),
        },
        malformed=({"approvalId": "approval_a", "wait": "61s"}, "wait"),
        lasts=lambda scene: Ask(
            approval_pb2.WaitApprovalRequest(approval_id=start(scene).approval_id, wait=Duration(seconds=60))
        ),
    ),
    "WatchApprovals": Case(
        works=lambda scene: Ask(approval_pb2.WatchApprovalsRequest()),
        holds=lambda answer: answer.HasField("bookmark"),
        refused=of_watch(approval_pb2.WatchApprovalsRequest),
        malformed=({"options": {"sendInitialState": True, "startAfterRevision": "1"}}, "options"),
        lasts=lambda scene: Ask(approval_pb2.WatchApprovalsRequest()),
    ),
    "ListApprovalAudit": Case(
        works=lambda scene: Ask(
            approval_pb2.ListApprovalAuditRequest(
                approval_id=_decided(scene).approval_id, order=LIST_ORDER_NEWEST_FIRST, include_content=True
            )
        ),
        holds=lambda answer: (
            len(answer.entries) == 2
            and answer.entries[0].peer.startswith("ipv")
            and answer.entries[0].content.prompt == "wait"
        ),
        refused={
            "PAGE_TOKEN_INVALID": lambda scene: Ask(approval_pb2.ListApprovalAuditRequest(page_token="not-a-token"))
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "CreateApprovalRule": Case(
        works=lambda scene: Ask(approval_pb2.CreateApprovalRuleRequest(spec=_RULE, rule_id=scene.name("rule_a"))),
        holds=lambda answer: answer.rule.revision == answer.revision,
        refused={
            "ID_TAKEN": lambda scene: Ask(approval_pb2.CreateApprovalRuleRequest(spec=_RULE, rule_id=rule(scene))),
            "REQUEST_INVALID: anything": lambda scene: Ask(
                approval_pb2.CreateApprovalRuleRequest(
                    spec=approval_pb2.ApprovalRuleSpec(effect=approval_pb2.RULE_EFFECT_APPROVE)
                )
            ),
        },
        malformed=({"spec": {"tool": "x"}}, "spec.effect"),
    ),
    "ListApprovalRules": Case(
        works=lambda scene: Ask(approval_pb2.ListApprovalRulesRequest(page_size=len(rule(scene)[:1]))),
        holds=lambda answer: len(answer.rules) == 1,
        refused={
            "PAGE_TOKEN_INVALID": lambda scene: Ask(approval_pb2.ListApprovalRulesRequest(page_token="not-a-token"))
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "DeleteApprovalRule": Case(
        works=lambda scene: Ask(approval_pb2.DeleteApprovalRuleRequest(rule_id=rule(scene))),
        holds=lambda answer: answer.revision > 0,
        refused={
            "APPROVAL_NOT_FOUND": lambda scene: Ask(approval_pb2.DeleteApprovalRuleRequest(rule_id="rule_nothing"))
        },
        malformed=({}, "rule_id"),
    ),
    "PreviewApprovalRule": Case(
        works=lambda scene: Ask(
            approval_pb2.PreviewApprovalRuleRequest(
                spec=approval_pb2.ApprovalRuleSpec(effect=approval_pb2.RULE_EFFECT_DENY, task_id=start(scene).task_id)
            )
        ),
        holds=lambda answer: answer.matched == 1 and answer.looked_at >= 1,
        refused={
            "REQUEST_INVALID: a demand of a tool": lambda scene: Ask(
                approval_pb2.PreviewApprovalRuleRequest(
                    spec=approval_pb2.ApprovalRuleSpec(effect=approval_pb2.RULE_EFFECT_REQUIRE, tool="bash")
                )
            )
        },
        malformed=({"spec": {}}, "spec.effect"),
    ),
    "ApproveTask": Case(
        works=lambda scene: _approve_task(start(scene)),
        holds=lambda answer: answer.task.state == TASK_STATE_QUEUED,
        refused={
            **of_task(task_pb2.ApproveTaskRequest),
            "APPROVAL_NOT_FOUND": lambda scene: Ask(task_pb2.ApproveTaskRequest(task_id=scene.queued().task_id)),
            "APPROVAL_ALREADY_DECIDED": lambda scene: _approve_task(_decided(scene)),
            "APPROVAL_CHANGED": lambda scene: _approve_task(start(scene), shown_hash=_HASH),
            "SELF_APPROVAL": lambda scene: _approve_task(start(scene, allow_requester=False)),
            "NOT_APPROVER": lambda scene: _approve_task(start(scene, approvers=["user:somebody-else"])),
            "REQUEST_INVALID: parameters without a template": lambda scene: _approve_task(
                start(scene), parameters={"a": "b"}
            ),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: _approve_task(_of_template(scene), parameters={"no": "such"}),
            "TEMPLATE_NOT_FOUND": _without_template,
        },
        malformed=({"taskId": "task_1", "shownHash": "short"}, "shown_hash"),
    ),
}

_SPEC = {"effect": "RULE_EFFECT_APPROVE", "tool": "bash"}
VALID_OF_APPROVALS: dict[str, dict[str, Any]] = {
    "RequestApproval": {"leaseToken": "t", "title": "Run make"},
    "DecideApproval": {"approvalId": "approval_a", "option": "approve", "shownHash": _HASH},
    "BatchDecideApprovals": {
        "approvals": [{"approvalId": "approval_a", "shownHash": _HASH}],
        "option": "approve",
    },
    "CreateApprovalRule": {"spec": _SPEC},
    "PreviewApprovalRule": {"spec": _SPEC},
    "DeleteApprovalRule": {"ruleId": "rule_a"},
    "ApproveTask": {"taskId": "task_1"},
    **{f"{verb}Approval": {"approvalId": "approval_a"} for verb in ("Get", "Cancel", "Wait")},
}
"""Requests that pass validation, of the methods that require something."""


def subject_of(message: Any) -> str:
    """The approval that a request or an answer is about; empty for those of other services."""
    if message is None:
        return ""
    if hasattr(message, "approvals"):
        return str(message.approvals[0].approval_id)
    found = getattr(message, "rule", message)
    if hasattr(found, "rule_id"):
        return f"rule/{found.rule_id}"
    return str(getattr(getattr(message, "approval", message), "approval_id", ""))


def alter(request: Any) -> bool:
    """Makes another request of one about approvals; False for those of other services."""
    match type(request).DESCRIPTOR.name:
        case "RequestApprovalRequest":
            request.title = "Another"
        case "BatchDecideApprovalsRequest":
            request.comment = "another"
        case "CreateApprovalRuleRequest":
            request.spec.tool = "another"
        case "DeleteApprovalRuleRequest":
            request.rule_id = "rule_another"
        case "DecideApprovalRequest" | "CancelApprovalRequest":
            request.approval_id = "approval_another"
        case _:
            return False
    return True
