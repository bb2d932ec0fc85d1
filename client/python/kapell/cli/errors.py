"""Exit codes and the words of failure: the one place that knows both.

Everything that goes wrong becomes a `Refusal`, which is at most four lines on stderr (what, why,
the command to run next, the request id) and an exit code of the table `Exit`.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kapell.cli.terminal import Terminal
    from kapell.errors import KapellError


class Exit(enum.IntEnum):
    """What the exit code says. A contract: numbers never change their meaning."""

    DONE = 0
    FAILURE = 1
    USAGE = 2  # wrong usage, or input is needed and there is no terminal
    NOT_FOUND = 3
    DENIED = 4  # not signed in, or not allowed
    CONFLICT = 5  # the state, or a stale etag, does not allow it
    UNREACHABLE = 6  # no server answered
    TASK_FAILED = 7  # the awaited task failed or was cancelled
    STILL_PENDING = 8  # it had not ended when the time was up
    BUDGET = 9  # stopped by a budget
    APPROVAL = 10  # its approval was denied or expired
    INTERRUPTED = 130  # Ctrl-C; what the server does goes on


class Refusal(Exception):
    """A command could not do what was asked: `what` failed, `why`, the command or step to take `next`."""

    def __init__(
        self, what: str, *, why: str = "", next: str = "", exit: Exit = Exit.FAILURE, request_id: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.next = next
        self.exit = exit
        self.request_id = request_id


class Done(Exception):
    """Ends a command with an exit code when all has been said already: one of ours, or that of a program it ran."""

    def __init__(self, exit: int) -> None:
        super().__init__(str(exit))
        self.exit = exit


_CORRECT_IT = "Correct it and send it again"
"""What the server says to do where it can say no more; the command's help can."""
_SIGN_IN = "export KAPELL_TOKEN=…      (the server's owner gets it there with: kapell auth token)"

# Reason -> exit code and the command that helps; {…} is filled from the error's metadata.
_REASONS: dict[str, tuple[Exit, str]] = {
    "REQUEST_INVALID": (Exit.USAGE, ""),
    "PAGE_TOKEN_INVALID": (Exit.USAGE, ""),
    "REQUEST_ID_REUSED": (Exit.CONFLICT, ""),
    "TOKEN_MISSING": (Exit.DENIED, _SIGN_IN),
    "TOKEN_INVALID": (Exit.DENIED, _SIGN_IN),
    "SCOPE_MISSING": (Exit.DENIED, ""),
    "NOT_OWNER": (Exit.DENIED, ""),
    "TASK_NOT_FOUND": (Exit.NOT_FOUND, "kapell task list"),
    "AGENT_NOT_FOUND": (Exit.NOT_FOUND, "kapell agent list"),
    "ATTEMPT_NOT_FOUND": (Exit.NOT_FOUND, "kapell task attempts {task_id}"),
    "PROFILE_NOT_FOUND": (Exit.NOT_FOUND, "kapell profile list"),
    "WORKSPACE_NOT_FOUND": (Exit.NOT_FOUND, "kapell task get {task_id}"),
    "WORKSPACE_CHANGED": (Exit.CONFLICT, "kapell task get {task_id}"),
    "ID_TAKEN": (Exit.CONFLICT, ""),
    "TASK_STATE_CONFLICT": (Exit.CONFLICT, "kapell task get {task_id}"),
    "AGENT_STATE_CONFLICT": (Exit.CONFLICT, "kapell agent get {agent_id}"),
    "PROGRAM_NOT_FOUND": (Exit.CONFLICT, ""),
    "ETAG_MISMATCH": (Exit.CONFLICT, ""),
    "LEASE_LOST": (Exit.CONFLICT, ""),
    "REVISION_COMPACTED": (Exit.CONFLICT, "kapell event list"),
    "REVISION_IN_FUTURE": (Exit.CONFLICT, "kapell event list"),
    "LOG_OFFSET_GAP": (Exit.CONFLICT, ""),
    "AGENT_LIMIT": (Exit.FAILURE, "kapell agent list"),
    "QUEUE_FULL": (Exit.FAILURE, ""),
    "TOO_MANY_WATCHES": (Exit.FAILURE, ""),
    "PAYLOAD_TOO_LARGE": (Exit.USAGE, ""),
    "STORAGE_FULL": (Exit.FAILURE, ""),
    "SERVER_DRAINING": (Exit.UNREACHABLE, "kapell up"),
    "STORAGE_BUSY": (Exit.FAILURE, ""),
    "DEADLINE_EXCEEDED": (Exit.FAILURE, "kapell status"),
    "INTERNAL": (Exit.FAILURE, ""),
    "TEMPLATE_NOT_FOUND": (Exit.NOT_FOUND, "kapell template list"),
    "TEMPLATE_PARAMETERS_INVALID": (Exit.USAGE, "kapell template get {template_id}"),
    "TEMPLATE_IN_USE": (Exit.CONFLICT, "kapell task list --template {template_id}"),
    "TOO_MANY_MATCHES": (
        Exit.CONFLICT,
        "narrow the filter, or say --max {matched}, or --partial",
    ),
    "TEMPLATE_BUILT_IN": (Exit.CONFLICT, "kapell template clone {template_id} MY-TEMPLATE"),
    "DEPENDENCY_CYCLE": (Exit.USAGE, ""),
    "DEPENDENCY_FAILED": (Exit.CONFLICT, "kapell task retry {dependency_id}"),
    "CHILD_LIMIT": (Exit.FAILURE, "kapell task tree {task_id}"),
    "QUEUE_DRAINING": (Exit.CONFLICT, "kapell queue resume {agent_type}"),
    "LIMIT_NOT_FOUND": (Exit.NOT_FOUND, "kapell limit list"),
    "ARTIFACT_NOT_FOUND": (Exit.NOT_FOUND, ""),
    "ARTIFACT_CHECKSUM_MISMATCH": (Exit.CONFLICT, ""),
    "ARTIFACT_OFFSET_GAP": (Exit.CONFLICT, ""),
    "ARTIFACT_STATE_CONFLICT": (Exit.CONFLICT, "kapell artifact get {artifact_id}"),
    "ARTIFACT_LIMIT": (Exit.FAILURE, ""),
    "BUDGET_NOT_FOUND": (Exit.NOT_FOUND, "kapell budget list"),
    "BUDGET_EXCEEDED": (Exit.BUDGET, "kapell budget get {budget_id}"),
    "RESERVATION_NOT_FOUND": (Exit.NOT_FOUND, "kapell budget list"),
    "ALERT_NOT_FOUND": (Exit.NOT_FOUND, "kapell alert list"),
    "WEBHOOK_NOT_FOUND": (Exit.NOT_FOUND, "kapell webhook list"),
    "SCHEDULE_NOT_FOUND": (Exit.NOT_FOUND, "kapell schedule list"),
    "SCHEDULE_LIMIT": (Exit.FAILURE, "kapell schedule list"),
    "LOCK_HELD": (Exit.CONFLICT, "kapell lock list --path {held_path}"),
    "FENCING_TOKEN_STALE": (Exit.CONFLICT, "kapell lock list --path {path}"),
    "DEADLOCK": (Exit.CONFLICT, "kapell lock graph"),
    "LOCK_LOST": (Exit.CONFLICT, "kapell lock list"),
    "LOCK_TICKET_NOT_FOUND": (Exit.NOT_FOUND, "kapell lock waiters"),
    "LOCK_LIMIT": (Exit.FAILURE, "kapell lock list"),
    "APPROVAL_NOT_FOUND": (Exit.NOT_FOUND, "kapell approval list"),
    "APPROVAL_ALREADY_DECIDED": (Exit.CONFLICT, "kapell approval show {approval_id}"),
    "APPROVAL_CHANGED": (Exit.CONFLICT, "kapell approval list"),
    "SELF_APPROVAL": (Exit.DENIED, ""),
    "NOT_APPROVER": (Exit.DENIED, "kapell approval show {approval_id}"),
    "PRICE_NOT_FOUND": (Exit.NOT_FOUND, "kapell price list"),
    "PRICE_LIMIT": (Exit.FAILURE, "kapell price list"),
    "USAGE_QUERY_TOO_LARGE": (Exit.USAGE, ""),
    "USAGE_CONFLICT": (Exit.CONFLICT, ""),
    "USAGE_LIMIT": (Exit.FAILURE, "kapell usage show --since 365d --by model"),
    "TOKEN_EXPIRED": (Exit.DENIED, _SIGN_IN),
    "TOKEN_NOT_FOUND": (Exit.NOT_FOUND, "kapell auth token list --all"),
    "TOKEN_LIMIT": (Exit.FAILURE, "kapell auth token list"),
    "NOT_FOR_AGENTS": (Exit.DENIED, ""),
    "RATE_LIMITED": (Exit.FAILURE, ""),
    "SECRET_NOT_FOUND": (Exit.NOT_FOUND, "kapell secret set {name}"),
    "SECRET_LIMIT": (Exit.FAILURE, "kapell secret list"),
    # The client's own.
    "SERVER_UNREACHABLE": (Exit.UNREACHABLE, "kapell up"),
    "SERVER_NOT_FOUND": (Exit.UNREACHABLE, ""),
    "ADDRESS_INVALID": (Exit.USAGE, ""),
    "ARGUMENT_INVALID": (Exit.USAGE, ""),
    "WAIT_TIMEOUT": (Exit.STILL_PENDING, "kapell task wait {task_id}"),
}

# Reason and name in the error's metadata -> the command that helps, where a reason is of more than one noun.
_NAMED = {
    ("APPROVAL_NOT_FOUND", "rule_id"): "kapell approval rules",
    ("ID_TAKEN", "budget_id"): "kapell budget get {budget_id}",
    ("ID_TAKEN", "webhook_id"): "kapell webhook list",
}

# gRPC code name -> exit code, for a reason this version does not know.
_CODES = {
    "INVALID_ARGUMENT": Exit.USAGE,
    "NOT_FOUND": Exit.NOT_FOUND,
    "UNAUTHENTICATED": Exit.DENIED,
    "PERMISSION_DENIED": Exit.DENIED,
    "ALREADY_EXISTS": Exit.CONFLICT,
    "FAILED_PRECONDITION": Exit.CONFLICT,
    "ABORTED": Exit.CONFLICT,
    "OUT_OF_RANGE": Exit.CONFLICT,
    "UNAVAILABLE": Exit.UNREACHABLE,
}


def refusal_of(error: Exception, name: Callable[[str], str] = str, path: str = "") -> Refusal:
    """Any failure as a refusal; what nobody expected is called a defect.

    `name` tells how a field was said, `path` the command that was called, as "kapell task create".
    """
    from kapell.errors import KapellError

    match error:
        case Refusal():
            return error
        case KapellError():
            return _explain(error, name, path)
        case FileNotFoundError() | IsADirectoryError() | NotADirectoryError() | PermissionError() if error.filename:
            return Refusal((error.strerror or "").lower(), why=str(error.filename), exit=Exit.USAGE)
        case OSError():
            return Refusal((error.strerror or str(error)).lower(), why=str(error.filename or ""))
    return Refusal(
        f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
        why="this is a defect of kapell",
        next="run it again with --debug, and report what it shows",
    )


def _explain(error: KapellError, name: Callable[[str], str], path: str) -> Refusal:
    """A failed call: its message tells what failed, mostly why, and what to do, in this order."""
    exit, command = _REASONS.get(error.reason, (_CODES.get(error.code, Exit.FAILURE), ""))
    what, why, do = _parts(error.message)
    if path and (do == _CORRECT_IT or (not do and exit == Exit.USAGE and not command)):
        do = f"{path} --help"
    command = next((_NAMED[error.reason, key] for key in error.metadata if (error.reason, key) in _NAMED), command)
    command = _filled(command, error.metadata)
    broken = "; ".join(f"{name(violation.field)}: {violation.description}" for violation in error.violations)
    return Refusal(
        what or error.reason,
        why=broken or why or (do if command else ""),
        next=command or do,
        exit=exit,
        request_id=error.metadata.get("request_id", ""),
    )


def _parts(message: str) -> tuple[str, str, str]:
    """What, why and what to do, of "what - why - do", "what: why. Do." or "what: why; do"."""
    message = message.strip()
    first, *rest = [part.strip() for part in message.split(" - ", 2)]
    match rest:
        case [why, do]:
            return first, why, do
        case [do]:
            return first, "", do
    head, dot, do = message.partition(". ")
    if not dot:
        head, _, do = message.rpartition("; ") if "; " in message else (message, "", "")
    what, _, why = head.partition(": ")
    return what.rstrip("."), why.rstrip("."), do.rstrip(".")


def _filled(command: str, metadata: Mapping[str, str]) -> str:
    """The command with its placeholders filled; empty where the error does not name what they need."""
    try:
        return command.format_map(metadata)
    except KeyError:
        return ""


def report(refusal: Refusal, terminal: Terminal) -> None:
    """Writes a refusal to stderr: one to four lines."""
    from kapell.cli.terminal import visible

    sys.stdout.flush()
    written = [terminal.err("error:", "red") + " " + visible(refusal.what)]
    for label, text in (("why", refusal.why), ("next", refusal.next), ("request id", refusal.request_id)):
        if text:
            written.append(terminal.err(f"  {label}:", "dim") + " " + visible(text))
    sys.stderr.write("\n".join(written) + "\n")
