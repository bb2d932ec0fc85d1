"""An rpc is complete: scope, HTTP path, validation, servicer, SDK verb, CLI verb.

Whoever adds an rpc is told here what is missing. An rpc without a CLI verb needs its reason in
`NO_COMMAND`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from kapell._third_party.buf.validate import validate_pb2
from kapell.cli.tree import TREE
from kapell.v1 import common_pb2

from tests.tidy.api import methods, qualified
from tests.tidy.sources import sources

# Which command of the CLI an rpc is for.
COMMANDS = {
    "AdminService.GetServerInfo": "version",
    "PriceService.ListPrices": "price list",
    "PriceService.GetPrice": "price get",
    "PriceService.SetPrice": "price set",
    "PriceService.DeletePrice": "price delete",
    "UsageService.QueryUsage": "usage show",
    "UsageService.ListUsageRecords": "usage export",
    "UsageService.EstimateCost": "usage estimate",
    "UsageService.RepriceUsage": "price reprice",
    "ScheduleService.CreateSchedule": "schedule create",
    "ScheduleService.GetSchedule": "schedule get",
    "ScheduleService.ListSchedules": "schedule list",
    "ScheduleService.UpdateSchedule": "schedule update",
    "ScheduleService.DeleteSchedule": "schedule delete",
    "ScheduleService.PauseSchedule": "schedule pause",
    "ScheduleService.ResumeSchedule": "schedule resume",
    "ScheduleService.TriggerSchedule": "schedule trigger",
    "ScheduleService.PreviewSchedule": "schedule preview",
    "AdminService.CompactEvents": "event compact",
    "BudgetService.CreateBudget": "budget create",
    "BudgetService.GetBudget": "budget get",
    "BudgetService.ListBudgets": "budget list",
    "BudgetService.UpdateBudget": "budget update",
    "BudgetService.DeleteBudget": "budget delete",
    "BudgetService.ResumeBudget": "budget resume",
    "AlertService.ListAlerts": "alert list",
    "AlertService.AcknowledgeAlert": "alert ack",
    "WebhookService.CreateWebhook": "webhook create",
    "WebhookService.ListWebhooks": "webhook list",
    "WebhookService.DeleteWebhook": "webhook delete",
    "WebhookService.TestWebhook": "webhook test",
    "WebhookService.ListWebhookDeliveries": "webhook deliveries",
    "WebhookService.ResendWebhookDelivery": "webhook resend",
    "TokenService.CreateToken": "auth token create",
    "TokenService.ListTokens": "auth token list",
    "TokenService.RevokeToken": "auth token revoke",
    "TokenService.GetCaller": "auth whoami",
    "AuditService.ListAuditEntries": "audit list",
    "AgentService.SpawnAgent": "agent spawn",
    "AgentService.GetAgent": "agent get",
    "AgentService.ListAgents": "agent list",
    "AgentService.TerminateAgent": "agent terminate",
    "AgentService.DrainAgent": "agent drain",
    "AgentService.ResumeAgent": "agent resume",
    "AgentService.DeleteAgent": "agent delete",
    "AgentService.StreamAgentLogs": "agent logs",
    "AgentService.WatchAgents": "agent watch",
    "AgentService.ListAgentProfiles": "profile list",
    "ApprovalService.GetApproval": "approval show",
    "ApprovalService.ListApprovals": "approval list",
    "ApprovalService.DecideApproval": "approval approve",
    "ApprovalService.WatchApprovals": "approval watch",
    "ApprovalService.ListApprovalAudit": "approval audit",
    "ApprovalService.CreateApprovalRule": "approval remember",
    "ApprovalService.PreviewApprovalRule": "approval remember",
    "ApprovalService.ListApprovalRules": "approval rules",
    "ApprovalService.DeleteApprovalRule": "approval forget",
    "TaskService.ApproveTask": "task approve",
    "TaskService.RecordTaskMerge": "task merge",
    "ArtifactService.CreateArtifact": "artifact upload",
    "ArtifactService.UploadArtifact": "artifact upload",
    "ArtifactService.CompleteArtifact": "artifact upload",
    "ArtifactService.GetArtifact": "artifact get",
    "ArtifactService.ListArtifacts": "task artifacts",
    "ArtifactService.DownloadArtifact": "artifact download",
    "ArtifactService.DeleteArtifact": "artifact delete",
    "EventService.Watch": "event watch",
    "EventService.ListEvents": "event list",
    "LockService.AcquireLocks": "lock acquire",
    "LockService.RenewLocks": "lock renew",
    "LockService.ReleaseLocks": "lock release",
    "LockService.ForceReleaseLocks": "lock release",
    "LockService.ListLocks": "lock list",
    "LockService.CheckFence": "lock guard",
    "LockService.WatchLocks": "lock list",
    "LockService.GetLockGraph": "lock graph",
    "LockService.CancelLockTicket": "lock cancel",
    "LockService.ListSessions": "lock sessions",
    "QueueService.GetQueueStats": "queue list",
    "QueueService.UpdateQueue": "queue set",
    "QueueService.PauseQueue": "queue pause",
    "QueueService.ResumeQueue": "queue resume",
    "QueueService.DrainQueue": "queue drain",
    "SecretService.SetSecret": "secret set",
    "SecretService.ListSecrets": "secret list",
    "SecretService.DeleteSecret": "secret delete",
    "SecretService.RotateSecretKey": "secret rotate-key",
    "QueueService.SetConcurrencyLimit": "limit set",
    "QueueService.ListConcurrencyLimits": "limit list",
    "QueueService.DeleteConcurrencyLimit": "limit delete",
    "TaskService.CreateTask": "task create",
    "TaskService.GetTask": "task get",
    "TaskService.ListTasks": "task list",
    "TaskService.CountTasks": "status",
    "TaskService.UpdateTask": "task update",
    "TaskService.CancelTask": "task cancel",
    "TaskService.RetryTask": "task retry",
    "TaskService.DeleteTask": "task delete",
    "TaskService.CancelTasks": "task cancel",
    "TaskService.RetryTasks": "task retry",
    "TaskService.ReprioritizeTasks": "task reprioritize",
    "TaskService.ListTaskEdits": "task edits",
    "TaskService.WaitTask": "task wait",
    "TaskService.GetTaskTree": "task tree",
    "TaskService.ExplainTask": "task explain",
    "TaskService.ListTaskAttempts": "task attempts",
    "TaskService.StreamTaskLogs": "task logs",
    "TaskService.WatchTasks": "task watch",
    "TemplateService.CreateTemplate": "template apply",
    "TemplateService.GetTemplate": "template get",
    "TemplateService.ListTemplates": "template list",
    "TemplateService.UpdateTemplate": "template apply",
    "TemplateService.DeleteTemplate": "template delete",
    "TemplateService.ListTemplateVersions": "template versions",
    "TemplateService.SetTemplateAlias": "template alias",
    "TemplateService.DeleteTemplateAlias": "template alias",
    "TemplateService.ValidateTemplate": "template validate",
    "TemplateService.RenderTemplate": "template render",
    "TemplateService.CloneTemplate": "template clone",
}
NO_COMMAND = {
    "BudgetService.ReserveBudget": "for programs whose work is no task; tasks reserve by themselves",
    "BudgetService.SettleReservation": "as ReserveBudget",
    "BudgetService.ReleaseReservation": "as ReserveBudget",
    "UsageService.RecordUsage": "records come from programs; a person has a price to correct, not a record",
    "UsageService.WatchUsage": "`kapell event watch --kind usage.update` shows it",
    "AdminService.GetDiagnostics": "for operators' dashboards; `kapell status` shows what a person needs",
    "AgentService.UpdateAgent": "labels and names are given when an agent is spawned; changing them is for programs",
    "ApprovalService.BatchDecideApprovals": "the key b of a card; a script decides one by one",
    "ApprovalService.CancelApproval": "for the agent that has asked; a person denies, or cancels the task",
    "ApprovalService.RequestApproval": "for agents, with the token of a lease",
    "ApprovalService.WaitApproval": "for agents; a person watches the task",
    "EventService.GetLogInfo": "resuming is done by the SDK; a person has no use for the bounds of the log",
    "LockService.GetLockTicket": "`kapell lock waiters` shows all of them, with what they wait for",
    "LockService.WatchLockTicket": "`kapell lock run --wait` waits by it; a person sees `kapell lock waiters`",
    "LockService.OpenSession": "a session is renewed by the program that opens it; a shell has `kapell lock run`",
    "LockService.RenewSession": "as OpenSession",
    "LockService.CloseSession": "as OpenSession",
    "TaskService.BatchCreateTasks": "for programs; a shell creates tasks one by one",
}
# A worker is a program, so nothing of WorkerService has a command.
PROGRAMS_ONLY = "WorkerService"

METHODS = {qualified(method): method for method in methods()}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@every_method
def test_it_names_its_scope(method: MethodDescriptor) -> None:
    assert method.GetOptions().Extensions[common_pb2.scope] != common_pb2.SCOPE_UNSPECIFIED


@every_method
def test_it_says_what_agents_may_do_where_their_scope_opens_it(method: MethodDescriptor) -> None:
    options = method.GetOptions().Extensions
    if options[common_pb2.scope] == common_pb2.SCOPE_WORKER:
        said = options[common_pb2.agent_access]
        assert said, f"{qualified(method)} is for workers: add `option (agent_access) = AGENT_ACCESS_OWN;`, ANY or NONE"


@every_method
def test_it_has_a_path_below_the_orchestration_api(method: MethodDescriptor) -> None:
    rule = method.GetOptions().Extensions[annotations_pb2.http]

    pattern = rule.WhichOneof("pattern")
    assert pattern is not None
    path = getattr(rule, pattern)
    assert path.startswith("/api/v1/orchestration/")
    assert ":" not in path, "words, not colons"


def test_no_two_rpcs_share_verb_and_path() -> None:
    rules = [method.GetOptions().Extensions[annotations_pb2.http] for method in METHODS.values()]
    paths = [(rule.WhichOneof("pattern"), getattr(rule, rule.WhichOneof("pattern"))) for rule in rules]

    assert len(set(paths)) == len(paths)


@every_method
def test_its_request_and_response_are_its_own(method: MethodDescriptor) -> None:
    assert method.input_type.name == f"{method.name}Request"
    assert method.output_type.name == f"{method.name}Response"


@every_method
def test_every_open_field_of_its_request_is_bounded(method: MethodDescriptor) -> None:
    open_fields = [
        field.name
        for field in method.input_type.fields
        if _can_be_too_large(field) and not field.GetOptions().HasExtension(validate_pb2.field)
    ]

    assert open_fields == []


@every_method
def test_its_servicer_has_it(method: MethodDescriptor) -> None:
    defined = {
        name
        for source in sources("server")
        if source.is_in("kapell_server.rpc")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and node.name == f"{method.containing_service.name}r"
        for name in _members(node)
    }

    assert method.name in defined


@every_method
def test_the_sdk_calls_it(method: MethodDescriptor) -> None:
    used = {
        name
        for source in sources("client")
        if not source.is_in("kapell.cli", "kapell.demo")
        for node in ast.walk(source.tree)
        for name in _mentioned(node)
    }

    assert method.name in used, "give it a verb in client/python/kapell"


@every_method
def test_a_command_is_for_it_or_it_says_why_not(method: MethodDescriptor) -> None:
    name = qualified(method)
    if method.containing_service.name == PROGRAMS_ONLY or name in NO_COMMAND:
        return

    assert name in COMMANDS, "add the command to COMMANDS or the reason to NO_COMMAND"
    node = TREE
    for word in COMMANDS[name].split():
        assert word in node.children, f"there is no command `kapell {COMMANDS[name]}`"
        node = node.children[word]


def test_no_entry_of_the_tables_is_stale() -> None:
    assert {*COMMANDS, *NO_COMMAND} <= METHODS.keys()
    assert not COMMANDS.keys() & NO_COMMAND.keys()


def _can_be_too_large(field: FieldDescriptor) -> bool:
    """Strings, bytes, lists and maps; messages bound their own fields."""
    return field.is_repeated or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def _members(servicer: ast.ClassDef) -> Iterator[str]:
    """Methods of a class, and what it binds to `self`."""
    for node in ast.walk(servicer):
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
            ):
                yield name


def _mentioned(node: ast.AST) -> Iterator[str]:
    """An attribute's name, or the last word of a path like "/kapell.v1.WorkerService/LeaseTasks"."""
    match node:
        case ast.Attribute(attr=name):
            yield name
        case ast.Constant(value=str(text)):
            yield text.rpartition("/")[2]
