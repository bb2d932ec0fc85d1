"""The table behind test_every_rpc: of each rpc a call that works, the calls that are refused, a malformed one.

Every entry makes what it needs in the scene. A refusal names its reason; code and metadata are
held to the comment of the reason in error.proto, so they are not written down again here.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Value
from kapell.v1 import admin_pb2, agent_pb2, event_pb2, task_pb2, worker_pb2
from kapell.v1.agent_pb2 import AGENT_STATE_ACTIVE, AGENT_STATE_DRAINING, AGENT_STATE_TERMINATED
from kapell.v1.common_pb2 import LogEntry
from kapell.v1.task_pb2 import (
    TASK_STATE_CANCELLED,
    TASK_STATE_QUEUED,
    TASK_STATE_SUCCEEDED,
    TaskFailure,
    TaskProgress,
)

from tests.rpc import rpc_budgets, rpc_dependencies
from tests.rpc.rpc_approvals import APPROVALS
from tests.rpc.rpc_artifacts import ARTIFACTS
from tests.rpc.rpc_budgets import BUDGETS
from tests.rpc.rpc_bulk import BULK
from tests.rpc.rpc_cases import (
    FAR_FUTURE,
    NOBODY,
    NOTHING,
    TOO_LARGE,
    Case,
    agent_change,
    batch_completion,
    command,
    directives,
    draining,
    goodbye,
    heartbeat,
    logs,
    long_poll,
    of_agent,
    of_lease,
    of_lease_worker,
    of_owner,
    of_task,
    of_watch,
    overtaken_list,
    page_tokens,
    poll,
    task_change,
    ticket_of_another_process,
)
from tests.rpc.rpc_locks import LOCKS
from tests.rpc.rpc_queues import EXPLAIN_TASK, QUEUE_DRAINING, QUEUES
from tests.rpc.rpc_schedules import SCHEDULES
from tests.rpc.rpc_secrets import SECRET_NOT_FOUND, SECRETS
from tests.rpc.rpc_templates import OF_CREATE_TASK, TEMPLATES
from tests.rpc.rpc_tokens import TOKENS
from tests.rpc.rpc_usage import REPORT_USAGE, USAGE
from tests.rpc.rpc_workspaces import RECORD_TASK_MERGE, REPORT_WORKSPACES
from tests.rpc.scene import Ask

TASKS: dict[str, Case] = {
    "CreateTask": Case(
        works=lambda scene: Ask(task_pb2.CreateTaskRequest(task=scene.spec())),
        holds=lambda answer: answer.task.state == TASK_STATE_QUEUED and answer.task.revision == answer.revision,
        refused={
            **OF_CREATE_TASK,
            **rpc_budgets.OF_CREATE_TASK,
            **rpc_dependencies.OF_CREATE_TASK,
            **QUEUE_DRAINING,
            **SECRET_NOT_FOUND,
            "ID_TAKEN": lambda scene: Ask(task_pb2.CreateTaskRequest(task=scene.spec(task_id=scene.queued().task_id))),
        },
        malformed=({"task": {"agentType": "No Spaces"}}, "task.agent_type"),
    ),
    "BatchCreateTasks": Case(
        works=lambda scene: Ask(task_pb2.BatchCreateTasksRequest(tasks=[scene.spec(), scene.spec()])),
        holds=lambda answer: [task.revision for task in answer.tasks] == [answer.revision - 1, answer.revision],
        refused={
            "ID_TAKEN": lambda scene: Ask(
                task_pb2.BatchCreateTasksRequest(tasks=[scene.spec(), scene.spec(task_id=scene.queued().task_id)])
            ),
            **rpc_dependencies.OF_BATCH,
        },
        malformed=({"tasks": [{"agentType": "ok"}, {"agentType": "ok", "priority": 1001}]}, "tasks[1].priority"),
    ),
    "GetTask": Case(
        works=lambda scene: Ask(task_pb2.GetTaskRequest(task_id=scene.queued().task_id)),
        holds=lambda answer: answer.task.prompt == "wait",
        refused=of_task(task_pb2.GetTaskRequest),
        malformed=({}, "task_id"),
    ),
    "ListTasks": Case(
        works=lambda scene: Ask(
            task_pb2.ListTasksRequest(filter=task_pb2.TaskFilter(task_ids=[scene.queued().task_id]))
        ),
        holds=lambda answer: len(answer.tasks) == 1 and not answer.tasks[0].prompt,
        refused=page_tokens(task_pb2.ListTasksRequest, "ListTasks", {"agent_types": ["other"]}),
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "CountTasks": Case(
        works=lambda scene: Ask(
            task_pb2.CountTasksRequest(filter=task_pb2.TaskFilter(task_ids=[scene.queued().task_id]))
        ),
        holds=lambda answer: [(entry.state, entry.count) for entry in answer.counts] == [(TASK_STATE_QUEUED, 1)],
        malformed=({"filter": {"labels": {"a": "b"}}}, "filter"),
    ),
    "UpdateTask": Case(
        works=lambda scene: Ask(task_change(scene.queued().task_id)),
        holds=lambda answer: answer.task.display_name == "new name",
        refused={
            "TASK_NOT_FOUND": lambda scene: Ask(task_change(NOTHING)),
            "TASK_STATE_CONFLICT": lambda scene: Ask(task_change(scene.cancelled().task_id)),
            "ETAG_MISMATCH": lambda scene: Ask(task_change(scene.queued().task_id, etag="other")),
        },
        malformed=({"task": {"taskId": "task_1"}, "updateMask": "state"}, "update_mask"),
    ),
    "CancelTask": Case(
        works=lambda scene: Ask(task_pb2.CancelTaskRequest(task_id=scene.queued().task_id)),
        holds=lambda answer: answer.task.state == TASK_STATE_CANCELLED,
        refused={
            **of_task(task_pb2.CancelTaskRequest),
            "TASK_STATE_CONFLICT": lambda scene: Ask(task_pb2.CancelTaskRequest(task_id=scene.succeeded().task_id)),
        },
        malformed=({"taskId": "task_1", "reason": "x" * 501}, "reason"),
    ),
    "RetryTask": Case(
        works=lambda scene: Ask(task_pb2.RetryTaskRequest(task_id=scene.cancelled().task_id)),
        holds=lambda answer: answer.task.state == TASK_STATE_QUEUED,
        refused={
            **of_task(task_pb2.RetryTaskRequest),
            "TASK_STATE_CONFLICT": lambda scene: Ask(task_pb2.RetryTaskRequest(task_id=scene.queued().task_id)),
            **rpc_dependencies.OF_RETRY,
            "REQUEST_INVALID: parameters without a template": lambda scene: Ask(
                task_pb2.RetryTaskRequest(task_id=scene.cancelled().task_id, parameters={"a": "b"})
            ),
        },
        malformed=({}, "task_id"),
    ),
    "DeleteTask": Case(
        works=lambda scene: Ask(task_pb2.DeleteTaskRequest(task_id=scene.cancelled().task_id)),
        holds=lambda answer: bool(answer.deleted),
        refused=of_task(task_pb2.DeleteTaskRequest),
        malformed=({"taskId": "x" * 65}, "task_id"),
    ),
    "WaitTask": Case(
        works=lambda scene: Ask(task_pb2.WaitTaskRequest(task_id=scene.succeeded().task_id)),
        holds=lambda answer: answer.task.state == TASK_STATE_SUCCEEDED,
        refused=of_task(task_pb2.WaitTaskRequest),
        malformed=({"taskId": "task_1", "wait": "61s"}, "wait"),
        lasts=lambda scene: Ask(task_pb2.WaitTaskRequest(task_id=scene.queued().task_id, wait=Duration(seconds=60))),
    ),
    "GetTaskTree": rpc_dependencies.TREE,
    "ExplainTask": EXPLAIN_TASK,
    "ListTaskAttempts": Case(
        works=lambda scene: Ask(task_pb2.ListTaskAttemptsRequest(task_id=scene.succeeded().task_id)),
        holds=lambda answer: [attempt.attempt for attempt in answer.attempts] == [1],
        refused=of_task(task_pb2.ListTaskAttemptsRequest),
        malformed=({}, "task_id"),
    ),
    "StreamTaskLogs": Case(
        works=lambda scene: logs(scene),
        holds=lambda answer: [entry.text for entry in answer.entries] == ["one", "two"],
        refused={
            **of_task(task_pb2.StreamTaskLogsRequest),
            "ATTEMPT_NOT_FOUND": lambda scene: logs(scene, attempt=2),
            "LOG_OFFSET_GAP": lambda scene: logs(scene, offset=3),
        },
        malformed=({"taskId": "task_1", "offset": "-1"}, "offset"),
        lasts=lambda scene: logs(scene, follow=True),
    ),
    "WatchTasks": Case(
        works=lambda scene: Ask(task_pb2.WatchTasksRequest()),
        holds=lambda answer: answer.HasField("bookmark"),
        refused=of_watch(task_pb2.WatchTasksRequest),
        malformed=({"options": {"sendInitialState": True, "startAfterRevision": "1"}}, "options"),
        lasts=lambda scene: Ask(task_pb2.WatchTasksRequest()),
    ),
}

AGENTS: dict[str, Case] = {
    "SpawnAgent": Case(
        works=lambda scene: Ask(agent_pb2.SpawnAgentRequest(profile="shell", wait=Duration(seconds=15))),
        holds=lambda answer: answer.agent.state == AGENT_STATE_ACTIVE and answer.agent.pid > 0,
        refused={
            "PROFILE_NOT_FOUND": lambda scene: Ask(agent_pb2.SpawnAgentRequest(profile="no-such-profile")),
            "PROGRAM_NOT_FOUND": lambda scene: Ask(agent_pb2.SpawnAgentRequest(spec=command("no-such-program"))),
            "ID_TAKEN": lambda scene: Ask(
                agent_pb2.SpawnAgentRequest(profile="shell", agent_id=scene.worker().agent_id)
            ),
        },
        malformed=({"spec": {"agentTypes": ["a"], "command": {}}}, "spec.command.argv"),
    ),
    "GetAgent": Case(
        works=lambda scene: Ask(agent_pb2.GetAgentRequest(agent_id=scene.worker().agent_id)),
        holds=lambda answer: answer.agent.HasField("last_heartbeat_time"),
        refused=of_agent(agent_pb2.GetAgentRequest),
        malformed=({}, "agent_id"),
    ),
    "ListAgents": Case(
        works=lambda scene: Ask(
            agent_pb2.ListAgentsRequest(filter=agent_pb2.AgentFilter(agent_ids=[scene.worker().agent_id]))
        ),
        holds=lambda answer: len(answer.agents) == 1,
        refused=page_tokens(agent_pb2.ListAgentsRequest, "ListAgents", {"agent_types": ["other"]}),
        malformed=({"filter": {"states": [0]}}, "filter.states[0]"),
    ),
    "UpdateAgent": Case(
        works=lambda scene: Ask(agent_change(scene.worker().agent_id)),
        holds=lambda answer: dict(answer.agent.labels) == {"a": "b"},
        refused={
            "AGENT_NOT_FOUND": lambda scene: Ask(agent_change(NOBODY)),
            "ETAG_MISMATCH": lambda scene: Ask(agent_change(scene.worker().agent_id, etag="other")),
        },
        malformed=({"agent": {"agentId": "agent_1"}, "updateMask": "state"}, "update_mask"),
    ),
    "TerminateAgent": Case(
        works=lambda scene: Ask(agent_pb2.TerminateAgentRequest(agent_id=scene.spawned().agent_id)),
        holds=lambda answer: answer.agent.state == AGENT_STATE_TERMINATED,
        refused=of_agent(agent_pb2.TerminateAgentRequest),
        malformed=({"agentId": "agent_1", "gracePeriod": "3601s"}, "grace_period"),
        lasts=lambda scene: Ask(agent_pb2.TerminateAgentRequest(agent_id=scene.worker().agent_id)),
    ),
    "DrainAgent": Case(
        works=lambda scene: Ask(agent_pb2.DrainAgentRequest(agent_id=scene.worker().agent_id)),
        holds=lambda answer: answer.agent.state == AGENT_STATE_DRAINING,
        refused={
            **of_agent(agent_pb2.DrainAgentRequest),
            "AGENT_STATE_CONFLICT": lambda scene: Ask(
                agent_pb2.DrainAgentRequest(agent_id=scene.gone_worker().agent_id)
            ),
        },
        malformed=({}, "agent_id"),
    ),
    "ResumeAgent": Case(
        works=draining,
        holds=lambda answer: answer.agent.state == AGENT_STATE_ACTIVE,
        refused={
            **of_agent(agent_pb2.ResumeAgentRequest),
            "AGENT_STATE_CONFLICT": lambda scene: Ask(
                agent_pb2.ResumeAgentRequest(agent_id=scene.gone_worker().agent_id)
            ),
        },
        malformed=({"agentId": "agent_1", "requestId": "x" * 65}, "request_id"),
    ),
    "DeleteAgent": Case(
        works=lambda scene: Ask(agent_pb2.DeleteAgentRequest(agent_id=scene.gone_worker().agent_id)),
        holds=lambda answer: answer.revision > 0,
        refused={
            **of_agent(agent_pb2.DeleteAgentRequest),
            "AGENT_STATE_CONFLICT": lambda scene: Ask(agent_pb2.DeleteAgentRequest(agent_id=scene.worker().agent_id)),
        },
        malformed=({}, "agent_id"),
    ),
    "StreamAgentLogs": Case(
        works=lambda scene: Ask(agent_pb2.StreamAgentLogsRequest(agent_id=scene.worker().agent_id)),
        holds=lambda answer: not answer.entries,
        refused=of_agent(agent_pb2.StreamAgentLogsRequest)
        | {
            "LOG_OFFSET_GAP": lambda scene: Ask(
                agent_pb2.StreamAgentLogsRequest(agent_id=scene.spawned().agent_id, offset=1_000_000)
            )
        },
        malformed=({"agentId": "agent_1", "offset": "-1"}, "offset"),
        lasts=lambda scene: Ask(agent_pb2.StreamAgentLogsRequest(agent_id=scene.spawned().agent_id, follow=True)),
    ),
    "WatchAgents": Case(
        works=lambda scene: Ask(agent_pb2.WatchAgentsRequest()),
        holds=lambda answer: answer.HasField("bookmark"),
        refused=of_watch(agent_pb2.WatchAgentsRequest),
        malformed=({"options": {"bookmarkInterval": "61s"}}, "options.bookmark_interval"),
        lasts=lambda scene: Ask(agent_pb2.WatchAgentsRequest()),
    ),
    "ListAgentProfiles": Case(
        works=lambda scene: Ask(agent_pb2.ListAgentProfilesRequest()),
        holds=lambda answer: "shell" in [profile.profile for profile in answer.profiles],
    ),
}

WORKERS: dict[str, Case] = {
    "ReportUsage": REPORT_USAGE,
    "ReportWorkspaces": REPORT_WORKSPACES,
    "RecordTaskMerge": RECORD_TASK_MERGE,
    "RegisterWorker": Case(
        works=lambda scene: Ask(
            worker_pb2.RegisterWorkerRequest(instance_key=scene.name("instance-"), agent_types=["idle"])
        ),
        holds=lambda answer: answer.agent.state == AGENT_STATE_ACTIVE and bool(answer.agent_token),
        refused={
            "REQUEST_INVALID: serves nothing": lambda scene: Ask(
                worker_pb2.RegisterWorkerRequest(instance_key=scene.name("instance-"))
            ),
            "TOKEN_INVALID: the ticket was used": ticket_of_another_process,
        },
        malformed=({"instanceKey": "short"}, "instance_key"),
    ),
    "LeaseTasks": Case(
        works=poll,
        holds=lambda answer: answer.offers[0].task.prompt == "wait" and answer.offers[0].attempt == 1,
        refused={
            **of_owner(worker_pb2.LeaseTasksRequest),
            "AGENT_STATE_CONFLICT": lambda scene: Ask(
                worker_pb2.LeaseTasksRequest(agent_id=scene.gone_worker().agent_id)
            ),
        },
        malformed=({"agentId": "agent_1", "maxTasks": 65}, "max_tasks"),
        lasts=long_poll,
    ),
    "Heartbeat": Case(
        works=heartbeat,
        holds=lambda answer: answer.leases[0].directive == worker_pb2.LEASE_DIRECTIVE_CONTINUE,
        refused=of_owner(worker_pb2.HeartbeatRequest),
        malformed=({"agentId": "agent_1", "leases": [{}]}, "leases[0].lease_token"),
    ),
    "ReportProgress": Case(
        works=of_lease_worker(worker_pb2.ReportProgressRequest, progress=TaskProgress(fraction=0.5)),
        holds=lambda answer: answer.directive == worker_pb2.LEASE_DIRECTIVE_CONTINUE and answer.revision > 0,
        refused=of_lease(worker_pb2.ReportProgressRequest, progress=TaskProgress(fraction=0.5)),
        malformed=({"leaseToken": "t", "progress": {"fraction": 2}}, "progress.fraction"),
    ),
    "AppendTaskLogs": Case(
        works=of_lease_worker(worker_pb2.AppendTaskLogsRequest, entries=[LogEntry(text="one")]),
        holds=lambda answer: answer.next_offset == 1,
        refused={
            **of_lease(worker_pb2.AppendTaskLogsRequest, entries=[LogEntry(text="one")]),
            "LOG_OFFSET_GAP": of_lease_worker(
                worker_pb2.AppendTaskLogsRequest, offset=7, entries=[LogEntry(text="seven")]
            ),
        },
        malformed=({"leaseToken": "t"}, "entries"),
    ),
    "CompleteTask": Case(
        works=of_lease_worker(worker_pb2.CompleteTaskRequest, result=Value(number_value=42)),
        holds=lambda answer: answer.state == TASK_STATE_SUCCEEDED,
        refused={
            **of_lease(worker_pb2.CompleteTaskRequest),
            "REQUEST_INVALID: too large": of_lease_worker(worker_pb2.CompleteTaskRequest, result=TOO_LARGE),
        },
        malformed=({"leaseToken": "x" * 201}, "lease_token"),
    ),
    "BatchCompleteTasks": Case(
        works=batch_completion,
        holds=lambda answer: (
            [(outcome.state, outcome.lease_lost) for outcome in answer.outcomes]
            == [(TASK_STATE_SUCCEEDED, False), (0, True)]
        ),
        malformed=({"completions": [{}]}, "completions[0].lease_token"),
    ),
    "FailTask": Case(
        works=of_lease_worker(worker_pb2.FailTaskRequest, failure=TaskFailure(reason="BROKEN")),
        holds=lambda answer: answer.state == task_pb2.TASK_STATE_PENDING,
        refused=of_lease(worker_pb2.FailTaskRequest, failure=TaskFailure(reason="BROKEN")),
        malformed=({"leaseToken": "t", "failure": {"reason": "lower"}}, "failure.reason"),
    ),
    "ReleaseTask": Case(
        works=of_lease_worker(worker_pb2.ReleaseTaskRequest),
        holds=lambda answer: answer.state == TASK_STATE_QUEUED,
        refused=of_lease(worker_pb2.ReleaseTaskRequest),
        malformed=({}, "lease_token"),
    ),
    "CreateChildTasks": rpc_dependencies.CREATE_CHILDREN,
    "WaitChildTasks": rpc_dependencies.WAIT_CHILDREN,
    "WatchDirectives": Case(
        works=directives,
        holds=lambda answer: answer.directive == worker_pb2.AGENT_DIRECTIVE_NONE,
        refused=of_owner(worker_pb2.WatchDirectivesRequest),
        malformed=({}, "agent_id"),
        lasts=directives,
    ),
    "Deregister": Case(
        works=goodbye,
        holds=lambda answer: answer.revision > 0,
        refused=of_owner(worker_pb2.DeregisterRequest),
        malformed=({"agentId": "agent_1", "reason": "x" * 501}, "reason"),
    ),
}

EVENTS_AND_ADMIN: dict[str, Case] = {
    "Watch": Case(
        works=lambda scene: Ask(event_pb2.WatchRequest()),
        holds=lambda answer: answer.HasField("bookmark") and bool(answer.bookmark.log_id),
        refused=of_watch(event_pb2.WatchRequest),
        malformed=({"filter": {"kinds": [0]}}, "filter.kinds[0]"),
        lasts=lambda scene: Ask(event_pb2.WatchRequest()),
    ),
    "ListEvents": Case(
        works=lambda scene: Ask(
            event_pb2.ListEventsRequest(filter=event_pb2.EventFilter(task_ids=[scene.cancelled().task_id]))
        ),
        holds=lambda answer: len(answer.events) == 2,
        refused={
            **page_tokens(event_pb2.ListEventsRequest, "ListEvents", {"labels": {"a": "b"}}),
            "REVISION_COMPACTED": overtaken_list,
        },
        malformed=({"pageToken": "x" * 513}, "page_token"),
    ),
    "GetLogInfo": Case(
        works=lambda scene: Ask(event_pb2.GetLogInfoRequest()),
        holds=lambda answer: answer.log_id.startswith("log_"),
    ),
    "GetServerInfo": Case(
        works=lambda scene: Ask(admin_pb2.GetServerInfoRequest()),
        holds=lambda answer: answer.principal == "admin",
    ),
    "GetDiagnostics": Case(
        works=lambda scene: Ask(admin_pb2.GetDiagnosticsRequest()),
        holds=lambda answer: answer.mailbox_capacity > 0,
    ),
    "CompactEvents": Case(
        # Of nothing, so that the other tests keep their events; what it does is tested in test_compaction.
        works=lambda scene: Ask(admin_pb2.CompactEventsRequest(before_revision=1)),
        holds=lambda answer: answer.oldest_revision < answer.revision,
        refused={
            "REVISION_IN_FUTURE": lambda scene: Ask(admin_pb2.CompactEventsRequest(before_revision=FAR_FUTURE)),
        },
        malformed=({"beforeRevision": "0"}, "before_revision"),
    ),
}

CASES: dict[str, Case] = {
    **TASKS,
    **BULK,
    **QUEUES,
    **TEMPLATES,
    **SCHEDULES,
    **BUDGETS,
    **USAGE,
    **LOCKS,
    **SECRETS,
    **AGENTS,
    **WORKERS,
    **ARTIFACTS,
    **APPROVALS,
    **EVENTS_AND_ADMIN,
    **TOKENS,
}

# Rpcs that no state and no id can make fail, and why.
NEVER_REFUSED = {
    "CountTasks": "counts what there is",
    "GetQueueStats": "counts what there is",
    "RotateSecretKey": "there is always a key",
    "PauseQueue": "every type has a queue, and pausing a paused one changes nothing",
    "ResumeQueue": "as PauseQueue",
    "DrainQueue": "as PauseQueue",
    "ValidateTemplate": "what is wrong is its answer",
    "ListAgentProfiles": "lists the configuration",
    "RecordUsage": "every record has an outcome of its own",
    "RepriceUsage": "costs what there is",
    "BatchCompleteTasks": "every attempt has an outcome of its own",
    "GetLogInfo": "takes nothing",
    "GetServerInfo": "takes nothing",
    "GetDiagnostics": "takes nothing",
    "OpenSession": "only one too many is, which a domain test does",
    "GetCaller": "takes nothing",
    "CreateToken": "but for TOKEN_LIMIT, after a thousand",
}

# Streams that end by themselves: with what there is to send.
SHORT_STREAMS = {"DownloadArtifact"}
