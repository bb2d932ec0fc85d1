"""How tasks, attempts, agents, profiles and events are shown: their columns and cards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kapell.cli import states, times
from kapell.cli.approval_views import matches_text, state_cell
from kapell.cli.budget_views import alert_state, budget_state, budget_text
from kapell.cli.lock_views import lock_event, lock_state, session_state, ticket_event, ticket_state
from kapell.cli.output import View, as_data
from kapell.cli.queue_views import limit_max, limit_text, queue_event, queue_state
from kapell.cli.states import Look
from kapell.cli.table import Cell, Column, Line
from kapell.cli.workspace_views import place_text, workspace_text

if TYPE_CHECKING:
    from kapell.v1.agent_pb2 import Agent, AgentEvent, AgentProfile, AgentSpec
    from kapell.v1.event_pb2 import Event
    from kapell.v1.lock_pb2 import LockItem, TaskLock
    from kapell.v1.schedule_pb2 import Schedule
    from kapell.v1.task_pb2 import AttemptWait, Task, TaskAttempt, TaskEvent, TaskFailure
    from kapell.v1.template_pb2 import TemplateLock
    from kapell.v1.watch_pb2 import Actor

    AnyEvent = Event | TaskEvent | AgentEvent


_LONGEST_LINE = 60
_MOST_DEPENDENCIES = 8


def _look(look: Look) -> Cell:
    return Cell(look.word, look.colour, look.mark)


def task_state(task: Task) -> Cell:
    """Mark, word and colour of the task's state."""
    return _look(states.task_look(task.state))


def agent_state(agent: Agent) -> Cell:
    """Mark, word and colour of the agent's state."""
    return _look(states.agent_look(agent.state))


def _activity(agent: Agent) -> Cell:
    return _look(states.activity_look(agent.activity))


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as they are typed: "a=1,b=2", by key."""
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels))


def percent(task: Task) -> str:
    """The progress in percent; empty where the task cannot tell."""
    if not task.HasField("progress") or task.progress.fraction < 0:
        return ""
    return f"{task.progress.fraction * 100:.0f}%"


def _progress_text(task: Task) -> str:
    words = [percent(task), task.progress.step, task.progress.message]
    return "  ".join(word for word in words if word)


def failure_text(failure: TaskFailure) -> str:
    """A failure in one line: its reason and its words."""
    return ": ".join(part for part in (failure.reason, failure.message) if part)


def _actor(actor: Actor) -> str:
    return actor.id or "-"


def ran_for(item: Task | TaskAttempt) -> str:
    """How long it ran, or has been running; "-" before the start."""
    if not item.start_time.seconds:
        return "-"
    if item.end_time.seconds:
        return times.short(times.seconds_between(item.start_time, item.end_time))
    return times.age(item.start_time)


def _why(task: Task) -> str:
    """Why the task is where it is, in words."""
    said = [task.state_reason] if task.state_reason and task.state_reason != task.failure.message else []
    waits = [f"until {times.local(wait.until_time)}" for wait in task.waiting_on if wait.HasField("until_time")]
    if len(waits) < len(task.waiting_on):
        waits.insert(0, "for other tasks")
    if task.HasField("waiting"):
        waits.append(_waiting_text(task.waiting))
    elif task.HasField("pause"):
        waits.append(f"told to pause: {task.pause.reason}")
    return ", ".join([*said, *waits])


def _waiting_text(waiting: AttemptWait) -> str:
    """What a running attempt waits for: "waits for approval: merge it?, until 14:00"."""
    detail = f": {waiting.detail}" if waiting.detail else ""
    until = f", until {times.local(waiting.until_time)}" if waiting.HasField("until_time") else ""
    return f"waits for {states.attempt_wait(waiting.kind)}{detail}{until}"


def _dependencies(task: Task) -> str:
    """The tasks it depends on, each with its condition where that is not its success."""
    from kapell.v1.dependency_pb2 import DEPENDENCY_CONDITION_SUCCEEDED, DependencyCondition

    shown = []
    for entry in task.dependencies[:_MOST_DEPENDENCIES]:
        word = DependencyCondition.Name(entry.condition).removeprefix("DEPENDENCY_CONDITION_").lower()
        plain = entry.condition == DEPENDENCY_CONDITION_SUCCEEDED
        shown.append(entry.task_id if plain else f"{entry.task_id}:{word}")
    more = len(task.dependencies) - len(shown)
    return ", ".join([*shown, *([f"and {more} more"] if more else [])])


def _value_text(value: Any) -> str:
    """A result or input for eyes: text bare, everything else as JSON."""
    data = as_data(value)
    if isinstance(data, str):
        return data.rstrip("\n")
    line = json.dumps(data, ensure_ascii=False)
    return line if len(line) <= _LONGEST_LINE else json.dumps(data, indent=2, ensure_ascii=False)


def lock_text(lock: TaskLock | LockItem | TemplateLock) -> str:
    """A lock that is declared, in words: "shop/src", "shop/docs (shared)", with its token while it is held."""
    from kapell.v1.lock_pb2 import LOCK_MODE_SHARED

    shared = " (shared)" if lock.mode == LOCK_MODE_SHARED else ""
    token = getattr(lock, "fencing_token", 0)
    return f"{lock.path}{shared}{f', held with token {token}' if token else ''}"


def task_card(task: Task) -> list[Line]:
    """All that is worth knowing of a task, for `get`."""
    return [
        Line("Task", task.task_id),
        Line("Name", task.display_name),
        Line("State", task_state(task)),
        Line("Why", _why(task)),
        Line("Progress", _progress_text(task)),
        Line("Failure", Cell(failure_text(task.failure) if task.HasField("failure") else "", "red")),
        Line("Type", task.agent_type),
        Line("Template", f"{task.template_id}@{task.template_version}" if task.template_id else ""),
        Line("Parent", task.parent_task_id),
        Line("After", _dependencies(task)),
        Line("Schedule", task.schedule_id),
        Line("Priority", str(task.priority)),
        Line("Attempts", f"{task.attempts_used} of {task.retry_policy.max_attempts}"),
        Line("Retried", f"{task.retries} ×" if task.retries else ""),
        Line("Edited", f"yes; see kapell task edits {task.task_id}" if task.edited else ""),
        Line("Limited", f"{task.rate_limited_count} × by its provider" if task.rate_limited_count else ""),
        Line("Agent", task.lease.agent_id),
        Line("Labels", labels_text(task.labels)),
        Line("Fairness", task.fairness_key),
        Line("Concurrency", ", ".join(task.concurrency_keys)),
        Line("Locks", "\n".join(map(lock_text, task.locks))),
        Line("Workspace", "\n".join(map(workspace_text, task.workspaces))),
        Line("Skipped", "yes, it was not needed" if task.skipped else ""),
        Line("Created", times.local(task.create_time)),
        Line("Started", times.local(task.start_time)),
        Line("Ended", times.local(task.end_time)),
        Line("Ran for", ran_for(task) if task.start_time.seconds else ""),
        Line("Prompt", task.prompt.rstrip("\n")),
        Line("Input", _value_text(task.input) if task.HasField("input") else ""),
        Line("Result", _value_text(task.result) if task.HasField("result") else ""),
    ]


TASKS = View(
    columns=(
        Column("ID", lambda t: Cell(t.task_id)),
        Column("STATE", task_state),
        Column("NAME", lambda t: t.display_name, flexible=True),
        Column("TYPE", lambda t: t.agent_type, flexible=True),
        Column("PROGRESS", percent, wide=True, right=True),
        Column("PRIORITY", lambda t: str(t.priority), wide=True, right=True),
        Column("ATTEMPT", lambda t: f"{t.attempts_used}/{t.retry_policy.max_attempts}", wide=True, right=True),
        Column("AGENT", lambda t: t.lease.agent_id or "-", wide=True),
        Column("LABELS", lambda t: labels_text(t.labels) or "-", wide=True),
        Column("RAN", ran_for, wide=True, right=True),
        Column("AGE", lambda t: times.age(t.create_time), right=True),
    ),
    id=lambda t: t.task_id,
    card=task_card,
    brief=(
        Column("STATE", task_state),
        Column("ID", lambda t: Cell(t.task_id)),
        Column("NAME", lambda t: t.display_name, flexible=True),
    ),
)

ATTEMPTS = View(
    columns=(
        Column("ATTEMPT", lambda a: str(a.attempt), right=True),
        Column("STATE", lambda a: _look(states.attempt_look(a.state))),
        Column("AGENT", lambda a: a.agent_id),
        Column("RAN", ran_for, right=True),
        Column("FAILURE", lambda a: failure_text(a.failure) if a.HasField("failure") else "-", flexible=True),
        Column("STARTED", lambda a: times.iso(a.start_time), wide=True),
        Column("ENDED", lambda a: times.iso(a.end_time) or "-", wide=True),
    ),
    id=lambda a: str(a.attempt),
)

EDITS = View(
    columns=(
        Column("WHEN", lambda e: times.local(e.edit_time)),
        Column("BY", lambda e: _actor(e.editor)),
        Column("ROUND", lambda e: str(e.retry), right=True),
        Column("CHANGED", lambda e: ",".join(e.changed_fields)),
        Column("PROMPT BEFORE", lambda e: e.prompt if e.HasField("prompt") else "-", flexible=True),
        Column("INPUT BEFORE", lambda e: _value_text(e.input) if e.HasField("input") else "-", wide=True),
    ),
    id=lambda e: str(e.revision),
)


def command_text(spec: AgentSpec) -> str:
    """What a spec runs: its program and arguments, quoted for a shell, the model it asks, or its app in Python."""
    import shlex

    from kapell.rules.programs import program_of

    match spec.WhichOneof("runtime"):
        case "llm":
            return f"{spec.llm.model} at {spec.llm.base_url}"
        case "python":
            return spec.python.app
    program = program_of(spec)
    return shlex.join(program.argv) if program is not None else ""


def spawn_command(agent_type: str, profiles: Iterable[AgentProfile]) -> str:
    """The command that starts an agent for a type: from the first profile that serves it; else how to write one."""
    for profile in profiles:
        if agent_type in profile.spec.agent_types:
            return f"kapell agent spawn {profile.profile}"
    return "kapell agent spawn --help"


def agent_card(agent: Agent) -> list[Line]:
    """All that is worth knowing of an agent, for `get`."""
    return [
        Line("Agent", agent.agent_id),
        Line("Name", agent.display_name),
        Line("State", agent_state(agent)),
        Line("Why", agent.state_reason),
        Line("Activity", _activity(agent)),
        Line("Serves", ", ".join(agent.agent_types)),
        Line("Slots", f"{agent.slots_used} of {agent.slots_total} used"),
        Line("Tasks", "\n".join(agent.current_task_ids)),
        Line("Profile", agent.profile),
        Line("Runtime", agent.runtime),
        Line("Command", command_text(agent.spec) if agent.HasField("spec") else ""),
        Line("Directory", _directory(agent.spec)),
        Line("Workspace", place_text(agent.spec.workspace)),
        Line("Labels", labels_text(agent.labels)),
        Line("Process", str(agent.pid) if agent.pid else ""),
        Line("Exit", agent.exit.message or (f"exit code {agent.exit.code}" if agent.HasField("exit") else "")),
        Line("Restarts", _restarts(agent)),
        Line("Last heard", _ago(times.age(agent.last_heartbeat_time))),
        Line("Created", times.local(agent.create_time)),
        Line("Ended", times.local(agent.end_time)),
    ]


def _directory(spec: AgentSpec) -> str:
    from kapell.rules.programs import program_of

    program = program_of(spec)
    return program.working_directory if program is not None else ""


def _restarts(agent: Agent) -> str:
    """How often it was started again, and when it will be; empty where it never was."""
    if not agent.restart_count:
        return ""
    text = f"{agent.restart_count}, {agent.restarts_in_a_row} in a row"
    return f"{text}; next at {times.local(agent.next_start_time)}" if agent.HasField("next_start_time") else text


def _ago(age: str) -> str:
    return "" if age == "-" else f"{age} ago"


AGENTS = View(
    columns=(
        Column("ID", lambda a: Cell(a.agent_id)),
        Column("STATE", agent_state),
        Column("ACTIVITY", _activity),
        Column("NAME", lambda a: a.display_name, flexible=True),
        Column("SERVES", lambda a: ",".join(a.agent_types), flexible=True),
        Column("SLOTS", lambda a: f"{a.slots_used}/{a.slots_total}", right=True),
        Column("PROFILE", lambda a: a.profile or "-", wide=True),
        Column("RUNTIME", lambda a: a.runtime, wide=True),
        Column("PID", lambda a: str(a.pid) if a.pid else "-", wide=True, right=True),
        Column("HEARD", lambda a: times.age(a.last_heartbeat_time), wide=True, right=True),
        Column("LABELS", lambda a: labels_text(a.labels) or "-", wide=True),
        Column("AGE", lambda a: times.age(a.create_time), wide=True, right=True),
    ),
    id=lambda a: a.agent_id,
    card=agent_card,
    brief=(
        Column("STATE", agent_state),
        Column("ID", lambda a: Cell(a.agent_id)),
        Column("NAME", lambda a: a.display_name, flexible=True),
        Column("WHY", lambda a: a.state_reason, flexible=True),
    ),
)


def _pool(profile: AgentProfile) -> str:
    """How many agents there are by themselves; empty where they are spawned by hand."""
    if not profile.HasField("pool"):
        return ""
    idle = times.short(profile.pool.idle_stop.ToSeconds() or 300)
    return f"{profile.pool.min_agents} to {profile.pool.max_agents} agents, ended after {idle} without a task"


def _profile_card(profile: AgentProfile) -> list[Line]:
    return [
        Line("Profile", profile.profile),
        Line("For", profile.description),
        Line("Serves", ", ".join(profile.spec.agent_types)),
        Line("Slots", str(profile.spec.slots or 1)),
        Line("Pool", _pool(profile)),
        Line("Command", command_text(profile.spec)),
        Line("Workspace", place_text(profile.spec.workspace)),
    ]


PROFILES = View(
    columns=(
        Column("PROFILE", lambda p: p.profile),
        Column("SERVES", lambda p: ",".join(p.spec.agent_types)),
        Column("SLOTS", lambda p: str(p.spec.slots or 1), right=True),
        Column("COMMAND", lambda p: command_text(p.spec), flexible=True),
        Column("DESCRIPTION", lambda p: p.description, flexible=True),
    ),
    id=lambda p: p.profile,
    card=_profile_card,
)


def _task_of(event: AnyEvent) -> Task | None:
    """The task an event is about; None for the event of an agent."""
    fields = event.DESCRIPTOR.fields_by_name
    if "task" in fields and event.HasField("task"):  # type: ignore[arg-type]
        return event.task  # type: ignore[union-attr]
    return None


def _agent_of(event: AnyEvent) -> Agent:
    return event.agent  # type: ignore[union-attr]


def _schedule_state(schedule: Schedule) -> Cell:
    return Cell("paused" if schedule.paused else "on" if schedule.HasField("next_run_time") else "ended")


def _schedule_text(schedule: Schedule) -> str:
    """Its name, and why it is paused or what became of its last run."""
    run = schedule.last_run
    told = schedule.pause_reason if schedule.paused else run.message or run.task_id
    return "  ".join(part for part in (schedule.spec.display_name, told) if part)


# How the resources of events are shown that are neither tasks nor agents: id, state, words.
_OTHERS: dict[str, tuple[Callable[[Any], str], Callable[[Any], Cell], Callable[[Any], str]]] = {
    "template": (
        lambda template: template.template_id,
        lambda template: Cell(f"version {template.latest_version}"),
        lambda template: template.spec.display_name,
    ),
    "queue": (lambda queue: queue.agent_type, queue_state, queue_event),
    "schedule": (lambda schedule: schedule.schedule_id, _schedule_state, _schedule_text),
    "lock": (lambda lock: lock.lock_id, lock_state, lock_event),
    "ticket": (lambda ticket: ticket.ticket_id, ticket_state, ticket_event),
    "session": (lambda session: session.session_id, session_state, lambda session: session.display_name),
    "approval": (lambda approval: approval.approval_id, state_cell, lambda approval: approval.title),
    "approval_rule": (lambda rule: rule.rule_id, lambda rule: Cell("rule"), matches_text),
    "budget": (lambda budget: budget.budget_id, budget_state, budget_text),
    "alert": (lambda alert: alert.alert_id, alert_state, lambda alert: alert.message),
    "webhook": (lambda webhook: webhook.webhook_id, lambda webhook: Cell("on"), lambda webhook: webhook.spec.url),
    "limit": (lambda limit: limit.key, lambda limit: Cell(f"max {limit_max(limit)}"), limit_text),
}


def _other_of(event: AnyEvent) -> tuple[str, Any] | None:
    """The field and resource of an event that is about neither a task nor an agent; None for other events."""
    fields = event.DESCRIPTOR.fields_by_name
    for name in _OTHERS:
        if name in fields and event.HasField(name):  # type: ignore[arg-type]
            return name, getattr(event, name)
    return None


def event_subject(event: AnyEvent) -> str:
    """The id of what an event is about."""
    task, other = _task_of(event), _other_of(event)
    if other is not None:
        return _OTHERS[other[0]][0](other[1])
    return task.task_id if task is not None else _agent_of(event).agent_id


def _subject_state(event: AnyEvent) -> Cell:
    task, other = _task_of(event), _other_of(event)
    if other is not None:
        return _OTHERS[other[0]][1](other[1])
    return task_state(task) if task is not None else agent_state(_agent_of(event))


def event_text(event: AnyEvent) -> str:
    """What an event is about, in words: progress, failure, name."""
    task, other = _task_of(event), _other_of(event)
    if other is not None:
        return _OTHERS[other[0]][2](other[1])
    if task is None:
        agent = _agent_of(event)
        used = f"{agent.slots_used}/{agent.slots_total} slots"
        return "  ".join(part for part in (agent.display_name, used, agent.state_reason) if part)
    match states.event_name(event.kind):
        case "task.progress":
            return _progress_text(task)
        case "task.requeued" | "task.failed" if task.HasField("failure"):
            return failure_text(task.failure)
    return task.display_name


def _events(*columns: Column) -> View:
    return View(columns=columns, id=event_subject)


_REVISION = Column("REVISION", lambda e: str(e.revision), right=True, least=6)
_TIME = Column("TIME", lambda e: times.clock(e.event_time), least=8)
_ISO_TIME = Column("TIME", lambda e: times.iso(e.event_time))
_KIND = Column("EVENT", lambda e: states.event_name(e.kind), least=14)
_STATE = Column("STATE", _subject_state, least=12)
_SUBJECT = Column("ID", lambda e: Cell(event_subject(e)), least=31)
_TEXT = Column("WHAT", event_text, flexible=True)
_ACTOR = Column("BY", lambda e: _actor(e.actor), wide=True)
_FIELDS = Column("CHANGED", lambda e: ",".join(e.changed_fields) or "-", wide=True)

EVENTS = _events(_REVISION, _TIME, _KIND, _SUBJECT, _TEXT, _ACTOR, _FIELDS)
CHANGES = _events(_TIME, _STATE, _SUBJECT, _TEXT, _ACTOR, _FIELDS)
EVENTS_PIPED = _events(_REVISION, _ISO_TIME, _KIND, _SUBJECT, _STATE, _TEXT, _ACTOR, _FIELDS)


def events_view(*, is_tty: bool, changes: bool = False) -> View:
    """How events are shown: by revision and kind, or (`changes`) by state; on a pipe all, with full times."""
    if not is_tty:
        return EVENTS_PIPED
    return CHANGES if changes else EVENTS
