"""A real server process with what a call may need: tasks in every state, workers, agents, their tokens.

Everything is made anew for whoever asks, so the tests of one server do not know of each other.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from kapell.v1 import agent_pb2, event_pb2, task_pb2, worker_pb2
from kapell.v1.common_pb2 import LIST_ORDER_OLDEST_FIRST
from kapell.v1.event_pb2 import Event
from kapell.v1.watch_pb2 import (
    ACTOR_KIND_USER,
    EVENT_KIND_ALERT_ACKNOWLEDGED,
    EVENT_KIND_ALERT_FIRED,
    EVENT_KIND_ALERT_RESOLVED,
    EVENT_KIND_APPROVAL_RULE_CREATED,
    EVENT_KIND_APPROVAL_RULE_DELETED,
    EVENT_KIND_BUDGET_CREATED,
    EVENT_KIND_BUDGET_DELETED,
    EVENT_KIND_BUDGET_SPENT,
    EVENT_KIND_BUDGET_UPDATED,
    EVENT_KIND_LIMIT_DELETED,
    EVENT_KIND_LIMIT_UPDATED,
    EVENT_KIND_PRICE_DELETED,
    EVENT_KIND_PRICE_SET,
    EVENT_KIND_QUEUE_UPDATED,
    EVENT_KIND_SECRET_DELETED,
    EVENT_KIND_SECRET_UPDATED,
    EVENT_KIND_TOKEN_CREATED,
    EVENT_KIND_TOKEN_REVOKED,
    EVENT_KIND_WEBHOOK_CREATED,
    EVENT_KIND_WEBHOOK_DELETED,
    EventKind,
)
from kapell_server.domain.access import Keyring
from kapell_server.rpc.methods import methods

from tests.support.server_process import ServerProcess

METHODS = {method.name: method for method in methods()}
CALL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A request and whose token carries it; empty: the owner's."""

    request: Message
    token: str = ""


@dataclass(frozen=True, slots=True)
class Worker:
    """A registered external agent that serves a type of its own."""

    agent_id: str
    agent_type: str
    token: str


@dataclass(frozen=True, slots=True)
class Running:
    """A task, the offer of its running attempt, and the worker that has it."""

    task_id: str
    offer: worker_pb2.Offer
    worker: Worker

    @property
    def lease_token(self) -> str:
        return self.offer.lease_token


@dataclass(frozen=True, slots=True)
class Refusal:
    """A failed call, unpacked."""

    code: grpc.StatusCode
    text: str
    reasons: tuple[str, ...]
    """Of every ErrorInfo of ours; one, where all is well."""
    metadata: dict[str, str]
    fields: dict[str, str]
    """Of BadRequest: path to description."""


class Scene:
    """The calls of tests against one server."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.channel = grpc.insecure_channel(server.address, options=(("grpc.enable_http_proxy", 0),))
        self._numbers = itertools.count(1)
        key = (server.data_dir / "server.key").read_bytes()
        self.keyring = Keyring(key, admin_token=server.admin_token)

    def close(self) -> None:
        self.channel.close()

    def start(self, name: str, ask: Ask, *, seconds: float = CALL_SECONDS, token: str | None = None) -> Any:
        """Begins a call; a stream, or a future of the answer. `token` overrules the one of `ask`."""
        method = METHODS[name]
        make: Any = self.channel.unary_stream if method.streams else self.channel.unary_unary
        stub = make(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        bearer = (ask.token or self.server.admin_token) if token is None else token
        metadata = (("authorization", f"Bearer {bearer}"),) if bearer else ()
        begin = stub if method.streams else stub.future
        return begin(ask.request, metadata=metadata, timeout=seconds)

    def call(self, name: str, ask: Ask, *, seconds: float = CALL_SECONDS, token: str | None = None) -> Any:
        """The answer; of a stream its first message, None where there is none."""
        begun = self.start(name, ask, seconds=seconds, token=token)
        if not METHODS[name].streams:
            return begun.result()
        try:
            return next(begun, None)
        finally:
            begun.cancel()

    def refusal(self, name: str, ask: Ask, *, seconds: float = CALL_SECONDS, token: str | None = None) -> Refusal:
        """How a call is refused that must be."""
        try:
            answer = self.call(name, ask, seconds=seconds, token=token)
        except grpc.RpcError as error:
            return unpack(error)
        raise AssertionError(f"{name} was answered with {answer}")

    def ask(self, name: str, request: Message) -> Any:
        """A call of the owner that must succeed."""
        return self.call(name, Ask(request))

    def changes_of(self, resource_id: str) -> list[Event]:
        """What users have done to one resource, in order; what time or processes did is left out.

        Nothing for an empty id: of what is no event, such as an artifact.
        """
        if not resource_id:
            return []
        kind, _, name = resource_id.partition("/")
        if name:
            return [event for event in self._changes(event_pb2.EventFilter(kinds=_KINDS[kind])) if _names(event, name)]
        wanted = event_pb2.EventFilter()
        match resource_id.partition("_")[0]:
            case "task":
                wanted.task_ids.append(resource_id)
            case "agent":
                wanted.agent_ids.append(resource_id)
            case "approval":
                wanted.approval_ids.append(resource_id)
            case "schedule":
                wanted.schedule_ids.append(resource_id)
            case _:
                wanted.template_ids.append(resource_id)
        return self._changes(wanted)

    def _changes(self, wanted: event_pb2.EventFilter) -> list[Event]:
        request = event_pb2.ListEventsRequest(filter=wanted, order=LIST_ORDER_OLDEST_FIRST, page_size=1000)
        events = self.ask("ListEvents", request).events
        return [event for event in events if event.actor.kind == ACTOR_KIND_USER]

    # -- what there may be ----------------------------------------------------------------------

    def name(self, kind: str) -> str:
        """A name that nobody has yet."""
        return f"{kind}{next(self._numbers)}"

    def spec(self, **fields: Any) -> task_pb2.TaskSpec:
        """A task that nobody serves."""
        return task_pb2.TaskSpec(**{"agent_type": "nobody", "prompt": "wait", **fields})

    def queued(self, **fields: Any) -> task_pb2.Task:
        """A task that waits for an agent."""
        created: task_pb2.Task = self.ask("CreateTask", task_pb2.CreateTaskRequest(task=self.spec(**fields))).task
        return created

    def cancelled(self) -> task_pb2.Task:
        """A task that was cancelled while it waited."""
        ended: task_pb2.Task = self.ask("CancelTask", task_pb2.CancelTaskRequest(task_id=self.queued().task_id)).task
        return ended

    def worker(self) -> Worker:
        """An ACTIVE external agent."""
        agent_type = self.name("type")
        request = worker_pb2.RegisterWorkerRequest(
            instance_key=self.name("instance-key-"), agent_types=[agent_type], slots=4
        )
        answer = self.ask("RegisterWorker", request)
        return Worker(answer.agent.agent_id, agent_type, answer.agent_token)

    def gone_worker(self) -> Worker:
        """An external agent that has said goodbye."""
        worker = self.worker()
        self.ask("Deregister", worker_pb2.DeregisterRequest(agent_id=worker.agent_id))
        return worker

    def deleted_worker(self) -> Worker:
        """An external agent that nobody knows any more."""
        worker = self.gone_worker()
        self.ask("DeleteAgent", agent_pb2.DeleteAgentRequest(agent_id=worker.agent_id))
        return worker

    def running(self, worker: Worker | None = None, **fields: Any) -> Running:
        """A task that a worker has leased."""
        worker = worker or self.worker()
        task = self.queued(agent_type=worker.agent_type, **fields)
        request = worker_pb2.LeaseTasksRequest(agent_id=worker.agent_id, wait=Duration(seconds=10))
        [offer] = self.call("LeaseTasks", Ask(request, worker.token)).offers
        return Running(task.task_id, offer, worker)

    def succeeded(self) -> Running:
        """A task that a worker has completed."""
        done = self.running()
        request = worker_pb2.CompleteTaskRequest(lease_token=done.lease_token)
        self.call("CompleteTask", Ask(request, done.worker.token))
        return done

    def spawned(self, **fields: Any) -> agent_pb2.Agent:
        """An ACTIVE agent of the profile `shell`, a real process."""
        request = agent_pb2.SpawnAgentRequest(profile="shell", wait=Duration(seconds=15), **fields)
        agent: agent_pb2.Agent = self.ask("SpawnAgent", request).agent
        assert agent.state == agent_pb2.AGENT_STATE_ACTIVE, agent
        return agent


_OF_LOCKS = ("EVENT_KIND_LOCK_", "EVENT_KIND_TICKET_", "EVENT_KIND_SESSION_")
_KINDS = {
    "locks": [kind for name, kind in EventKind.items() if name.startswith(_OF_LOCKS)],
    "queue": [EVENT_KIND_QUEUE_UPDATED],
    "limit": [EVENT_KIND_LIMIT_UPDATED, EVENT_KIND_LIMIT_DELETED],
    "budget": [
        EVENT_KIND_BUDGET_CREATED,
        EVENT_KIND_BUDGET_UPDATED,
        EVENT_KIND_BUDGET_SPENT,
        EVENT_KIND_BUDGET_DELETED,
    ],
    "alert": [EVENT_KIND_ALERT_FIRED, EVENT_KIND_ALERT_ACKNOWLEDGED, EVENT_KIND_ALERT_RESOLVED],
    "webhook": [EVENT_KIND_WEBHOOK_CREATED, EVENT_KIND_WEBHOOK_DELETED],
    "price": [EVENT_KIND_PRICE_SET, EVENT_KIND_PRICE_DELETED],
    "rule": [EVENT_KIND_APPROVAL_RULE_CREATED, EVENT_KIND_APPROVAL_RULE_DELETED],
    "secret": [EVENT_KIND_SECRET_UPDATED, EVENT_KIND_SECRET_DELETED],
    "token": [EVENT_KIND_TOKEN_CREATED, EVENT_KIND_TOKEN_REVOKED],
}


def _names(event: Event, name: str) -> bool:
    of_locks = (event.lock.lock_id, event.ticket.ticket_id, event.session.session_id)
    small = (event.queue.agent_type, event.limit.key, event.price.price_id, event.approval_rule.rule_id)
    of_money = (event.budget.budget_id, event.alert.alert_id, event.webhook.webhook_id)
    return name in (*small, *of_locks, *of_money, event.secret.name, event.token.token_id)


def unpack(error: Any) -> Refusal:
    """The parts of a failure."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    reasons, metadata, fields = [], {}, {}
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reasons.append(info.reason)
            metadata = dict(info.metadata)
            assert info.domain == "kapell.dev"
        elif detail.Unpack(bad):
            fields = {violation.field: violation.description for violation in bad.field_violations}
    assert not status.details or (status.code, status.message) == (error.code().value[0], error.details())
    return Refusal(error.code(), error.details() or "", tuple(reasons), metadata, fields)
