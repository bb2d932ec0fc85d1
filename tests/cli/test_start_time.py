"""The command line starts light: what is heavy is imported by the commands that need it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cli.shell import Shell
from tests.cli.test_help import LEAVES

HEAVY = ("grpc", "rich", "google.protobuf", "kapell.v1", "kapell.client", "sqlalchemy", "asyncio", "structlog")


def imported(shell: Shell, *args: str, **environment: str) -> set[str]:
    """The modules a run of `kapell ARGS` imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kapell.cli.main", *args],
        env={**shell.environment, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return set(re.findall(r"(?m)^import time: +\d+ \| +\d+ \| +([\w.]+)$", done.stderr))


def heavy_ones(modules: set[str]) -> list[str]:
    """Those of the modules that the start must not pay for."""
    return sorted(name for name in modules for heavy in HEAVY if name == heavy or name.startswith(heavy + "."))


@pytest.mark.parametrize(
    ("args", "environment"),
    [
        (("--version",), {}),
        (("--help",), {}),
        (("task", "--help"), {}),
        (("completion", "bash"), {}),
        ((), {"_KAPELL_COMPLETE": "bash_complete", "COMP_WORDS": "kapell ta", "COMP_CWORD": "1"}),
    ],
)
def test_nothing_heavy_is_imported(no_server: Shell, args: tuple[str, ...], environment: dict[str, str]) -> None:
    modules = imported(no_server, *args, **environment)

    assert "click" in modules
    assert heavy_ones(modules) == []


@pytest.mark.parametrize("path", LEAVES)
def test_the_help_of_a_command_imports_nothing_heavy(no_server: Shell, path: str) -> None:
    modules = imported(no_server, *path.split(), "--help")

    assert heavy_ones(modules) == []


def test_listing_needs_no_rich(cast: Shell) -> None:
    modules = imported(cast, "task", "list")

    assert "grpc" in modules
    assert "rich" not in modules
