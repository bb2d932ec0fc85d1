"""Every method of the API has a verb in the client, with its request filled in."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from kapell import Client, errors
from kapell.approvals import approval_policy
from kapell.connection import STREAMING_METHODS
from kapell.records import usage_record
from kapell.task_specs import task_spec
from kapell.v1 import agent_pb2, approval_pb2, task_pb2, template_pb2
from kapell.v1.workspace_pb2 import WorkspaceMerge

from tests.clients.every_method import Recorder, methods, recording

_SPEC = agent_pb2.AgentSpec(agent_types=["a"], command=agent_pb2.CommandRuntime(argv=["true"]))
_APPROVAL = approval_pb2.Approval(approval_id="approval_1", content_hash="0" * 64)
_RULE = approval_pb2.ApprovalRuleSpec(effect=approval_pb2.RULE_EFFECT_APPROVE, tool="bash")
_TEMPLATE = template_pb2.TemplateSpec(agent_type="a", prompt="Hello")

VERBS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "GetServerInfo": lambda c: c.admin.server_info(),
    "GetDiagnostics": lambda c: c.admin.diagnostics(),
    "CompactEvents": lambda c: c.admin.compact_events(older_than=3600),
    "CreateToken": lambda c: c.tokens.create("ci", scopes=["read"], ttl=60),
    "ListTokens": lambda c: c.tokens.list(principals=["ci"]),
    "RevokeToken": lambda c: c.tokens.revoke("token_1", reason="lost"),
    "GetCaller": lambda c: c.tokens.caller(),
    "ListAuditEntries": lambda c: c.audit.list(methods=["TokenService.CreateToken"]),
    "SpawnAgent": lambda c: c.agents.spawn("shell", wait=2),
    "GetAgent": lambda c: c.agents.get("agent_1"),
    "ListAgents": lambda c: c.agents.list(states=["active"]),
    "UpdateAgent": lambda c: c.agents.update("agent_1", labels={"a": "b"}),
    "TerminateAgent": lambda c: c.agents.terminate("agent_1", force=True),
    "DrainAgent": lambda c: c.agents.drain("agent_1"),
    "ResumeAgent": lambda c: c.agents.resume("agent_1"),
    "DeleteAgent": lambda c: c.agents.delete("agent_1"),
    "StreamAgentLogs": lambda c: anext(c.agents.logs("agent_1"), None),
    "WatchAgents": lambda c: c.agents.watch(states=["active"]).ready(),
    "ListAgentProfiles": lambda c: c.agents.profiles(),
    "Watch": lambda c: c.watch(kinds=["task.completed"]).ready(),
    "ListEvents": lambda c: c.events.list(kinds=["task.completed"]),
    "GetLogInfo": lambda c: c.events.log_info(),
    "CreateArtifact": lambda c: _uploaded(c),
    "UploadArtifact": lambda c: _uploaded(c),
    "CompleteArtifact": lambda c: _uploaded(c),
    "GetArtifact": lambda c: c.artifacts.get("artifact_1"),
    "ListArtifacts": lambda c: c.artifacts.list("task_1", attempt=0, name="a"),
    "DownloadArtifact": lambda c: _downloaded(c),
    "DeleteArtifact": lambda c: c.artifacts.delete("artifact_1"),
    "CreateTask": lambda c: c.tasks.create("shell", "true"),
    "BatchCreateTasks": lambda c: c.tasks.create_batch([task_spec("shell"), task_spec("shell")]),
    "GetTask": lambda c: c.tasks.get("task_1"),
    "ListTasks": lambda c: c.tasks.list(states=["queued"]),
    "CountTasks": lambda c: c.tasks.count(),
    "UpdateTask": lambda c: c.tasks.update("task_1", priority=1),
    "CancelTask": lambda c: c.tasks.cancel("task_1", reason="enough"),
    "RetryTask": lambda c: c.tasks.retry("task_1"),
    "CancelTasks": lambda c: c.tasks.cancel_all(states=["queued"], reason="enough"),
    "RetryTasks": lambda c: c.tasks.retry_all(failure_reasons=["AGENT_LOST"], max_affected=5),
    "ReprioritizeTasks": lambda c: c.tasks.reprioritize_all(900, everything=True, allow_partial=True),
    "ListTaskEdits": lambda c: c.tasks.edits("task_1"),
    "DeleteTask": lambda c: c.tasks.delete("task_1"),
    "GetTaskTree": lambda c: c.tasks.tree("task_1"),
    "ExplainTask": lambda c: c.tasks.explain("task_1"),
    "GetQueueStats": lambda c: c.queues.stats("a", "b"),
    "UpdateQueue": lambda c: c.queues.update("a", max_running=4, start_rate=(10, 60)),
    "PauseQueue": lambda c: c.queues.pause("a", reason="enough"),
    "ResumeQueue": lambda c: c.queues.resume("a"),
    "DrainQueue": lambda c: c.queues.drain("a", reason="enough"),
    "SetConcurrencyLimit": lambda c: c.limits.set("repo:web", max_running=2, strategy="skip"),
    "ListConcurrencyLimits": lambda c: c.limits.list(page_size=7),
    "DeleteConcurrencyLimit": lambda c: c.limits.delete("repo:web"),
    "AcquireLocks": lambda c: c.locks.acquire("repo/src", shared=True, ttl=30, wait=5, keep_queued=True),
    "RenewLocks": lambda c: c.locks.renew("lock_1", "lock_2"),
    "ReleaseLocks": lambda c: c.locks.release("lock_1", keep_shared=True),
    "ForceReleaseLocks": lambda c: c.locks.force_release(path="repo", reason="enough"),
    "ListLocks": lambda c: c.locks.list(path="repo"),
    "CheckFence": lambda c: c.locks.check_fence("repo/a", 7),
    "WatchLocks": lambda c: c.locks.watch(task_id="task_1").ready(),
    "GetLockGraph": lambda c: c.locks.graph(path="repo"),
    "GetLockTicket": lambda c: c.locks.ticket("ticket_1"),
    "WatchLockTicket": lambda c: anext(c.locks.watch_ticket("ticket_1"), None),
    "CancelLockTicket": lambda c: c.locks.cancel_ticket("ticket_1"),
    "OpenSession": lambda c: c.locks.open_session(ttl=30, display_name="build"),
    "RenewSession": lambda c: c.locks.renew_session("session_1"),
    "CloseSession": lambda c: c.locks.close_session("session_1"),
    "ListSessions": lambda c: c.locks.sessions(page_size=7),
    "SetSecret": lambda c: c.secrets.set("token", "s3cr3t-value", description="for the tests"),
    "ListSecrets": lambda c: c.secrets.list(page_size=7),
    "DeleteSecret": lambda c: c.secrets.delete("token"),
    "RotateSecretKey": lambda c: c.secrets.rotate_key(),
    "ListTaskAttempts": lambda c: c.tasks.attempts("task_1"),
    "WaitTask": lambda c: _ignoring_timeout(c.tasks.wait("task_1", timeout=0)),
    "StreamTaskLogs": lambda c: anext(c.tasks.logs("task_1", attempt=1), None),
    "CreateTemplate": lambda c: c.templates.create("greet", _TEMPLATE),
    "GetTemplate": lambda c: c.templates.get("greet@1"),
    "ListTemplates": lambda c: c.templates.list(tags=["a"], built_in=False),
    "UpdateTemplate": lambda c: c.templates.update("greet", _TEMPLATE, etag="e1"),
    "DeleteTemplate": lambda c: c.templates.delete("greet", force=True),
    "ListTemplateVersions": lambda c: c.templates.versions("greet"),
    "SetTemplateAlias": lambda c: c.templates.set_alias("greet", "stable", 1),
    "DeleteTemplateAlias": lambda c: c.templates.delete_alias("greet", "stable"),
    "ValidateTemplate": lambda c: c.templates.validate(_TEMPLATE, {"name": "Ada"}),
    "RenderTemplate": lambda c: c.templates.render("greet", {"name": "Ada"}),
    "CloneTemplate": lambda c: c.templates.clone("greet", "mine", defaults={"name": "Ada"}),
    "CreateSchedule": lambda c: c.schedules.create(task_spec("shell", "true"), cron="@daily"),
    "GetSchedule": lambda c: c.schedules.get("schedule_1"),
    "ListSchedules": lambda c: c.schedules.list(paused=True),
    "UpdateSchedule": lambda c: c.schedules.update("schedule_1", interval=60),
    "DeleteSchedule": lambda c: c.schedules.delete("schedule_1"),
    "PauseSchedule": lambda c: c.schedules.pause("schedule_1", reason="holidays"),
    "ResumeSchedule": lambda c: c.schedules.resume("schedule_1"),
    "TriggerSchedule": lambda c: c.schedules.trigger("schedule_1", overlap_policy="allow"),
    "PreviewSchedule": lambda c: c.schedules.preview(cron="@daily", count=3),
    "CreateBudget": lambda c: c.budgets.create("$5", scope="label:team=a", window="daily", thresholds={80: "stop"}),
    "GetBudget": lambda c: c.budgets.get("budget_1"),
    "ListBudgets": lambda c: c.budgets.list(page_size=7),
    "UpdateBudget": lambda c: c.budgets.update("budget_1", limit="200k tokens"),
    "DeleteBudget": lambda c: c.budgets.delete("budget_1"),
    "ResumeBudget": lambda c: c.budgets.resume("budget_1", extend_by="$2", reason="go on"),
    "ReserveBudget": lambda c: c.budgets.reserve("budget_1", "$0.20", ttl=60),
    "SettleReservation": lambda c: c.budgets.settle("reservation_1", "$0.10"),
    "ReleaseReservation": lambda c: c.budgets.release("reservation_1"),
    "ListAlerts": lambda c: c.alerts.list(states=["firing"], kinds=["budget_threshold"]),
    "AcknowledgeAlert": lambda c: c.alerts.acknowledge("alert_1", comment="seen"),
    "CreateWebhook": lambda c: c.webhooks.create("http://127.0.0.1/", kinds=["alert.fired"]),
    "ListWebhooks": lambda c: c.webhooks.list(page_size=7),
    "DeleteWebhook": lambda c: c.webhooks.delete("webhook_1"),
    "TestWebhook": lambda c: c.webhooks.test("webhook_1"),
    "ListWebhookDeliveries": lambda c: c.webhooks.deliveries("webhook_1", states=["failed"]),
    "ResendWebhookDelivery": lambda c: c.webhooks.resend("webhook_1", "delivery_1"),
    "RecordUsage": lambda c: c.usage.record([usage_record(model="gpt-5", input_tokens=3)]),
    "QueryUsage": lambda c: c.usage.query(by=["model"], bucket="day", time_zone="UTC", unpriced=True),
    "ListUsageRecords": lambda c: c.usage.list(models=["gpt-5"], include_raw=True),
    "WatchUsage": lambda c: c.usage.watch(task_ids=["task_1"]).ready(),
    "RepriceUsage": lambda c: c.usage.reprice(preview=True, labels={"a": "b"}),
    "EstimateCost": lambda c: c.usage.estimate(model="gpt-5", runs=3),
    "ListPrices": lambda c: c.prices.list(provider="openai", include_past=True),
    "GetPrice": lambda c: c.prices.get("gpt-5"),
    "SetPrice": lambda c: c.prices.set("acme", "m", input="0.1", output=2, cache_read=0.05, units={"searches": "0.01"}),
    "DeletePrice": lambda c: c.prices.delete("price_1"),
    "ApproveTask": lambda c: c.tasks.approve("task_1", comment="go on", parameters={"a": "b"}),
    "RecordTaskMerge": lambda c: c.tasks.record_merge("task_1", "shop", "abc", WorkspaceMerge(outcome=1)),
    "RequestApproval": lambda c: c.approvals.request("token", "Run make", policy=approval_policy(quorum=2)),
    "GetApproval": lambda c: c.approvals.get("approval_1"),
    "ListApprovals": lambda c: c.approvals.list(states=["pending"], kinds=["task_start"], min_risk="high"),
    "DecideApproval": lambda c: c.approvals.decide(_APPROVAL, "deny", comment="no"),
    "BatchDecideApprovals": lambda c: c.approvals.decide_all([_APPROVAL], "approve"),
    "CancelApproval": lambda c: c.approvals.cancel("approval_1", reason="enough"),
    "WaitApproval": lambda c: c.approvals.wait("approval_1", timeout=0),
    "WatchApprovals": lambda c: c.approvals.watch(task_ids=["task_1"]).ready(),
    "ListApprovalAudit": lambda c: c.approvals.audit(approval_id="approval_1"),
    "CreateApprovalRule": lambda c: c.approvals.create_rule(_RULE),
    "ListApprovalRules": lambda c: c.approvals.list_rules(page_size=7),
    "DeleteApprovalRule": lambda c: c.approvals.delete_rule("rule_1"),
    "PreviewApprovalRule": lambda c: c.approvals.preview_rule(_RULE),
    "WatchTasks": lambda c: c.tasks.watch(states=["queued"]).ready(),
}


async def _uploaded(client: Client) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"some bytes")
        file.flush()
        await client.artifacts.upload("task_1", file.name, name="a.txt", labels={"a": "b"})


async def _downloaded(client: Client) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.raises(errors.Conflict):
        await client.artifacts.download("artifact_1", f"{directory}/file")


async def _ignoring_timeout(waiting: Awaitable[object]) -> None:
    with pytest.raises(errors.WaitTimeout):
        await waiting


@pytest.fixture
async def recorded() -> AsyncIterator[tuple[Client, Recorder]]:
    async with recording() as (address, recorder), Client(address, token="secret-token") as client:
        yield client, recorder


def test_every_method_of_the_api_has_a_verb() -> None:
    services = {m.name for m in methods() if m.containing_service.name != "WorkerService"}

    assert services == set(VERBS)


def test_the_methods_that_grpc_must_not_retry_are_the_streams() -> None:
    streams = {(m.containing_service.full_name, m.name) for m in methods() if m.server_streaming}

    assert set(STREAMING_METHODS) == streams


@pytest.mark.parametrize("method", VERBS)
async def test_a_verb_calls_its_method_with_token_and_request_id(
    recorded: tuple[Client, Recorder], method: str
) -> None:
    client, recorder = recorded

    await VERBS[method](client)

    request = recorder.requests[method]
    assert recorder.metadata["authorization"] == "Bearer secret-token"
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        assert len(request.request_id) == 32


async def test_each_call_has_a_request_id_of_its_own_unless_it_is_given(
    recorded: tuple[Client, Recorder],
) -> None:
    client, recorder = recorded
    ids = set()

    for _ in range(3):
        await client.tasks.create("shell")
        ids.add(recorder.requests["CreateTask"].request_id)
    await client.tasks.create("shell", request_id="mine")

    assert len(ids) == 3
    assert recorder.requests["CreateTask"].request_id == "mine"


async def test_unary_calls_have_a_deadline_by_default(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.tasks.get("task_1")
    default = recorder.time_left
    await client.agents.terminate("agent_1", grace_period=timedelta(minutes=10))
    patient = recorder.time_left

    assert default is not None
    assert 25 < default < 35  # grpc reckons by the wall clock, which may be set in between
    assert patient is not None
    assert patient > 600


async def test_a_task_is_created_as_described(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.tasks.create(
        "shell",
        "count",
        task_id="task_mine",
        display_name="Counting",
        input={"n": 3, "deep": [1, {"x": None}]},
        priority=0,
        labels={"a": "b"},
        not_before=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        max_attempts=7,
        run_timeout=1.5,
        validate_only=True,
    )

    request = recorder.requests["CreateTask"]
    spec = request.task
    assert request.validate_only
    assert (spec.task_id, spec.display_name, spec.agent_type, spec.prompt) == (
        "task_mine",
        "Counting",
        "shell",
        "count",
    )
    assert spec.HasField("priority")
    assert spec.priority == 0
    assert spec.input["n"] == 3
    assert spec.input["deep"][1]["x"] is None
    assert spec.retry_policy.max_attempts == 7
    assert spec.timeouts.run_timeout.ToMilliseconds() == 1500
    assert not spec.timeouts.HasField("total_timeout")
    assert spec.not_before_time.ToJsonString() == "2030-01-02T03:04:05Z"


async def test_an_update_names_exactly_what_was_given(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.tasks.update("task_1", labels={}, display_name="x", etag="e1")

    request = recorder.requests["UpdateTask"]
    assert sorted(request.update_mask.paths) == ["display_name", "labels"]
    assert request.etag == "e1"


async def test_filters_take_words_and_values(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.tasks.list(states=["queued", task_pb2.TASK_STATE_RUNNING], labels={"a": "b"}, page_size=3)

    request = recorder.requests["ListTasks"]
    assert list(request.filter.states) == [task_pb2.TASK_STATE_QUEUED, task_pb2.TASK_STATE_RUNNING]
    assert dict(request.filter.labels) == {"a": "b"}
    assert request.page_size == 3


@pytest.mark.parametrize(
    ("ask", "advice"),
    [
        (lambda c: c.tasks.list(states=["quened"]), "did you mean 'queued'"),
        (lambda c: c.agents.list(states=["zzz"]), "one of: pending, starting"),
        (lambda c: c.events.list(kinds=["task.complete"]), "did you mean 'task.completed'"),
        (lambda c: c.tasks.create("shell", input={"x": object()}), "not JSON"),
        (lambda c: c.agents.spawn(), "exactly one"),
        (lambda c: c.agents.spawn("shell", spec=_SPEC), "exactly one"),
    ],
)
async def test_what_cannot_be_sent_is_refused_with_advice(
    recorded: tuple[Client, Recorder], ask: Callable[[Client], Awaitable[object]], advice: str
) -> None:
    client, _ = recorded

    with pytest.raises(errors.InvalidRequest, match=advice) as caught:
        await ask(client)

    assert not caught.value.from_server
    assert caught.value.reason == "ARGUMENT_INVALID"


async def test_an_agent_can_be_spawned_from_a_spec(recorded: tuple[Client, Recorder]) -> None:
    client, recorder = recorded

    await client.agents.spawn(spec=_SPEC, agent_id="agent_mine", labels={"a": "b"})

    request = recorder.requests["SpawnAgent"]
    assert request.spec == _SPEC
    assert request.agent_id == "agent_mine"
