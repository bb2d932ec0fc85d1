"""How templates, their versions and dry runs are shown: their columns and cards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kapell.cli import times
from kapell.cli.output import View, as_data
from kapell.cli.parameters import type_word
from kapell.cli.step_views import rendered_step_lines, step_lines
from kapell.cli.table import Cell, Column, Line
from kapell.cli.views import labels_text, lock_text

if TYPE_CHECKING:
    from kapell.v1.template_pb2 import (
        RenderTemplateResponse,
        StartBlocker,
        Template,
        TemplateHistory,
        TemplateParameter,
        TemplateSpec,
        ValueRules,
    )


def type_text(parameter: TemplateParameter) -> str:
    """A parameter's type in a few words: "list of path", "keep|may-change"."""
    word = type_word(parameter.rules.type)
    if word == "array":
        return f"list of {_rules_word(parameter.items)}" if parameter.HasField("items") else "list of string"
    return _rules_word(parameter.rules)


def _rules_word(rules: ValueRules) -> str:
    word = type_word(rules.type)
    return "|".join(rules.options) if word == "enum" else word


def _parameter_line(parameter: TemplateParameter) -> str:
    if parameter.required:
        fallback = "required"
    elif parameter.HasField("default_value"):
        fallback = f"default {json.dumps(as_data(parameter.default_value), ensure_ascii=False)}"
    else:
        fallback = "optional"
    return f"{parameter.name}  ({type_text(parameter)}, {fallback})  {parameter.description}".rstrip()


def _timeouts(spec: TemplateSpec) -> str:
    limits = spec.timeouts
    named = (
        ("queue", limits.queue_timeout),
        ("run", limits.run_timeout),
        ("total", limits.total_timeout),
        ("stall", limits.stall_timeout),
        ("approval wait", limits.approval_wait_timeout),
        ("lock wait", limits.lock_wait_timeout),
        ("provider wait", limits.provider_wait_timeout),
    )
    return ", ".join(f"{name} {times.short(limit.seconds)}" for name, limit in named if limit.seconds)


def _origin(template: Template) -> str:
    return "came with Kapell" if template.built_in else template.cloned_from and f"cloned from {template.cloned_from}"


def _card(template: Template) -> list[Line]:
    spec = template.spec
    older = f" (the latest is {template.latest_version})" if template.version != template.latest_version else ""
    return [
        Line("Template", template.template_id),
        Line("Name", spec.display_name),
        Line("For", spec.description),
        Line("Version", f"{template.version}{older}"),
        Line("Aliases", ", ".join(f"{alias}={template.aliases[alias]}" for alias in sorted(template.aliases))),
        Line("Origin", _origin(template)),
        Line("Type", spec.agent_type),
        Line("Tags", ", ".join(spec.tags)),
        Line("Priority", str(spec.priority) if spec.HasField("priority") else ""),
        Line("Timeouts", _timeouts(spec)),
        Line("Attempts", str(spec.retry_policy.max_attempts or "")),
        Line("Labels", labels_text(spec.labels)),
        Line("Concurrency", ", ".join(spec.concurrency_keys)),
        Line("Locks", "\n".join(map(lock_text, spec.locks))),
        Line("Updated", times.local(template.update_time)),
        Line("Parameters", "\n".join(_parameter_line(parameter) for parameter in spec.parameters)),
        *step_lines(spec.steps),
        Line("Prompt", spec.prompt.rstrip("\n")),
    ]


def _parameter_names(template: Template) -> str:
    """Required ones with an asterisk."""
    return ",".join(f"{p.name}*" if p.required else p.name for p in template.spec.parameters)


TEMPLATES = View(
    columns=(
        Column("TEMPLATE", lambda t: Cell(t.template_id)),
        Column("VERSION", lambda t: str(t.latest_version), right=True),
        Column("TYPE", lambda t: t.spec.agent_type),
        Column("PARAMETERS", _parameter_names, flexible=True),
        Column("DESCRIPTION", lambda t: t.spec.description, flexible=True),
        Column("TAGS", lambda t: ",".join(t.spec.tags) or "-", wide=True),
        Column("ORIGIN", lambda t: _origin(t) or "-", wide=True),
        Column("AGE", lambda t: times.age(t.update_time), wide=True, right=True),
    ),
    id=lambda t: t.template_id,
    card=_card,
    brief=(
        Column("TEMPLATE", lambda t: Cell(t.template_id)),
        Column("VERSION", lambda t: f"version {t.latest_version}"),
        Column("NAME", lambda t: t.spec.display_name, flexible=True),
    ),
)

VERSIONS = View(
    columns=(
        Column("VERSION", lambda v: str(v.version), right=True),
        Column("TYPE", lambda v: v.spec.agent_type),
        Column("BY", lambda v: v.creator.id or "-"),
        Column("MADE", lambda v: times.iso(v.create_time)),
        Column("DESCRIPTION", lambda v: v.spec.description, flexible=True),
    ),
    id=lambda v: f"{v.template_id}@{v.version}",
)


def _history_text(history: TemplateHistory) -> str:
    if not history.tasks:
        return "no task of this template has ended yet"
    text = f"{history.succeeded} of {history.tasks} succeeded"
    if not history.succeeded:
        return text
    middle, slow = (d.seconds + d.nanos / 1e9 for d in (history.p50_duration, history.p95_duration))
    return f"{text}, half within {times.short(middle)}, 95 of 100 within {times.short(slow)}"


def _dry_run_card(run: RenderTemplateResponse) -> list[Line]:
    limits = run.timeouts
    named = (
        ("queue", limits.queue_timeout),
        ("run", limits.run_timeout),
        ("total", limits.total_timeout),
        ("stall", limits.stall_timeout),
        ("approval wait", limits.approval_wait_timeout),
        ("lock wait", limits.lock_wait_timeout),
        ("provider wait", limits.provider_wait_timeout),
    )
    return [
        Line("Template", f"{run.template_id}@{run.version}"),
        Line("Name", run.display_name),
        Line("Type", run.agent_type),
        Line("Priority", str(run.priority)),
        Line("Attempts", str(run.retry_policy.max_attempts)),
        Line("Timeouts", ", ".join(f"{name} {times.short(d.seconds)}" for name, d in named if d.seconds)),
        Line("Concurrency", ", ".join(run.concurrency_keys)),
        Line("Locks", "\n".join(map(lock_text, run.locks))),
        Line("Parameters", json.dumps(as_data(run.parameters), ensure_ascii=False, indent=2, sort_keys=True)),
        Line("History", _history_text(run.history)),
        Line("Blocked by", Cell("\n".join(map(_blocker_text, run.blockers)), "yellow")),
        *rendered_step_lines(run.steps),
        Line("Prompt", run.prompt.rstrip("\n")),
    ]


def _blocker_text(blocker: StartBlocker) -> str:
    until = f" Until {times.local(blocker.until_time)}." if blocker.HasField("until_time") else ""
    return blocker.message + until


DRY_RUNS = View(
    columns=(
        Column("TEMPLATE", lambda r: f"{r.template_id}@{r.version}"),
        Column("TYPE", lambda r: r.agent_type),
        Column("PRIORITY", lambda r: str(r.priority), right=True),
        Column("NAME", lambda r: r.display_name, flexible=True),
    ),
    id=lambda r: f"{r.template_id}@{r.version}",
    card=_dry_run_card,
)
