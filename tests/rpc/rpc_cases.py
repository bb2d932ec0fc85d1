"""What the entries of rpc_table are made of: one rpc's case, the refusals that many rpcs share, and requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import Value
from kapell.v1 import admin_pb2, agent_pb2, event_pb2, task_pb2, worker_pb2
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST, LogEntry
from kapell.v1.watch_pb2 import WatchOptions

from tests.rpc.scene import Ask, Scene

Make = Callable[[Scene], Ask]

FAR_FUTURE = 1 << 40
NOBODY, NOTHING = "agent_nobody", "task_nothing"
TOO_LARGE = Value(string_value="x" * 300_000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked of one rpc. `holds` looks at the answer of `works`."""

    works: Make
    holds: Callable[[Any], bool]
    refused: Mapping[str, Make] = field(default_factory=dict)
    """By "REASON" or "REASON: when"."""
    malformed: tuple[dict[str, Any], str] | None = None
    """JSON that breaks a rule, and the field that must be named; None for requests without fields."""
    lasts: Make | None = None
    """A call that does not end by itself within the test."""


def of_task(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusal of every rpc about one task."""
    return {"TASK_NOT_FOUND": lambda scene: Ask(request(task_id=NOTHING, **fields))}


def of_agent(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusal of every rpc about one agent."""
    return {"AGENT_NOT_FOUND": lambda scene: Ask(request(agent_id=NOBODY, **fields))}


def of_owner(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusals of what only an agent itself may say."""
    return {
        **of_agent(request, **fields),
        "NOT_OWNER": lambda scene: Ask(request(agent_id=scene.worker().agent_id, **fields), scene.worker().token),
        "TOKEN_INVALID: its agent was deleted": lambda scene: _deleted(scene, request, fields),
    }


def _deleted(scene: Scene, request: type[Any], fields: dict[str, Any]) -> Ask:
    worker = scene.deleted_worker()
    return Ask(request(agent_id=worker.agent_id, **fields), worker.token)


def of_lease(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusals of every write of an attempt."""
    return {
        "LEASE_LOST: the attempt has ended": lambda scene: Ask(request(lease_token=_released(scene), **fields)),
        "LEASE_LOST: never minted": lambda scene: Ask(request(lease_token="task_x.1.0000", **fields)),
        "NOT_OWNER": lambda scene: Ask(
            request(lease_token=scene.running().lease_token, **fields), scene.worker().token
        ),
    }


def _released(scene: Scene) -> str:
    running = scene.running()
    scene.call("ReleaseTask", Ask(worker_pb2.ReleaseTaskRequest(lease_token=running.lease_token), running.worker.token))
    return running.lease_token


def of_lease_worker(request: type[Any], **fields: Any) -> Make:
    """A write of a running attempt by its own agent."""

    def make(scene: Scene) -> Ask:
        running = scene.running()
        return Ask(request(lease_token=running.lease_token, **fields), running.worker.token)

    return make


def of_watch(request: type[Any]) -> dict[str, Make]:
    """The refusals of every watch."""

    def other_log(scene: Scene) -> Ask:
        return Ask(request(options=WatchOptions(start_after_revision=1, log_id="log_of_another_server")))

    def future(scene: Scene) -> Ask:
        return Ask(request(options=WatchOptions(start_after_revision=FAR_FUTURE)))

    def compacted(scene: Scene) -> Ask:
        newest = scene.queued().revision
        scene.ask("CompactEvents", admin_pb2.CompactEventsRequest(before_revision=newest))
        return Ask(request(options=WatchOptions(start_after_revision=newest - 2)))

    return {
        "REVISION_COMPACTED: another log": other_log,
        "REVISION_COMPACTED: too old": compacted,
        "REVISION_IN_FUTURE": future,
    }


def overtaken_list(scene: Scene) -> Ask:
    """The second page of the oldest events, after they were compacted."""
    for _ in range(2):
        last = scene.queued()
    page = scene.ask("ListEvents", event_pb2.ListEventsRequest(order=LIST_ORDER_OLDEST_FIRST, page_size=1))
    scene.ask("CompactEvents", admin_pb2.CompactEventsRequest(before_revision=last.revision))
    return Ask(event_pb2.ListEventsRequest(order=LIST_ORDER_OLDEST_FIRST, page_token=page.next_page_token))


def page_tokens(request: type[Any], name: str, other: Any) -> dict[str, Make]:
    """The refusals of every list: a damaged token, and one of another filter."""

    def of_another_filter(scene: Scene) -> Ask:
        for _ in range(2):
            scene.running()
        page = scene.ask(name, request(page_size=1))
        assert page.next_page_token
        return Ask(request(page_size=1, page_token=page.next_page_token, filter=other))

    return {
        "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(request(page_token="not-a-token")),
        "PAGE_TOKEN_INVALID: of another filter": of_another_filter,
    }


def task_change(task_id: str, **fields: Any) -> task_pb2.UpdateTaskRequest:
    change = task_pb2.Task(task_id=task_id, display_name="new name")
    return task_pb2.UpdateTaskRequest(task=change, update_mask=FieldMask(paths=["display_name"]), **fields)


def agent_change(agent_id: str, **fields: Any) -> agent_pb2.UpdateAgentRequest:
    change = agent_pb2.Agent(agent_id=agent_id, labels={"a": "b"})
    return agent_pb2.UpdateAgentRequest(agent=change, update_mask=FieldMask(paths=["labels"]), **fields)


def command(*argv: str) -> agent_pb2.AgentSpec:
    return agent_pb2.AgentSpec(agent_types=["idle"], command=agent_pb2.CommandRuntime(argv=argv))


def ticket_of_another_process(scene: Scene) -> Ask:
    agent = scene.spawned()
    request = worker_pb2.RegisterWorkerRequest(instance_key="somebody else")
    return Ask(request, scene.keyring.ticket(agent.agent_id))


def draining(scene: Scene) -> Ask:
    worker = scene.worker()
    scene.ask("DrainAgent", agent_pb2.DrainAgentRequest(agent_id=worker.agent_id))
    return Ask(agent_pb2.ResumeAgentRequest(agent_id=worker.agent_id))


def poll(scene: Scene) -> Ask:
    worker = scene.worker()
    scene.queued(agent_type=worker.agent_type)
    return Ask(worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id), worker.token)


def long_poll(scene: Scene) -> Ask:
    worker = scene.worker()
    request = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait=Duration(seconds=60))
    return Ask(request, worker.token)


def heartbeat(scene: Scene) -> Ask:
    running = scene.running()
    request = worker_pb2.HeartbeatRequest(
        agent_id=running.worker.agent_id, leases=[worker_pb2.LeaseBeat(lease_token=running.lease_token)]
    )
    return Ask(request, running.worker.token)


def batch_completion(scene: Scene) -> Ask:
    running = scene.running()
    request = worker_pb2.BatchCompleteTasksRequest()
    request.completions.add(lease_token=running.lease_token)
    request.completions.add(lease_token=_released(scene))
    return Ask(request)


def goodbye(scene: Scene) -> Ask:
    worker = scene.worker()
    return Ask(worker_pb2.DeregisterRequest(agent_id=worker.agent_id), worker.token)


def directives(scene: Scene) -> Ask:
    worker = scene.worker()
    return Ask(worker_pb2.WatchDirectivesRequest(agent_id=worker.agent_id), worker.token)


def logs(scene: Scene, **fields: Any) -> Ask:
    running = scene.running()
    entries = [LogEntry(text="one"), LogEntry(text="two")]
    append = worker_pb2.AppendTaskLogsRequest(lease_token=running.lease_token, entries=entries)
    scene.call("AppendTaskLogs", Ask(append, running.worker.token))
    return Ask(task_pb2.StreamTaskLogsRequest(task_id=running.task_id, **fields))
