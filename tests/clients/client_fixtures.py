"""Fixtures of the client's tests: a fake server, a proxy that cuts, a client behind both."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kapell import Client

from tests.clients.fake_server import FakeServer, serving
from tests.support.cutting_proxy import CuttingProxy


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with serving(FakeServer()) as fake:
        yield fake


@pytest.fixture
async def proxy(server: FakeServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(server.address) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: CuttingProxy) -> AsyncIterator[Client]:
    async with Client(proxy.address, token="secret-token") as client:
        yield client
