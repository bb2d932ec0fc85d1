"""What tool calls of Claude Code and Codex would change, and which of them cannot be read."""

from __future__ import annotations

import json

import pytest
from kapell._guard.calls import Effect, Malformed, ToolCall, denial, effect, parse

PATCH = """*** Begin Patch
*** Add File: new/a.py
+print("*** Update File: no.py")
*** Update File: src/old.py
*** Move to: src/new name.py
@@
-one
+two
*** Delete File: gone.py
*** End Patch"""


def call(tool: str, **arguments: object) -> ToolCall:
    return ToolCall(tool=tool, arguments=dict(arguments), cwd="/srv")


@pytest.mark.parametrize(
    ("made", "files"),
    [
        (call("Edit", file_path="/srv/a.py", old_string="a", new_string="b"), ("/srv/a.py",)),
        (call("Write", file_path="a b.py", content="x"), ("a b.py",)),
        (call("MultiEdit", file_path="/srv/a.py", edits=[]), ("/srv/a.py",)),
        (call("NotebookEdit", notebook_path="/srv/n.ipynb", new_source=""), ("/srv/n.ipynb",)),
        (call("apply_patch", command=PATCH), ("new/a.py", "src/old.py", "src/new name.py", "gone.py")),
        (call("apply_patch", input=PATCH), ("new/a.py", "src/old.py", "src/new name.py", "gone.py")),
        (call("apply_patch", command=["apply_patch", PATCH]), ("new/a.py", "src/old.py", "src/new name.py", "gone.py")),
    ],
)
def test_the_files_of_a_change_are_found(made: ToolCall, files: tuple[str, ...]) -> None:
    assert effect(made) == Effect(files=files)


def test_a_command_line_may_change_anything_and_a_patch_in_it_names_files() -> None:
    plain = effect(call("Bash", command="echo '*** Update File: a'"))
    patch = effect(call("Bash", command=f"apply_patch <<'EOF'\n{PATCH}\nEOF"))

    assert plain == Effect(is_shell=True)
    assert patch.is_shell
    assert "src/old.py" in patch.files


def test_reading_changes_nothing_and_a_stranger_may_change_anything() -> None:
    assert effect(call("Read", file_path="/etc/passwd")) == Effect()
    assert effect(call("mcp__files__write", path="a")) == Effect(is_unknown=True)
    assert effect(call("mcp__search__web", query="a"), harmless=("mcp__search__*",)) == Effect()


@pytest.mark.parametrize(
    "made",
    [
        call("Edit"),
        call("Edit", file_path=""),
        call("Edit", file_path=7),
        call("Write", file_path="a\0b"),
        call("NotebookEdit", file_path="a"),
        call("apply_patch", command="*** Begin Patch\n*** End Patch"),
        call("apply_patch", command="*** Begin Patch\n*** Update File: \n*** End Patch"),
        call("apply_patch"),
    ],
)
def test_a_change_that_names_no_file_cannot_be_read(made: ToolCall) -> None:
    with pytest.raises(Malformed):
        effect(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "[]",
        "{}",
        '{"tool_name": "Edit"}',
        '{"tool_name": "", "tool_input": {}}',
        '{"tool_name": "Edit", "tool_input": "x"}',
        '{"tool_name": "Edit", "tool_input": {}, "hook_event_name": "PostToolUse"}',
        '{"tool_name": "Edit", "tool_input": {}, "cwd": 7}',
        '{"tool_name": "Edit", "tool_input": {}, "cwd": "a\\u0000"}',
    ],
)
def test_what_is_no_tool_call_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        parse(text)


def test_a_call_is_read_as_it_is_sent() -> None:
    sent = {"session_id": "s", "hook_event_name": "PreToolUse", "cwd": "/w", "tool_name": "Edit", "tool_use_id": "t"}

    assert parse(json.dumps({**sent, "tool_input": {"file_path": "a"}})) == ToolCall(
        tool="Edit", arguments={"file_path": "a"}, cwd="/w"
    )


def test_a_denial_is_what_both_hooks_take() -> None:
    assert json.loads(denial("since ü")) == {
        "hookSpecificOutput": {
            "hookEventName": "PreToolUse",
            "permissionDecision": "deny",
            "permissionDecisionReason": "since ü",
        }
    }
