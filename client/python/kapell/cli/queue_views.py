"""How queues, limits and the reasons why a task is not running are shown: their columns and cards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kapell.cli import states, times
from kapell.cli.output import View
from kapell.cli.table import Cell, Column

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

    from kapell.v1.queue_pb2 import ConcurrencyLimit, Queue, QueueStats, StartRate
    from kapell.v1.task_pb2 import Blocker, ExplainTaskResponse

_MOST_WHO = 3
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def rate_text(rate: StartRate) -> str:
    """A rate as it is typed: "10/1m"."""
    period = rate.period.seconds + rate.period.nanos / 1e9
    for size, unit in _UNITS:
        if period >= size and period % size == 0:
            return f"{rate.count}/{period / size:.0f}{unit}"
    return f"{rate.count}/{period:g}s"


def queue_state(queue: Queue) -> Cell:
    """Mark, word and colour of a queue's state."""
    look = states.queue_look(queue.state)
    return Cell(look.word, look.colour, look.mark)


def queue_limits(queue: Queue) -> str:
    """What was set for a queue, in words; empty where nothing was."""
    parts = [f"{queue.max_running} at a time"] if queue.HasField("max_running") else []
    if queue.HasField("start_rate"):
        parts.append(f"starts {rate_text(queue.start_rate)}")
    return ", ".join(parts)


def queue_event(queue: Queue) -> str:
    """How a queue is after a change."""
    return "  ".join(part for part in (states.queue_look(queue.state).word, queue_text(queue)) if part)


def queue_text(queue: Queue) -> str:
    """Why a queue is as it is, and what was set for it."""
    return "  ".join(part for part in (queue.state_reason, queue_limits(queue)) if part)


def _age(duration: Duration) -> str:
    return times.short(duration.seconds + duration.nanos / 1e9)


def _running(stats: QueueStats) -> str:
    """As in "3", or "3/4" where only so many may."""
    return f"{stats.running}/{stats.queue.max_running}" if stats.queue.HasField("max_running") else str(stats.running)


def _rate(per_second: float) -> str:
    return "0" if per_second == 0 else f"{per_second:.1f}" if per_second < 100 else f"{per_second:.0f}"


QUEUES = View(
    columns=(
        Column("TYPE", lambda s: s.queue.agent_type, flexible=True),
        Column("STATE", lambda s: queue_state(s.queue)),
        Column("DEPTH", lambda s: str(s.depth), right=True),
        Column("BLOCKED", lambda s: str(s.blocked), right=True),
        Column("RUNNING", _running, right=True),
        Column("OLDEST", lambda s: _age(s.oldest_age) if s.HasField("oldest_age") else "-", right=True),
        Column("ADD/S", lambda s: _rate(s.add_rate), right=True),
        Column("OUT/S", lambda s: _rate(s.dispatch_rate), right=True),
        Column("AGENTS", lambda s: str(s.agents), right=True),
        Column("FREE", lambda s: str(s.free_slots), right=True),
        Column("RATE", lambda s: rate_text(s.queue.start_rate) if s.queue.HasField("start_rate") else "-", wide=True),
        Column("WHY", lambda s: s.queue.state_reason or "-", wide=True),
    ),
    id=lambda s: s.queue.agent_type,
)
"""Of QueueStats."""


def queue_name(queue: Queue) -> str:
    """A queue's agent type; that of all is told in words."""
    return "all types" if queue.agent_type == "*" else queue.agent_type


SETTINGS = View(
    columns=(
        Column("TYPE", lambda q: q.agent_type),
        Column("STATE", queue_state),
        Column("LIMITS", lambda q: queue_limits(q) or "-"),
        Column("WHY", lambda q: q.state_reason or "-", flexible=True),
    ),
    id=lambda q: q.agent_type,
    brief=(
        Column("STATE", queue_state),
        Column("TYPE", queue_name),
        Column("WHAT", queue_text, flexible=True),
    ),
)
"""Of Queue, after a change."""


def strategy_word(limit: ConcurrencyLimit) -> str:
    """What happens to tasks beyond the limit, as it is typed."""
    from kapell.v1.queue_pb2 import CONCURRENCY_STRATEGY_WAIT, ConcurrencyStrategy

    name = ConcurrencyStrategy.Name(limit.strategy or CONCURRENCY_STRATEGY_WAIT)
    return name.removeprefix("CONCURRENCY_STRATEGY_").lower().replace("_", "-")


def limit_max(limit: ConcurrencyLimit) -> int:
    """How many tasks run at a time; 1 where it was not said."""
    return limit.max_running if limit.HasField("max_running") else 1


def limit_text(limit: ConcurrencyLimit) -> str:
    """What a limit says, in words."""
    parts = [f"{limit_max(limit)} at a time, others {_STRATEGY_TEXT[strategy_word(limit)]}"]
    if limit.HasField("start_rate"):
        parts.append(f"starts {rate_text(limit.start_rate)}")
    return ", ".join(parts)


_STRATEGY_TEXT = {
    "wait": "wait",
    "cancel-in-progress": "cancel the oldest",
    "cancel-newest": "are cancelled",
    "skip": "are skipped",
}

LIMITS = View(
    columns=(
        Column("KEY", lambda item: Cell(item.key)),
        Column("MAX", lambda item: str(limit_max(item)), right=True),
        Column("RUNNING", lambda item: str(item.running), right=True),
        Column("QUEUED", lambda item: str(item.queued), right=True),
        Column("STRATEGY", strategy_word),
        Column("RATE", lambda item: rate_text(item.start_rate) if item.HasField("start_rate") else "-", right=True),
        Column("DESCRIPTION", lambda item: item.description, flexible=True),
        Column("SET", lambda item: times.age(item.update_time), wide=True, right=True),
    ),
    id=lambda item: item.key,
    brief=(
        Column("KEY", lambda item: Cell(item.key)),
        Column("WHAT", limit_text, flexible=True),
    ),
)


def blocker_word(blocker: Blocker) -> str:
    """The kind of a blocker: "concurrency limit"; a number for one of a newer server."""
    from kapell.v1.task_pb2 import WaitKind

    try:
        return WaitKind.Name(blocker.kind).removeprefix("WAIT_KIND_").lower().replace("_", " ")
    except ValueError:
        return str(blocker.kind)


BLOCKERS = View(
    columns=(
        Column("REASON", blocker_word),
        Column("WHAT", lambda b: b.message),
        Column("WHO", lambda b: ",".join(b.blocked_by) or "-"),
        Column("SINCE", lambda b: times.iso(b.since_time) or "-"),
        Column("UNTIL", lambda b: times.iso(b.until_time) or "-"),
    ),
    id=lambda b: blocker_word(b),
)
"""On a pipe, or wide."""


def blocker_detail(blocker: Blocker) -> str:
    """Who is in the way, since and until when, for people; empty where nothing of it is known."""
    first, more = list(blocker.blocked_by[:_MOST_WHO]), len(blocker.blocked_by) - _MOST_WHO
    parts = [
        ", ".join(first) + (f" and {more} more" if more > 0 else ""),
        f"for {times.age(blocker.since_time)}" if blocker.HasField("since_time") else "",
        f"until {times.local(blocker.until_time)}" if blocker.HasField("until_time") else "",
    ]
    return ", ".join(part for part in parts if part)


def blocker_command(blocker: Blocker) -> str:
    """The command that looks at a budget in the way, where one is; its message does not say it."""
    if blocker_word(blocker) != "budget" or not blocker.blocked_by:
        return ""
    return f"kapell budget resume {blocker.blocked_by[0].removeprefix('budget_')}"


def place(explanation: ExplainTaskResponse) -> str:
    """Where a task stands among those that could run; empty where it is not among them."""
    return f"{explanation.position}{'+' * explanation.position_at_least}" if explanation.position else ""


EXPLANATIONS = View(
    columns=(
        Column("ID", lambda e: Cell(e.task.task_id)),
        Column("POSITION", lambda e: place(e) or "-", right=True),
        Column("SUMMARY", lambda e: e.summary, flexible=True),
    ),
    id=lambda e: e.task.task_id,
)
"""Of ExplainTaskResponse, where a program reads it."""
