"""From a spec and a task to what is launched: templates filled in, environment built, files written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from kapell._locks.environment import VARIABLE, dump
from kapell._worker.outcome import TaskFailed
from kapell.rules.programs import install_hint
from kapell.runtimes import placeholders
from kapell.runtimes._program import Launch
from kapell.runtimes._sessions import KnownSession
from kapell.runtimes.contract import Attempt
from kapell.v1.agent_pb2 import CommandRuntime
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task

PASSED_ON = ("PATH", "HOME", "LANG", "TERM", "TMPDIR", "TZ", "USER", "KAPELL_MARK")
"""What programs inherit from the host, besides LC_*. KAPELL_MARK tells the server whose they are."""

MAX_ARGUMENT_BYTES = 128 * 1024 - 1
"""Longest single argument or environment entry that Linux takes."""

_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"


def prepare(
    spec: CommandRuntime,
    task: Task,
    attempt: Attempt,
    *,
    agent_id: str,
    directory: Path,
    session: KnownSession | None = None,
    tells_prompt: bool = True,
) -> Launch:
    """Fills in the templates and writes the files of one attempt below `directory`.

    It continues `session` where it runs in the directory of that. Without `tells_prompt` the prompt is not in
    the environment: the program gets it in another way. Raises TaskFailed with PROGRAM_NOT_FOUND or SETUP_FAILED,
    and what to do about it.
    """
    values = placeholders.values_of(task, attempt.attempt)
    continued = (
        session.session_id if session is not None and session.directory == lasting_directory(spec, attempt) else ""
    )
    try:
        argv = [placeholders.fill(part, values) for part in spec.argv]
        if continued:
            argv = [placeholders.fill(part, {**values, "session": continued}) for part in spec.resume_argv]
        stdin = placeholders.fill(spec.stdin, values)
        extra = {name: placeholders.fill(text, values) for name, text in spec.env.items()}
    except placeholders.TemplateError as error:
        raise TaskFailed("SETUP_FAILED", str(error), retryable=False) from error
    _check_arguments([*argv, *(f"{name}={text}" for name, text in extra.items())])
    _check_secrets(attempt.secrets, spec)
    input_file, result_file, artifacts = directory / "input.json", directory / "result", directory / "artifacts"
    environment = {
        **inherited(os.environ),
        **_api(attempt),
        **(attempt.workspace.environment if attempt.workspace else {}),
        **extra,
        **{name: text for name, text in attempt.secrets.items() if _is_variable(name, spec)},
        "KAPELL_SECRETS_DIR": str(directory / "secrets"),
        "KAPELL_TASK_ID": task.task_id,
        "KAPELL_ATTEMPT": str(attempt.attempt),
        "KAPELL_AGENT_ID": agent_id,
        "KAPELL_INPUT_FILE": str(input_file),
        "KAPELL_RESULT_FILE": str(result_file),
        "KAPELL_ARTIFACTS_DIR": str(artifacts),
        VARIABLE: dump(attempt.locks),
        **(_prompt(task, attempt) if tells_prompt else {}),
    }
    try:
        artifacts.mkdir()
        _keep_secrets(directory / "secrets", attempt.secrets)
        input_file.write_text(json.dumps(values["input"], ensure_ascii=False), encoding="utf-8")
        stdin_file = _written(directory / "stdin", stdin)
        working_directory = _working_directory(spec, attempt, directory)
    except OSError as error:
        raise TaskFailed(
            "SETUP_FAILED", f"the files of the attempt cannot be written in {directory}: {error}"
        ) from error
    return Launch(
        path=find_program(argv[0], environment, working_directory),
        argv=argv,
        environment=environment,
        directory=working_directory,
        stdin=stdin_file,
        session=continued,
    )


def _is_variable(name: str, spec: CommandRuntime) -> bool:
    """Whether a secret becomes a variable: its name is one in upper case, or the profile has asked for it."""
    return name in spec.env_from_secret or name.isupper()


def _keep_secrets(directory: Path, values: Mapping[str, str]) -> None:
    """A file for each secret, for nobody else to read; they go with the attempt's directory."""
    directory.mkdir(mode=0o700)
    for name, text in values.items():
        descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)


def inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the host's environment that programs get to see."""
    passed = {name: text for name, text in environ.items() if name in PASSED_ON or name.startswith("LC_")}
    passed.setdefault("PATH", _DEFAULT_PATH)
    return passed


def _check_arguments(entries: list[str]) -> None:
    for entry in entries:
        shown = repr(entry[:40])
        if "\0" in entry:
            raise TaskFailed(
                "SETUP_FAILED",
                f"the argument or variable {shown} holds a NUL character, which no program can be given - "
                "put it into stdin",
                retryable=False,
            )
        size = len(entry.encode(errors="surrogatepass"))
        if size > MAX_ARGUMENT_BYTES:
            raise TaskFailed(
                "SETUP_FAILED",
                f"the argument or variable {shown} has {size} bytes, the system takes {MAX_ARGUMENT_BYTES} - "
                "put {prompt} or {input} into stdin instead, or read KAPELL_INPUT_FILE",
                retryable=False,
            )


def _api(attempt: Attempt) -> dict[str, str]:
    """Where the server is, and the token of the attempt, which opens nothing but what is the attempt's.

    Without a token the address alone, for `kapell lock guard` where there are locks to guard.
    """
    address, token = os.environ.get("KAPELL_ADDRESS", ""), attempt.program_token()
    if address and token:
        return {"KAPELL_ADDRESS": address, "KAPELL_TOKEN": token}
    return {"KAPELL_ADDRESS": address} if address and attempt.locks else {}


def _check_secrets(values: Mapping[str, str], spec: CommandRuntime) -> None:
    """As `_check_arguments`, but nothing of a value is told."""
    for name, text in values.items():
        if _is_variable(name, spec) and len(f"{name}={text}".encode(errors="surrogatepass")) > MAX_ARGUMENT_BYTES:
            raise TaskFailed(
                "SETUP_FAILED",
                f"the secret {name} is too long for a variable - give it a name in lower case, and read its file",
                retryable=False,
            )


def _prompt(task: Task, attempt: Attempt) -> dict[str, str]:
    """KAPELL_PROMPT, unless the prompt is one that no environment can hold."""
    entry = f"KAPELL_PROMPT={task.prompt}"
    if "\0" not in entry and len(entry.encode(errors="surrogatepass")) <= MAX_ARGUMENT_BYTES:
        return {"KAPELL_PROMPT": task.prompt}
    attempt.log("the prompt does not fit into KAPELL_PROMPT, which is left out: use stdin", LOG_STREAM_SYSTEM)
    return {}


def _written(file: Path, text: str) -> Path | None:
    if not text:
        return None
    file.write_text(text, encoding="utf-8", newline="")
    return file


def lasting_directory(spec: CommandRuntime, attempt: Attempt) -> str:
    """Where the program runs if that is there for the next attempt too; empty for a fresh directory."""
    if spec.working_directory or attempt.workspace is None:
        return spec.working_directory
    return str(attempt.workspace.directory)


def _working_directory(spec: CommandRuntime, attempt: Attempt, directory: Path) -> Path:
    if not spec.working_directory and attempt.workspace is not None:
        return attempt.workspace.directory
    if not spec.working_directory:
        fresh = directory / "work"
        fresh.mkdir()
        return fresh
    chosen = Path(spec.working_directory)
    if not chosen.is_dir():
        raise TaskFailed(
            "SETUP_FAILED",
            f"the working directory {chosen} does not exist - create it, or correct the profile",
            retryable=False,
        )
    if not os.access(chosen, os.X_OK):
        raise TaskFailed(
            "SETUP_FAILED",
            f"the working directory {chosen} may not be entered - check its permissions",
            retryable=False,
        )
    return chosen


def find_program(program: str, environment: Mapping[str, str], directory: Path) -> str:
    """The file to execute: as the shell finds it, with the program's own PATH and directory.

    Raises TaskFailed PROGRAM_NOT_FOUND.
    """
    if "/" in program:
        file = directory / program
        if file.is_file():
            return str(file)
        where = f"{file} does not exist" if not file.exists() else f"{file} is not a file"
        hint = "correct argv, or put the program there"
    else:
        path = environment["PATH"]
        found = shutil.which(program, path=path) if program else None
        if found is not None:
            return str(directory / found)
        where = f"it is in no directory of PATH ({path})"
        install = install_hint(program) or "install it"
        hint = f"{install}, correct argv, or set PATH in the profile's env"
    raise TaskFailed("PROGRAM_NOT_FOUND", f"the program {program!r} cannot run - {where} - {hint}", retryable=False)
