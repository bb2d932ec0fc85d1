"""Agent profiles: the [profiles.NAME] tables of kapell.toml as AgentProfile messages.

The rules are those of the proto, so a profile that is accepted here can be spawned; whether its
program exists is looked at when it is spawned. One profile is built in: `shell`, which runs a
task's prompt as a shell command. A table of the same name takes its place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import AcpRuntime, AgentProfile, AgentSpec, CommandRuntime

_PROFILE_KEYS = ("description", "agent_types", "slots", "command", "acp")
_RUNTIMES = ("command", "acp")
_COMMAND_KEYS = ("argv", "stdin", "env", "env_from_secret", "working_directory", "result_format", "kill_grace")
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
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key, what is wrong and what to do."""


def built_in() -> dict[str, AgentProfile]:
    """The profiles that are there without any configuration."""
    shell = AgentSpec(agent_types=["shell"], slots=4, command=CommandRuntime(argv=["sh", "-c", "{prompt}"]))
    description = "Runs the prompt of each task as a shell command."
    return {"shell": AgentProfile(profile="shell", description=description, spec=shell)}


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
    if [name for name in _RUNTIMES if name in table] not in (["command"], ["acp"]):
        raise ConfigError(f"{where} needs one of command = {{ argv = [...] }} and acp = {{ argv = [...] }}.")
    spec = AgentSpec(
        agent_types=_strings(table.get("agent_types", [name]), f"{where}.agent_types"),
        slots=expect(table.get("slots", 1), int, f"{where}.slots", "a whole number"),
        command=_command(table["command"], f"{where}.command") if "command" in table else None,
        acp=_acp(table["acp"], f"{where}.acp") if "acp" in table else None,
    )
    description = expect(table.get("description", ""), str, f"{where}.description", "text")
    return AgentProfile(profile=name, description=description, spec=_checked(spec, where))


def _command(table: Any, where: str) -> CommandRuntime:
    expect(table, dict, where, "a table")
    refuse_unknown(table, _COMMAND_KEYS, where)
    env = _texts(table.get("env", {}), f"{where}.env")
    result_format = expect(table.get("result_format", "text"), str, f"{where}.result_format", "text")
    if result_format not in _FORMATS:
        raise ConfigError(f"{where}.result_format must be one of {', '.join(_FORMATS)}, not {result_format!r}.")
    directory = expect(table.get("working_directory", ""), str, f"{where}.working_directory", "text")
    command = CommandRuntime(
        argv=_strings(table.get("argv", []), f"{where}.argv"),
        stdin=expect(table.get("stdin", ""), str, f"{where}.stdin", "text"),
        env=env,
        env_from_secret=_texts(table.get("env_from_secret", {}), f"{where}.env_from_secret"),
        working_directory=str(Path(directory).expanduser()) if directory else "",
        result_format=_FORMATS[result_format],
    )
    if "kill_grace" in table:
        command.kill_grace.CopyFrom(_duration(table["kill_grace"], f"{where}.kill_grace"))
    return command


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


def _checked(spec: AgentSpec, where: str) -> AgentSpec:
    from kapell_server.rpc.validation import invalid

    for field, description in invalid(spec):
        raise ConfigError(f"{where}.{field}: {description}.")
    return spec


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


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    named = kinds.get(type(value), "a table" if isinstance(value, dict) else type(value).__name__)
    return f"{named} ({value!r})" if isinstance(value, str | int | float) else named
