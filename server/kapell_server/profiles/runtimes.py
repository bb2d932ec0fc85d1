"""The tables of a profile that say how its agents work: command, acp, llm or python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import AcpRuntime, CommandRuntime, LlmRuntime, PythonRuntime

from kapell_server.profiles.values import (
    ConfigError,
    duration,
    expect,
    path_of,
    refuse_unknown,
    strings,
    text_of,
    texts,
    word_of,
)

_COMMAND_KEYS = (
    "argv",
    "stdin",
    "env",
    "env_from_secret",
    "working_directory",
    "result_format",
    "kill_grace",
    "output",
    "resume_argv",
)
_LLM_KEYS = (
    "base_url",
    "model",
    "api_key_secret",
    "system_prompt",
    "max_tokens",
    "temperature",
    "output_schema",
    "schema_retries",
    "timeout",
)
_PYTHON_KEYS = ("app", "path", "secrets")
_ACP_KEYS = (
    *("argv", "env", "env_from_secret", "working_directory", "kill_grace", "start_timeout", "session"),
    *("permissions", "mode", "model", "auth_method", "hide_thoughts"),
)
_SESSIONS = {"task": agent_pb2.ACP_SESSION_PER_TASK, "agent": agent_pb2.ACP_SESSION_PER_AGENT}
_PERMISSIONS = {
    "ask": agent_pb2.ACP_PERMISSIONS_ASK,
    "allow-reads": agent_pb2.ACP_PERMISSIONS_ALLOW_READS,
    "deny": agent_pb2.ACP_PERMISSIONS_DENY,
}
_FORMATS = {
    "text": agent_pb2.RESULT_FORMAT_TEXT,
    "json": agent_pb2.RESULT_FORMAT_JSON,
    "file": agent_pb2.RESULT_FORMAT_FILE,
}
_OUTPUTS = {
    name.removeprefix("PROGRAM_OUTPUT_").lower(): value for name, value in agent_pb2.ProgramOutput.items() if value
}


def _command(table: Any, where: str) -> CommandRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _COMMAND_KEYS, where)
    env = texts(table.get("env", {}), f"{where}.env")
    result_format = expect(table.get("result_format", "text"), str, f"{where}.result_format", "text")
    if result_format not in _FORMATS:
        raise ConfigError(f"{where}.result_format must be one of {', '.join(_FORMATS)}, not {result_format!r}.")
    output = expect(table.get("output", "plain"), str, f"{where}.output", "text")
    if output not in _OUTPUTS:
        raise ConfigError(f"{where}.output must be one of {', '.join(_OUTPUTS)}, not {output!r}.")
    command = CommandRuntime(
        argv=strings(table.get("argv", []), f"{where}.argv"),
        stdin=expect(table.get("stdin", ""), str, f"{where}.stdin", "text"),
        env=env,
        env_from_secret=texts(table.get("env_from_secret", {}), f"{where}.env_from_secret"),
        working_directory=path_of(table.get("working_directory", ""), f"{where}.working_directory"),
        result_format=_FORMATS[result_format],
        output=_OUTPUTS[output],
        resume_argv=strings(table.get("resume_argv", []), f"{where}.resume_argv"),
    )
    if "kill_grace" in table:
        command.kill_grace.CopyFrom(duration(table["kill_grace"], f"{where}.kill_grace"))
    return command


def _llm(table: Any, where: str) -> LlmRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _LLM_KEYS, where)
    texts = {
        key: expect(table.get(key, ""), str, f"{where}.{key}", "text")
        for key in ("base_url", "model", "api_key_secret", "system_prompt")
    }
    llm = LlmRuntime(
        **texts, max_tokens=expect(table.get("max_tokens", 0), int, f"{where}.max_tokens", "a whole number")
    )
    if "temperature" in table:
        llm.temperature = expect(table["temperature"], (int, float), f"{where}.temperature", "a number")
    if "schema_retries" in table:
        llm.schema_retries = expect(table["schema_retries"], int, f"{where}.schema_retries", "a whole number")
    if "output_schema" in table:
        schema = expect(table["output_schema"], dict, f"{where}.output_schema", "a table")
        try:
            llm.output_schema.update(schema)
        except ValueError as error:
            raise ConfigError(f"{where}.output_schema holds what is not JSON: {error}.") from error
    if "timeout" in table:
        llm.timeout.CopyFrom(duration(table["timeout"], f"{where}.timeout"))
    return llm


def _python(table: Any, where: str) -> PythonRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _PYTHON_KEYS, where)
    path = expect(table.get("path", ""), str, f"{where}.path", "text")
    return PythonRuntime(
        app=expect(table.get("app", ""), str, f"{where}.app", "text"),
        path=str(Path(path).expanduser()) if path else "",
        secrets=texts(table.get("secrets", {}), f"{where}.secrets"),
    )


def _acp(table: Any, where: str) -> AcpRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _ACP_KEYS, where)
    directory = text_of(table, "working_directory", where)
    acp = AcpRuntime(
        argv=strings(table.get("argv", []), f"{where}.argv"),
        env=texts(table.get("env", {}), f"{where}.env"),
        env_from_secret=texts(table.get("env_from_secret", {}), f"{where}.env_from_secret"),
        working_directory=str(Path(directory).expanduser()) if directory else "",
        session=word_of(table, "session", _SESSIONS, where),
        permissions=word_of(table, "permissions", _PERMISSIONS, where),
        mode=text_of(table, "mode", where),
        model=text_of(table, "model", where),
        auth_method=text_of(table, "auth_method", where),
        hide_thoughts=expect(table.get("hide_thoughts", False), bool, f"{where}.hide_thoughts", "true or false"),
    )
    for key in ("kill_grace", "start_timeout"):
        if key in table:
            getattr(acp, key).CopyFrom(duration(table[key], f"{where}.{key}"))
    return acp


RUNTIMES: dict[str, Callable[[Any, str], Any]] = {"command": _command, "acp": _acp, "llm": _llm, "python": _python}
"""The reader of each, by its key."""
