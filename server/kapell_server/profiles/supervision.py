"""The tables of a profile that say how its agents are kept: limits, restart and pool."""

from __future__ import annotations

from typing import Any

from kapell.v1 import agent_pb2
from kapell.v1.agent_pb2 import AgentLimits, AgentPool, RestartPolicy

from kapell_server.profiles.values import ConfigError, duration, expect, refuse_unknown, size

_RESTART_KEYS = ("mode", "first_pause", "longest_pause", "max_restarts", "stable_after")
_RESTARTS = {
    "never": agent_pb2.RESTART_MODE_NEVER,
    "on-failure": agent_pb2.RESTART_MODE_ON_FAILURE,
    "always": agent_pb2.RESTART_MODE_ALWAYS,
}
_LIMIT_KEYS = ("memory", "cpu_time", "wall_time", "open_files", "processes", "output")
_POOL_KEYS = ("min", "max", "idle_stop")


def limits(value: Any, where: str) -> AgentLimits:
    """What an attempt may use of the machine."""
    table = expect(value, dict, where, "a table")
    refuse_unknown(table, _LIMIT_KEYS, where)
    found = AgentLimits(
        memory_bytes=size(table.get("memory", 0), f"{where}.memory"),
        open_files=expect(table.get("open_files", 0), int, f"{where}.open_files", "a whole number"),
        processes=expect(table.get("processes", 0), int, f"{where}.processes", "a whole number"),
        output_bytes=size(table.get("output", 0), f"{where}.output"),
    )
    for key in ("cpu_time", "wall_time"):
        if key in table:
            getattr(found, key).CopyFrom(duration(table[key], f"{where}.{key}"))
    return found


def restart(value: Any, where: str) -> RestartPolicy:
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
            getattr(policy, key).CopyFrom(duration(table[key], f"{where}.{key}"))
    return policy


def pool(value: Any, where: str) -> AgentPool:
    """The most agents by itself, or a table."""
    table = value if isinstance(value, dict) else {"max": value}
    refuse_unknown(table, _POOL_KEYS, where)
    found = AgentPool(
        min_agents=expect(table.get("min", 0), int, f"{where}.min", "a whole number"),
        max_agents=expect(table.get("max", 1), int, f"{where}.max", "a whole number"),
    )
    if "idle_stop" in table:
        found.idle_stop.CopyFrom(duration(table["idle_stop"], f"{where}.idle_stop"))
    return found
