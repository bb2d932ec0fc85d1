"""The life of an attempt: leased, reported on, ended - by its agent, by a timeout or by silence.

Every entry point that comes from an agent goes through `held`, which is the fence (T5): a token
of a superseded attempt is refused before anything is looked at.
"""

from __future__ import annotations

from google.protobuf.struct_pb2 import Struct
from kapell.v1.error_pb2 import (
    ERROR_REASON_LEASE_LOST,
    ERROR_REASON_REQUEST_INVALID,
)
from kapell.v1.task_pb2 import (
    ATTEMPT_STATE_CANCELLED,
    ATTEMPT_STATE_FAILED,
    ATTEMPT_STATE_LOST,
    ATTEMPT_STATE_RELEASED,
    ATTEMPT_STATE_RUNNING,
    ATTEMPT_STATE_SUCCEEDED,
    ATTEMPT_WAIT_KIND_PROVIDER,
    TASK_STATE_AWAITING_APPROVAL,
    TASK_STATE_CANCELLED,
    TASK_STATE_CANCELLING,
    TASK_STATE_FAILED,
    TASK_STATE_PENDING,
    TASK_STATE_QUEUED,
    TASK_STATE_RUNNING,
    TASK_STATE_SUCCEEDED,
    WAIT_KIND_PROVIDER_RATE_LIMIT,
    WAIT_KIND_RETRY_BACKOFF,
    AttemptState,
    AttemptWait,
    Task,
    TaskAttempt,
    TaskFailure,
    TaskProgress,
)
from kapell.v1.watch_pb2 import (
    EVENT_KIND_TASK_CANCELLED,
    EVENT_KIND_TASK_COMPLETED,
    EVENT_KIND_TASK_FAILED,
    EVENT_KIND_TASK_PROGRESS,
    EVENT_KIND_TASK_QUEUED,
    EVENT_KIND_TASK_REQUEUED,
    EVENT_KIND_TASK_STARTED,
    EventKind,
)
from kapell.v1.worker_pb2 import (
    LEASE_DIRECTIVE_CANCEL,
    LEASE_DIRECTIVE_CONTINUE,
    LEASE_DIRECTIVE_PAUSE,
    CompleteTaskRequest,
    FailTaskRequest,
    LeaseDirective,
    ProviderRateLimit,
    ReleaseTaskRequest,
    ReportProgressRequest,
)

from kapell_server.domain.access import Caller, CallerKind, LeaseId
from kapell_server.domain.copied import copied
from kapell_server.domain.errors import KapellError
from kapell_server.domain.locks import task_locks
from kapell_server.domain.secrets import use
from kapell_server.domain.state import State
from kapell_server.domain.tasks import deadlines, retry
from kapell_server.domain.times import SECOND, duration_ns, set_duration, stamp, timestamp_ns
from kapell_server.domain.workers import liveness, speaking
from kapell_server.domain.workers.leases import Lease

TOTAL_IS_OVER = "it was not done within its total timeout"
_PROVIDER_WAIT = liveness.WAITS[ATTEMPT_WAIT_KIND_PROVIDER].reason
_PROVIDER_PAUSE = 60 * SECOND
"""How long a task stays away from a provider that kept it waiting, at least."""


def grant(state: State, current: Task, agent_id: str, poll_id: str) -> Lease:
    """Leases a QUEUED task to an agent: a new attempt begins."""
    assert current.state == TASK_STATE_QUEUED, "only queued tasks are leased"
    task = copied(current)
    now = state.tick_ns()
    task.attempt += 1
    task.attempts_used += 1
    task.state = TASK_STATE_RUNNING
    task.lease.agent_id = agent_id
    task.ClearField("progress")
    task.ClearField("state_reason")
    stamp(task.state_time, now)
    stamp(task.lease.start_time, now)
    if not task.HasField("start_time"):
        stamp(task.start_time, now)
    record = TaskAttempt(task_id=task.task_id, attempt=task.attempt, agent_id=agent_id, state=ATTEMPT_STATE_RUNNING)
    record.retry = task.retries
    stamp(record.start_time, now)
    settings = state.settings
    expire = state.now_ns + int(min(settings.lease_duration, settings.offer_confirm) * SECOND)
    lease = Lease(record=record, expire_ns=expire, poll_id=poll_id, news_ns=state.now_ns)
    task_locks.take(state, task, agent_id)
    changed = ("state", "attempt", "attempts_used", "lease")
    state.put_task(task, EVENT_KIND_TASK_STARTED, (*changed, "locks") if task.locks else changed)
    state.open_lease(lease)
    state.schedule(liveness.stall_deadline_ns(lease, task), task.task_id)
    return lease


def held(state: State, token: str) -> tuple[Lease, Task]:
    """The lease and task a genuine, current token speaks of, confirmed by being spoken of. The fence."""
    lease = check_token(state, token, state.caller)
    renew(state, lease, state.caller, state.now_ns)
    return lease, state.task(lease.task_id)


def check_token(state: State, token: str, caller: Caller) -> Lease:
    """The live lease that the token proves; LEASE_LOST or NOT_OWNER otherwise. Reads memory only."""
    lease_id = state.keyring.parse_lease_token(token)
    if lease_id is None:
        raise lease_lost("", 0, "its token is damaged or was not minted by this server")
    lease = state.leases.meant_by(lease_id)
    if lease is None:
        raise lease_lost(lease_id.task_id, lease_id.attempt, "the attempt has ended or was given to another agent")
    _check_speaker(state, lease_id, lease.agent_id, caller)
    return lease


def _check_speaker(state: State, lease_id: LeaseId, agent_id: str, caller: Caller) -> None:
    """NOT_OWNER where the caller is neither the attempt's program nor may speak for its agent."""
    if caller.lease == lease_id or (caller.kind is CallerKind.AGENT and caller.agent_id == agent_id):
        return
    speaking.check(state.find_agent(agent_id), agent_id, caller)


def told_of(state: State, token: str) -> TaskAttempt:
    """The attempt that a genuine token is of, also where it has ended; LEASE_LOST or NOT_OWNER otherwise.

    For what is true of an attempt whatever became of it. It is never a leave to change its task: that is `held`.
    """
    lease_id = state.keyring.parse_lease_token(token)
    if lease_id is None:
        raise lease_lost("", 0, "its token is damaged or was not minted by this server")
    lease = state.leases.by_task.get(lease_id.task_id)
    record = lease.record if lease is not None else None
    if record is None or record.attempt != lease_id.attempt:
        record = state.find_attempt(lease_id.task_id, lease_id.attempt)
    # A task that was deleted and made again under its id counts its attempts from 1 again.
    if record is None or timestamp_ns(record.start_time) != lease_id.start_ns:
        raise lease_lost(lease_id.task_id, lease_id.attempt, "its task was deleted")
    _check_speaker(state, lease_id, record.agent_id, state.caller)
    return record


def renew(state: State, lease: Lease, caller: Caller, now_ns: int) -> bool:
    """A sign of life: the lease lives for another full duration. Not by a program, whose agent may be gone."""
    if caller.kind is CallerKind.PROGRAM:
        return False
    lease.confirmed = True
    lease.expire_ns = now_ns + int(state.settings.lease_duration * SECOND)
    return True


def lease_lost(task_id: str, attempt: int, why: str) -> KapellError:
    """The refusal that tells a worker to stop and forget the task."""
    return KapellError(
        ERROR_REASON_LEASE_LOST,
        f"The lease is lost: {why}. Stop working on the task and discard its result.",
        metadata={"task_id": task_id, "attempt": str(attempt)} if task_id else None,
    )


def directive(task: Task) -> LeaseDirective.ValueType:
    """What the agent of a leased task is to do about it."""
    if task.state == TASK_STATE_CANCELLING:
        return LEASE_DIRECTIVE_CANCEL
    return LEASE_DIRECTIVE_PAUSE if task.HasField("pause") else LEASE_DIRECTIVE_CONTINUE


def report_progress(state: State, request: ReportProgressRequest) -> Task:
    """Records what the attempt says of itself."""
    lease, task = held(state, request.lease_token)
    return note_progress(state, lease, task, request.progress)


def note_progress(state: State, lease: Lease, current: Task, progress: TaskProgress) -> Task:
    """Puts new progress; the same again changes nothing and is no news."""
    progress = use.redactor(state, current, lease.agent_id).message(progress)
    if current.progress == progress or current.state != TASK_STATE_RUNNING:
        return current
    liveness.note_news(state, lease)
    task = copied(current)
    task.progress.CopyFrom(progress)
    return state.put_task(task, EVENT_KIND_TASK_PROGRESS, ("progress",))


def note_waiting(state: State, lease: Lease, current: Task, waiting: AttemptWait) -> Task:
    """Puts what the attempt waits for, nothing where that is empty; the same again changes nothing."""
    liveness.note_waiting(state, lease, waiting.kind)
    waiting = use.redactor(state, current, lease.agent_id).message(waiting)
    if current.waiting == waiting:
        return current
    # The lease may not know of a wait from before a restart; the agent's row does.
    state.busy_agents.add(lease.agent_id)
    task = copied(current)
    task.ClearField("waiting")
    if waiting.kind:
        task.waiting.CopyFrom(waiting)
    return state.put_task(task, EVENT_KIND_TASK_PROGRESS, ("waiting",))


def complete(state: State, request: CompleteTaskRequest) -> Task:
    """The attempt succeeded; a cancel that came first wins, a timeout that came first loses."""
    done = _ended_by(state, request.lease_token)
    if done is not None and done.state in (TASK_STATE_SUCCEEDED, TASK_STATE_CANCELLED):
        return done
    lease, current = held(state, request.lease_token)
    if request.result.ByteSize() > state.settings.max_content_bytes:
        limit = state.settings.max_content_bytes
        raise KapellError(
            ERROR_REASON_REQUEST_INVALID,
            f"result is too large: {request.result.ByteSize()} bytes, at most {limit} are allowed. "
            "Write it to a file and return its path.",
            violations=(("result", f"must be at most {limit} bytes"),),
        )
    if current.state == TASK_STATE_CANCELLING and not current.HasField("failure"):
        return _end(state, lease, current, ATTEMPT_STATE_CANCELLED, None)
    content = b""
    if request.HasField("result"):
        result = use.redactor(state, current, lease.agent_id).message(request.result)
        content = Task(result=result).SerializeToString()
    return _end(state, lease, current, ATTEMPT_STATE_SUCCEEDED, None, result=content)


def fail(state: State, request: FailTaskRequest) -> Task:
    """The attempt failed: tried again, failed for good, or, where cancelling was asked for, cancelled."""
    done = _ended_by(state, request.lease_token)
    if done is not None and done.HasField("failure"):
        masked = use.redactor(state, done, "").message(request.failure)
        if done.failure in (request.failure, masked):
            return done
    lease, current = held(state, request.lease_token)
    request = use.redactor(state, current, lease.agent_id).message(request)
    if request.HasField("rate_limited") and current.state == TASK_STATE_RUNNING:
        limit = request.rate_limited
        return _end(state, lease, current, ATTEMPT_STATE_RELEASED, request.failure, limit=limit)
    return end_failed(state, lease, current, request.failure, delay_ns=duration_ns(request.retry_delay))


def release(state: State, request: ReleaseTaskRequest) -> Task:
    """Hands an untouched task back; the attempt does not count."""
    lease, current = held(state, request.lease_token)
    return end_released(state, lease, current)


def end_parked(state: State, lease: Lease, current: Task, approval_id: str, resume_data: Struct | None) -> Task:
    """Takes back an attempt that waits for an approval: the task goes on, perhaps elsewhere, when it was decided."""
    assert current.state == TASK_STATE_RUNNING, "only a running attempt is parked"
    record = copied(lease.record)
    record.state = ATTEMPT_STATE_RELEASED
    stamp(record.end_time, state.now_ns)
    state.close_lease(lease, record, worked=True)
    task = _let_go(current)
    task.ClearField("parked")
    task.attempts_used -= 1
    task.parked.approval_id = approval_id
    if resume_data is not None:
        task.parked.resume_data.CopyFrom(resume_data)
    task.state = TASK_STATE_AWAITING_APPROVAL
    task.state_reason = "its agent has parked it until an approval is decided"
    stamp(task.state_time, state.tick_ns())
    return state.put_task(task, EVENT_KIND_TASK_REQUEUED, ("state", "lease", "attempts_used", "parked"))


def _ended_by(state: State, token: str) -> Task | None:
    """The task whose latest attempt this genuine token is of, where that attempt has ended."""
    lease_id = state.keyring.parse_lease_token(token)
    if lease_id is None or lease_id.task_id in state.leases.by_task:
        return None
    task = state.find_task(lease_id.task_id)
    if task is None or task.attempt != lease_id.attempt or timestamp_ns(task.create_time) > lease_id.start_ns:
        return None
    return task


def end_failed(
    state: State, lease: Lease, current: Task, failure: TaskFailure, *, delay_ns: int = 0, lost: bool = False
) -> Task:
    """Ends the attempt by a failure; `lost` where the agent did not say so itself."""
    if current.state == TASK_STATE_CANCELLING:
        if not current.HasField("failure"):
            return _end(state, lease, current, ATTEMPT_STATE_CANCELLED, None, by_token=not lost)
        failure = current.failure
        if failure.reason == _PROVIDER_WAIT and not lost:
            limit = _pause_of(state, current)
            return _end(state, lease, current, ATTEMPT_STATE_RELEASED, failure, limit=limit)
    attempt_state = ATTEMPT_STATE_LOST if lost else ATTEMPT_STATE_FAILED
    return _end(state, lease, current, attempt_state, failure, delay_ns=delay_ns, by_token=not lost)


def end_released(state: State, lease: Lease, current: Task) -> Task:
    """Takes back an attempt that was never worked on."""
    if current.state == TASK_STATE_CANCELLING and not current.HasField("failure"):
        return _end(state, lease, current, ATTEMPT_STATE_CANCELLED, None)
    if current.state == TASK_STATE_CANCELLING:
        return end_failed(state, lease, current, current.failure)
    return _end(state, lease, current, ATTEMPT_STATE_RELEASED, None)


def _pause_of(state: State, current: Task) -> ProviderRateLimit:
    """How long a task stays away from the provider that it has waited for."""
    limit = ProviderRateLimit(provider="its provider")
    wait_ns = timestamp_ns(current.waiting.until_time) - state.now_ns
    set_duration(limit.reset_after, max(wait_ns, _PROVIDER_PAUSE))
    return limit


def _end(
    state: State,
    lease: Lease,
    current: Task,
    attempt_state: AttemptState.ValueType,
    failure: TaskFailure | None,
    *,
    result: bytes = b"",
    delay_ns: int = 0,
    limit: ProviderRateLimit | None = None,
    by_token: bool = True,
) -> Task:
    """Closes the lease and moves the task on. The one place where an attempt ends."""
    record = TaskAttempt()
    record.CopyFrom(lease.record)
    record.state = attempt_state
    stamp(record.end_time, state.now_ns)
    task = _let_go(current)
    now = state.tick_ns()
    stamp(task.state_time, now)
    if failure is not None:
        record.failure.CopyFrom(failure)
        task.failure.CopyFrom(failure)
    state.close_lease(lease, record, worked=limit is not None)
    if attempt_state != ATTEMPT_STATE_RELEASED:
        task.ClearField("parked")
    if attempt_state == ATTEMPT_STATE_SUCCEEDED:
        return _finish_succeeded(state, task, result)
    if attempt_state == ATTEMPT_STATE_CANCELLED:
        task.state = TASK_STATE_CANCELLED
        return _finish(state, task, EVENT_KIND_TASK_CANCELLED, ("state", "lease"))
    if attempt_state == ATTEMPT_STATE_RELEASED:
        task.attempts_used -= 1
        if limit is not None:
            return _park_for_provider(state, task, limit)
        task.state_reason = "handed back by its agent" if by_token else "the offer was not taken up"
        return _requeue(state, task, now, 0)
    assert failure is not None, "a failed or lost attempt has a failure"
    if not retry.may_retry(task, failure):
        task.state = TASK_STATE_FAILED
        task.state_reason = failure.message
        return _finish(state, task, EVENT_KIND_TASK_FAILED, ("state", "lease", "failure"))
    task.state_reason = failure.message
    if attempt_state != ATTEMPT_STATE_LOST:
        delay_ns = max(delay_ns, retry.backoff_ns(task.retry_policy, task.attempts_used, state.random))
    return _requeue(state, task, now, delay_ns)


def _let_go(current: Task) -> Task:
    """A copy of a task whose attempt ends, without what it had of its agent; it stays as old as it is to its keys."""
    task = copied(current)
    task.ClearField("lease")
    task.ClearField("waiting")
    task.ClearField("pause")
    task_locks.given_back(task)
    if task.concurrency_keys and not task.HasField("first_queue_time"):
        task.first_queue_time.CopyFrom(task.queue_time)
    return task


def _finish_succeeded(state: State, task: Task, result: bytes) -> Task:
    task.state = TASK_STATE_SUCCEEDED
    task.ClearField("failure")
    task.ClearField("state_reason")
    task.progress.fraction = 1.0
    if result:
        content = state.content(task.task_id) + result
        task.content_bytes = len(content)
        state.put_content(task.task_id, content)
    return _finish(state, task, EVENT_KIND_TASK_COMPLETED, ("state", "lease", "progress"))


def _finish(state: State, task: Task, kind: EventKind.ValueType, changed: tuple[str, ...]) -> Task:
    stamp(task.end_time, state.now_ns)
    state.put_task(task, kind, changed)
    state.drop_content(task.task_id)
    return task


def _requeue(state: State, task: Task, now: int, delay_ns: int) -> Task:
    """The task goes back to its queue, perhaps after a pause; not where its total time is over already."""
    changed = ("state", "lease", "attempts_used", "failure", "waiting_on")
    if 0 < deadlines.total_deadline_ns(task) <= state.now_ns:
        task.failure.CopyFrom(TaskFailure(reason="TOTAL_TIMEOUT", message=TOTAL_IS_OVER, retryable=False))
        task.state = TASK_STATE_FAILED
        task.state_reason = TOTAL_IS_OVER
        return _finish(state, task, EVENT_KIND_TASK_FAILED, changed)
    if delay_ns > 0:
        task.state = TASK_STATE_PENDING
        wait = task.waiting_on.add(kind=WAIT_KIND_RETRY_BACKOFF)
        stamp(wait.until_time, state.now_ns + delay_ns)
    else:
        task.state = TASK_STATE_QUEUED
        stamp(task.queue_time, now)
    state.put_task(task, EVENT_KIND_TASK_REQUEUED, changed)
    return task


def _park_for_provider(state: State, task: Task, limit: ProviderRateLimit) -> Task:
    """The task waits until its provider takes calls again; only its total timeout bounds how often."""
    reset_ns = state.now_ns + duration_ns(limit.reset_after)
    task.state = TASK_STATE_PENDING
    task.state_reason = f"{limit.provider} has limited its calls"
    task.rate_limited_count += 1
    wait = task.waiting_on.add(kind=WAIT_KIND_PROVIDER_RATE_LIMIT, provider=limit.provider)
    stamp(wait.until_time, reset_ns)
    changed = ("state", "lease", "attempts_used", "failure", "waiting_on", "rate_limited_count")
    return state.put_task(task, EVENT_KIND_TASK_REQUEUED, changed)


def wake(state: State, current: Task) -> None:
    """Nothing hinders a PENDING task any more: it is runnable."""
    task = copied(current)
    now = state.tick_ns()
    task.state = TASK_STATE_QUEUED
    task.ClearField("waiting_on")
    stamp(task.queue_time, now)
    stamp(task.state_time, now)
    state.put_task(task, EVENT_KIND_TASK_QUEUED, ("state", "waiting_on"))


def fail_waiting(state: State, current: Task, failure: TaskFailure) -> Task:
    """Fails a task that no agent has, for good."""
    task = copied(current)
    task.failure.CopyFrom(failure)
    task.state_reason = failure.message
    stamp(task.state_time, state.tick_ns())
    task.state = TASK_STATE_FAILED
    task.ClearField("waiting_on")
    return _finish(state, task, EVENT_KIND_TASK_FAILED, ("state", "failure"))


def cancel_waiting(state: State, current: Task, reason: str, *, skipped: bool = False) -> Task:
    """Cancels a task that no agent has; `skipped` marks one that was not needed."""
    task = copied(current)
    task.ClearField("failure")
    task.ClearField("waiting_on")
    task.state = TASK_STATE_CANCELLED
    task.state_reason = reason
    task.skipped = skipped
    stamp(task.state_time, state.tick_ns())
    changed = ["state", "state_reason"]
    changed += [name for name in ("failure", "waiting_on", "skipped") if getattr(current, name) != getattr(task, name)]
    return _finish(state, task, EVENT_KIND_TASK_CANCELLED, tuple(changed))


def end_unconfirmed(state: State, lease: Lease, task: Task) -> Task:
    """Takes back an offer of which the agent has never spoken."""
    if task.state == TASK_STATE_CANCELLING:
        return end_released(state, lease, task)
    return _end(state, lease, task, ATTEMPT_STATE_RELEASED, None, by_token=False)
