"""The part of rpc_table about schedules."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1 import schedule_pb2, task_pb2, template_pb2

from tests.rpc.rpc_cases import Case, Make
from tests.rpc.rpc_queues import drained
from tests.rpc.rpc_templates import template
from tests.rpc.scene import Ask, Scene

_NO_SCHEDULE = "schedule_nothing"
_NOON = Timestamp(seconds=1_800_000_000)


def spec(**fields: Any) -> schedule_pb2.ScheduleSpec:
    """A schedule that no test lives to see run."""
    said: dict[str, Any] = {"task": task_pb2.TaskSpec(agent_type="nobody", prompt="wait")}
    if "interval" not in fields:
        said["cron"] = "0 0 29 2 *"
    return schedule_pb2.ScheduleSpec(**{**said, **fields})


def schedule(scene: Scene, *, paused: bool = False, **fields: Any) -> str:
    """The id of a schedule that nobody else knows."""
    schedule_id = scene.name("schedule_s")
    request = schedule_pb2.CreateScheduleRequest(schedule_id=schedule_id, spec=spec(**fields), paused=paused)
    scene.ask("CreateSchedule", request)
    return schedule_id


def subject_of(message: Any) -> str:
    """The schedule that a request or an answer is about; empty for those of other services."""
    if message is None:
        return ""
    return str(getattr(getattr(message, "schedule", message), "schedule_id", ""))


def of_schedule(request: type[Any], **fields: Any) -> dict[str, Make]:
    """The refusal of every rpc about one schedule."""
    return {"SCHEDULE_NOT_FOUND": lambda scene: Ask(request(schedule_id=_NO_SCHEDULE, **fields))}


def _creation(scene: Scene, **fields: Any) -> Ask:
    return Ask(schedule_pb2.CreateScheduleRequest(schedule_id=scene.name("schedule_c"), spec=spec(**fields)))


def _update(schedule_id: str, *paths: str, etag: str = "", **fields: Any) -> Ask:
    mask = FieldMask(paths=paths or ["display_name"])
    said = spec(**{"display_name": "Other", **fields})
    return Ask(schedule_pb2.UpdateScheduleRequest(schedule_id=schedule_id, spec=said, update_mask=mask, etag=etag))


def _of_template(scene: Scene, **parameters: Any) -> task_pb2.TaskSpec:
    return task_pb2.TaskSpec(template=template(scene), parameters=parameters)


def _of_no_template() -> task_pb2.TaskSpec:
    return task_pb2.TaskSpec(template="nothing")


def _whose_template_changed(scene: Scene, *, deleted: bool) -> Ask:
    task = _of_template(scene, name="Ada")
    schedule_id = schedule(scene, task=task)
    if deleted:
        scene.ask("DeleteTemplate", template_pb2.DeleteTemplateRequest(template_id=task.template))
    else:
        changed = template_pb2.TemplateSpec(agent_type="nobody", prompt="no name any more")
        scene.ask("UpdateTemplate", template_pb2.UpdateTemplateRequest(template_id=task.template, spec=changed))
    return Ask(schedule_pb2.TriggerScheduleRequest(schedule_id=schedule_id))


def _page_of_another_filter(scene: Scene) -> Ask:
    for _ in range(2):
        schedule(scene)
    page = scene.ask("ListSchedules", schedule_pb2.ListSchedulesRequest(page_size=1))
    assert page.next_page_token
    other = schedule_pb2.ScheduleFilter(paused=True)
    return Ask(schedule_pb2.ListSchedulesRequest(page_token=page.next_page_token, filter=other))


def _preview(**fields: Any) -> Ask:
    return Ask(schedule_pb2.PreviewScheduleRequest(after_time=_NOON, **fields))


SCHEDULES: dict[str, Case] = {
    "CreateSchedule": Case(
        works=lambda scene: _creation(scene, time_zone="Europe/Berlin"),
        holds=lambda answer: (
            answer.schedule.revision == answer.revision
            and answer.schedule.HasField("next_run_time")
            and not answer.schedule.spec.task.prompt
        ),
        refused={
            "ID_TAKEN": lambda scene: Ask(schedule_pb2.CreateScheduleRequest(schedule_id=schedule(scene), spec=spec())),
            "REQUEST_INVALID: no such zone": lambda scene: _creation(scene, time_zone="Mars/Base"),
            "REQUEST_INVALID: a day that no month has": lambda scene: _creation(scene, cron="0 0 31 2 *"),
            "REQUEST_INVALID: over before it begins": lambda scene: _creation(scene, end_time=Timestamp(seconds=1)),
            "REQUEST_INVALID: a task that could be made once": lambda scene: _creation(
                scene, task=scene.spec(task_id="task_once")
            ),
            "QUEUE_DRAINING": lambda scene: _creation(scene, task=scene.spec(agent_type=drained(scene))),
            "TEMPLATE_NOT_FOUND": lambda scene: _creation(scene, task=_of_no_template()),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: _creation(scene, task=_of_template(scene)),
        },
        malformed=({"spec": {"interval": "0.5s", "task": {"agentType": "ok"}}}, "spec.interval"),
    ),
    "GetSchedule": Case(
        works=lambda scene: Ask(schedule_pb2.GetScheduleRequest(schedule_id=schedule(scene))),
        holds=lambda answer: answer.schedule.spec.task.prompt == "wait",
        refused=of_schedule(schedule_pb2.GetScheduleRequest),
        malformed=({}, "schedule_id"),
    ),
    "ListSchedules": Case(
        works=lambda scene: Ask(
            schedule_pb2.ListSchedulesRequest(
                filter=schedule_pb2.ScheduleFilter(schedule_ids=[schedule(scene)], paused=False)
            )
        ),
        holds=lambda answer: len(answer.schedules) == 1 and not answer.schedules[0].spec.task.prompt,
        refused={
            "PAGE_TOKEN_INVALID: damaged": lambda scene: Ask(
                schedule_pb2.ListSchedulesRequest(page_token="not-a-token")
            ),
            "PAGE_TOKEN_INVALID: of another filter": _page_of_another_filter,
        },
        malformed=({"pageSize": 1001}, "page_size"),
    ),
    "UpdateSchedule": Case(
        works=lambda scene: _update(schedule(scene), "display_name", "interval", interval=Duration(seconds=86400)),
        holds=lambda answer: (
            answer.schedule.spec.display_name == "Other" and answer.schedule.spec.WhichOneof("calendar") == "interval"
        ),
        refused={
            "SCHEDULE_NOT_FOUND": lambda scene: _update(_NO_SCHEDULE),
            "ETAG_MISMATCH": lambda scene: _update(schedule(scene), etag="other"),
            "REQUEST_INVALID: no calendar is left": lambda scene: _update(
                schedule(scene), "cron", interval=Duration(seconds=60)
            ),
            "TEMPLATE_NOT_FOUND": lambda scene: _update(schedule(scene), "task", task=_of_no_template()),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: _update(schedule(scene), "task", task=_of_template(scene)),
        },
        malformed=({"scheduleId": "schedule_a", "updateMask": "runCount"}, "update_mask"),
    ),
    "DeleteSchedule": Case(
        works=lambda scene: Ask(schedule_pb2.DeleteScheduleRequest(schedule_id=schedule(scene))),
        holds=lambda answer: answer.revision > 0,
        refused=of_schedule(schedule_pb2.DeleteScheduleRequest),
        malformed=({}, "schedule_id"),
    ),
    "PauseSchedule": Case(
        works=lambda scene: Ask(schedule_pb2.PauseScheduleRequest(schedule_id=schedule(scene), reason="holidays")),
        holds=lambda answer: answer.schedule.paused and not answer.schedule.HasField("next_run_time"),
        refused=of_schedule(schedule_pb2.PauseScheduleRequest),
        malformed=({"scheduleId": "schedule_a", "reason": "x" * 501}, "reason"),
    ),
    "ResumeSchedule": Case(
        works=lambda scene: Ask(schedule_pb2.ResumeScheduleRequest(schedule_id=schedule(scene, paused=True))),
        holds=lambda answer: not answer.schedule.paused and answer.schedule.HasField("next_run_time"),
        refused=of_schedule(schedule_pb2.ResumeScheduleRequest),
        malformed=({}, "schedule_id"),
    ),
    "TriggerSchedule": Case(
        works=lambda scene: Ask(schedule_pb2.TriggerScheduleRequest(schedule_id=schedule(scene))),
        holds=lambda answer: answer.task.schedule_id == answer.schedule.schedule_id and answer.schedule.run_count == 1,
        refused={
            **of_schedule(schedule_pb2.TriggerScheduleRequest),
            "TEMPLATE_NOT_FOUND": lambda scene: _whose_template_changed(scene, deleted=True),
            "TEMPLATE_PARAMETERS_INVALID": lambda scene: _whose_template_changed(scene, deleted=False),
        },
        malformed=({"scheduleId": "schedule_a", "overlapPolicy": 9}, "overlap_policy"),
    ),
    "PreviewSchedule": Case(
        works=lambda scene: _preview(cron="@yearly", time_zone="Europe/Berlin", count=2),
        holds=lambda answer: [time.seconds for time in answer.times] == [1_830_294_000, 1_861_916_400],
        refused={"REQUEST_INVALID: no such field": lambda scene: _preview(cron="0 25 * * *")},
        malformed=({"cron": "0 3 * * *; rm"}, "cron"),
    ),
}

_SPEC = {"cron": "@daily", "task": {"agentType": "shell", "prompt": "echo hello"}}
VALID_OF_SCHEDULES: dict[str, dict[str, Any]] = {
    "CreateSchedule": {"spec": _SPEC},
    "UpdateSchedule": {"scheduleId": "schedule_a", "spec": _SPEC, "updateMask": "cron,task"},
    "PreviewSchedule": {"cron": "@daily"},
    **{f"{verb}Schedule": {"scheduleId": "schedule_a"} for verb in ("Get", "Delete", "Pause", "Resume", "Trigger")},
}
"""Requests that pass validation, of the methods that require something."""
