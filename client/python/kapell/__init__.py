"""Kapell: a control plane for AI agents. This package is its Python client.

`Client` (async), `SyncClient` (blocking) and `Worker` are loaded when they are first used, so that
importing `kapell` costs next to nothing; generated messages are in `kapell.v1`.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as typing has it, which is most of what importing this would cost
if TYPE_CHECKING:
    from kapell.client import Client as Client
    from kapell.connection import Connection as Connection
    from kapell.discovery import Endpoint as Endpoint
    from kapell.discovery import Tls as Tls
    from kapell.discovery import discover as discover
    from kapell.errors import KapellError as KapellError
    from kapell.sync import SyncClient as SyncClient
    from kapell.worker import RateLimited as RateLimited
    from kapell.worker import TaskContext as TaskContext
    from kapell.worker import TaskFailed as TaskFailed
    from kapell.worker import Worker as Worker

_HOMES = {
    "Client": "kapell.client",
    "Connection": "kapell.connection",
    "Endpoint": "kapell.discovery",
    "KapellError": "kapell.errors",
    "RateLimited": "kapell.worker",
    "SyncClient": "kapell.sync",
    "TaskContext": "kapell.worker",
    "TaskFailed": "kapell.worker",
    "Tls": "kapell.discovery",
    "Worker": "kapell.worker",
    "discover": "kapell.discovery",
}
_MODULES = frozenset({"errors", "sync"})

__all__ = [
    "Client",
    "Connection",
    "Endpoint",
    "KapellError",
    "RateLimited",
    "SyncClient",
    "TaskContext",
    "TaskFailed",
    "Tls",
    "Worker",
    "discover",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"kapell.{name}")
    else:
        raise AttributeError(f"module 'kapell' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
