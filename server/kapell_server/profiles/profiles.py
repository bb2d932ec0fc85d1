"""Agent profiles: the [profiles.NAME] tables of kapell.toml as AgentProfile messages.

The rules are those of the proto, so a profile that is accepted here can be spawned; whether its
program exists is looked at when it is spawned. See `built_in` for those that are always there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message
from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import AgentProfile, AgentSpec

from kapell_server.profiles.runtimes import RUNTIMES
from kapell_server.profiles.supervision import limits, pool, restart
from kapell_server.profiles.values import ConfigError, expect, refuse_unknown, strings
from kapell_server.profiles.workspaces import workspace

_PROFILE_KEYS = (
    *("description", "agent_types", "slots", "command", "acp", "llm", "python", "api_access"),
    *("limits", "restart", "pool", "workspace"),
)
_API_ACCESS = {"attempt": agent_pb2.API_ACCESS_ATTEMPT, "none": agent_pb2.API_ACCESS_NONE}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_M = TypeVar("_M", bound=Message)


def read_profiles(tables: Mapping[str, Any], source: str) -> dict[str, AgentProfile]:
    """The profiles of the [profiles] table of the file called `source`. Raises ConfigError."""
    return {name: _profile(name, table, f"{source}: profiles.{name}") for name, table in tables.items()}


def _profile(name: str, table: Any, where: str) -> AgentProfile:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a profile's name has 1 to 64 letters, digits, '.', '_' or '-'.")
    expect(table, dict, where, "a table")
    refuse_unknown(table, _PROFILE_KEYS, where)
    runtimes = [key for key in RUNTIMES if key in table]
    if len(runtimes) != 1:
        has = f"has {' and '.join(runtimes)}" if runtimes else f"has no {', '.join(RUNTIMES)}"
        raise ConfigError(f"{where} {has}; it needs one of them, such as command = {{ argv = [...] }}.")
    api_access = expect(table.get("api_access", "attempt"), str, f"{where}.api_access", "text")
    if api_access not in _API_ACCESS:
        raise ConfigError(f"{where}.api_access must be one of {', '.join(_API_ACCESS)}, not {api_access!r}.")
    spec = AgentSpec(
        agent_types=strings(table.get("agent_types", [name]), f"{where}.agent_types"),
        slots=expect(table.get("slots", 1), int, f"{where}.slots", "a whole number"),
        **{key: RUNTIMES[key](table[key], f"{where}.{key}") for key in runtimes},
        workspace=workspace(table.get("workspace", "none"), f"{where}.workspace"),
        api_access=_API_ACCESS[api_access] if "api_access" in table else agent_pb2.API_ACCESS_UNSPECIFIED,
    )
    if "limits" in table:
        spec.limits.CopyFrom(limits(table["limits"], f"{where}.limits"))
    if "restart" in table:
        spec.restart.CopyFrom(restart(table["restart"], f"{where}.restart"))
    description = expect(table.get("description", ""), str, f"{where}.description", "text")
    profile = AgentProfile(profile=name, description=description, spec=_checked(spec, where))
    if "pool" in table:
        profile.pool.CopyFrom(_checked(pool(table["pool"], f"{where}.pool"), f"{where}.pool"))
    return profile


def _checked(message: _M, where: str) -> _M:
    from kapell_server.rpc.validation import invalid

    for field, description in invalid(message):
        raise ConfigError(f"{where}.{field}: {description}." if field else f"{where}: {description}.")
    return message
