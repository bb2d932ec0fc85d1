"""The life of an agent: asked for, registered, heard of, drained, ended."""

from __future__ import annotations

import itertools

from kapell.rules.programs import program_of
from kapell.v1.agent_pb2 import (
    AGENT_STATE_ACTIVE,
    AGENT_STATE_DRAINING,
    AGENT_STATE_FAILED,
    AGENT_STATE_LOST,
    AGENT_STATE_PENDING,
    AGENT_STATE_STARTING,
    AGENT_STATE_TERMINATED,
    AGENT_STATE_TERMINATING,
    TERMINATE_MODE_FORCE,
    Agent,
    AgentSpec,
    DeleteAgentRequest,
    DeleteAgentResponse,
    DrainAgentRequest,
    ResumeAgentRequest,
    SpawnAgentRequest,
    TerminateAgentRequest,
    UpdateAgentRequest,
)
from kapell.v1.common_pb2 import ProcessExit
from kapell.v1.error_pb2 import ERROR_REASON_AGENT_LIMIT, ERROR_REASON_ID_TAKEN
from kapell.v1.task_pb2 import TaskFailure
from kapell.v1.watch_pb2 import (
    EVENT_KIND_AGENT_DELETED,
    EVENT_KIND_AGENT_SPAWNED,
    EVENT_KIND_AGENT_STATUS,
    EVENT_KIND_AGENT_UPDATED,
)

from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.state import State
from kapell_server.domain.tasks.deadlines import agent_start_deadline_ns
from kapell_server.domain.tasks.task import check_etag
from kapell_server.domain.times import SECOND, stamp, timestamp_ns
from kapell_server.domain.transitions import (
    AGENT_FINAL,
    AGENT_WORKING,
    agent_state_conflict,
)
from kapell_server.domain.workers import attempt, liveness, restart
from kapell_server.domain.workers.specs import title_of

POLLING = frozenset({AGENT_STATE_ACTIVE, AGENT_STATE_DRAINING, AGENT_STATE_LOST})
HIDDEN = "[hidden]"
_DRAINABLE = frozenset({AGENT_STATE_ACTIVE, AGENT_STATE_DRAINING})


def spawn(state: State, request: SpawnAgentRequest, profile: str, spec: AgentSpec) -> Agent:
    """Records that an agent is wanted; the spawner starts it when it sees the event."""
    check_room(state)
    if request.agent_id:
        if state.find_agent(request.agent_id) is not None:
            raise KapellError(
                ERROR_REASON_ID_TAKEN,
                f"Agent {request.agent_id} exists already. Choose another agent_id, or leave it empty to get one.",
                metadata={"agent_id": request.agent_id},
            )
        agent_id = request.agent_id
    else:
        agent_id = state.new_id("agent")
    agent = Agent(
        agent_id=agent_id,
        display_name=request.display_name or profile or title_of(spec),
        agent_types=spec.agent_types,
        profile=profile,
        runtime=spec.WhichOneof("runtime") or "",
        state=AGENT_STATE_PENDING,
        slots_total=spec.slots or 1,
        labels=request.labels,
        creator=state.caller.actor(),
        spec=without_secrets(spec),
    )
    stamp(agent.create_time, state.tick_ns())
    state.keep_spec(agent_id, spec)
    return state.put_agent(agent, EVENT_KIND_AGENT_SPAWNED, (), created=True)


def without_secrets(spec: AgentSpec) -> AgentSpec:
    """The spec as everybody may read it: the values of its environment may be keys and passwords (S3)."""
    shown = AgentSpec()
    shown.CopyFrom(spec)
    program = program_of(shown)
    if program is not None:
        # A copy of the names: a map that is written to while it is read leaves some of them out.
        for name in list(program.env):
            program.env[name] = HIDDEN
    return shown


def check_room(state: State) -> None:
    """Refuses one agent more than the server may have."""
    limit = state.settings.max_agents
    if sum(agent.state not in AGENT_FINAL for agent in state.agents.values()) >= limit:
        raise KapellError(
            ERROR_REASON_AGENT_LIMIT,
            f"The server has {limit} agents already, its limit. Terminate some, or raise max_agents.",
            metadata={"limit": str(limit)},
        )


def update(state: State, request: UpdateAgentRequest) -> Agent:
    """Sets labels or display name."""
    current = state.agent(request.agent.agent_id)
    check_etag(request.etag, current.etag)
    agent = copied(current)
    changed = tuple(dict.fromkeys(request.update_mask.paths))
    for path in changed:
        match path:
            case "display_name":
                agent.display_name = request.agent.display_name
            case "labels":
                agent.ClearField("labels")
                agent.labels.update(request.agent.labels)
            case _:
                raise AssertionError(f"update_mask {path} passed validation")
    return state.put_agent(agent, EVENT_KIND_AGENT_UPDATED, changed)


def drain(state: State, request: DrainAgentRequest) -> Agent:
    """Gives the agent nothing new; twice is not an error."""
    current = state.agent(request.agent_id)
    if current.state not in _DRAINABLE:
        raise agent_state_conflict(current, "drained", _DRAINABLE)
    if current.state == AGENT_STATE_DRAINING:
        return current
    return _move(state, current, AGENT_STATE_DRAINING, "drained on request")


def resume(state: State, request: ResumeAgentRequest) -> Agent:
    """Lets a draining agent take tasks again; an ACTIVE one stays as it is."""
    current = state.agent(request.agent_id)
    if current.state not in _DRAINABLE:
        raise agent_state_conflict(current, "resumed", _DRAINABLE)
    if current.state == AGENT_STATE_ACTIVE:
        return current
    agent = _move(state, current, AGENT_STATE_ACTIVE, "")
    state.polls.touch_agent(agent.agent_id)
    state.schedule(state.now_ns, agent.agent_id)  # While it drained its silence had no consequence.
    return agent


def terminate(state: State, request: TerminateAgentRequest) -> Agent:
    """Begins to end an agent. An external one is told to stop and is ended when it has, or falls silent."""
    current = state.agent(request.agent_id)
    if current.state in AGENT_FINAL:
        return current
    if current.state == AGENT_STATE_TERMINATING and request.mode != TERMINATE_MODE_FORCE:
        if current.end_requested or not current.spec.HasField("restart"):
            return current
        # It ends for a reason of its own, after which it might be started again.
        return _move(state, current, AGENT_STATE_TERMINATING, current.state_reason, end_requested=True)
    if current.runtime == "external" and current.state == AGENT_STATE_LOST:
        return end(state, current, AGENT_STATE_TERMINATED, request.reason or "terminated while lost", None)
    state.schedule(state.now_ns, current.agent_id)
    reason = request.reason or "terminated on request"
    return _move(state, current, AGENT_STATE_TERMINATING, reason, end_requested=True)


def leave(state: State, current: Agent, reason: str) -> Agent:
    """A spawned agent says goodbye; the exit of its process completes the end."""
    if current.state == AGENT_STATE_TERMINATING:
        return current
    drained = current.state == AGENT_STATE_DRAINING
    return _move(state, current, AGENT_STATE_TERMINATING, reason, end_requested=drained)


def delete(state: State, request: DeleteAgentRequest) -> DeleteAgentResponse:
    """Removes an ended agent."""
    current = state.agent(request.agent_id)
    if current.state not in AGENT_FINAL:
        raise agent_state_conflict(current, "deleted", AGENT_FINAL)
    agent = state.put_agent(copied(current), EVENT_KIND_AGENT_DELETED, (), deleted=True)
    return DeleteAgentResponse(revision=agent.revision)


def process_started(state: State, agent_id: str, pid: int) -> None:
    """The spawner has started the process of a PENDING agent."""
    current = state.find_agent(agent_id)
    if current is None or current.state in AGENT_FINAL or current.pid == pid:
        return
    agent = copied(current)
    agent.pid = pid
    if agent.state == AGENT_STATE_PENDING:
        agent.state = AGENT_STATE_STARTING
        state.see_agent(agent_id)
        state.schedule(agent_start_deadline_ns(agent, state.settings, state.now_ns), agent_id)
    state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("state", "pid"))


def process_exited(state: State, agent_id: str, exit_: ProcessExit, reason: str) -> Agent | None:
    """The whole process tree of a spawned agent is gone: it has ended, or is to be started again."""
    current = state.find_agent(agent_id)
    if current is None or current.state in AGENT_FINAL or restart.due_ns(current):
        return current  # Told before, and the answer was lost.
    failed = True
    if current.state == AGENT_STATE_TERMINATING:
        failed = current.state_reason.startswith(_NOT_REGISTERED)
        reason = current.state_reason
    reason = reason or exit_.message
    if restart.is_wanted(current, failed=failed):
        registered = state.instance_keys.get(agent_id, "") != ""
        active_ns = state.now_ns - timestamp_ns(current.start_time) if registered else 0
        if not restart.is_given_up(current, active_ns):
            return _start_again(state, current, active_ns, reason, exit_, failed=failed)
        reason = f"given up after {current.restarts_in_a_row} restarts in a row: {reason}"
    return end(state, current, AGENT_STATE_FAILED if failed else AGENT_STATE_TERMINATED, reason, exit_)


def _start_again(
    state: State, current: Agent, active_ns: int, reason: str, exit_: ProcessExit, *, failed: bool
) -> Agent:
    """Has the agent wait for its next start; what it had goes back, as when it ends."""
    _give_back_work(state, current, reason, failed=failed)
    agent = copied(current)
    next_ns = restart.put_off(agent, state.now_ns, active_ns, reason, exit_)
    _describe_work(state, agent)
    state.set_instance_key(agent.agent_id, "")
    state.schedule(next_ns, agent.agent_id)
    changed = ("state", "state_reason", "restart_count", "next_start_time", "pid", "exit")
    return state.put_agent(agent, EVENT_KIND_AGENT_STATUS, changed)


def end(state: State, current: Agent, final: int, reason: str, exit_: ProcessExit | None) -> Agent:
    """Ends an agent and requeues what it had (G2)."""
    assert final in AGENT_FINAL, "an agent ends in a final state"
    _give_back_work(state, current, reason, failed=final == AGENT_STATE_FAILED)
    agent = copied(current)
    agent.state = final  # type: ignore[assignment]
    agent.state_reason = reason[:1000]
    if exit_ is not None:
        agent.exit.CopyFrom(exit_)
    stamp(agent.end_time, state.now_ns)
    _describe_work(state, agent)
    return state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("state", "state_reason", "exit"))


def _give_back_work(state: State, current: Agent, reason: str, *, failed: bool) -> None:
    """Requeues what an agent had whose process is gone.

    What a dead process had been offered counts as an attempt even if it never spoke of it: a task that
    kills its agent at once would otherwise do so for ever. An offer that had expired by then counts
    no more here than if its expiry had been looked at first.
    """
    for lease in state.leases.of_agent(current.agent_id):
        task = state.task(lease.task_id)
        expired = lease.expire_ns <= state.now_ns
        if not lease.confirmed and (expired or not failed):
            attempt.end_unconfirmed(state, lease, task)
            continue
        failure = TaskFailure(reason="AGENT_LOST", message=f"its agent {current.agent_id} ended: {reason}")
        attempt.end_failed(state, lease, task, failure, lost=True)


_NOT_REGISTERED = "its process did not register"


def look_at_agent(state: State, agent_id: str) -> None:
    """Does what the time asks for: gives up a start, or notes that nothing is heard."""
    current = state.agents.get(agent_id)
    if current is None or current.state in AGENT_FINAL:
        return
    if (due := restart.due_ns(current)) > 0:
        if due > state.now_ns:
            state.schedule(due, agent_id)
        else:
            agent = copied(current)
            agent.ClearField("next_start_time")
            state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("next_start_time",))
        return
    start = agent_start_deadline_ns(current, state.settings, state.agent_seen_ns.get(agent_id, 0))
    if start:
        if start <= state.now_ns:
            reason = f"{_NOT_REGISTERED} within {state.settings.start_timeout:g} s; see the agent's log"
            _move(state, current, AGENT_STATE_TERMINATING, reason)
        else:
            state.schedule(start, agent_id)
        return
    if current.state in AGENT_WORKING or current.state == AGENT_STATE_TERMINATING:
        _look_at_silence(state, current)


def _look_at_silence(state: State, current: Agent) -> None:
    seen = state.agent_seen_ns.get(current.agent_id, 0)
    silent = seen + int(state.settings.silent_after * SECOND)
    lost = seen + int(state.settings.lease_duration * SECOND)
    if lost <= state.now_ns:
        if current.state == AGENT_STATE_TERMINATING:
            if current.runtime == "external":
                end(state, current, AGENT_STATE_TERMINATED, current.state_reason, None)
            return
        if current.state == AGENT_STATE_ACTIVE:
            _move(state, current, AGENT_STATE_LOST, f"not heard of for {state.settings.lease_duration:g} s")
        else:
            # A draining one stays so: coming back as LOST ones do, it would take tasks again.
            _show_activity(state, current)
        _look_later_whether_forgotten(state, current, seen)
    elif silent <= state.now_ns:
        _show_activity(state, current)
        state.schedule(lost, current.agent_id)
    else:
        _show_activity(state, current)
        state.schedule(silent, current.agent_id)


def _show_activity(state: State, current: Agent) -> None:
    """Puts what the agent is doing where time alone has changed it."""
    activity = liveness.activity(state, current)
    if activity != current.activity:
        agent = copied(current)
        agent.activity = activity
        state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("activity",))


def _look_later_whether_forgotten(state: State, current: Agent, seen_ns: int) -> None:
    """Gives an external agent up when its time is over. The end of a spawned one is its process's."""
    forget_ns = seen_ns + int(state.settings.forget_after * SECOND)
    if current.runtime != "external":
        return
    if forget_ns <= state.now_ns:
        end(state, current, AGENT_STATE_FAILED, f"not heard of for {state.settings.forget_after:g} s", None)
    else:
        state.schedule(forget_ns, current.agent_id)


def watch_silence(state: State, agent_id: str) -> None:
    """Begins to look out for an agent's silence."""
    state.schedule(state.now_ns + int(state.settings.silent_after * SECOND), agent_id)


def describe_busy(state: State) -> None:
    """Puts the occupancy of every agent whose leases changed in this batch: one event an agent."""
    for agent_id in sorted(state.busy_agents):
        current = state.agents.get(agent_id)
        if current is None or current.state in AGENT_FINAL:
            continue
        agent = copied(current)
        _describe_work(state, agent)
        if agent != current:
            state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("slots_used", "current_task_ids", "activity"))
    state.busy_agents.clear()


def _describe_work(state: State, agent: Agent) -> None:
    """Fills in slots, tasks and activity from the lease table."""
    held = state.leases.by_agent.get(agent.agent_id, {})
    agent.slots_used = len(held)
    agent.ClearField("current_task_ids")
    agent.current_task_ids.extend(itertools.islice(held, 256))
    agent.activity = liveness.activity(state, agent)


def revive(state: State, current: Agent) -> Agent:
    """A LOST or SILENT agent was heard of again, or one that did not poll does so."""
    agent = copied(current)
    if agent.state == AGENT_STATE_LOST:
        agent.state = AGENT_STATE_ACTIVE
        agent.state_reason = ""
    _describe_work(state, agent)
    state.polls.touch_agent(agent.agent_id)
    watch_silence(state, agent.agent_id)
    return state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("state", "activity"))


def begin(state: State, current: Agent, instance_key: str) -> Agent:
    """A process has registered as this agent: a new instance."""
    agent = copied(current)
    agent.instance += 1
    if agent.state in (AGENT_STATE_PENDING, AGENT_STATE_STARTING, AGENT_STATE_LOST):
        agent.state = AGENT_STATE_ACTIVE
        agent.state_reason = ""
    stamp(agent.start_time, state.now_ns)
    state.see_agent(agent.agent_id)
    state.agent_polled_ns[agent.agent_id] = state.now_ns
    _describe_work(state, agent)
    state.set_instance_key(agent.agent_id, instance_key)
    watch_silence(state, agent.agent_id)
    return state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("state", "instance", "activity"))


def _move(state: State, current: Agent, to: int, reason: str, *, end_requested: bool = False) -> Agent:
    agent = copied(current)
    agent.state = to  # type: ignore[assignment]
    agent.state_reason = reason
    agent.end_requested |= end_requested
    agent.ClearField("next_start_time")
    agent.activity = liveness.activity(state, agent)
    return state.put_agent(agent, EVENT_KIND_AGENT_STATUS, ("state", "state_reason", "activity"))
