"""How states look: the one table of their words, marks and colours.

Keyed by the names of the proto enums, so that the table can be read without the stubs. A test
proves that it knows every value. Colours are names of `terminal.CODES`; each state has a word
and a mark besides its colour.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Look:
    """One state: its word in tables and `--state`, its mark on a terminal, its colour, whether it is final."""

    word: str
    mark: str
    colour: str
    final: bool = False


UNKNOWN = Look("unknown", "?", "plain")

TASK_STATES = {
    "TASK_STATE_PENDING": Look("pending", "◔", "dim"),
    "TASK_STATE_AWAITING_APPROVAL": Look("awaiting approval", "◔", "yellow"),
    "TASK_STATE_QUEUED": Look("queued", "○", "plain"),
    "TASK_STATE_RUNNING": Look("running", "●", "cyan"),
    "TASK_STATE_CANCELLING": Look("cancelling", "◍", "yellow"),
    "TASK_STATE_SUCCEEDED": Look("succeeded", "✓", "green", final=True),
    "TASK_STATE_FAILED": Look("failed", "✗", "red", final=True),
    "TASK_STATE_CANCELLED": Look("cancelled", "⊘", "dim", final=True),
}

ATTEMPT_STATES = {
    "ATTEMPT_STATE_RUNNING": Look("running", "●", "cyan"),
    "ATTEMPT_STATE_SUCCEEDED": Look("succeeded", "✓", "green", final=True),
    "ATTEMPT_STATE_FAILED": Look("failed", "✗", "red", final=True),
    "ATTEMPT_STATE_LOST": Look("lost", "!", "red", final=True),
    "ATTEMPT_STATE_RELEASED": Look("released", "↩", "dim", final=True),
    "ATTEMPT_STATE_CANCELLED": Look("cancelled", "⊘", "dim", final=True),
}

BUDGET_STATES = {
    "BUDGET_STATE_OPEN": Look("open", "●", "green"),
    "BUDGET_STATE_STOPPED": Look("stopped", "■", "red"),
    "BUDGET_STATE_AWAITING_APPROVAL": Look("asks", "?", "yellow"),
}

ALERT_STATES = {
    "ALERT_STATE_FIRING": Look("firing", "▲", "red"),
    "ALERT_STATE_ACKNOWLEDGED": Look("noted", "△", "yellow"),
    "ALERT_STATE_RESOLVED": Look("resolved", "✓", "dim", final=True),
}

DELIVERY_STATES = {
    "WEBHOOK_DELIVERY_STATE_PENDING": Look("pending", "◔", "plain"),
    "WEBHOOK_DELIVERY_STATE_DELIVERED": Look("delivered", "✓", "green", final=True),
    "WEBHOOK_DELIVERY_STATE_FAILED": Look("failed", "✗", "red", final=True),
}

AGENT_STATES = {
    "AGENT_STATE_PENDING": Look("pending", "◔", "dim"),
    "AGENT_STATE_STARTING": Look("starting", "◔", "yellow"),
    "AGENT_STATE_ACTIVE": Look("active", "●", "green"),
    "AGENT_STATE_DRAINING": Look("draining", "◍", "yellow"),
    "AGENT_STATE_TERMINATING": Look("terminating", "◍", "yellow"),
    "AGENT_STATE_TERMINATED": Look("terminated", "⊘", "dim", final=True),
    "AGENT_STATE_FAILED": Look("failed", "✗", "red", final=True),
    "AGENT_STATE_LOST": Look("lost", "!", "red"),
}

ATTEMPT_WAITS = {
    "ATTEMPT_WAIT_KIND_APPROVAL": "approval",
    "ATTEMPT_WAIT_KIND_LOCK": "a lock",
    "ATTEMPT_WAIT_KIND_PROVIDER": "the provider",
    "ATTEMPT_WAIT_KIND_BUDGET": "room in a budget",
}

AGENT_ACTIVITIES = {
    "AGENT_ACTIVITY_UNSPECIFIED": Look("-", "", "dim"),
    "AGENT_ACTIVITY_IDLE": Look("idle", "", "dim"),
    "AGENT_ACTIVITY_WORKING": Look("working", "", "cyan"),
    "AGENT_ACTIVITY_SILENT": Look("silent", "", "red"),
    "AGENT_ACTIVITY_WAITING_FOR_APPROVAL": Look("needs approval", "", "yellow"),
    "AGENT_ACTIVITY_WAITING_FOR_LOCK": Look("waits for lock", "", "yellow"),
    "AGENT_ACTIVITY_RATE_LIMITED": Look("rate limited", "", "yellow"),
    "AGENT_ACTIVITY_STALLED": Look("stalled", "", "red"),
    "AGENT_ACTIVITY_NOT_POLLING": Look("not polling", "", "red"),
    "AGENT_ACTIVITY_FINISHED_NOT_REPORTED": Look("not reported", "", "red"),
    "AGENT_ACTIVITY_WAITING_FOR_BUDGET": Look("waits for budget", "", "yellow"),
}

QUEUE_STATES = {
    "QUEUE_STATE_OPEN": Look("open", "●", "green"),
    "QUEUE_STATE_PAUSED": Look("paused", "‖", "yellow"),
    "QUEUE_STATE_DRAINING": Look("draining", "◍", "yellow"),
}

TASK_WORDS = tuple(look.word for look in TASK_STATES.values())
AGENT_WORDS = tuple(look.word for look in AGENT_STATES.values())


def state_name(table: dict[str, Look], word: str) -> str:
    """The enum name that a word of `--state` stands for. KeyError for a word that is not in the table."""
    for name, look in table.items():
        if look.word == word:
            return name
    raise KeyError(word)


def task_look(state: int) -> Look:
    """The look of a `TaskState`."""
    from kapell.v1.task_pb2 import TaskState

    return TASK_STATES.get(_name(TaskState, state), UNKNOWN)


def attempt_look(state: int) -> Look:
    """The look of an `AttemptState`."""
    from kapell.v1.task_pb2 import AttemptState

    return ATTEMPT_STATES.get(_name(AttemptState, state), UNKNOWN)


def agent_look(state: int) -> Look:
    """The look of an `AgentState`."""
    from kapell.v1.agent_pb2 import AgentState

    return AGENT_STATES.get(_name(AgentState, state), UNKNOWN)


def queue_look(state: int) -> Look:
    """The look of a `QueueState`."""
    from kapell.v1.queue_pb2 import QueueState

    return QUEUE_STATES.get(_name(QueueState, state), UNKNOWN)


def activity_look(activity: int) -> Look:
    """The look of an `AgentActivity`."""
    from kapell.v1.agent_pb2 import AgentActivity

    return AGENT_ACTIVITIES.get(_name(AgentActivity, activity), UNKNOWN)


def attempt_wait(kind: int) -> str:
    """What an `AttemptWaitKind` waits for, in words."""
    from kapell.v1.task_pb2 import AttemptWaitKind

    return ATTEMPT_WAITS.get(_name(AttemptWaitKind, kind), "something else")


def event_name(kind: int) -> str:
    """An `EventKind` as people write it: EVENT_KIND_TASK_COMPLETED is "task.completed"."""
    from kapell.v1.watch_pb2 import EventKind

    return _name(EventKind, kind).removeprefix("EVENT_KIND_").lower().replace("_", ".", 1)


def _name(enum: object, value: int) -> str:
    """The value's name; a number the stubs do not know yet (a newer server) as digits."""
    try:
        name: str = enum.Name(value)  # type: ignore[attr-defined]
    except ValueError:
        return str(value)
    return name
