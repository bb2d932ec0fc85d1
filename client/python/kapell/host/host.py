"""Starts one agent from its environment and runs it to its end.

Exit codes: 0 ended as asked, 1 refused or crashed, 2 started the wrong way.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from google.protobuf import json_format

from kapell import runtimes
from kapell._worker.attempts import Handler
from kapell._worker.crew import Crew
from kapell._worker.session import new_instance_key
from kapell.discovery import Endpoint
from kapell.errors import KapellError
from kapell.host.workshop import Workshop
from kapell.runtimes import Runtime
from kapell.v1.agent_pb2 import AgentSpec
from kapell.v1.worker_pb2 import RegisterWorkerRequest

_log = logging.getLogger("kapell.host")

_REQUIRED = ("KAPELL_ADDRESS", "KAPELL_TICKET", "KAPELL_AGENT_ID", "KAPELL_SPEC_FILE")


class StartRefused(Exception):
    """The host was started the wrong way; the text says what is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """What a host is told when it is started."""

    address: str
    ticket: str = field(repr=False)
    agent_id: str
    spec: AgentSpec


def take_assignment(environ: MutableMapping[str, str]) -> Assignment:
    """Reads the assignment and removes the ticket from `environ`. Raises StartRefused."""
    missing = [name for name in _REQUIRED if not environ.get(name)]
    if missing:
        raise StartRefused(
            f"{', '.join(missing)} not set - hosts are started by the server; spawn an agent with "
            "`kapell agent spawn`, or use kapell.Worker for a worker of your own"
        )
    file = Path(environ["KAPELL_SPEC_FILE"])
    try:
        spec = json_format.Parse(file.read_text(encoding="utf-8"), AgentSpec(), ignore_unknown_fields=True)
    except (OSError, UnicodeDecodeError, json_format.ParseError) as error:
        raise StartRefused(f"the agent's spec {file} cannot be used: {error}") from error
    return Assignment(
        address=environ["KAPELL_ADDRESS"],
        ticket=environ.pop("KAPELL_TICKET"),
        agent_id=environ["KAPELL_AGENT_ID"],
        spec=spec,
    )


async def serve(assignment: Assignment, runtime: Runtime) -> None:
    """Works as the agent until told to end. Raises KapellError when the server refuses it."""
    workshop = Workshop(assignment.spec.workspace, runtime, agent_id=assignment.agent_id)
    handler = Handler(workshop.run, cancel_grace=None)
    endpoint = Endpoint(address=assignment.address, token=assignment.ticket)
    registration = RegisterWorkerRequest(instance_key=new_instance_key())
    crew = Crew(endpoint, registration, lambda task: handler, grace=None)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(crew.stop, f"got {number.name}", at_once=True))
    try:
        await crew.run()
    finally:
        await runtime.close()


def main() -> int:
    """Runs the host and returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        assignment = take_assignment(os.environ)
        asyncio.run(_run(assignment))
    except StartRefused as error:
        _log.error("cannot start: %s", error)
        return 2
    except KapellError as error:
        _log.error("the server refuses this agent: %s", error)
        return 1
    return 0


async def _run(assignment: Assignment) -> None:
    try:
        runtime = runtimes.build(assignment.spec, agent_id=assignment.agent_id, directory=Path.cwd())
    except ValueError as error:
        raise StartRefused(f"the agent's spec cannot be used: {error}") from error
    # What the start has made lives as long as the process; collecting it again and again is idle work.
    gc.freeze()
    await serve(assignment, runtime)
