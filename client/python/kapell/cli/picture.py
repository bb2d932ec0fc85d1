"""What the server looked like at one moment, and what of it waits for a person; for `kapell status`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kapell.cli.approval_views import risk_cell
from kapell.cli.budget_views import budget_text, short_id
from kapell.cli.output import as_data
from kapell.cli.standing import Standing
from kapell.cli.states import agent_look, queue_look
from kapell.cli.terminal import cut
from kapell.cli.views import spawn_command

if TYPE_CHECKING:
    from kapell.v1.admin_pb2 import GetServerInfoResponse
    from kapell.v1.agent_pb2 import Agent, AgentProfile
    from kapell.v1.queue_pb2 import QueueStats
    from kapell.v1.task_pb2 import Task

MOST_COUNTED = 100
"""What is counted no further than this."""
_MOST_APPROVALS = 2


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the server looked like at one moment. `unserved` counts waiting tasks of types no agent takes.

    `stopped` are queues that are paused or draining.
    """

    info: GetServerInfoResponse
    address: str
    counts: dict[str, int]
    agents: list[Agent]
    running: list[Task]
    failed_lately: int
    unserved: dict[str, int]
    profiles: list[AgentProfile]
    stopped: list[QueueStats] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)

    def as_data(self) -> dict[str, Any]:
        """The picture for `-o json`: messages in proto JSON form."""
        return {
            "waitsForYou": [wait.text for wait in waits_for_you(self)],
            "server": as_data(self.info) | {"address": self.address},
            "taskCounts": self.counts,
            "agents": [as_data(agent) for agent in self.agents],
            "runningTasks": [as_data(task) for task in self.running],
            "stoppedQueues": [as_data(entry) | {"resumeCommand": _stopped(entry).command} for entry in self.stopped],
            **self.standing.as_data(),
        }


@dataclass(frozen=True)
class Wait:
    """One thing that waits for a person: in a sentence, and the command that helps."""

    text: str
    command: str


def waits_for_you(picture: Picture) -> list[Wait]:
    """What a person should look at, the most urgent first."""
    found = _asked(picture.standing)
    found += [_stopped(entry) for entry in picture.stopped]
    found += [
        Wait(
            f"{many(count, 'task')} of type {agent_type!r}: no agent serves it",
            spawn_command(agent_type, picture.profiles),
        )
        for agent_type, count in picture.unserved.items()
    ]
    if lost := _lost(picture):
        found.append(Wait(f"{many(lost, 'agent')} not heard of", "kapell agent list"))
    if failed := picture.failed_lately:
        found.append(Wait(f"{many(failed, 'failed task')} in the last hour", "kapell task list --state failed"))
    return found


def headline(picture: Picture) -> str:
    """All that waits for a person, in one line."""
    standing, parts = picture.standing, []
    if pending := standing.approvals_pending:
        parts.append(many(pending, "approval"))
    if stopped := len(standing.stopped_budgets):
        parts.append(many(stopped, "stopped budget"))
    if alerts := len(standing.other_alerts):
        parts.append(many(alerts, "alert"))
    if unserved := sum(picture.unserved.values()):
        parts.append(f"{many(unserved, 'task')} without an agent")
    for word in ("paused", "draining"):
        if count := sum(queue_look(entry.queue.state).word == word for entry in picture.stopped):
            parts.append(many(count, f"{word} queue"))
    if lost := _lost(picture):
        parts.append(many(lost, "lost agent"))
    if failed := picture.failed_lately:
        parts.append(many(failed, "failed task"))
    return f"Waits for you: {', '.join(parts)}." if parts else "Nothing waits for you."


def _asked(standing: Standing) -> list[Wait]:
    """Approvals, budgets that hold work back, and alerts."""
    found = [Wait(f"{one.title} (risk: {risk_cell(one).text})", "kapell approval list") for one in standing.approvals]
    if (more := standing.approvals_pending - _MOST_APPROVALS) > 0:
        found = [*found[:_MOST_APPROVALS], Wait(many(more, "more approval"), "kapell approval list")]
    found += [
        Wait(
            f"Budget {' '.join(budget_text(one).split())}: work waits",
            f"kapell budget resume {short_id(one.budget_id)}",
        )
        for one in standing.stopped_budgets
    ]
    alerts = standing.other_alerts
    if len(alerts) > 1:
        return [*found, Wait(f"{many(len(alerts), 'alert')}, the latest: {alerts[0].message}", "kapell alert list")]
    return found + [Wait(one.message, "kapell alert list") for one in alerts]


def _stopped(entry: QueueStats) -> Wait:
    queue, is_all = entry.queue, entry.queue.agent_type == "*"
    word = queue_look(queue.state).word
    which = "All queues are" if is_all else f"Queue {queue.agent_type!r} is"
    why = f": {cut(queue.state_reason, 40)}" if queue.state_reason else ""
    resume = "kapell queue resume" if is_all else f"kapell queue resume {queue.agent_type}"
    waiting = f" ({many(entry.depth, 'task')})" if entry.depth else ""
    return Wait(f"{which} {word}{why}{waiting}", resume)


def _lost(picture: Picture) -> int:
    return sum(agent_look(agent.state).word == "lost" for agent in picture.agents)


def many(count: int, noun: str) -> str:
    """A count and its noun, as in "1 task" or "100+ tasks"."""
    more = "+" if count >= MOST_COUNTED else ""
    return f"{count}{more} {noun}{'' if count == 1 else 's'}"
