"""What a tool call would change, as Claude Code and Codex tell their pre-tool hooks on standard input.

Both send one JSON object with `hook_event_name`, `tool_name`, `tool_input` and `cwd`, and take the
same answer (https://code.claude.com/docs/en/hooks, https://developers.openai.com/codex/hooks).
Codex has one tool for all changes of files, apply_patch, with the patch in `tool_input`. Pure.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_FILE_OF = {"Edit": "file_path", "Write": "file_path", "MultiEdit": "file_path", "NotebookEdit": "notebook_path"}
_PATCH = "apply_patch"
_SHELLS = frozenset({"Bash", "PowerShell", "shell", "local_shell", "exec_command", "unified_exec", "write_stdin"})
# What changes no file of a workspace. A tool that is in no table may change anything.
_HARMLESS = frozenset(
    {
        *("Read", "Glob", "Grep", "LS", "NotebookRead", "WebFetch", "WebSearch", "ToolSearch"),
        *("TodoWrite", "TodoRead", "TaskCreate", "TaskGet", "TaskList", "TaskUpdate", "TaskOutput", "TaskStop"),
        *("Task", "Agent", "AskUserQuestion", "EnterPlanMode", "ExitPlanMode", "BashOutput", "KillShell", "KillBash"),
        *("update_plan", "view_image", "web_search", "request_user_input"),
    }
)
_HEADER = re.compile(r"\s*\*\*\* (?:Add File|Update File|Delete File|Move to): ?(.*)")
_BEGIN = "*** Begin Patch"


class Malformed(Exception):
    """The call cannot be read, so it cannot be allowed; the text says what is wrong with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call of a tool that waits for leave."""

    tool: str
    arguments: dict[str, Any]
    cwd: str
    """Where relative paths begin; empty where it was not told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What a call would change."""

    files: tuple[str, ...] = ()
    """As they were named."""
    is_shell: bool = False
    """It is a command line, which may change anything."""
    is_unknown: bool = False
    """Nobody here knows the tool."""


def parse(text: str) -> ToolCall:
    """The call of a hook's standard input. Raises Malformed."""
    try:
        payload = json.loads(text)
    except ValueError as error:
        raise Malformed(f"standard input is not JSON: {error}") from None
    match payload:
        case {"tool_name": str(tool), "tool_input": dict(arguments)} if tool:
            event, cwd = payload.get("hook_event_name", "PreToolUse"), payload.get("cwd", "")
        case _:
            raise Malformed("standard input is no tool call: it needs tool_name and tool_input")
    if event != "PreToolUse":
        raise Malformed(f"this is a hook for PreToolUse, not for {event!r}: correct the settings")
    if not isinstance(cwd, str) or "\0" in cwd:
        raise Malformed("the cwd of the tool call is no path")
    return ToolCall(tool=tool, arguments=arguments, cwd=cwd)


def effect(call: ToolCall, *, harmless: tuple[str, ...] = ()) -> Effect:
    """What it would change. `harmless` are patterns of tools that change nothing. Raises Malformed."""
    if field := _FILE_OF.get(call.tool):
        return Effect(files=(_path(call.arguments.get(field), f"{call.tool} without {field}"),))
    if call.tool == _PATCH:
        files = tuple(patched(call.arguments))
        if not files:
            raise Malformed("apply_patch without a file that it changes")
        return Effect(files=files)
    if call.tool in _SHELLS:
        return Effect(is_shell=True, files=tuple(patched(call.arguments, only_in_patch=True)))
    if call.tool in _HARMLESS or any(fnmatch.fnmatchcase(call.tool, pattern) for pattern in harmless):
        return Effect()
    return Effect(is_unknown=True)


def patched(value: object, *, only_in_patch: bool = False) -> Iterator[str]:
    """The files that patches in `value`, or in what it holds, name; more rather than fewer."""
    if isinstance(value, str):
        if only_in_patch and _BEGIN not in value:
            return
        for line in value.splitlines():
            if found := _HEADER.match(line):
                yield _path(found[1].strip(), "a patch with a header that names no file")
    elif isinstance(value, dict):
        for inner in value.values():
            yield from patched(inner, only_in_patch=only_in_patch)
    elif isinstance(value, list):
        for inner in value:
            yield from patched(inner, only_in_patch=only_in_patch)


def denial(reason: str) -> str:
    """The answer that refuses a call, for standard output with exit code 0. To allow one, nothing is said."""
    decision = {
        "hookEventName": "PreToolUse",
        "permissionDecision": "deny",
        "permissionDecisionReason": reason,
    }
    return json.dumps({"hookSpecificOutput": decision}, ensure_ascii=True)


def _path(value: object, otherwise: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise Malformed(otherwise)
    return value
