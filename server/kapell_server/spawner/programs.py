"""Whether the program of a spec is on this machine, asked before an agent of it is made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kapell.rules.programs import install_hint, program_of
from kapell.v1.agent_pb2 import AgentSpec
from kapell.v1.error_pb2 import ERROR_REASON_PROGRAM_NOT_FOUND

from kapell_server.domain.errors import KapellError


def find_program(spec: AgentSpec, environ: Mapping[str, str]) -> str:
    """The absolute path of the spec's program.

    A name without a slash is looked up in the PATH of the spec or else of `environ`; a relative
    path counts from the spec's working directory. A name with a placeholder is known only when
    there is a task: it is given back as it stands. Empty for a spec without a program.
    Raises KapellError PROGRAM_NOT_FOUND.
    """
    command = program_of(spec)
    if command is None:
        return ""
    name = command.argv[0].replace("{{", "\0").replace("}}", "\1")
    if "{" in name:
        return command.argv[0]
    name = name.replace("\0", "{").replace("\1", "}")
    if "/" not in name:
        return _in_path(name, command.env.get("PATH") or environ.get("PATH") or os.defpath)
    if not name.startswith("/") and not command.working_directory:
        raise _not_found(
            name,
            "is a relative path, and each attempt runs in a fresh directory",
            "Give an absolute path or set working_directory",
        )
    path = Path(command.working_directory) / name
    if not path.is_file():
        raise _not_found(name, f"is no file at {path}", "Correct the first entry of argv or create the file")
    if not os.access(path, os.X_OK):
        raise _not_found(name, f"is not executable at {path}", f"Run: chmod +x {path}")
    return str(path)


def _in_path(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is None:
        hint = install_hint(name) or "install it"
        raise _not_found(
            name,
            f"is in no directory of PATH ({path[:400]})",
            f"{hint[0].upper()}{hint[1:]}, give its absolute path, or start the server with a PATH that has it",
        )
    return str(Path(found).absolute())


def _not_found(program: str, why: str, what_to_do: str) -> KapellError:
    return KapellError(
        ERROR_REASON_PROGRAM_NOT_FOUND,
        f"Cannot spawn the agent: the program {program[:200]!r} {why}. {what_to_do}.",
        metadata={"program": program[:200]},
    )
