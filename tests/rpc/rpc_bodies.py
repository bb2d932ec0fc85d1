"""A request that breaks a rule, for every method that takes anything, and one that breaks none."""

from __future__ import annotations

from typing import Any

from tests.rpc.rpc_approvals import APPROVALS, VALID_OF_APPROVALS
from tests.rpc.rpc_artifacts import ARTIFACTS, VALID_OF_ARTIFACTS
from tests.rpc.rpc_budgets import BUDGETS, VALID_OF_BUDGETS
from tests.rpc.rpc_bulk import BULK
from tests.rpc.rpc_locks import LOCKS, VALID_OF_LOCKS
from tests.rpc.rpc_queues import QUEUES, VALID_OF_QUEUES
from tests.rpc.rpc_schedules import SCHEDULES, VALID_OF_SCHEDULES
from tests.rpc.rpc_secrets import SECRETS, VALID_OF_SECRETS
from tests.rpc.rpc_templates import TEMPLATES
from tests.rpc.rpc_tokens import TOKENS, VALID_OF_TOKENS
from tests.rpc.rpc_usage import USAGE, VALID_OF_USAGE
from tests.rpc.rpc_workspaces import VALID_OF_WORKSPACES

BOTH_STARTS = {"options": {"sendInitialState": True, "startAfterRevision": "1"}}
NO_ID: dict[str, Any] = {}
# An invalid request of every method that takes anything, and the field that is to be named.
INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "CompactEvents": ({"olderThan": "-1s"}, "older_than"),
    "CreateTask": ({"task": {"agentType": "No Spaces"}}, "task.agent_type"),
    "BatchCreateTasks": (
        {"tasks": [{"agentType": "ok"}, {"agentType": "ok", "priority": 1001}]},
        "tasks[1].priority",
    ),
    "GetTask": (NO_ID, "task_id"),
    "ListTasks": ({"filter": {"states": [0]}}, "filter.states[0]"),
    "CountTasks": ({"filter": {"labels": {"a": "b"}}}, "filter"),
    "UpdateTask": ({"task": {"taskId": "task_1"}, "updateMask": "state"}, "update_mask"),
    "CancelTask": ({"taskId": "task_1", "reason": "x" * 501}, "reason"),
    "RetryTask": (NO_ID, "task_id"),
    "DeleteTask": ({"taskId": "task_1", "requestId": "x" * 65}, "request_id"),
    "WaitTask": ({"taskId": "task_1", "wait": "61s"}, "wait"),
    "ListTaskAttempts": (NO_ID, "task_id"),
    "ExplainTask": (NO_ID, "task_id"),
    "StreamTaskLogs": ({"taskId": "task_1", "offset": "-1"}, "offset"),
    "WatchTasks": (BOTH_STARTS, "options"),
    **{
        name: case.malformed
        for name, case in (
            *(TEMPLATES | BULK | QUEUES | ARTIFACTS | SCHEDULES | USAGE | APPROVALS | LOCKS).items(),
            *(BUDGETS | SECRETS | TOKENS).items(),
        )
        if case.malformed
    },
    "SpawnAgent": (NO_ID, "source"),
    "GetAgent": (NO_ID, "agent_id"),
    "ListAgents": ({"pageSize": 1001}, "page_size"),
    "UpdateAgent": ({"updateMask": "labels"}, "agent"),
    "TerminateAgent": ({"agentId": "agent_1", "gracePeriod": "3601s"}, "grace_period"),
    "DrainAgent": (NO_ID, "agent_id"),
    "ResumeAgent": (NO_ID, "agent_id"),
    "DeleteAgent": (NO_ID, "agent_id"),
    "StreamAgentLogs": (NO_ID, "agent_id"),
    "WatchAgents": (BOTH_STARTS, "options"),
    "RegisterWorker": (
        {"instanceKey": "12345678", "labels": {"bad key": "x"}},
        'labels["bad key"]',
    ),
    "LeaseTasks": ({"agentId": "agent_1", "maxTasks": 65}, "max_tasks"),
    "Heartbeat": ({"agentId": "agent_1", "leases": [{}]}, "leases[0].lease_token"),
    "ReportProgress": ({"leaseToken": "t", "progress": {"fraction": 2}}, "progress.fraction"),
    "AppendTaskLogs": ({"leaseToken": "t"}, "entries"),
    "ReportUsage": ({"leaseToken": "t"}, "records"),
    "ReportWorkspaces": ({"leaseToken": "t"}, "workspaces"),
    "RecordTaskMerge": ({"taskId": "task_1", "name": "shop", "headCommit": "a"}, "merge"),
    "CreateChildTasks": ({"leaseToken": "t"}, "tasks"),
    "WaitChildTasks": ({"leaseToken": "t", "wait": "61s"}, "wait"),
    "GetTaskTree": (NO_ID, "task_id"),
    "CompleteTask": (NO_ID, "lease_token"),
    "BatchCompleteTasks": ({"completions": [{}]}, "completions[0].lease_token"),
    "FailTask": ({"leaseToken": "t", "failure": {"reason": "lower"}}, "failure.reason"),
    "ReleaseTask": (NO_ID, "lease_token"),
    "WatchDirectives": (NO_ID, "agent_id"),
    "Deregister": (NO_ID, "agent_id"),
    "Watch": (BOTH_STARTS, "options"),
    "ListEvents": ({"pageToken": "x" * 513}, "page_token"),
}
TEMPLATE = {"agentType": "shell", "prompt": "echo hello"}
VALID: dict[str, dict[str, Any]] = {
    **VALID_OF_APPROVALS,
    **VALID_OF_ARTIFACTS,
    **VALID_OF_QUEUES,
    **VALID_OF_SCHEDULES,
    **VALID_OF_BUDGETS,
    **VALID_OF_USAGE,
    **VALID_OF_LOCKS,
    **VALID_OF_SECRETS,
    **VALID_OF_TOKENS,
    **VALID_OF_WORKSPACES,
    "CreateTemplate": {"templateId": "greet", "spec": TEMPLATE},
    "GetTemplate": {"template": "greet"},
    "UpdateTemplate": {"templateId": "greet", "spec": TEMPLATE},
    "DeleteTemplate": {"templateId": "greet"},
    "ListTemplateVersions": {"templateId": "greet"},
    "SetTemplateAlias": {"templateId": "greet", "alias": "stable", "version": 1},
    "DeleteTemplateAlias": {"templateId": "greet", "alias": "stable"},
    "ValidateTemplate": {"spec": TEMPLATE},
    "RenderTemplate": {"template": "greet"},
    "CloneTemplate": {"template": "greet", "templateId": "mine"},
    "CreateTask": {"task": {"agentType": "shell"}},
    "RegisterWorker": {"instanceKey": "12345678"},
    "GetTask": {"taskId": "task_1"},
    "WaitTask": {"taskId": "task_1"},
    "LeaseTasks": {"agentId": "agent_1"},
}
