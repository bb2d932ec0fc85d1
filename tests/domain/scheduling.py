"""A schedule in a World, and what to look at: shared by the tests of schedules as rules."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.schedule_pb2 import (
    CreateScheduleRequest,
    Schedule,
    ScheduleSpec,
)
from kapell.v1.task_pb2 import Task, TaskSpec
from kapell_server.domain.times import SECOND, timestamp_ns

from tests.domain.world import START_NS, World

MINUTE = Duration(seconds=60)
NONE = Duration()
HOUR = Duration(seconds=3600)
WHOLE = TaskSpec(agent_type="shell", prompt="tidy up", labels={"a": "b"})


def make(
    world: World, schedule_id: str = "schedule_a", task: TaskSpec = WHOLE, paused: bool = False, **spec: Any
) -> str:
    """A new schedule, every minute unless it says otherwise."""
    if "cron" not in spec:
        spec.setdefault("interval", MINUTE)
    request = CreateScheduleRequest(
        schedule_id=schedule_id, spec=ScheduleSpec(task=task, **spec), paused=paused, pause_reason="not yet"
    )
    made: Schedule = world.do(request)
    return made.schedule_id


def get(world: World, schedule_id: str = "schedule_a") -> Schedule:
    """The schedule as committed."""
    found = world.rows.standing["schedule", schedule_id]
    assert isinstance(found, Schedule)
    return found


def tasks(world: World) -> list[Task]:
    """Its tasks in order of creation."""
    return sorted(world.rows.tasks.values(), key=lambda task: task.task_id)


def counts(world: World) -> dict[str, int]:
    """The counters that are not zero."""
    fields = get(world).ListFields()
    return {field.name.removesuffix("_count"): value for field, value in fields if field.name.endswith("_count")}


def seconds(stamped: Timestamp) -> float:
    """Since the world began."""
    return (timestamp_ns(stamped) - START_NS) / SECOND


def names(world: World) -> list[str]:
    return [name for name in world.events if name.startswith("schedule.")]
