"""The rules with a memory instead of a database: time stands until it is moved, nothing is async.

`World.do` is one batch of the writer: what is due, the commands, arrivals under limits, dispatch,
the questions, and the commit into `rows`. The same rules over a real database are tested in
tests/engine and tests/model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from google.protobuf.duration_pb2 import Duration
from kapell.v1.agent_pb2 import Agent, AgentSpec, CommandRuntime, SpawnAgentRequest
from kapell.v1.approval_pb2 import Approval
from kapell.v1.queue_pb2 import (
    ConcurrencyLimit,
    DrainQueueRequest,
    PauseQueueRequest,
    Queue,
    ResumeQueueRequest,
    SetConcurrencyLimitRequest,
    StartRate,
)
from kapell.v1.task_pb2 import (
    CancelTaskRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    ExplainTaskRequest,
    ExplainTaskResponse,
    RetryTaskRequest,
    Task,
    TaskAttempt,
    TaskEdit,
    TaskFailure,
    TaskSpec,
)
from kapell.v1.template_pb2 import Template
from kapell.v1.usage_pb2 import UsageUpdate
from kapell.v1.watch_pb2 import EventKind
from kapell.v1.worker_pb2 import (
    CompleteTaskRequest,
    FailTaskRequest,
    HeartbeatRequest,
    LeaseTasksRequest,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    ReleaseTaskRequest,
)
from kapell_server.domain import closing
from kapell_server.domain.access import Caller, Keyring, system, user
from kapell_server.domain.errors import KapellError
from kapell_server.domain.pending import Resource
from kapell_server.domain.queueing import dispatch
from kapell_server.domain.queueing.polls import Poll
from kapell_server.domain.settings import Settings
from kapell_server.domain.standing import KINDS, standing_id
from kapell_server.domain.state import State
from kapell_server.domain.tasks.edges import Edge, EdgeKey
from kapell_server.domain.times import SECOND, timestamp_ns
from kapell_server.domain.workers import agent
from kapell_server.engine.commands import DECIDERS, QUESTIONS, look
from kapell_server.engine.facts import SpawnCommand
from kapell_server.shipped_prices import shipped_prices

from tests.domain.rows import Rows

USER = user("admin")
START_NS = 1_800_000_000 * SECOND
SPEC = AgentSpec(agent_types=["shell"], command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))

_SHIPPED = shipped_prices()
"""Read once: a world is made for each example of a property."""


class World:
    """A State, its rows and its time. `events` are the names of all events so far, "task.created" and so on."""

    def __init__(self, **settings: Any) -> None:
        self.keyring = Keyring(b"k" * 32, admin_token="admin")
        self.state = State(settings=Settings(**settings), keyring=self.keyring, random=Random(7), log_id="log_world")
        self.state.usage.prices.ship(_SHIPPED)
        self.rows = Rows()
        self.now_ns = START_NS
        self.events: list[str] = []
        self.deciders: dict[type, Any] = {}
        """Commands that only tests have."""

    def do(self, *commands: Any, caller: Caller = USER) -> Any:
        """One batch. The last command's answer; its refusal is raised, the others' are dropped."""
        state = self.state
        state.begin(self.now_ns, self.rows)
        state.caller = system("timer")
        for subject_id in state.due.take(state.now_ns, 1000):
            look(state, subject_id)
        answers: dict[int, Any] = {}
        for number, command in enumerate(commands):
            state.caller = caller
            if type(command) not in QUESTIONS:
                answers[number] = self._decide(command)
        state.caller = system("scheduler")
        closing.close(state)
        for number, command in enumerate(commands):
            if type(command) in QUESTIONS:
                answers[number] = self._decide(command)
        agent.describe_busy(state)
        self._commit()
        state.settle()
        answer = answers[len(commands) - 1] if commands else None
        if isinstance(answer, KapellError):
            raise answer
        return answer

    def _decide(self, command: Any) -> Any:
        mark = self.state.mark()
        try:
            if isinstance(command, LeaseTasksRequest):
                return dispatch.poll(self.state, command, object())
            decide = DECIDERS.get(type(command)) or QUESTIONS.get(type(command)) or self.deciders[type(command)]
            return decide(self.state, command)
        except KapellError as error:
            self.state.rollback(mark)
            return error

    def _commit(self) -> None:
        rows, pending = self.rows, self.state.pending
        rows.usage.commit(pending.usage)
        for change in pending.changes:
            resource = change.resource
            table, key = self._place(resource)
            if change.deleted:
                table.pop(key)
            else:
                table[key] = resource
            self.events.append(event_name(change.kind))
            rows.event_times.append(self.now_ns)
        rows.template_versions.update(pending.template_versions)
        for schedule_id, spec in pending.schedule_tasks.items():
            rows.schedule_tasks.pop(schedule_id, None)
            if spec is not None:
                rows.schedule_tasks[schedule_id] = spec
        rows.schedule_runs.update(pending.schedule_runs)
        rows.schedule_runs = {run: schedule for run, schedule in rows.schedule_runs.items() if schedule}
        rows.contents.update(pending.contents)
        rows.approval_contents.update(pending.approval_contents)
        assert not rows.approval_audit.keys() & pending.approval_audit.keys(), "the audit is only added to"
        rows.approval_audit.update(pending.approval_audit)
        for key in pending.dropped_edges:
            del rows.edges[key]
        assert not rows.edges.keys() & pending.new_edges.keys(), "an edge is inserted once"
        rows.edges.update(pending.new_edges)
        rows.edits.update(pending.edits)
        rows.bulk_jobs.update(pending.bulk.started)
        rows.bulk_steps.update(pending.bulk.steps)
        for key in pending.bulk.ended:
            rows.bulk_jobs.pop(key, None)
            rows.bulk_steps = {step: data for step, data in rows.bulk_steps.items() if step[0] != key}
        rows.budgets.take(pending)
        rows.attempts.update({key: record for key, (record, _) in pending.attempts.items()})

    def _place(self, resource: Resource) -> tuple[dict[Any, Any], Any]:
        match resource:
            case Task():
                return self.rows.tasks, resource.task_id
            case Agent():
                return self.rows.agents, resource.agent_id
            case Template():
                return self.rows.templates, resource.template_id
            case UsageUpdate():
                return self.rows.usage.told, resource.usage_id
            case Approval():
                return self.rows.approvals, resource.approval_id
            case _:
                return self.rows.standing, (KINDS[type(resource)].name, standing_id(resource))

    def edges(self) -> dict[EdgeKey, Edge]:
        """Open edges and kept results as memory has them, which must agree from both ends."""
        edges = self.state.edges
        found: dict[EdgeKey, Edge] = {}
        for by_dependency, by_dependant in ((edges.dependants, edges.unmet), (edges.kept, edges.keeps)):
            forward = {(a, b): edge for a, entries in by_dependency.items() for b, edge in entries.items()}
            backward = {(a, b): edge for b, entries in by_dependant.items() for a, edge in entries.items()}
            assert forward == backward
            assert all(by_dependency.values())
            assert all(by_dependant.values())
            assert not found.keys() & forward.keys()
            found.update(forward)
        return found

    def advance(self, seconds: float) -> None:
        """Lets time pass, and looks at what is due by then."""
        self.now_ns += int(seconds * SECOND)
        self.do()

    def picture(self) -> object:
        """Everything that a refused command must leave as it was."""
        state = self.state
        return (
            (state.revision, state.oldest_revision),
            {task_id: task.SerializeToString() for task_id, task in self.rows.tasks.items()},
            {agent_id: found.SerializeToString() for agent_id, found in self.rows.agents.items()},
            {template_id: found.SerializeToString() for template_id, found in self.rows.templates.items()},
            sorted(self.rows.template_versions),
            [found.SerializeToString() for found in self.rows.standing.values()],
            [sorted(state.standing.all(kind), key=standing_id) for kind in KINDS],
            dict(self.rows.schedule_tasks),
            dict(self.rows.schedule_runs),
            {
                run: state.schedule_lives._runs[schedule][run]
                for run, schedule in state.schedule_lives._schedule_of.items()
            },
            {task_id: state.find_task(task_id) for task_id in self.rows.tasks},
            dict(self.rows.contents),
            {key: edit.SerializeToString() for key, edit in self.rows.edits.items()},
            sorted(state.bulk_jobs),
            dict(self.rows.bulk_steps),
            {key: record.SerializeToString() for key, record in self.rows.attempts.items()},
            {task_id: lease.attempt for task_id, lease in state.leases.by_task.items()},
            dict(self.rows.edges),
            self.edges(),
            list(state.edges.stirred),
            {key: found.SerializeToString() for key, found in self.rows.standing.items()},
            self._picture_of_queues(),
            self.rows.budgets.picture(state),
            self.rows.usage.picture(state),
            len(state.polls),
            list(self.events),
            {key: found.SerializeToString() for key, found in self.rows.approvals.items()},
            [found.SerializeToString() for found in state.approvals.pending()],
            {task_id: list(ids) for task_id, ids in state.approvals._of_task.items()},
            sorted(self.rows.approval_audit),
        )

    def _picture_of_queues(self) -> object:
        """Places, ranks, what runs and waits under each key, starts, whose turn it is. What is empty is not there."""
        state, queues = self.state, self.state.queues
        fair = queues._fair._classes
        keys = {*queues.keys._running, *queues.keys._queued, *queues.keys._resting}
        return (
            dict(queues.ready._places),
            queues.ready.depths(),
            {name: count for name, count in queues.ready._blocked.items() if count},
            {of: (one.now, dict(one.stamps)) for of, one in fair.items() if one.now or one.stamps},
            {name: count for name, count in queues._running.items() if count},
            {
                key: (queues.keys.holders(key), queues.keys.queued(key), queues.keys.begun_or_queued(key))
                for key in keys
                if queues.keys.begun_or_queued(key)
            },
            {limit_id: list(starts) for limit_id, starts in queues.starts._starts.items() if starts},
            list(queues.arrivals),
            dict(state.turns),
            {
                (kind.name, standing_id(found)): found.SerializeToString()
                for kind in KINDS.values()
                for found in state.standing.all(kind.type)
            },
        )

    @contextmanager
    def refuses(self, reason: str) -> Iterator[list[KapellError]]:
        """The block is refused with `reason` and leaves no trace. Yields a list that will hold the refusal."""
        caught: list[KapellError] = []
        before = self.picture()
        try:
            yield caught
        except KapellError as error:
            caught.append(error)
        reasons = [error.reason_name for error in caught]
        assert reasons == [reason], f"refused with {reasons}, not with {reason}"
        assert self.picture() == before, "a refused command has left a trace"

    # -- tasks as clients make them ----------------------------------------------------------

    def create(self, agent_type: str = "shell", **spec: Any) -> str:
        """A new task's id."""
        task: Task = self.do(CreateTaskRequest(task=TaskSpec(agent_type=agent_type, **spec)))
        return task.task_id

    def task(self, task_id: str) -> Task:
        """The task as committed."""
        return self.rows.tasks[task_id]

    def cancel(self, task_id: str, reason: str = "") -> Any:
        return self.do(CancelTaskRequest(task_id=task_id, reason=reason))

    def retry(self, task_id: str, **edits: Any) -> Any:
        return self.do(RetryTaskRequest(task_id=task_id, **edits))

    def edits(self, task_id: str) -> list[TaskEdit]:
        """The edits of a task as committed, the first one first."""
        return [edit for (edited, _), edit in sorted(self.rows.edits.items()) if edited == task_id]

    def delete(self, task_id: str) -> Any:
        return self.do(DeleteTaskRequest(task_id=task_id))

    def content(self, task_id: str) -> Task:
        """Prompt, input and result as committed."""
        return Task.FromString(self.rows.contents[task_id])

    def attempt(self, task_id: str, number: int = 1) -> TaskAttempt:
        """An attempt as committed."""
        return self.rows.attempts[task_id, number]

    def explain(self, task_id: str) -> ExplainTaskResponse:
        """Why the task does not run."""
        found: ExplainTaskResponse = self.do(ExplainTaskRequest(task_id=task_id))
        return found

    # -- queues and limits -------------------------------------------------------------------

    def pause(self, agent_type: str = "", reason: str = "") -> Queue:
        found: Queue = self.do(PauseQueueRequest(agent_type=agent_type, reason=reason))
        return found

    def resume(self, agent_type: str = "") -> Queue:
        found: Queue = self.do(ResumeQueueRequest(agent_type=agent_type))
        return found

    def drain(self, agent_type: str = "", reason: str = "") -> Queue:
        found: Queue = self.do(DrainQueueRequest(agent_type=agent_type, reason=reason))
        return found

    def limit(self, key: str, max_running: int | None = None, **rest: Any) -> ConcurrencyLimit:
        """Sets the limit of a concurrency key."""
        limit = ConcurrencyLimit(key=key, max_running=max_running, **rest)
        found: ConcurrencyLimit = self.do(SetConcurrencyLimitRequest(limit=limit))
        return found

    # -- agents as they speak ----------------------------------------------------------------

    def register(self, *agent_types: str, key: str = "", slots: int = 1) -> str:
        """A new external agent's id."""
        request = RegisterWorkerRequest(
            instance_key=key or f"process-{len(self.rows.agents)}", agent_types=agent_types or ["shell"], slots=slots
        )
        answer: RegisterWorkerResponse = self.do(request)
        return answer.agent.agent_id

    def spawn(self, agent_id: str = "", spec: AgentSpec = SPEC, profile: str = "") -> str:
        """A PENDING spawned agent's id."""
        wanted: Agent = self.do(SpawnCommand(SpawnAgentRequest(agent_id=agent_id, spec=spec), profile, spec))
        return wanted.agent_id

    def agent(self, agent_id: str) -> Agent:
        """The agent as committed."""
        return self.rows.agents[agent_id]

    def poll(self, agent_id: str, max_tasks: int = 1, poll_id: str = "", caller: Caller | None = None) -> Poll:
        """A LeaseTasks call that waits if there is nothing; `taken` holds the leases it has got."""
        request = LeaseTasksRequest(agent_id=agent_id, max_tasks=max_tasks, poll_id=poll_id)
        found: Poll = self.do(request, caller=caller or self._voice(agent_id))
        return found

    def _voice(self, agent_id: str) -> Caller:
        """Who speaks for the agent: the user who has registered it, or itself where it was spawned."""
        found = self.rows.agents.get(agent_id)
        return USER if found is None or found.runtime == "external" else as_agent(found)

    def lease(self, agent_id: str, caller: Caller | None = None) -> str:
        """The task that the agent is given now, which must be one."""
        [lease] = self.poll(agent_id, caller=caller).taken
        return str(lease.task_id)

    def token(self, task_id: str) -> str:
        """The lease token of the task's latest attempt, as its offer carried it."""
        number = max(1, self.task(task_id).attempt)
        record = self.rows.attempts.get((task_id, number), TaskAttempt())
        return self.keyring.lease_token(task_id, number, timestamp_ns(record.start_time))

    def beat(self, agent_id: str, *task_ids: str, caller: Caller | None = None) -> Any:
        """A heartbeat that names the leases of these tasks."""
        request = HeartbeatRequest(agent_id=agent_id)
        for task_id in task_ids:
            request.leases.add(lease_token=self.token(task_id))
        return self.do(request, caller=caller or self._voice(agent_id))

    def complete(self, task_id: str, result: str = "") -> Any:
        request = CompleteTaskRequest(lease_token=self.token(task_id))
        if result:
            request.result.string_value = result
        return self.do(request, caller=self._voice(self.task(task_id).lease.agent_id))

    def fail(self, task_id: str, *, retryable: bool | None = None, reason: str = "EXIT_CODE") -> Any:
        failure = TaskFailure(reason=reason, message="it broke", retryable=retryable)
        return self.do(FailTaskRequest(lease_token=self.token(task_id), failure=failure))

    def release(self, task_id: str) -> Any:
        return self.do(ReleaseTaskRequest(lease_token=self.token(task_id)))

    def running(self, **spec: Any) -> str:
        """A task that a fresh agent has and has spoken of."""
        agent_id = self.register(f"only-{len(self.rows.agents)}")
        task_id = self.create(f"only-{len(self.rows.agents) - 1}", **spec)
        assert self.lease(agent_id) == task_id
        self.beat(agent_id, task_id)
        return task_id


def rate(count: int, seconds: int) -> StartRate:
    """So many starts in so many seconds."""
    return StartRate(count=count, period=Duration(seconds=seconds))


def event_name(kind: EventKind.ValueType) -> str:
    """An event kind as clients see it."""
    return EventKind.Name(kind).removeprefix("EVENT_KIND_").lower().replace("_", ".", 1)


def as_agent(found: Agent) -> Caller:
    """The agent itself, with the token of its present instance."""
    keyring = World().keyring
    caller = keyring.authenticate(keyring.agent_token(found.agent_id, found.instance))
    assert caller is not None
    return caller


def as_program(world: World, task_id: str) -> Caller:
    """A program that works on the task's latest attempt, as the server knows it."""
    lease = world.state.leases.by_task[task_id]
    caller = world.keyring.authenticate(world.keyring.attempt_token(lease.lease_id))
    assert caller is not None
    return dataclasses.replace(caller, agent_id=lease.agent_id)


def as_ticket(agent_id: str) -> Caller:
    """The host that was started as this agent, before it has registered."""
    keyring = World().keyring
    caller = keyring.authenticate(keyring.ticket(agent_id))
    assert caller is not None
    return caller


def of_other_instance(caller: Caller) -> Caller:
    """The same agent's token from another registration."""
    return dataclasses.replace(caller, instance=caller.instance + 1)
