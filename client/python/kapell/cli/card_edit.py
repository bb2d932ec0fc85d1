"""Editing what is approved: in $EDITOR, as text or JSON; the difference, and the decision with it."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kapell.cli.output import as_data
from kapell.v1.approval_pb2 import APPROVAL_KIND_TASK_START, APPROVAL_KIND_TOOL_PERMISSION, Approval

if TYPE_CHECKING:
    from kapell.client import Client

_KILL_AFTER = 2.0


@dataclass(frozen=True)
class Editable:
    """What of an approval may be edited: `text`, in a file that ends in `suffix`."""

    text: str
    suffix: str

    @property
    def is_prompt(self) -> bool:
        """Whether it is the prompt of a task, and not its input, its parameters or the arguments of a tool."""
        return self.suffix == ".txt"

    def parsed(self, text: str) -> dict[str, Any]:
        """The input that a text says; ValueError, in words, where it says none."""
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ValueError(f"it is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError("it must be one JSON object, in { and }")
        return found


def editable(approval: Approval) -> Editable | None:
    """What may be edited with the decision; None where that is nothing."""
    content = approval.content
    has_input = content.HasField("input")
    if approval.kind == APPROVAL_KIND_TASK_START and not approval.template_id and not has_input:
        return Editable(content.prompt, ".txt")
    if has_input and approval.kind in (APPROVAL_KIND_TASK_START, APPROVAL_KIND_TOOL_PERMISSION):
        return Editable(
            json.dumps(as_data(content.input), ensure_ascii=False, indent=2, sort_keys=True) + "\n", ".json"
        )
    return None


def difference(before: str, after: str) -> list[str]:
    """The lines of a unified diff, without its head; empty where nothing was changed."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=2)
    return list(lines)[2:]


async def decide(client: Client, approval: Approval, what: Editable, text: str) -> None:
    """Approves with the edit; the server checks it. Raises KapellError, and ValueError for no JSON."""
    if what.is_prompt:
        await client.tasks.approve(approval.task_id, prompt=text, shown_hash=approval.content_hash)
    else:
        await client.approvals.decide(approval, "approve", edited_input=what.parsed(text))


def editor(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The program people edit with, and its arguments: $VISUAL, $EDITOR, else vi."""
    return shlex.split(environ.get("VISUAL") or environ.get("EDITOR") or "vi")


async def edited(text: str, suffix: str) -> str:
    """What somebody makes of a text in their editor. Raises OSError where there is no editor, or it fails.

    Where this is cancelled, the editor is ended: what it was for has been decided elsewhere.
    """
    with tempfile.TemporaryDirectory(prefix="kapell-") as directory:
        file = _written(Path(directory, f"approval{suffix}"), text)
        command = [*editor(), str(file)]
        # Both to the terminal that is asked on: our own output may go elsewhere.
        process = await asyncio.create_subprocess_exec(*command, stdout=sys.stderr.fileno())
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                await _end(process)
        if code != 0:
            raise OSError(f"{command[0]} ended with {code}")
        return _read(file, text)


def _written(file: Path, text: str) -> Path:
    """A file that only its owner reads, with this text."""
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
    return file


def _read(file: Path, before: str) -> str:
    """What stands in it now. Editors end a file with a line end; what had none does not get one by that."""
    after = file.read_text(encoding="utf-8", errors="replace")
    return after if before.endswith("\n") else after.removesuffix("\n")


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        waiting = asyncio.ensure_future(process.wait())
        done, _ = await asyncio.wait((waiting,), timeout=_KILL_AFTER)
        if not done:
            process.kill()
            await asyncio.wait((waiting,))
