"""Imports point at the domain: who may know whom, as server/ARCHITECTURE.md draws it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable

import pytest

from tests.tidy.sources import Source, called_names, sources

COMPOSITION = ("kapell_server.app", "kapell_server.__main__", "kapell_server.testing")
DATABASE = ("sqlalchemy", "alembic", "aiosqlite", "asyncpg", "sqlite3")
GRPC = ("grpc", "grpc_health", "grpc_reflection", "grpc_status")
# Of the standard library, what would make a rule depend on more than its arguments.
IMPURE = ("asyncio", "os", "pathlib", "random", "secrets", "socket", "subprocess", "threading", "time")

# What everybody but the domain may know, since it knows nobody.
GROUND = {"clock", "supervise", "wire"}
# For each room of the server, what else of the server it may know.
ROOMS: dict[str, set[str]] = {
    "domain": set(),
    "watch": {"domain", "store", *GROUND},
    "store": {"domain", "watch", *GROUND},
    "engine": {"domain", "store", "watch", *GROUND},
    "spawner": {"domain", "store", "watch", "engine", *GROUND},
    "webhooks": {"domain", "store", "engine", *GROUND},
    "rpc": {
        "domain",
        "store",
        "watch",
        "engine",
        "spawner",
        "webhooks",
        "config",
        "profiles",
        "telemetry",
        "vault",
        *GROUND,
    },
    "gateway": {"domain", "rpc", *GROUND},
}


def is_below(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def offenders(chosen: Iterable[Source], forbidden: Iterable[str]) -> list[str]:
    return [
        f"{source.name}:{line} imports {name}"
        for source in chosen
        for name, line in source.imports()
        if is_below(name, forbidden)
    ]


def test_the_domain_knows_the_messages_and_pure_parts_of_the_standard_library_only() -> None:
    # A generator of random numbers is an argument like any other; the module's own is not.
    allowed = {
        "kapell.v1",
        # Rules that the clients apply as well, as pure as those of the domain itself.
        "kapell.rules",
        "google.protobuf",
        # Money, a message of the API like ours.
        "google.type",
        "kapell_server.domain",
        "random.Random",
        # Patterns that users write: Python's own can take forever on a short text.
        "re2",
        # Cron expressions: cronsim reads them and walks the calendar, on dates that are given to it.
        "cronsim",
        *(sys.stdlib_module_names - set(IMPURE)),
    }

    found = [
        f"{source.name}:{line} imports {name}"
        for source in sources("server")
        if source.is_in("kapell_server.domain")
        for name, line in source.imports()
        if not is_below(name, allowed)
    ]

    assert found == []


def test_the_domain_has_no_async_function() -> None:
    found = [
        f"{source.name}:{function.lineno} {function.name}"
        for source in sources("server")
        if source.is_in("kapell_server.domain")
        for function in source.functions()
        if isinstance(function, ast.AsyncFunctionDef)
    ]

    assert found == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_the_rooms_below_it(room: str) -> None:
    allowed = [f"kapell_server.{known}" for known in {room, *ROOMS[room]}]

    found = [
        f"{source.name}:{line} imports {name}"
        for source in sources("server")
        if source.is_in(f"kapell_server.{room}")
        for name, line in source.imports()
        if is_below(name, ["kapell_server"]) and not is_below(name, allowed)
    ]

    assert found == []


def test_the_store_alone_knows_databases() -> None:
    others = [source for source in sources("server", "client") if not source.is_in("kapell_server.store")]

    assert offenders(others, DATABASE) == []


def test_grpc_is_known_to_rpc_and_the_composition_only() -> None:
    others = [source for source in sources("server") if not source.is_in("kapell_server.rpc", *COMPOSITION)]

    assert offenders(others, GRPC) == []


def test_the_client_never_imports_the_server() -> None:
    assert offenders(sources("client"), ["kapell_server"]) == []


def test_the_shared_rules_know_what_the_domain_may_know() -> None:
    allowed = {"kapell.v1", "kapell.rules", "google.protobuf", "re2", *(sys.stdlib_module_names - set(IMPURE))}

    found = [
        f"{source.name}:{line} imports {name}"
        for source in sources("client")
        if source.is_in("kapell.rules")
        for name, line in source.imports()
        if not is_below(name, allowed)
    ]

    assert found == []


def test_the_server_uses_nothing_of_the_client_but_the_messages_and_the_shared_rules() -> None:
    others = [source for source in sources("server") if not source.is_in(*COMPOSITION)]

    found = [
        offence
        for offence in offenders(others, ["kapell"])
        if not re.search(r" imports kapell\.(v1|rules|_third_party)\.", offence)
    ]

    assert found == []


def test_status_codes_are_chosen_in_one_file_of_the_server() -> None:
    found = [
        f"{source.name}:{node.lineno}"
        for source in sources("server")
        if not source.is_in("kapell_server.rpc.status")
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and node.attr == "StatusCode")
        or (isinstance(node, ast.ImportFrom) and any(alias.name == "StatusCode" for alias in node.names))
    ]

    assert found == []


def test_background_tasks_of_the_server_are_started_by_the_supervisor_only() -> None:
    found = [
        f"{source.name}:{line} calls {name}"
        for source in sources("server")
        if not source.is_in("kapell_server.supervise")
        for name, line in called_names(source.tree)
        if name in ("create_task", "ensure_future")
    ]

    assert found == []
