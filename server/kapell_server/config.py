"""The server's configuration: defaults, then kapell.toml, then KAPELL_* variables, then flags.

Every value remembers where it came from. What is not known is refused with the close spelling,
and a value of the wrong type by name, so that a typing mistake never silently means the default.

The file is the one given by --config or KAPELL_CONFIG, else ./kapell.toml, else kapell.toml in
the data directory; it has the tables [server], [retention] and [profiles.NAME]. Other KAPELL_* variables
are the client's and are left alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kapell.v1.agent_pb2 import AgentProfile

from kapell_server.profiles.built_in import built_in
from kapell_server.profiles.profiles import read_profiles
from kapell_server.profiles.values import ConfigError, expect, read_seconds, refuse_unknown

__all__ = ["SETTINGS", "Config", "ConfigError", "Setting", "load"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything the server can be told. `origins` says of each value where it came from."""

    data_dir: Path
    grpc_address: str
    http_address: str
    otlp_usage: str
    database_url: str
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    local_address: str
    no_auth: bool
    insecure_bind: bool
    no_templates: bool
    log_format: str
    max_watches: int
    max_watches_of_one: int
    max_polls_of_one: int
    max_calls_at_once: int
    max_calls_a_second: int
    max_calls_of_connection: int
    max_failed_logins: int
    max_agents: int
    lease_duration: float
    heartbeat_interval: float
    max_artifact_mib: int
    max_task_artifacts_mib: int
    max_artifacts_mib: int
    max_artifact_age: float
    keep_tasks_for: float
    keep_tasks: int
    keep_events_for: float
    keep_events: int
    profiles: Mapping[str, AgentProfile]
    config_file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)


Read = Callable[[Any, str], Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One value: its key in its table, and from it the flag (--data-dir) and the variable (KAPELL_DATA_DIR)."""

    key: str
    default: Any
    read: Read
    """Turns what TOML or a text gives into the value; raises ConfigError naming it."""
    help: str
    switch: bool = False
    table: str = "server"

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "KAPELL_" + self.key.upper()


def load(
    *,
    flags: Mapping[str, Any],
    env: Mapping[str, str],
    config_file: Path | None = None,
    directory: Path | None = None,
) -> Config:
    """The configuration. `flags` are keys of settings that were given; `directory` is where ./kapell.toml is.

    Raises ConfigError.
    """
    values, origins = _defaults(env)
    path = _find_file(config_file, flags, env, directory or Path.cwd())
    profiles = built_in()
    if path is not None:
        document = _read_file(path)
        refuse_unknown(document, (*_TABLES, "profiles"), str(path))
        for table in _TABLES:
            place = f"{path}: {table}"
            given = expect(document.get(table, {}), dict, place, "a table")
            refuse_unknown(given, tuple(setting.key for setting in SETTINGS if setting.table == table), place)
            for key, value in given.items():
                values[key] = _SETTING[key].read(value, f"{place}.{key}")
                origins[key] = str(path)
        tables = expect(document.get("profiles", {}), dict, f"{path}: profiles", "a table")
        profiles.update(read_profiles(tables, str(path)))
    for setting in SETTINGS:
        text = env.get(setting.variable, "")
        if text:
            values[setting.key] = setting.read(_from_text(setting, text), setting.variable)
            origins[setting.key] = setting.variable
    for key, value in flags.items():
        values[key] = _SETTING[key].read(value, _SETTING[key].flag)
        origins[key] = _SETTING[key].flag
    return _checked(Config(**values, profiles=profiles, config_file=path, origins=origins))


def _defaults(env: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    values = {setting.key: setting.default for setting in SETTINGS}
    home = env.get("XDG_DATA_HOME", "")
    values["data_dir"] = (Path(home) if home else Path("~/.local/share").expanduser()) / "kapell"
    return values, {setting.key: "default" for setting in SETTINGS}


def _find_file(given: Path | None, flags: Mapping[str, Any], env: Mapping[str, str], directory: Path) -> Path | None:
    named = given or (Path(env["KAPELL_CONFIG"]) if env.get("KAPELL_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"There is no configuration file {named}. Check the path given by --config.")
        return named
    data_dir = flags.get("data_dir") or env.get("KAPELL_DATA_DIR") or _defaults(env)[0]["data_dir"]
    for place in (directory, Path(data_dir).expanduser()):
        if (place / "kapell.toml").is_file():
            return place / "kapell.toml"
    return None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None


def _from_text(setting: Setting, text: str) -> Any:
    """What a variable or a flag says, as TOML would: numbers as numbers, switches as booleans."""
    if setting.switch:
        known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        return known.get(text.lower(), text)
    return int(text) if isinstance(setting.default, int) and text.lstrip("-").isdigit() else text


def _checked(config: Config) -> Config:
    if config.lease_duration < 2 * config.heartbeat_interval:
        raise ConfigError(
            f"lease_duration ({config.lease_duration:g} s) must be at least twice heartbeat_interval"
            f" ({config.heartbeat_interval:g} s), or one lost heartbeat would cost agents their tasks."
        )
    if (config.tls_cert is None) is not (config.tls_key is None):
        raise ConfigError("tls_cert and tls_key belong together. Give both, or neither.")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigError("tls_client_ca needs tls_cert and tls_key; nothing is encrypted without. Give all.")
    return config


def _text(value: Any, name: str) -> str:
    return str(expect(value, str, name, "text"))


def _path(value: Any, name: str) -> Path:
    if isinstance(value, Path):
        return value
    text = str(expect(value, str, name, "a path"))
    if not text:
        raise ConfigError(f"{name} must not be empty.")
    return Path(text).expanduser().absolute()


def _address(value: Any, name: str) -> str:
    text = _text(value, name)
    host, _, port = text.rpartition(":")
    if text.startswith("unix:") or (host and port.isdigit() and int(port) <= 65535):
        return text
    raise ConfigError(f'{name} must read "host:port", such as "127.0.0.1:50051", not {text!r}.')


def _address_or_none(value: Any, name: str) -> str:
    return _address(value, name) if value != "" else ""


def _otlp_usage(value: Any, name: str) -> str:
    if value not in ("events", "metrics"):
        raise ConfigError(f"{name} must be `events` or `metrics`, not {value!r}.")
    return str(value)


def _local_address(value: Any, name: str) -> str:
    text = _text(value, name)
    return _address(text, name) if text else ""


def _log_format(value: Any, name: str) -> str:
    if value not in ("console", "json"):
        raise ConfigError(f"{name} must be `console` or `json`, not {value!r}.")
    return str(value)


def _database_url(value: Any, name: str) -> str:
    text = _text(value, name)
    if text and not text.startswith(("postgresql://", "postgresql+asyncpg://", "sqlite:")):
        raise ConfigError(f"{name} must begin with postgresql:// (or be empty for SQLite in the data directory).")
    return text


def _switch(value: Any, name: str) -> bool:
    return bool(expect(value, bool, name, "true or false"))


def _count(value: Any, name: str) -> int:
    number = int(expect(value, int, name, "a whole number"))
    if not 1 <= number <= 1_000_000:
        raise ConfigError(f"{name} must be from 1 to 1,000,000, not {number}.")
    return number


def _seconds(value: Any, name: str) -> float:
    text = value
    if isinstance(value, str) and value.replace(".", "", 1).isdigit():
        text = float(value)
    seconds = read_seconds(text, name)
    if not 0.1 <= seconds <= 3600:
        raise ConfigError(f"{name} must be from 0.1 s to 1 h, not {seconds:g} s.")
    return seconds


def _kept_count(value: Any, name: str) -> int:
    number = int(expect(value, int, name, "a whole number"))
    if not 0 <= number <= 1_000_000_000:
        raise ConfigError(f"{name} must be from 0, which keeps all, to 1,000,000,000, not {number}.")
    return number


def _kept_seconds(value: Any, name: str) -> float:
    is_number = isinstance(value, str) and value.replace(".", "", 1).isdigit()
    seconds = read_seconds(float(value) if is_number else value, name)
    if seconds and not 1 <= seconds <= 3_153_600_000:
        raise ConfigError(f"{name} must be 0, which keeps for ever, or from 1 s to 36500 days, not {seconds:g} s.")
    return seconds


_TABLES = ("server", "retention")

SETTINGS: tuple[Setting, ...] = (
    Setting(
        key="data_dir",
        default=None,
        read=_path,
        help="where the database, the logs and the tokens are (default ~/.local/share/kapell)",
    ),
    Setting(
        key="grpc_address",
        default="127.0.0.1:50051",
        read=_address,
        help="where to listen, host:port; port 0 takes a free one (default 127.0.0.1:50051)",
    ),
    Setting(
        key="http_address",
        default="127.0.0.1:4110",
        read=_address_or_none,
        help='where HTTP listens, host:port; port 0 takes a free one, "" leaves it out (default 127.0.0.1:4110)',
    ),
    Setting(
        key="otlp_usage",
        default="events",
        read=_otlp_usage,
        help="what counts of the telemetry that agents export: `events` or `metrics` (default events)",
    ),
    Setting(
        key="database_url",
        default="",
        read=_database_url,
        help="postgresql://... instead of SQLite in the data directory",
    ),
    Setting(
        key="tls_cert",
        default=None,
        read=_path,
        help="PEM file of the server's certificate with its chain: encrypt grpc_address; read anew when it changes",
    ),
    Setting(key="tls_key", default=None, read=_path, help="PEM file of the certificate's key, without a password"),
    Setting(
        key="tls_client_ca",
        default=None,
        read=_path,
        help="PEM file: clients must show a certificate that it has signed, besides their token",
    ),
    Setting(
        key="local_address",
        default="",
        read=_local_address,
        help="with TLS, where agents of this machine reach the server (default unix:DATA_DIR/local.sock)",
    ),
    Setting(
        key="no_auth",
        default=False,
        read=_switch,
        switch=True,
        help="let in callers without a token; only on a loopback address",
    ),
    Setting(
        key="insecure_bind",
        default=False,
        read=_switch,
        switch=True,
        help="allow an address that other machines can reach, though nothing is encrypted",
    ),
    Setting(
        key="no_templates",
        default=False,
        read=_switch,
        switch=True,
        help="begin without the templates that come with Kapell",
    ),
    Setting(
        key="log_format",
        default="console",
        read=_log_format,
        help="`console` or `json` (default console)",
    ),
    Setting(key="max_watches", default=10_000, read=_count, help="most open watches (default 10000)"),
    Setting(
        key="max_watches_of_one",
        default=5_000,
        read=_count,
        help="how many watches one user or agent may have open (default 5000)",
    ),
    Setting(
        key="max_polls_of_one",
        default=5_000,
        read=_count,
        help="how many long polls one user or agent may have open (default 5000)",
    ),
    Setting(
        key="max_calls_at_once",
        default=32,
        read=_count,
        help="how many calls of one user or agent are at work at once; more wait in line (default 32)",
    ),
    Setting(
        key="max_calls_a_second",
        default=10_000,
        read=_count,
        help="how many calls a second one user or agent may make (default 10000)",
    ),
    Setting(
        key="max_calls_of_connection",
        default=5_000,
        read=_count,
        help="how many calls, watches among them, one connection may have open; more wait in the client (default 5000)",
    ),
    Setting(
        key="max_failed_logins",
        default=200,
        read=_count,
        help="how many failed logins of one address may come at once; 5 a second in the long run (default 200)",
    ),
    Setting(key="max_agents", default=1_000, read=_count, help="most agents that have not ended (default 1000)"),
    Setting(
        key="lease_duration",
        default=10.0,
        read=_seconds,
        help="how long a lease lives without a heartbeat (default 10s)",
    ),
    Setting(
        key="heartbeat_interval",
        default=3.0,
        read=_seconds,
        help="how often agents report (default 3s)",
    ),
    Setting(key="max_artifact_mib", default=256, read=_count, help="largest artifact of a task, MiB (default 256)"),
    Setting(
        key="max_task_artifacts_mib",
        default=1024,
        read=_count,
        help="most that all artifacts of one task may have, MiB (default 1024)",
    ),
    Setting(
        key="max_artifacts_mib",
        default=20_480,
        read=_count,
        help="most that all artifacts may have, MiB (default 20480)",
    ),
    Setting(
        key="max_artifact_age",
        default=0.0,
        read=_kept_seconds,
        help="how long artifacts are kept, as 30d; 0 as long as their tasks (default 0)",
    ),
    Setting(
        key="keep_tasks_for",
        default=30 * 86_400.0,
        read=_kept_seconds,
        table="retention",
        help="how long finished tasks are kept, 0 for ever (default 30d)",
    ),
    Setting(
        key="keep_tasks",
        default=1_000_000,
        read=_kept_count,
        table="retention",
        help="how many finished tasks are kept, 0 for all (default 1000000)",
    ),
    Setting(
        key="keep_events_for",
        default=7 * 86_400.0,
        read=_kept_seconds,
        table="retention",
        help="how long events are kept, 0 for ever (default 7d)",
    ),
    Setting(
        key="keep_events",
        default=2_000_000,
        read=_kept_count,
        table="retention",
        help="how many events are kept, 0 for all (default 2000000)",
    ),
)
_SETTING = {setting.key: setting for setting in SETTINGS}
