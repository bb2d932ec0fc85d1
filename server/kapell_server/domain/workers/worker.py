"""What workers say: here I am, I still live, I am leaving - and who may say it for whom."""

from __future__ import annotations

from collections.abc import Sequence

from kapell.v1.agent_pb2 import (
    AGENT_ACTIVITY_NOT_POLLING,
    AGENT_ACTIVITY_SILENT,
    AGENT_STATE_DRAINING,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_TERMINATED,
    AGENT_STATE_TERMINATING,
    Agent,
)
from kapell.v1.error_pb2 import (
    ERROR_REASON_REQUEST_INVALID,
    ERROR_REASON_TOKEN_INVALID,
)
from kapell.v1.task_pb2 import ATTEMPT_WAIT_KIND_APPROVAL, ATTEMPT_WAIT_KIND_BUDGET, AttemptWait, Task
from kapell.v1.usage_pb2 import UsageOutcome, UsageRecord
from kapell.v1.watch_pb2 import EVENT_KIND_AGENT_SPAWNED
from kapell.v1.worker_pb2 import (
    AGENT_DIRECTIVE_DRAIN,
    AGENT_DIRECTIVE_NONE,
    AGENT_DIRECTIVE_STOP,
    LEASE_DIRECTIVE_LOST,
    LEASE_DIRECTIVE_PAUSE,
    AgentDirective,
    BatchCompleteTasksRequest,
    BatchCompleteTasksResponse,
    CompleteTaskRequest,
    CompleteTaskResponse,
    DeregisterRequest,
    DeregisterResponse,
    FailTaskRequest,
    FailTaskResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    LeaseBeat,
    RegisterWorkerRequest,
    RegisterWorkerResponse,
    ReleaseTaskRequest,
    ReleaseTaskResponse,
    ReportProgressRequest,
    ReportProgressResponse,
    ReportUsageRequest,
    ReportUsageResponse,
    ReportWorkspacesRequest,
    ReportWorkspacesResponse,
)

from kapell_server.domain.access import CallerKind
from kapell_server.domain.budgets import edges
from kapell_server.domain.errors import KapellError
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.tasks import workspace
from kapell_server.domain.times import SECOND, set_duration, stamp
from kapell_server.domain.transitions import AGENT_FINAL, agent_state_conflict
from kapell_server.domain.usage import ledger
from kapell_server.domain.workers import agent as agents
from kapell_server.domain.workers import attempt, liveness
from kapell_server.domain.workers import speaking as speaking_for
from kapell_server.domain.workers.leases import Lease


def register(state: State, request: RegisterWorkerRequest) -> RegisterWorkerResponse:
    """Makes the calling process an agent; the same process gets the same answer again."""
    caller = state.caller
    if caller.kind in (CallerKind.TICKET, CallerKind.AGENT):
        registered = _register_spawned(state, caller.agent_id, request.instance_key)
    else:
        registered = _register_external(state, request)
    settings = state.settings
    response = RegisterWorkerResponse(
        agent=registered,
        agent_token=state.keyring.agent_token(registered.agent_id, registered.instance),
        log_id=state.log_id,
        revision=registered.revision,
    )
    set_duration(response.heartbeat_interval, int(settings.heartbeat_interval * SECOND))
    set_duration(response.lease_duration, int(settings.lease_duration * SECOND))
    return response


def _register_spawned(state: State, agent_id: str, instance_key: str) -> Agent:
    current = state.find_agent(agent_id)
    if current is None or current.state in AGENT_FINAL or current.HasField("next_start_time"):
        raise token_of_the_past(agent_id)
    if (known := state.instance_keys.get(agent_id, "")) != "":
        if known != instance_key:
            raise KapellError(
                ERROR_REASON_TOKEN_INVALID,
                f"Agent {agent_id} was registered by another process. Spawn a new agent to get a new ticket.",
            )
        state.see_agent(agent_id)
        return current
    return agents.begin(state, current, instance_key)


def _register_external(state: State, request: RegisterWorkerRequest) -> Agent:
    """A key finds the agents again that its own user has registered: whoever else knows it gets another agent."""
    for agent_id, key in state.instance_keys.items():
        known = state.agents.get(agent_id)
        if key != request.instance_key or known is None or known.state in AGENT_FINAL:
            continue
        if known.runtime == speaking_for.EXTERNAL and known.creator == state.caller.actor():
            state.see_agent(agent_id)
            return agents.revive(state, known) if known.state == AGENT_STATE_LOST else known
    if not request.agent_types:
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            "agent_types is empty. Name at least one type of task that the worker serves.",
            violations=(("agent_types", "must have at least one entry"),),
        )
    agents.check_room(state)
    fresh = Agent(
        agent_id=state.new_id("agent"),
        display_name=request.display_name or request.agent_types[0],
        agent_types=request.agent_types,
        runtime=speaking_for.EXTERNAL,
        state=AGENT_STATE_PENDING,
        slots_total=request.slots or 1,
        labels=request.labels,
        creator=state.caller.actor(),
    )
    stamp(fresh.create_time, state.tick_ns())
    state.put_agent(fresh, EVENT_KIND_AGENT_SPAWNED, (), created=True)
    return agents.begin(state, fresh, request.instance_key)


def speaking(state: State, agent_id: str) -> Agent:
    """The agent a worker's call is about, after checking that the caller may speak for it."""
    caller = state.caller
    if caller.kind is CallerKind.AGENT:
        if caller.agent_id != agent_id:
            raise speaking_for.not_spoken_for(None, agent_id, caller)
        current = state.find_agent(agent_id)
        if current is None or current.instance != caller.instance:
            raise token_of_the_past(agent_id)
        return current
    found = state.agent(agent_id)
    speaking_for.check(found, agent_id, caller)
    return found


def token_of_the_past(agent_id: str) -> KapellError:
    """The refusal of a genuine token whose agent, or instance of it, is no more."""
    return KapellError(
        ERROR_REASON_TOKEN_INVALID,
        f"The token is of an agent that has ended ({agent_id}). Register again, or spawn a new agent.",
    )


def heartbeat(state: State, request: HeartbeatRequest) -> HeartbeatResponse:
    """Renews every lease named, and says what to do about each and about the agent."""
    current = speaking(state, request.agent_id)
    settings = state.settings
    response = HeartbeatResponse(directive=agent_directive(current))
    set_duration(response.heartbeat_interval, int(settings.heartbeat_interval * SECOND))
    set_duration(response.ttl_remaining, int(settings.lease_duration * SECOND))
    if current.state in AGENT_FINAL:
        for beat in request.leases:
            response.leases.add(lease_token=beat.lease_token, directive=LEASE_DIRECTIVE_LOST)
        response.revision = state.revision
        return response
    current = hear(state, current)
    for beat in request.leases:
        status = response.leases.add(lease_token=beat.lease_token)
        if beat.usage:
            status.refused_usage.extend(_take_usage(state, beat.lease_token, beat.usage, late=True))
        task = _beat(state, current.agent_id, beat)
        status.directive = LEASE_DIRECTIVE_LOST if task is None else attempt.directive(task)
        if task is not None and status.directive == LEASE_DIRECTIVE_PAUSE:
            status.pause.CopyFrom(task.pause)
    response.revision = state.revision
    return response


def hear(state: State, current: Agent) -> Agent:
    """Notes a sign of life of a live agent; one that was LOST or SILENT is back."""
    state.see_agent(current.agent_id)
    if current.state == AGENT_STATE_LOST or current.activity == AGENT_ACTIVITY_SILENT:
        current = agents.revive(state, current)
    # Whatever was to be looked at next, a silence from now on comes sooner.
    agents.watch_silence(state, current.agent_id)
    return current


def _beat(state: State, agent_id: str, beat: LeaseBeat) -> Task | None:
    """What is said of one lease; its task as it is by then, None where the lease is lost."""
    lease_id = state.keyring.parse_lease_token(beat.lease_token)
    lease = state.leases.by_task.get(lease_id.task_id) if lease_id is not None else None
    if lease is None or lease.agent_id != agent_id or lease_id is None or not lease.is_meant_by(lease_id):
        return None
    attempt.renew(state, lease, state.caller, state.now_ns)
    task = state.task(lease.task_id)
    if beat.HasField("progress"):
        task = attempt.note_progress(state, lease, task, beat.progress)
    if beat.HasField("waiting") or task.HasField("waiting") or lease.waiting:
        task = attempt.note_waiting(state, lease, task, _waiting(state, lease, task, beat))
    if beat.program_ended:
        liveness.note_ended(state, lease)
    if lease.task_id in state.budgets.at_edge or lease.waiting == ATTEMPT_WAIT_KIND_BUDGET:
        edges.meet(state, lease.task_id)
        task = state.task(lease.task_id)
    return task


def _waiting(state: State, lease: Lease, task: Task, beat: LeaseBeat) -> AttemptWait:
    """What an attempt waits for: as it says, else for an approval that it has asked for, whatever it says of it."""
    is_asking = task.waiting.kind == ATTEMPT_WAIT_KIND_APPROVAL
    if beat.HasField("waiting") or not is_asking:
        return beat.waiting
    waits = any(open_.attempt == lease.attempt for open_ in state.approvals.of_task(task.task_id))
    return task.waiting if waits else beat.waiting


def agent_directive(current: Agent) -> AgentDirective.ValueType:
    """What an agent in this state is to do."""
    if current.state in AGENT_FINAL or current.state == AGENT_STATE_TERMINATING:
        return AGENT_DIRECTIVE_STOP
    if current.state == AGENT_STATE_DRAINING:
        return AGENT_DIRECTIVE_DRAIN
    return AGENT_DIRECTIVE_NONE


def report_progress(state: State, request: ReportProgressRequest) -> ReportProgressResponse:
    """Records the progress of one attempt."""
    task = attempt.report_progress(state, request)
    return ReportProgressResponse(directive=attempt.directive(task), revision=task.revision)


def report_workspaces(state: State, request: ReportWorkspacesRequest) -> ReportWorkspacesResponse:
    """Records what one attempt has left in its workspace."""
    lease, current = attempt.held(state, request.lease_token)
    told = use.redactor(state, current, lease.agent_id).message(request).workspaces
    task = workspace.note(state, current, lease.attempt, told)
    return ReportWorkspacesResponse(directive=attempt.directive(task), revision=task.revision)


def report_usage(state: State, request: ReportUsageRequest) -> ReportUsageResponse:
    """Records what one attempt has used, also where it has ended: it was paid for. All else stays behind the fence."""
    record = attempt.told_of(state, request.lease_token)
    lease = state.leases.by_task.get(record.task_id)
    response = ReportUsageResponse(directive=LEASE_DIRECTIVE_LOST)
    if lease is not None and lease.attempt == record.attempt:
        attempt.renew(state, lease, state.caller, state.now_ns)
        response.outcomes.extend(ledger.take(state, request.records, record))
        edges.meet(state, record.task_id)
        task = state.task(record.task_id)
        response.directive = attempt.directive(task)
        if response.directive == LEASE_DIRECTIVE_PAUSE:
            response.pause.CopyFrom(task.pause)
    else:
        response.outcomes.extend(ledger.take(state, request.records, record))
    response.revision = state.revision
    return response


def _take_usage(state: State, token: str, records: Sequence[UsageRecord], *, late: bool = False) -> list[UsageOutcome]:
    """Records what came along with another report; those that were refused.

    Nothing where the attempt has ended, unless it may be `late`: a report that is repeated had its usage taken the
    first time, and one that is refused takes nothing.
    """
    if not records:
        return []
    try:
        record = attempt.told_of(state, token) if late else attempt.check_token(state, token, state.caller).record
    except KapellError:
        return []  # What is wrong with the token is for the report itself to say.
    return ledger.refused(ledger.take(state, records, record))


def complete_task(state: State, request: CompleteTaskRequest) -> CompleteTaskResponse:
    """Ends one attempt with a result."""
    refused = _take_usage(state, request.lease_token, request.usage)
    task = attempt.complete(state, request)
    return CompleteTaskResponse(state=task.state, revision=task.revision, refused_usage=refused)


def complete_tasks(state: State, request: BatchCompleteTasksRequest) -> BatchCompleteTasksResponse:
    """Ends many attempts; each stands for itself, so a lost lease does not hinder the others."""
    response = BatchCompleteTasksResponse()
    for completion in request.completions:
        mark = state.mark()
        try:
            refused = _take_usage(state, completion.lease_token, completion.usage)
            task = attempt.complete(state, completion)
        except KapellError as error:
            state.rollback(mark)
            if error.reason_name not in ("LEASE_LOST", "NOT_OWNER"):
                raise
            response.outcomes.add(lease_lost=True)
        else:
            response.outcomes.add(state=task.state, refused_usage=refused)
    response.revision = state.revision
    return response


def fail_task(state: State, request: FailTaskRequest) -> FailTaskResponse:
    """Ends one attempt with a failure."""
    refused = _take_usage(state, request.lease_token, request.usage)
    task = attempt.fail(state, request)
    return FailTaskResponse(state=task.state, revision=task.revision, refused_usage=refused)


def release_task(state: State, request: ReleaseTaskRequest) -> ReleaseTaskResponse:
    """Hands one task back."""
    task = attempt.release(state, request)
    return ReleaseTaskResponse(state=task.state, revision=task.revision)


def deregister(state: State, request: DeregisterRequest) -> DeregisterResponse:
    """Ends the agent, or, for a spawned one, begins its end, which its process's exit completes."""
    current = speaking(state, request.agent_id)
    reason = request.reason or "deregistered"
    if current.state in AGENT_FINAL:
        return DeregisterResponse(revision=current.revision)
    if current.runtime == "external":
        ended = agents.end(state, current, AGENT_STATE_TERMINATED, reason, None)
        return DeregisterResponse(revision=ended.revision)
    return DeregisterResponse(revision=agents.leave(state, current, reason).revision)


def may_poll(state: State, agent_id: str) -> Agent:
    """The agent, where it may ask for tasks."""
    current = speaking(state, agent_id)
    if current.state not in agents.POLLING:
        raise agent_state_conflict(current, "given tasks", agents.POLLING)
    state.agent_polled_ns[agent_id] = state.now_ns
    if current.activity == AGENT_ACTIVITY_NOT_POLLING:
        state.see_agent(agent_id)
        current = agents.revive(state, current)
    return current
