"""Agent profiles: the [profiles.NAME] tables of kapell.toml as AgentProfile messages.

The rules are those of the proto, so a profile that is accepted here can be spawned; whether its
program exists is looked at when it is spawned. See `built_in_profiles` for those that are always there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import (
    AcpRuntime,
    AgentLimits,
    AgentPool,
    AgentProfile,
    AgentSpec,
    CommandRuntime,
    LlmRuntime,
    PythonRuntime,
    RestartPolicy,
)
from kapell.v1.workspace_pb2 import (
    GitWorktree,
    WorkspaceMergePolicy,
    WorkspaceRepository,
    WorkspaceSetup,
    WorkspaceSpec,
)

_PROFILE_KEYS = (
    *("description", "agent_types", "slots", "command", "acp", "llm", "python", "api_access"),
    *("limits", "restart", "pool", "workspace"),
)
_RESTART_KEYS = ("mode", "first_pause", "longest_pause", "max_restarts", "stable_after")
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
_WORKSPACE_KEYS = ("directory", "git_worktree")
_WORKTREE_KEYS = ("repositories", "branch", "directory", "setup", "restart_on_retry", "keep_uncommitted", "merge")
_REPOSITORY_KEYS = ("name", "path", "base_ref")
_MERGE_KEYS = ("check", "check_timeout", "rebase", "on_success")
_SETUP_KEYS = ("argv", "timeout", "inputs")
_FORMATS = {
    "text": agent_pb2.RESULT_FORMAT_TEXT,
    "json": agent_pb2.RESULT_FORMAT_JSON,
    "file": agent_pb2.RESULT_FORMAT_FILE,
}
_OUTPUTS = {
    name.removeprefix("PROGRAM_OUTPUT_").lower(): value for name, value in agent_pb2.ProgramOutput.items() if value
}
_API_ACCESS = {"attempt": agent_pb2.API_ACCESS_ATTEMPT, "none": agent_pb2.API_ACCESS_NONE}
_RESTARTS = {
    "never": agent_pb2.RESTART_MODE_NEVER,
    "on-failure": agent_pb2.RESTART_MODE_ON_FAILURE,
    "always": agent_pb2.RESTART_MODE_ALWAYS,
}
_LIMIT_KEYS = ("memory", "cpu_time", "wall_time", "open_files", "processes", "output")
_POOL_KEYS = ("min", "max", "idle_stop")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]i?B|B)", re.IGNORECASE)
_SIZES = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


_M = TypeVar("_M", bound=Message)


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key, what is wrong and what to do."""


def read_profiles(tables: Mapping[str, Any], source: str) -> dict[str, AgentProfile]:
    """The profiles of the [profiles] table of the file called `source`. Raises ConfigError."""
    return {name: _profile(name, table, f"{source}: profiles.{name}") for name, table in tables.items()}


def refuse_unknown(keys: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Raises ConfigError for the first key that is not known, with the spelling that was likely meant."""
    for key in keys:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(sorted(known))}."
            raise ConfigError(f"{where}: there is no key `{key}`; {hint}")


def expect(value: Any, kind: type | tuple[type, ...], name: str, what: str) -> Any:
    """The value, if it is of the kind; ConfigError naming `what` was expected otherwise."""
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise ConfigError(f"{name} must be {what}, not {_kind(value)}.")
    return value


def _profile(name: str, table: Any, where: str) -> AgentProfile:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a profile's name has 1 to 64 letters, digits, '.', '_' or '-'.")
    expect(table, dict, where, "a table")
    refuse_unknown(table, _PROFILE_KEYS, where)
    runtimes = [key for key in _RUNTIMES if key in table]
    if len(runtimes) != 1:
        has = f"has {' and '.join(runtimes)}" if runtimes else f"has no {', '.join(_RUNTIMES)}"
        raise ConfigError(f"{where} {has}; it needs one of them, such as command = {{ argv = [...] }}.")
    api_access = expect(table.get("api_access", "attempt"), str, f"{where}.api_access", "text")
    if api_access not in _API_ACCESS:
        raise ConfigError(f"{where}.api_access must be one of {', '.join(_API_ACCESS)}, not {api_access!r}.")
    spec = AgentSpec(
        agent_types=_strings(table.get("agent_types", [name]), f"{where}.agent_types"),
        slots=expect(table.get("slots", 1), int, f"{where}.slots", "a whole number"),
        **{key: _RUNTIMES[key](table[key], f"{where}.{key}") for key in runtimes},
        workspace=_workspace(table.get("workspace", "none"), f"{where}.workspace"),
        api_access=_API_ACCESS[api_access] if "api_access" in table else agent_pb2.API_ACCESS_UNSPECIFIED,
    )
    if "limits" in table:
        spec.limits.CopyFrom(_limits(table["limits"], f"{where}.limits"))
    if "restart" in table:
        spec.restart.CopyFrom(_restart(table["restart"], f"{where}.restart"))
    description = expect(table.get("description", ""), str, f"{where}.description", "text")
    profile = AgentProfile(profile=name, description=description, spec=_checked(spec, where))
    if "pool" in table:
        profile.pool.CopyFrom(_pool(table["pool"], f"{where}.pool"))
    return profile


def _command(table: Any, where: str) -> CommandRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _COMMAND_KEYS, where)
    env = _texts(table.get("env", {}), f"{where}.env")
    result_format = expect(table.get("result_format", "text"), str, f"{where}.result_format", "text")
    if result_format not in _FORMATS:
        raise ConfigError(f"{where}.result_format must be one of {', '.join(_FORMATS)}, not {result_format!r}.")
    output = expect(table.get("output", "plain"), str, f"{where}.output", "text")
    if output not in _OUTPUTS:
        raise ConfigError(f"{where}.output must be one of {', '.join(_OUTPUTS)}, not {output!r}.")
    command = CommandRuntime(
        argv=_strings(table.get("argv", []), f"{where}.argv"),
        stdin=expect(table.get("stdin", ""), str, f"{where}.stdin", "text"),
        env=env,
        env_from_secret=_texts(table.get("env_from_secret", {}), f"{where}.env_from_secret"),
        working_directory=_path(table.get("working_directory", ""), f"{where}.working_directory"),
        result_format=_FORMATS[result_format],
        output=_OUTPUTS[output],
        resume_argv=_strings(table.get("resume_argv", []), f"{where}.resume_argv"),
    )
    if "kill_grace" in table:
        command.kill_grace.CopyFrom(_duration(table["kill_grace"], f"{where}.kill_grace"))
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
        llm.timeout.CopyFrom(_duration(table["timeout"], f"{where}.timeout"))
    return llm


def _python(table: Any, where: str) -> PythonRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _PYTHON_KEYS, where)
    path = expect(table.get("path", ""), str, f"{where}.path", "text")
    return PythonRuntime(
        app=expect(table.get("app", ""), str, f"{where}.app", "text"),
        path=str(Path(path).expanduser()) if path else "",
        secrets=_texts(table.get("secrets", {}), f"{where}.secrets"),
    )


def _acp(table: Any, where: str) -> AcpRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _ACP_KEYS, where)
    directory = _text(table, "working_directory", where)
    acp = AcpRuntime(
        argv=_strings(table.get("argv", []), f"{where}.argv"),
        env=_texts(table.get("env", {}), f"{where}.env"),
        env_from_secret=_texts(table.get("env_from_secret", {}), f"{where}.env_from_secret"),
        working_directory=str(Path(directory).expanduser()) if directory else "",
        session=_word(table, "session", _SESSIONS, where),
        permissions=_word(table, "permissions", _PERMISSIONS, where),
        mode=_text(table, "mode", where),
        model=_text(table, "model", where),
        auth_method=_text(table, "auth_method", where),
        hide_thoughts=expect(table.get("hide_thoughts", False), bool, f"{where}.hide_thoughts", "true or false"),
    )
    for key in ("kill_grace", "start_timeout"):
        if key in table:
            getattr(acp, key).CopyFrom(_duration(table[key], f"{where}.{key}"))
    return acp


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    text: str = expect(table.get(key, ""), str, f"{where}.{key}", "text")
    return text


def _word(table: Mapping[str, Any], key: str, words: Mapping[str, int], where: str) -> Any:
    """One of some words as a value of its enum; the first is the default."""
    word = expect(table.get(key, next(iter(words))), str, f"{where}.{key}", "text")
    if word not in words:
        raise ConfigError(f"{where}.{key} must be one of {', '.join(words)}, not {word!r}.")
    return words[word]


_RUNTIMES: dict[str, Callable[[Any, str], Any]] = {"command": _command, "acp": _acp, "llm": _llm, "python": _python}


def _workspace(value: Any, where: str) -> WorkspaceSpec | None:
    if value == "none":
        return None
    expect(value, dict, where, '"none" or a table such as { directory = "/srv/shop" }')
    refuse_unknown(value, _WORKSPACE_KEYS, where)
    if len(value) != 1:
        raise ConfigError(f"{where} must have one of {', '.join(_WORKSPACE_KEYS)}.")
    if "directory" in value:
        return WorkspaceSpec(directory=_path(value["directory"], f"{where}.directory"))
    return WorkspaceSpec(git_worktree=_git_worktree(value["git_worktree"], f"{where}.git_worktree"))


def _git_worktree(table: Any, where: str) -> GitWorktree:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _WORKTREE_KEYS, where)
    repositories = expect(table.get("repositories", []), list, f"{where}.repositories", "a list of tables")
    worktree = GitWorktree(
        repositories=[_repository(one, f"{where}.repositories[{at}]") for at, one in enumerate(repositories)],
        branch=expect(table.get("branch", ""), str, f"{where}.branch", "text"),
        directory=_path(table.get("directory", ""), f"{where}.directory"),
        restart_on_retry=expect(
            table.get("restart_on_retry", False), bool, f"{where}.restart_on_retry", "true or false"
        ),
        keep_uncommitted=expect(
            table.get("keep_uncommitted", False), bool, f"{where}.keep_uncommitted", "true or false"
        ),
    )
    if "setup" in table:
        worktree.setup.CopyFrom(_setup(table["setup"], f"{where}.setup"))
    if "merge" in table:
        worktree.merge.CopyFrom(_merge(table["merge"], f"{where}.merge"))
    return worktree


def _repository(table: Any, where: str) -> WorkspaceRepository:
    expect(table, dict, where, 'a table such as { path = "/srv/shop", base_ref = "main" }')
    refuse_unknown(table, _REPOSITORY_KEYS, where)
    path = _path(table.get("path", ""), f"{where}.path")
    return WorkspaceRepository(
        name=expect(table.get("name", Path(path).name.removesuffix(".git")), str, f"{where}.name", "text"),
        path=path,
        base_ref=expect(table.get("base_ref", ""), str, f"{where}.base_ref", "text"),
    )


def _setup(table: Any, where: str) -> WorkspaceSetup:
    expect(table, dict, where, 'a table such as { argv = ["npm", "ci"], inputs = ["package-lock.json"] }')
    refuse_unknown(table, _SETUP_KEYS, where)
    setup = WorkspaceSetup(
        argv=_strings(table.get("argv", []), f"{where}.argv"),
        inputs=_strings(table.get("inputs", []), f"{where}.inputs"),
    )
    if "timeout" in table:
        setup.timeout.CopyFrom(_duration(table["timeout"], f"{where}.timeout"))
    return setup


def _merge(table: Any, where: str) -> WorkspaceMergePolicy:
    expect(table, dict, where, 'a table such as { check = ["make", "test"] }')
    refuse_unknown(table, _MERGE_KEYS, where)
    merge = WorkspaceMergePolicy(
        check=_strings(table.get("check", []), f"{where}.check"),
        rebase=expect(table.get("rebase", False), bool, f"{where}.rebase", "true or false"),
        on_success=expect(table.get("on_success", False), bool, f"{where}.on_success", "true or false"),
    )
    if "check_timeout" in table:
        merge.check_timeout.CopyFrom(_duration(table["check_timeout"], f"{where}.check_timeout"))
    return merge


def _path(value: Any, where: str) -> str:
    path = expect(value, str, where, "text")
    return str(Path(path).expanduser()) if path else ""


def _limits(value: Any, where: str) -> AgentLimits:
    table = expect(value, dict, where, "a table")
    refuse_unknown(table, _LIMIT_KEYS, where)
    limits = AgentLimits(
        memory_bytes=_bytes(table.get("memory", 0), f"{where}.memory"),
        open_files=expect(table.get("open_files", 0), int, f"{where}.open_files", "a whole number"),
        processes=expect(table.get("processes", 0), int, f"{where}.processes", "a whole number"),
        output_bytes=_bytes(table.get("output", 0), f"{where}.output"),
    )
    for key in ("cpu_time", "wall_time"):
        if key in table:
            getattr(limits, key).CopyFrom(_duration(table[key], f"{where}.{key}"))
    return limits


def _restart(value: Any, where: str) -> RestartPolicy:
    """A mode by itself, or a table with a mode and how patient to be."""
    table = {"mode": value} if isinstance(value, str) else expect(value, dict, where, "a mode or a table")
    refuse_unknown(table, _RESTART_KEYS, where)
    mode = expect(table.get("mode", "on-failure"), str, f"{where}.mode", "text")
    if mode not in _RESTARTS:
        raise ConfigError(f"{where}.mode must be one of {', '.join(_RESTARTS)}, not {mode!r}.")
    most = expect(table.get("max_restarts", 0), int, f"{where}.max_restarts", "a whole number")
    policy = RestartPolicy(mode=_RESTARTS[mode], max_restarts=most)
    for key in ("first_pause", "longest_pause", "stable_after"):
        if key in table:
            getattr(policy, key).CopyFrom(_duration(table[key], f"{where}.{key}"))
    return policy


def _pool(value: Any, where: str) -> AgentPool:
    """The most agents by itself, or a table."""
    table = value if isinstance(value, dict) else {"max": value}
    refuse_unknown(table, _POOL_KEYS, where)
    pool = AgentPool(
        min_agents=expect(table.get("min", 0), int, f"{where}.min", "a whole number"),
        max_agents=expect(table.get("max", 1), int, f"{where}.max", "a whole number"),
    )
    if "idle_stop" in table:
        pool.idle_stop.CopyFrom(_duration(table["idle_stop"], f"{where}.idle_stop"))
    return _checked(pool, where)


def _checked(message: _M, where: str) -> _M:
    from kapell_server.rpc.validation import invalid

    for field, description in invalid(message):
        raise ConfigError(f"{where}.{field}: {description}." if field else f"{where}: {description}.")
    return message


def _texts(table: Any, where: str) -> dict[str, str]:
    expect(table, dict, where, "a table of texts")
    for key, value in table.items():
        expect(value, str, f"{where}.{key}", "text")
    return dict(table)


def _strings(value: Any, name: str) -> list[str]:
    expect(value, list, name, "a list of texts")
    for position, item in enumerate(value):
        expect(item, str, f"{name}[{position}]", "text")
    return list(value)


def _duration(value: Any, name: str) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(int(read_seconds(value, name) * 1e9))
    return duration


def read_seconds(value: Any, name: str) -> float:
    """Seconds from a number, or from a text such as "500ms", "5s", "2m" or "7d". Raises ConfigError."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    return float(expect(value, (int, float), name, 'a number of seconds or a text like "5s"'))


def _bytes(value: Any, name: str) -> int:
    """Bytes from a number, or from a text such as "512 MiB" or "2GB"."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _SIZES[match[2].upper()])
    return int(expect(value, int, name, 'a number of bytes or a text like "512MiB"'))


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    named = kinds.get(type(value), "a table" if isinstance(value, dict) else type(value).__name__)
    return f"{named} ({value!r})" if isinstance(value, str | int | float) else named
