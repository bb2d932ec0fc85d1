"""How much may go wrong: fixed rules over what is shown, each with a reason; never a model.

LOW are commands that are known to look only; what is in no table is MEDIUM, since nobody knows what it does. Risk helps
people to look at the right thing, it is no fence. The commands are those of `shell.take_apart`, so what sudo, `sh -c`
or a substitution runs is looked at like the rest. The tables are in `risk_commands`, what a start runs in `start_risk`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import re2
from kapell.v1.approval_pb2 import (
    RISK_LEVEL_CRITICAL,
    RISK_LEVEL_HIGH,
    RISK_LEVEL_LOW,
    RISK_LEVEL_MEDIUM,
    ApprovalContent,
    Risk,
    RiskLevel,
    RiskReason,
)

from kapell_server.domain.approvals.patterns import leaves
from kapell_server.domain.approvals.risk_commands import Finding, of_command, secret_in

_MOST_REASONS = 20
_MOST_FILES = 300
"""Files of a diff that are looked at."""
_SHOWN = 120
_HIDDEN = re2.compile(
    r"[\x00-\x08\x0b-\x1f\x7f\x{80}-\x{9f}\x{200b}-\x{200f}\x{202a}-\x{202e}\x{2060}-\x{2069}\x{feff}]"
)
"""Control characters, those that turn the direction of text, and those nobody sees."""
_COSTS = ((100, RISK_LEVEL_CRITICAL), (10, RISK_LEVEL_HIGH), (1, RISK_LEVEL_MEDIUM))
"""From which amount on, in whatever currency."""
_CHANGED_FILE = re2.compile(r"(?m)^(?:\+\+\+|---) (?:[ab]/)?([^\t\n]+)")


class Script(NamedTuple):
    """Text that an agent would run as a command, or might where that is not certain."""

    text: str
    directory: str
    is_certain: bool


def assess(title: str, content: ApprovalContent, scripts: Sequence[Script] = (), *, is_known: bool = True) -> Risk:
    """The risk of what is asked for, the gravest reason first. Not `is_known`: nobody knows what would run it."""
    found: dict[tuple[str, str], Finding] = {}
    findings = _findings(title, content)
    if not is_known:
        scripts = [Script(content.prompt, "", is_certain=False)]
        unknown = Finding(
            "unknown-runtime", RISK_LEVEL_MEDIUM, "no agent serves its type yet: what runs it is not known"
        )
        findings = itertools.chain(findings, [unknown])
    for finding in itertools.chain(findings, *map(_of_script, scripts)):
        found.setdefault((finding.code, finding.message), finding)
    reasons = sorted(found.values(), key=lambda one: -one.level)[:_MOST_REASONS]
    level: RiskLevel.ValueType = reasons[0].level if reasons else RISK_LEVEL_LOW
    risk = Risk(level=level)
    for one in reasons:
        risk.reasons.append(RiskReason(code=one.code, level=one.level, message=one.message))
    return risk


def _of_script(script: Script) -> Iterator[Finding]:
    for finding in of_command(script.text, script.directory, ""):
        if script.is_certain:
            yield finding
        elif finding.level >= RISK_LEVEL_HIGH and finding.code in _GRAVE:
            yield finding._replace(message=f"if a shell runs it: {finding.message}")


_GRAVE = {"destructive-command", "runs-downloaded-code", "encoded-payload", "remote-control", "rewrites-history"}
"""What is told of a text that may be no command."""


_CHANGING = {"edit", "delete", "move"}
"""Kinds of tools, as ACP names them, that change files also where no diff is told."""


def _findings(title: str, content: ApprovalContent) -> Iterator[Finding]:
    yield from _hidden(title, content)
    if content.command:
        yield from of_command(content.command, content.working_directory, content.workspace)
    yield from _of_paths(content)
    if content.hosts:
        hosts = ", ".join(content.hosts[:5])
        yield Finding("network", RISK_LEVEL_MEDIUM, f"talks to {_short(hosts)}")
    if content.diff or content.tool in _CHANGING:
        yield Finding("changes-files", RISK_LEVEL_MEDIUM, "changes files")
    if content.HasField("reversible") and not content.reversible:
        yield Finding("cannot-be-undone", RISK_LEVEL_HIGH, "cannot be undone, as the agent says")
    for amount, level in _COSTS:
        if content.estimated_cost.units >= amount:
            cost = f"{content.estimated_cost.units} {content.estimated_cost.currency_code}".rstrip()
            yield Finding("cost", level, f"is expected to cost {_short(cost)} or more")
            break


def _hidden(title: str, content: ApprovalContent) -> Iterator[Finding]:
    texts = {
        "title": title,
        "details": content.details,
        "tool": content.tool,
        "command": content.command,
        "diff": content.diff,
        "prompt": content.prompt,
        "paths": "".join(content.paths),
        "hosts": "".join(content.hosts),
    }
    for name, text in texts.items():
        match = _HIDDEN.search(text)
        if match is not None:
            level = RISK_LEVEL_CRITICAL if name not in ("diff", "prompt", "details") else RISK_LEVEL_HIGH
            code = ord(match.group(0))
            yield Finding("hidden-characters", level, f"{name} has characters that are not seen, as U+{code:04X}")


def _of_paths(content: ApprovalContent) -> Iterator[Finding]:
    changed = dict.fromkeys(_CHANGED_FILE.findall(content.diff)) if content.diff else {}
    if len(changed) > _MOST_FILES:
        yield Finding("unreadable", RISK_LEVEL_HIGH, f"changes {len(changed)} files, too many to look at")
    for path in [*content.paths, *itertools.islice(changed, _MOST_FILES)]:
        if path == "/dev/null":
            continue
        if leaves(path, content.working_directory, content.workspace):
            yield Finding("outside-workspace", RISK_LEVEL_HIGH, f"{_short(path)} lies outside of the workspace")
        if secret_in(path):
            yield Finding("secrets", RISK_LEVEL_HIGH, f"{_short(path)} may hold secrets")
        if path.removeprefix("./").startswith((".github/workflows/", ".gitlab-ci", ".git/hooks/")):
            yield Finding("runs-elsewhere", RISK_LEVEL_HIGH, f"{_short(path)} is run by others than the agent")


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
