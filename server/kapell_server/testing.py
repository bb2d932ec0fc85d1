"""A whole server inside the test's process: real parts, a free port, an empty directory.

async with serve(tmp_path) as server:
    channel = grpc.aio.insecure_channel(server.address)
    headers = server.headers
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapell_server.app import App
from kapell_server.config import load


@dataclass(frozen=True, slots=True)
class TestServer:
    """A server that runs. `app` gives access to its parts."""

    __test__ = False

    address: str
    admin_token: str
    app: App

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call by the owner."""
        return (("authorization", f"Bearer {self.admin_token}"),)


@asynccontextmanager
async def serve(directory: Path, **config: Any) -> AsyncIterator[TestServer]:
    """Serves from `directory`; spawned agents are ended at the end. `config` takes keys of `config.SETTINGS`.

    Nothing is read from the environment or from any kapell.toml but `directory`/kapell.toml. A part
    of the server that died fails the test.
    """
    flags = {"data_dir": directory / "data", "grpc_address": "127.0.0.1:0", "http_address": "", **config}
    app = App(load(flags=flags, env={}, directory=directory))
    await app.start()
    try:
        yield TestServer(address=app.address, admin_token=app.admin_token, app=app)
    finally:
        await app.stop(terminate_agents=True)
    assert not app.failed.done(), app.failed.result()
