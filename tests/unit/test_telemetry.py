"""What the server says of itself."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os

import pytest
import structlog
from kapell_server.domain.access import Keyring
from kapell_server.telemetry import CallStats, configure_logging, hide_secrets

KEYRING = Keyring(b"k" * 32, admin_token="kapell_admin_0123456789")


@pytest.mark.parametrize(
    "secret",
    [
        "kapell_admin_Xy-_0123456789",
        KEYRING.ticket("agent_a"),
        KEYRING.agent_token("agent_a", 3),
        KEYRING.lease_token("task_a-b_c", 12, 1_800_000_000_000_000_000),
        "Bearer abc.def-ghi",
    ],
)
def test_nothing_that_looks_like_a_token_is_shown(secret: str) -> None:
    shown = hide_secrets(f"refused {secret}, try again")

    assert shown == "refused [hidden], try again"


def test_the_password_of_a_database_is_hidden_and_its_host_is_not() -> None:
    assert hide_secrets("postgresql://me:pass@db/kapell") == "postgresql://[hidden]@db/kapell"


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_log_lines_and_tracebacks_hide_secrets_and_show_no_locals(log_format: str) -> None:
    lines = io.StringIO()
    configure_logging(log_format, stream=lines)
    ticket = KEYRING.ticket("agent_a")
    local_only = "value-of-a-local"

    try:
        raise ValueError(f"no place for {ticket} of {len(local_only)}")
    except ValueError as error:
        structlog.get_logger("test").error("broke", token=ticket, exc_info=error)
    logging.getLogger("library").warning("told %s", ticket)

    said = lines.getvalue()
    assert "ValueError: no place for [hidden]" in said
    assert "told [hidden]" in said
    assert ticket not in said
    assert local_only not in said.replace('local_only = "value-of-a-local"', "")
    if log_format == "json":
        assert {json.loads(line)["event"] for line in said.splitlines()} == {"broke", "told [hidden]"}


def test_calls_are_counted_by_time() -> None:
    stats = CallStats("/a/B")
    for seconds in [0.001] * 98 + [0.5, 1_000]:
        stats.observe(seconds)

    assert stats.calls == 100
    assert stats.quantile(0.5) == pytest.approx(0.001024)
    assert stats.quantile(0.99) == pytest.approx(0.524288)
    assert CallStats("/a/C").quantile(0.99) == 0


def test_what_nobody_reads_is_dropped_in_silence() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as closed:
        configure_logging("json", stream=closed)

        structlog.get_logger("test").warning("nobody hears this")
