"""Which rule decides which command: the one line an rpc needs here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kapell.v1 import (
    admin_pb2,
    agent_pb2,
    alert_pb2,
    approval_pb2,
    budget_pb2,
    lock_pb2,
    price_pb2,
    queue_pb2,
    schedule_pb2,
    secret_pb2,
    task_pb2,
    template_pb2,
    token_pb2,
    usage_pb2,
    webhook_pb2,
    worker_pb2,
)

from kapell_server.domain.alerts import alerts
from kapell_server.domain.approvals import decision, expiry, inbox, request, rules
from kapell_server.domain.budgets import budget, reservation
from kapell_server.domain.budgets.edges import HOLD_SUBJECT, look_at_hold
from kapell_server.domain.locks import deadlock, grants, lock, resumption, session, ticket, views
from kapell_server.domain.queueing import explain, queue, start_blockers
from kapell_server.domain.schedules import schedule, schedule_run
from kapell_server.domain.secrets import secret
from kapell_server.domain.secrets.secret import RotateKeyCommand, SetSecretCommand
from kapell_server.domain.state import State
from kapell_server.domain.tasks import bulk, child, retention, task, workspace
from kapell_server.domain.tasks.bulk_job import BulkCommand, BulkStep
from kapell_server.domain.templates import template
from kapell_server.domain.tokens import audit, token
from kapell_server.domain.usage import estimate, ledger, price, reprice
from kapell_server.domain.usage.shelf import SUBJECT as USAGE
from kapell_server.domain.webhooks import webhook
from kapell_server.domain.workers import agent, overdue, pooling, worker
from kapell_server.engine.facts import (
    AgentProcessExited,
    AgentProcessStarted,
    AgentStartFailed,
    ChildrenAwaited,
    EventsOutlived,
    InboxQuestion,
    RefusalsNoted,
    SpawnCommand,
    TasksOutlived,
    TemplatesShipped,
    UsageChunk,
)

Decide = Callable[[State, Any], Any]
"""Raises KapellError, or puts changes and returns the changed resource, several, or a response."""

DECIDERS: dict[type, Decide] = {
    task_pb2.CreateTaskRequest: task.create_task,
    task_pb2.BatchCreateTasksRequest: task.create_tasks,
    task_pb2.UpdateTaskRequest: task.update_task,
    task_pb2.CancelTaskRequest: task.cancel_task,
    task_pb2.RetryTaskRequest: task.retry_task,
    task_pb2.DeleteTaskRequest: task.delete_task,
    task_pb2.ApproveTaskRequest: decision.approve_task,
    task_pb2.RecordTaskMergeRequest: workspace.record_merge,
    approval_pb2.RequestApprovalRequest: request.request_approval,
    approval_pb2.DecideApprovalRequest: decision.decide,
    approval_pb2.BatchDecideApprovalsRequest: decision.decide_batch,
    approval_pb2.CancelApprovalRequest: request.cancel_approval,
    approval_pb2.CreateApprovalRuleRequest: rules.create_rule,
    approval_pb2.DeleteApprovalRuleRequest: rules.delete_rule,
    BulkCommand: bulk.begin,
    BulkStep: bulk.step,
    queue_pb2.PauseQueueRequest: queue.pause,
    queue_pb2.ResumeQueueRequest: queue.resume,
    queue_pb2.DrainQueueRequest: queue.drain,
    queue_pb2.UpdateQueueRequest: queue.update,
    queue_pb2.SetConcurrencyLimitRequest: queue.set_limit,
    queue_pb2.DeleteConcurrencyLimitRequest: queue.delete_limit,
    template_pb2.CreateTemplateRequest: template.create_template,
    template_pb2.UpdateTemplateRequest: template.update_template,
    template_pb2.DeleteTemplateRequest: template.delete_template,
    template_pb2.SetTemplateAliasRequest: template.set_alias,
    template_pb2.DeleteTemplateAliasRequest: template.delete_alias,
    template_pb2.CloneTemplateRequest: template.clone_template,
    schedule_pb2.CreateScheduleRequest: schedule.create_schedule,
    schedule_pb2.UpdateScheduleRequest: schedule.update_schedule,
    schedule_pb2.DeleteScheduleRequest: schedule.delete_schedule,
    schedule_pb2.PauseScheduleRequest: schedule.pause_schedule,
    schedule_pb2.ResumeScheduleRequest: schedule.resume_schedule,
    schedule_pb2.TriggerScheduleRequest: schedule.trigger_schedule,
    budget_pb2.CreateBudgetRequest: budget.create_budget,
    budget_pb2.UpdateBudgetRequest: budget.update_budget,
    budget_pb2.DeleteBudgetRequest: budget.delete_budget,
    budget_pb2.ResumeBudgetRequest: budget.resume_budget,
    budget_pb2.ReserveBudgetRequest: reservation.reserve_budget,
    budget_pb2.SettleReservationRequest: reservation.settle_reservation,
    budget_pb2.ReleaseReservationRequest: reservation.release_reservation,
    alert_pb2.AcknowledgeAlertRequest: alerts.acknowledge_alert,
    webhook_pb2.CreateWebhookRequest: webhook.create_webhook,
    webhook_pb2.DeleteWebhookRequest: webhook.delete_webhook,
    usage_pb2.RecordUsageRequest: ledger.record_usage,
    UsageChunk: lambda state, chunk: ledger.record_usage(state, chunk.request),
    reprice.RepriceCommand: reprice.reprice,
    price_pb2.SetPriceRequest: price.set_price,
    price_pb2.DeletePriceRequest: price.delete_price,
    SetSecretCommand: secret.set_secret,
    secret_pb2.DeleteSecretRequest: secret.delete_secret,
    RotateKeyCommand: secret.seal_anew,
    TemplatesShipped: lambda state, fact: template.install_templates(state, fact.specs, fact.digest),
    SpawnCommand: lambda state, command: agent.spawn(state, command.request, command.profile, command.spec),
    agent_pb2.UpdateAgentRequest: agent.update,
    agent_pb2.DrainAgentRequest: agent.drain,
    agent_pb2.ResumeAgentRequest: agent.resume,
    agent_pb2.TerminateAgentRequest: agent.terminate,
    agent_pb2.DeleteAgentRequest: agent.delete,
    worker_pb2.RegisterWorkerRequest: worker.register,
    worker_pb2.HeartbeatRequest: worker.heartbeat,
    worker_pb2.ReportProgressRequest: worker.report_progress,
    worker_pb2.ReportUsageRequest: worker.report_usage,
    worker_pb2.ReportWorkspacesRequest: worker.report_workspaces,
    worker_pb2.CompleteTaskRequest: worker.complete_task,
    worker_pb2.BatchCompleteTasksRequest: worker.complete_tasks,
    worker_pb2.FailTaskRequest: worker.fail_task,
    worker_pb2.ReleaseTaskRequest: worker.release_task,
    worker_pb2.CreateChildTasksRequest: child.create_children,
    worker_pb2.DeregisterRequest: worker.deregister,
    AgentProcessStarted: lambda state, fact: agent.process_started(state, fact.agent_id, fact.pid),
    AgentProcessExited: lambda state, fact: agent.process_exited(state, fact.agent_id, fact.exit, fact.reason),
    lock_pb2.RenewLocksRequest: lock.renew,
    lock_pb2.ReleaseLocksRequest: lock.release,
    lock_pb2.ForceReleaseLocksRequest: lock.force_release,
    lock_pb2.CancelLockTicketRequest: ticket.cancel_ticket,
    lock_pb2.OpenSessionRequest: session.open_session,
    lock_pb2.RenewSessionRequest: session.renew_session,
    lock_pb2.CloseSessionRequest: session.close_session,
    ChildrenAwaited: lambda state, fact: deadlock.check(state, fact.task_id),
    token_pb2.CreateTokenRequest: token.create_token,
    token_pb2.RevokeTokenRequest: token.revoke_token,
    admin_pb2.CompactEventsRequest: retention.compact_events,
    EventsOutlived: lambda state, fact: retention.compact_to(state, fact.revision),
    TasksOutlived: lambda state, fact: retention.delete_ended(state, fact.task_ids, fact.ended_by_ns),
    RefusalsNoted: lambda state, fact: audit.note_refusals(state, fact.entries),
    AgentStartFailed: lambda state, fact: agent.process_exited(state, fact.agent_id, fact.exit, fact.reason),
}

QUESTIONS: dict[type, Decide] = {
    task_pb2.ExplainTaskRequest: explain.explain,
    queue_pb2.GetQueueStatsRequest: queue.stats,
    budget_pb2.GetBudgetRequest: budget.get_budget,
    start_blockers.StartQuestion: start_blockers.held_up,
    price_pb2.ListPricesRequest: price.list_prices,
    price_pb2.GetPriceRequest: price.get_price,
    usage_pb2.EstimateCostRequest: estimate.estimate_model,
    InboxQuestion: lambda state, asked: inbox.listed(state, asked.request, asked.first, asked.size),
    views.LocksQuestion: views.list_locks,
    views.SessionsQuestion: views.list_sessions,
    views.GraphQuestion: views.graph,
    lock_pb2.GetLockTicketRequest: views.get_ticket,
}
"""Asked after dispatch, and changing nothing: the answer is true at the end of the batch."""

_BY_TASK_ID = (
    task_pb2.CancelTaskRequest,
    task_pb2.RetryTaskRequest,
    task_pb2.DeleteTaskRequest,
    task_pb2.ExplainTaskRequest,
    task_pb2.ApproveTaskRequest,
    task_pb2.RecordTaskMergeRequest,
)
_BY_TOKEN = (
    worker_pb2.ReportProgressRequest,
    worker_pb2.ReportUsageRequest,
    worker_pb2.ReportWorkspacesRequest,
    worker_pb2.CompleteTaskRequest,
    worker_pb2.FailTaskRequest,
    worker_pb2.ReleaseTaskRequest,
    approval_pb2.RequestApprovalRequest,
)


def task_ids_of(request: Any) -> Iterable[str]:
    """The tasks a command will look at, as far as it says so: loaded in one query for the batch."""
    kind = type(request)
    if kind is task_pb2.CreateTaskRequest:
        return _named_by(request.task)
    if kind in _BY_TOKEN:
        return (_task_of_token(request.lease_token),)
    if kind in _BY_TASK_ID:
        return (request.task_id,)
    if kind is worker_pb2.BatchCompleteTasksRequest:
        return [_task_of_token(completion.lease_token) for completion in request.completions]
    if kind is worker_pb2.HeartbeatRequest:
        return [_task_of_token(beat.lease_token) for beat in request.leases]
    if kind is task_pb2.BatchCreateTasksRequest:
        return [task_id for spec in request.tasks for task_id in _named_by(spec)]
    if kind is worker_pb2.CreateChildTasksRequest:
        named = [task_id for spec in request.tasks for task_id in _named_by(spec)]
        return [_task_of_token(request.lease_token), *named]
    if kind is task_pb2.UpdateTaskRequest:
        return (request.task.task_id,)
    if kind is TasksOutlived:
        return request.task_ids  # type: ignore[no-any-return]
    return ()


def _named_by(spec: task_pb2.TaskSpec) -> Iterable[str]:
    """The ids in a spec that are looked at one by one: its own, which may be taken, and its parent's."""
    if spec.parent_task_id:
        return [task_id for task_id in (spec.task_id, spec.parent_task_id) if task_id]
    return (spec.task_id,) if spec.task_id else ()


def _task_of_token(token: str) -> str:
    """Where to look; whether the token is genuine is for the rules to say."""
    return token.split(".", 1)[0]


def content_ids_of(request: Any) -> Iterable[str]:
    """The tasks whose content a command will add to."""
    kind = type(request)
    if kind is worker_pb2.CompleteTaskRequest:
        return (_task_of_token(request.lease_token),)
    if kind is worker_pb2.BatchCompleteTasksRequest:
        return [_task_of_token(completion.lease_token) for completion in request.completions]
    if kind is task_pb2.RetryTaskRequest and (request.HasField("prompt") or request.HasField("input")):
        return (request.task_id,)
    return ()


def tasks_to_look_at(state: State, subject_ids: Iterable[str]) -> Iterable[str]:
    """The tasks that looks at these subjects will need: themselves, or the live runs of a schedule."""
    for subject_id in subject_ids:
        if subject_id.startswith("schedule_"):
            yield from state.schedule_lives.of(subject_id)
        elif subject_id.startswith(("task_", HOLD_SUBJECT)):
            yield subject_id.removeprefix(HOLD_SUBJECT)


_LOOKS: dict[str, Callable[[State, str], object]] = {
    "task": overdue.look_at_task,
    "agent": agent.look_at_agent,
    "approval": expiry.look_at_approval,
    "schedule": schedule_run.look_at_schedule,
    "session": session.look_at_session,
    "grant": grants.look_at_grant,
    "ticket": resumption.look_at_ticket,
    "lock": resumption.look_at_lock,
    "budget": lambda state, subject_id: state.budgets.look(subject_id),
    "reservation": reservation.look_at_reservation,
    "pool": pooling.look_at_pool,
    "hold": lambda state, subject_id: look_at_hold(state, subject_id.removeprefix(HOLD_SUBJECT)),
    "alert": lambda state, subject_id: state.alerts.look(subject_id),
    USAGE: lambda state, _: state.usage.tell(),
}
"""By the prefix of the subject's id."""


def look(state: State, subject_id: str) -> None:
    """Does what time asks of a subject; what has no prefix of its own is about a queue or a key."""
    at = _LOOKS.get(subject_id.partition("_")[0])
    if at is not None:
        at(state, subject_id)
    elif subject_id.startswith(alerts.QUEUE_SUBJECT):
        state.alerts.look_at_queue(subject_id.removeprefix(alerts.QUEUE_SUBJECT))
    elif subject_id.startswith(alerts.APPROVAL_SUBJECT):
        state.alerts.look_at_approval(subject_id.removeprefix(alerts.APPROVAL_SUBJECT))
    else:
        state.queues.rate_is_free(subject_id)
