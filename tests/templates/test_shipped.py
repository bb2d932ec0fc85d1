"""The templates that come with Kapell: all there, all right, and rendered as the golden files show.

Accept changed renders with UPDATE_GOLDEN=1, after reading them as an agent would.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from kapell.rules.parameters import plain
from kapell.template_files import read_template, write_template
from kapell.v1.lock_pb2 import LOCK_MODE_EXCLUSIVE, LOCK_MODE_SHARED, LockItem
from kapell.v1.template_pb2 import Template, TemplateSpec, TemplateVersion
from kapell_server import shipped_templates
from kapell_server.domain.templates.template_check import check_spec
from kapell_server.domain.templates.template_version import Compiled, compile_version

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "templates"

SHIPPED = dict(shipped_templates.shipped())

# The least a user types, and everything there is to say.
SPARE: dict[str, dict[str, Any]] = {
    "bug-fix": {"bug_description": "Totals are wrong by a cent.\nSteps: order three items at 0.335."},
    "code-explanation": {"targets": ["src/parser.py"]},
    "code-review": {"files": ["src/a.py", "src/b.py"]},
    "dependency-upgrade": {"packages": ["django@5.2", "pytest"]},
    "development-plan": {"goal": "Customers can export their invoices as one archive."},
    "documentation": {"subject": "the export of invoices"},
    "feature-implementation": {"feature": "Customers can export their invoices as one archive."},
    "incident-triage": {"symptom": "Checkout answers 502 since 14:05 UTC."},
    "migration": {"from": "unittest", "to": "pytest", "scope": ["tests"]},
    "performance-analysis": {"targets": ["src/report.py"]},
    "refactor": {"targets": ["src/parser.py"], "goal": "The parser can be tested without a network."},
    "release-notes": {"version": "1.4.0"},
    "reviewed-change": {"change": "Customers can export their invoices as one archive."},
    "security-audit": {"scope": ["src"]},
    "write-tests": {"targets": ["src/parser.py"]},
}
FULL: dict[str, dict[str, Any]] = {
    "bug-fix": {"error_log": "Traceback:\n```\nValueError\n```", "affected_files": ["src/totals.py", "src/tax.py"]},
    "code-explanation": {"question": "Why is the cache keyed twice?", "depth": "line-by-line", "reader": "a student"},
    "code-review": {
        "branch": "develop",
        "check_security": False,
        "check_performance": False,
        "focus": "Mind the retry loop.\nIt was wrong before.",
    },
    "dependency-upgrade": {"policy": "patch", "manifest": "web/package.json", "run_checks": "make test"},
    "development-plan": {
        "context_files": ["README.md"],
        "constraints": "No new service.",
        "team": {"agents": 4},
        "max_slice_hours": 2,
    },
    "documentation": {
        "kind": "tutorial",
        "audience": "an accountant",
        "sources": ["src/export.py"],
        "output": "docs/export.md",
    },
    "feature-implementation": {
        "acceptance_criteria": ["The archive opens everywhere.", "10,000 invoices take less than a minute."],
        "constraints": "No new dependency.",
        "entry_points": ["src/invoices"],
        "include_docs": False,
    },
    "incident-triage": {
        "severity": "sev1",
        "logs": "14:05:01 upstream timed out",
        "metrics": "p99 30 s (was 0.2 s)",
        "recent_changes": ["13:58 release 211", "14:00 certificate renewed"],
        "component_paths": ["deploy/checkout.yaml"],
    },
    "migration": {"reason": "Fixtures.", "strategy": "plan-only", "keep_compatible": False},
    "performance-analysis": {
        "symptom": "The monthly report takes ten minutes.",
        "objective": "below 30 s",
        "workload": "make report MONTH=2030-01",
        "apply_changes": True,
    },
    "refactor": {"public_interface": "may-change"},
    "release-notes": {"since": "v1.3.0", "until": "main", "audience": "operators", "output": "CHANGELOG.md"},
    "reviewed-change": {
        "acceptance_criteria": ["The archive opens everywhere.", "10,000 invoices take less than a minute."],
        "constraints": "No new dependency.",
        "entry_points": ["src/invoices"],
        "plan_first": False,
        "check_security": True,
    },
    "security-audit": {
        "threat_model": "Any customer may be hostile.",
        "minimum_severity": "high",
        "check_dependencies": False,
    },
    "write-tests": {"level": "unit", "framework": "pytest", "behaviours": ["An empty file is an empty list."]},
}
for template_id in FULL.keys() - {"development-plan", "incident-triage"}:
    FULL[template_id]["repo"] = "shop"


def compiled(template_id: str) -> Compiled:
    return compile_version(TemplateVersion(template_id=template_id, version=1, spec=SHIPPED[template_id]))


def test_the_fifteen_are_there() -> None:
    assert set(SHIPPED) == {
        "code-review",
        "bug-fix",
        "feature-implementation",
        "refactor",
        "write-tests",
        "documentation",
        "security-audit",
        "performance-analysis",
        "dependency-upgrade",
        "migration",
        "release-notes",
        "incident-triage",
        "development-plan",
        "code-explanation",
        "reviewed-change",
    }


@pytest.mark.parametrize("template_id", SHIPPED)
def test_it_is_right_and_says_what_it_is_for(template_id: str) -> None:
    spec = SHIPPED[template_id]

    assert check_spec(spec) == []
    assert spec.display_name
    assert spec.description.endswith(".")
    assert spec.tags
    assert spec.timeouts.HasField("run_timeout")
    assert [p.name for p in spec.parameters if len(p.description) < 15] == []


def _parameters(spec: TemplateSpec) -> dict[str, tuple[bool, Any]]:
    return {p.name: (p.required, plain(p.default_value)) for p in spec.parameters}


def test_code_review_and_bug_fix_take_what_was_promised() -> None:
    review, fix = _parameters(SHIPPED["code-review"]), _parameters(SHIPPED["bug-fix"])

    assert review["files"] == (True, None)
    assert review["branch"] == (False, "main")
    assert review["check_security"] == review["check_performance"] == (False, True)
    assert fix["bug_description"] == (True, None)
    assert fix["error_log"] == fix["affected_files"] == (False, None)


@pytest.mark.parametrize("template_id", SHIPPED)
@pytest.mark.parametrize("kind", ["spare", "full"])
def test_its_render_is_the_golden_one(template_id: str, kind: str) -> None:
    given = SPARE[template_id] | (FULL[template_id] if kind == "full" else {})

    rendered = compiled(template_id).render(given, "parameters")

    text = f"# {rendered.display_name}\n\n{rendered.prompt}"
    for step in rendered.steps:
        after = f" after {', '.join(step.depends_on)}" if step.depends_on else ""
        text += f"\n# Step {step.says.name}{after}: {step.display_name}\n\n{step.prompt}"
        text += _locks_text(step.locks)
    text += _locks_text(rendered.locks)
    file = GOLDEN / f"{template_id}-{kind}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


def _locks_text(locks: Sequence[LockItem]) -> str:
    shown = [f"{lock.path}{' (shared)' if lock.mode == LOCK_MODE_SHARED else ''}" for lock in locks]
    return f"\n# Locks: {', '.join(shown)}\n" if shown else ""


@pytest.mark.parametrize("template_id", SHIPPED)
def test_it_takes_locks_only_where_the_repository_is_named(template_id: str) -> None:
    spare, full = SPARE[template_id], SPARE[template_id] | FULL[template_id]
    unnamed = {name: value for name, value in full.items() if name != "repo"}
    rendered = [compiled(template_id).render(given, "parameters") for given in (spare, unnamed)]

    assert not any(one.locks or any(step.locks for step in one.steps) for one in rendered)


def test_who_reads_runs_beside_readers_and_who_changes_runs_alone() -> None:
    files = {"files": ["./src/a.py", "src/web/*.ts"], "repo": "shop"}
    review = compiled("code-review").render(files, "parameters").locks
    fix = compiled("bug-fix").render(SPARE["bug-fix"] | {"repo": "shop"}, "parameters").locks

    assert [(lock.path, lock.mode) for lock in review] == [
        ("shop/src/a.py", LOCK_MODE_SHARED),
        ("shop/src/web", LOCK_MODE_SHARED),
    ]
    assert [(lock.path, lock.mode) for lock in fix] == [("shop", LOCK_MODE_EXCLUSIVE)]


@pytest.mark.parametrize("template_id", SHIPPED)
@pytest.mark.parametrize("kind", ["spare", "full"])
def test_its_prompt_is_clean_markdown(template_id: str, kind: str) -> None:
    given = SPARE[template_id] | (FULL[template_id] if kind == "full" else {})

    rendered = compiled(template_id).render(given, "parameters")

    for prompt in (rendered.prompt, *(step.prompt for step in rendered.steps)):
        lines = prompt.splitlines()
        assert not [line for line in lines if line != line.rstrip()]
        assert not [number for number in range(1, len(lines)) if not lines[number] and not lines[number - 1]]


def test_every_option_of_every_template_renders() -> None:
    for template_id, spec in SHIPPED.items():
        for parameter in spec.parameters:
            for option in parameter.rules.options:
                given = SPARE[template_id] | {parameter.name: option}
                assert compiled(template_id).render(given, "parameters").prompt


@pytest.mark.parametrize("template_id", SHIPPED)
def test_the_client_reads_the_file_as_the_server_does(template_id: str) -> None:
    text = (shipped_templates.DIRECTORY / f"{template_id}.yaml").read_bytes()

    assert read_template(text) == (template_id, SHIPPED[template_id])


@pytest.mark.parametrize("template_id", SHIPPED)
def test_an_exported_file_is_read_as_the_same_template(template_id: str) -> None:
    written = write_template(Template(template_id=template_id, version=1, spec=SHIPPED[template_id]))

    assert read_template(written) == (template_id, SHIPPED[template_id])


ASKING = {"dependency-upgrade", "migration"}
"""What is dear to undo, or runs the code of others, waits for somebody before it starts; reading never does."""


@pytest.mark.parametrize("name", SHIPPED)
def test_only_what_is_dear_to_undo_asks_before_it_starts(name: str) -> None:
    spec = SHIPPED[name]

    assert spec.HasField("approval") == (name in ASKING)
    if spec.HasField("approval"):
        assert spec.approval.reason
        assert 0 < spec.approval.timeout.seconds < spec.timeouts.total_timeout.seconds, "else it ends as timed out"
