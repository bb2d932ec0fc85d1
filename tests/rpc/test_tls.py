"""TLS: what is encrypted, whom the server lets in, and certificates that change while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from kapell import Client, Tls
from kapell.errors import KapellError
from kapell_server.data_dir import StartRefusedError
from kapell_server.rpc.tls import Tls as ServerTls
from kapell_server.rpc.tls import TlsFiles, TlsUnusableError
from kapell_server.testing import TestServer, serve

pytestmark = pytest.mark.timeout(60)


@dataclass
class Files:
    """Who signs, and the server's certificate, in a directory."""

    directory: Path

    def __post_init__(self) -> None:
        self.write(trustme.CA(), "")

    def write(self, authority: trustme.CA, suffix: str) -> None:
        """Puts a certificate of `authority` in the place of the one before."""
        self.authority = authority
        authority.cert_pem.write_to_path(str(self.ca))
        made = authority.issue_cert("127.0.0.1", "localhost")
        for pem, path in ((made.cert_chain_pems[0], self.cert), (made.private_key_pem, self.key)):
            draft = path.with_name(path.name + ".new")
            pem.write_to_path(str(draft))
            draft.replace(path)

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def cert(self) -> Path:
        return self.directory / "cert.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    def client(self, authority: trustme.CA | None = None) -> Tls:
        """Trusts the server, and shows a certificate of `authority`."""
        if authority is None:
            return Tls(ca=str(self.ca))
        made = authority.issue_cert("client.example")
        cert, key = self.directory / "client.pem", self.directory / "client.key"
        made.cert_chain_pems[0].write_to_path(str(cert))
        made.private_key_pem.write_to_path(str(key))
        return Tls(ca=str(self.ca), cert=str(cert), key=str(key))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def serving(files: Files, **config: Any) -> AsyncIterator[TestServer]:
    async with serve(files.directory, tls_cert=files.cert, tls_key=files.key, **config) as server:
        yield server


async def reached(server: TestServer, tls: Tls | None, timeout: float = 10) -> bool:
    """Whether a client of its own gets an answer."""
    async with Client(server.address, token=server.admin_token, tls=tls, timeout=timeout) as client:
        try:
            await client.admin.server_info()
        except KapellError:
            return False
        return True


async def test_only_who_speaks_tls_and_trusts_the_server_is_served(files: Files) -> None:
    stranger = files.directory / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(str(stranger))

    async with serving(files) as server:
        assert await reached(server, files.client())
        assert not await reached(server, None, timeout=1)
        assert not await reached(server, Tls(ca=str(stranger)), timeout=1)


async def test_with_a_client_ca_a_token_is_not_enough(files: Files) -> None:
    clients = trustme.CA()
    clients.cert_pem.write_to_path(str(files.directory / "clients.pem"))

    async with serving(files, tls_client_ca=files.directory / "clients.pem") as server:
        assert await reached(server, files.client(clients))
        assert not await reached(server, files.client(), timeout=1)
        assert not await reached(server, files.client(trustme.CA()), timeout=1)


async def test_agents_of_this_machine_work_beside_tls(files: Files) -> None:
    async with serving(files) as server:
        assert server.app.local_address.startswith("unix:")
        async with Client(server.address, token=server.admin_token, tls=files.client()) as client:
            await client.agents.spawn("shell")
            task = await client.tasks.run("shell", "echo encrypted")

    assert "encrypted" in str(task.result)
    assert not Path(server.app.local_address.removeprefix("unix:")).exists()


async def test_the_local_command_line_finds_the_server_without_certificates(files: Files) -> None:
    async with serving(files), Client(data_dir=files.directory / "data") as client:
        assert (await client.tokens.caller()).actor.id == "admin"


async def test_certificates_change_under_load_without_a_lost_call(files: Files) -> None:
    async with serving(files) as server:
        first = files.client()
        async with Client(server.address, token=server.admin_token, tls=first) as client:
            called, going = asyncio.Event(), True

            async def load() -> None:
                while going:
                    await client.tasks.create("nobody", "x")
                    called.set()

            workers = [asyncio.create_task(load()) for _ in range(4)]
            for _ in range(5):
                files.write(trustme.CA(), "")
                called.clear()
                assert await reached(server, files.client()), "a new connection gets the new certificate"
                assert await reached(server, files.client())
                await called.wait()
            going = False
            await asyncio.gather(*workers)


async def test_files_that_do_not_fit_change_nothing(files: Files) -> None:
    async with serving(files) as server:
        trusted = files.client()
        files.key.write_text("half of a key")

        assert await reached(server, trusted)
        files.cert.unlink()
        assert await reached(server, trusted)


async def test_tls_opens_addresses_that_plain_text_may_not_have(files: Files) -> None:
    async with serving(files, grpc_address="0.0.0.0:0"):
        pass
    with pytest.raises(StartRefusedError, match="--tls-cert"):
        async with serve(files.directory, grpc_address="0.0.0.0:0"):
            pass
    with pytest.raises(StartRefusedError, match="local_address"):
        async with serving(files, local_address="0.0.0.0:0"):
            pass


def test_files_that_cannot_be_used_are_named(files: Files, tmp_path: Path) -> None:
    other = trustme.CA().issue_cert("127.0.0.1")
    other.private_key_pem.write_to_path(str(tmp_path / "other.key"))
    empty = tmp_path / "empty"
    empty.write_text("")

    for cert, key, ca, named in (
        (tmp_path / "nothing", files.key, None, "nothing"),
        (files.cert, tmp_path / "other.key", None, "other.key"),
        (empty, files.key, None, "empty"),
        (files.cert, files.key, empty, "empty"),
    ):
        with pytest.raises(TlsUnusableError, match=named):
            ServerTls(TlsFiles(cert=cert, key=key, client_ca=ca))
