"""The command line starts light: what is heavy is imported by the commands that need it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cli.shell import Shell

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
    assert sorted(m for m in modules for heavy in HEAVY if m == heavy or m.startswith(heavy + ".")) == []


def test_listing_needs_no_rich(cast: Shell) -> None:
    modules = imported(cast, "task", "list")

    assert "grpc" in modules
    assert "rich" not in modules
