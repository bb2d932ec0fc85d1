"""What the agent asks permission for becomes an approval: the tool, its command, paths and diff as people see them.

The first option that allows once is "approve", refusing is "deny"; further options keep their ids, as far as the
API can write them. An answer that the agent does not offer is never made up: what cannot be said
as it was decided is refused. The comment of a decision goes along in `_meta`, which is all that
the protocol has for it; why something was refused is told once more when the turn is over.
"""

from __future__ import annotations

import asyncio
import difflib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from acp.schema import PermissionOption, RequestPermissionRequest

from kapell._worker.approvals import Verdict
from kapell.runtimes.acp.files import Place
from kapell.runtimes.acp.updates import ToolCall, Updates
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import ACP_PERMISSIONS_ALLOW_READS, ACP_PERMISSIONS_DENY, AcpPermissions
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM

_READS = ("read", "search", "think")
_MOST_DIFF_LINES = 4_000
_MOST_DIFF_BYTES = 128 * 1024
_MOST_DETAILS = 8 * 1024
_MOST_COMMAND = 65_536
_MOST_PATHS = 200
_MOST_PATH = 1_024
_NO_ID = re.compile(r"[^a-z0-9_-]+")


class Permissions:
    """The requests of one attempt."""

    def __init__(self, attempt: Attempt, place: Place, updates: Updates, policy: AcpPermissions.ValueType) -> None:
        self._attempt = attempt
        self._place = place
        self._updates = updates
        self._policy = policy
        self._remarks: list[str] = []

    def remarks(self) -> list[str]:
        """Why people have refused what, as far as the agent was not told yet: few agents read the answer's `_meta`."""
        remarks, self._remarks = self._remarks, []
        return remarks

    async def answer(self, request: RequestPermissionRequest) -> dict[str, Any]:
        """The outcome, in the protocol's words."""
        self._updates.pause()
        call = self._updates.call(request.tool_call)
        options = request.options
        if self._policy == ACP_PERMISSIONS_DENY:
            self._attempt.log(f"refused by the profile: {call}", LOG_STREAM_SYSTEM)
            return _refusal(options, "the profile of this agent permits nothing")
        if unseen := _not_to_be_shown(call):
            self._attempt.log(f"refused: {unseen}", LOG_STREAM_SYSTEM)
            return _refusal(options, unseen)
        if self._policy == ACP_PERMISSIONS_ALLOW_READS and await asyncio.to_thread(self._only_reads, call):
            once = _of_kind(options, "allow_once")
            if once is not None:
                self._attempt.log(f"allowed by the profile: {call}", LOG_STREAM_SYSTEM)
                return _selected(once)
        self._attempt.log(f"asks for permission: {call}", LOG_STREAM_SYSTEM)
        try:
            return await self._ask(call, options)
        except asyncio.CancelledError:
            if not self._attempt.cancelled.is_set():
                raise
            return {"outcome": {"outcome": "cancelled"}}

    async def _ask(self, call: ToolCall, options: list[PermissionOption]) -> dict[str, Any]:
        choices = _choices(options)
        allowed = choices.get("approve")
        diff, remark = await asyncio.to_thread(_diff_of, call)
        lines = [remark, call.left_out, _details_of(call)]
        if allowed is not None and allowed.kind == "allow_always":
            lines.insert(0, f"approving means: {allowed.name}")
        title = self._title_of(call)
        verdict = await self._attempt.approve(
            title,
            details="\n".join(filter(None, lines)),
            command=_command_of(call),
            diff=diff,
            paths=call.paths,
            hosts=_hosts_of(call),
            tool=(call.kind if call.kind not in ("", "other") else call.title)[:200],
            working_directory=str(self._place.directory),
            workspace=str(self._place.directory),
            options={name: option.name[:200] for name, option in choices.items() if name != "approve"},
            remember=[name for name, option in choices.items() if name != "approve" and option.kind == "allow_always"],
        )
        if not verdict.approved and verdict.comment:
            self._remarks.append(f"- {title}: {verdict.comment}")
        return self._outcome(verdict, choices, options)

    def _outcome(
        self, verdict: Verdict, choices: dict[str, PermissionOption], options: list[PermissionOption]
    ) -> dict[str, Any]:
        chosen = choices.get(verdict.option)
        if not verdict.approved:
            reason = verdict.comment or ("nobody decided in time" if verdict.expired else f"it was {verdict.state}")
        elif chosen is None:
            reason = "it was approved, but the agent offers no way to go on with that"
        elif any(decision.HasField("edited_input") for decision in verdict.approval.decisions):
            reason = "it was approved with another input, which cannot be handed to this agent"
        else:
            self._attempt.log(f"permitted: {chosen.name}", LOG_STREAM_SYSTEM)
            return _selected(chosen, verdict.comment)
        self._attempt.log(f"refused: {reason}", LOG_STREAM_SYSTEM)
        return _refusal(options, reason)

    def _title_of(self, call: ToolCall) -> str:
        """What it is about, for people; a bare path says what is done with it."""
        title = call.title or call.kind or "use a tool"
        if call.title in call.paths and call.kind not in ("", "other"):
            title = f"{call.kind} {call.title.removeprefix(f'{self._place.directory}/')}"
        return title[:300]

    def _only_reads(self, call: ToolCall) -> bool:
        """Whether a call says that it only reads, and every path that it names is in the working directory."""
        if call.kind not in _READS or call.changed or call.left_out or _command_of(call):
            return False
        # Any text of the input may be a path, and a relative one may lead out by a link.
        named = [*call.paths, *itertools.islice(_texts_in(call.input), _MOST_PATHS + 1)]
        if len(named) > _MOST_PATHS or not (call.paths or call.kind == "think"):
            return False
        return all(self._place.has(path) for path in named)


def _choices(options: list[PermissionOption]) -> dict[str, PermissionOption]:
    """What may be decided for, by the ids that decisions name: "approve", and an id for each further way to allow."""
    allowing = [option for option in options if option.kind in ("allow_once", "allow_always")]
    allowing.sort(key=lambda option: option.kind != "allow_once")
    found: dict[str, PermissionOption] = {}
    for option in allowing[:20]:
        if not found:
            found["approve"] = option
            continue
        name = _NO_ID.sub("-", option.option_id.lower()).strip("-_")[:50] or "option"
        taken = {"approve", "deny", *found}
        found[next(one for one in (name, *(f"{name}-{n}" for n in range(2, 99))) if one not in taken)] = option
    return found


def _of_kind(options: list[PermissionOption], *kinds: str) -> PermissionOption | None:
    return next((option for kind in kinds for option in options if option.kind == kind), None)


def _selected(option: PermissionOption, reason: str = "") -> dict[str, Any]:
    outcome: dict[str, Any] = {"outcome": {"outcome": "selected", "optionId": option.option_id}}
    return outcome | ({"_meta": {"kapell.dev/reason": reason}} if reason else {})


def _refusal(options: list[PermissionOption], reason: str) -> dict[str, Any]:
    """No, once. An agent that knows no such answer is told that the request was cancelled."""
    refusing = _of_kind(options, "reject_once", "reject_always")
    if refusing is not None:
        return _selected(refusing, reason)
    return {"outcome": {"outcome": "cancelled"}, "_meta": {"kapell.dev/reason": reason}}


def _command_of(call: ToolCall) -> str:
    """The command line, where the call would run one; agents tell it in their input, or in the title alone."""
    given = call.input if isinstance(call.input, dict) else {}
    for name in ("command", "cmd"):
        match given.get(name):
            case str(text):
                return text
            case [*words] if words and all(isinstance(word, str) for word in words):
                return shlex.join(words)
    return call.title if call.kind == "execute" else ""


def _hosts_of(call: ToolCall) -> list[str]:
    given = call.input if isinstance(call.input, dict) else {}
    hosts = []
    for name in ("url", "urls"):
        values = given.get(name)
        for url in values if isinstance(values, list) else [values]:
            if isinstance(url, str) and (host := _host(url)):
                hosts.append(host[:255])
    return hosts[:50]


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _not_to_be_shown(call: ToolCall) -> str:
    """Why nobody could see what they would approve: it is more than an approval holds. Empty where all is well."""
    size = len(_command_of(call).encode(errors="replace"))
    if size > _MOST_COMMAND:
        return f"its command has {size} bytes, more than can be shown for approval"
    if len(call.paths) > _MOST_PATHS or any(len(path) > _MOST_PATH for path in call.paths):
        return "it names more files, or longer paths, than can be shown for approval"
    return ""


def _texts_in(value: Any) -> Iterator[str]:
    """All texts of an input."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(one)


def _details_of(call: ToolCall) -> str:
    """The input of the tool, for people; a decision cannot change it, since the agent takes no other."""
    if not call.input:
        return ""
    text = json.dumps(call.input, ensure_ascii=False, indent=1, default=str)
    return text if len(text.encode(errors="replace")) <= _MOST_DETAILS else f"{text[: _MOST_DETAILS // 4]}\n… (cut)"


def _diff_of(call: ToolCall) -> tuple[str, str]:
    """The change as a unified diff, and a remark where it is not shown."""
    found: list[str] = []
    for change in call.diffs:
        before, after = (change.old_text or "").splitlines(), change.new_text.splitlines()
        if len(before) + len(after) > _MOST_DIFF_LINES:
            return (
                "",
                f"the change of {change.path} has {len(before)} lines before and {len(after)} after: too many to show",
            )
        name = os.path.normpath(change.path)
        old = "/dev/null" if change.old_text is None else name
        found += difflib.unified_diff(before, after, old, name, lineterm="")
    text = "\n".join(found)
    if len(text.encode(errors="replace")) > _MOST_DIFF_BYTES:
        return "", f"the change has {len(text)} characters: too many to show"
    return text, ""
