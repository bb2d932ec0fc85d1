"""What is shown to the one who decides: its hash, its size, and what kind of request it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import re2
from google.protobuf.json_format import MessageToDict
from kapell.v1.approval_pb2 import (
    APPROVAL_KIND_BUDGET,
    APPROVAL_KIND_QUESTION,
    APPROVAL_KIND_TASK_START,
    Approval,
    ApprovalContent,
    ApprovalKind,
    ApprovalOption,
)
from kapell.v1.error_pb2 import ERROR_REASON_REQUEST_INVALID

from kapell_server.domain.approvals.shell import take_apart
from kapell_server.domain.errors import KapellError

MOST_BYTES = 262_144
"""Most bytes of what an agent may have shown."""
_LONGEST_SIGNATURE = 200
_UNPRINTABLE = re2.compile(r"[\x00-\x1f\x7f]")
_WITH_VERBS = frozenset(
    {"git", "gh", "glab", "npm", "pnpm", "yarn", "pip", "uv", "cargo", "go", "docker", "podman", "kubectl", "helm"}
    | {"terraform", "aws", "gcloud", "az", "apt", "apt-get", "brew", "systemctl", "make", "poetry", "gem", "bundle"}
)
"""Programs whose first word says what they do."""


def content_hash(
    kind: ApprovalKind.ValueType, title: str, options: Iterable[ApprovalOption], content: ApprovalContent
) -> str:
    """SHA-256 of all that is shown, as JSON with sorted names: any language can reckon it again."""
    shown = {
        "kind": int(kind),
        "title": title,
        "options": [MessageToDict(option, preserving_proto_field_name=True) for option in options],
        "content": MessageToDict(content, preserving_proto_field_name=True),
    }
    text = json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def signature_of(approval: Approval, content: ApprovalContent, command: str = "") -> str:
    """What kind of request it is: the same for those that differ in details only.

    `command` is what a start would run, where a shell runs it: of one type are then only starts of the same programs.
    """
    if approval.kind == APPROVAL_KIND_TASK_START:
        text = f"start:{approval.agent_type}:{approval.template_id or '-'} {_gist(command)}".rstrip()
    elif approval.kind == APPROVAL_KIND_BUDGET:
        text = f"budget:{approval.budget_id}"
    elif approval.kind == APPROVAL_KIND_QUESTION:
        text = f"question:{approval.agent_type}"
    else:
        text = f"tool:{approval.agent_type}:{content.tool} {_gist(content.command)}".rstrip()
    return str(_UNPRINTABLE.sub("?", text))[:_LONGEST_SIGNATURE]


def _gist(command: str) -> str:
    """The programs of a command, with what they are to do where that is one word; a doubtful one is like no other."""
    if not command:
        return ""
    shape = take_apart(command)
    if not shape.is_plain:
        return "#" + hashlib.sha256(command.encode()).hexdigest()[:16]
    gists = []
    for part in shape.parts:
        verb = next((word for word in part.words[1:] if not word.startswith("-")), "")
        gists.append(f"{part.program} {verb}".rstrip() if part.program in _WITH_VERBS else part.program)
    return " ; ".join(gists)


def check_size(content: ApprovalContent, path: str) -> None:
    """Refuses more than may be shown."""
    size = content.ByteSize()
    if size > MOST_BYTES:
        what = f"must be at most {MOST_BYTES} bytes, not {size}"
        raise invalid(path, what, "Upload what is large as an artifact, and name it in the details.")


def invalid(path: str, what: str, remedy: str = "Correct it and send it again.") -> KapellError:
    """REQUEST_INVALID for one field."""
    return KapellError(
        ERROR_REASON_REQUEST_INVALID,
        f"The request is invalid: {path} {what}. {remedy}",
        violations=((path, what),),
    )
