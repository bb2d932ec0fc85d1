"""How a client finds its server and its token, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kapell import errors
from kapell.discovery import Endpoint, data_dir, discover, is_local


def _running(home: Path, address: str = "127.0.0.1:5", token: str = "local-token\n") -> Path:
    home.mkdir(exist_ok=True)
    (home / "server.json").write_text(json.dumps({"grpc_address": address, "pid": 1, "log_id": "log_a"}))
    (home / "admin.token").write_text(token)
    return home


def test_the_local_server_is_found_by_its_data_directory(tmp_path: Path) -> None:
    found = discover(environ={"KAPELL_DATA_DIR": str(_running(tmp_path))})

    assert found == Endpoint(address="127.0.0.1:5", token="local-token")


def test_the_environment_beats_the_data_directory(tmp_path: Path) -> None:
    environ = {
        "KAPELL_DATA_DIR": str(_running(tmp_path)),
        "KAPELL_ADDRESS": "kapell.example:50051",
        "KAPELL_TOKEN": "from-the-environment",
    }

    assert discover(environ=environ) == Endpoint(address="kapell.example:50051", token="from-the-environment")


def test_arguments_beat_the_environment(tmp_path: Path) -> None:
    environ = {"KAPELL_ADDRESS": "kapell.example:50051", "KAPELL_TOKEN": "from-the-environment"}

    found = discover("[::1]:7", token="mine", directory=tmp_path, environ=environ)

    assert found == Endpoint(address="[::1]:7", token="mine")


def test_the_admin_token_is_never_sent_to_another_machine(tmp_path: Path) -> None:
    environ = {"KAPELL_DATA_DIR": str(_running(tmp_path)), "KAPELL_ADDRESS": "kapell.example:50051"}

    assert discover(environ=environ).token == ""
    assert discover("localhost:9", environ=environ).token == "local-token"


def test_a_token_is_not_shown_by_repr() -> None:
    assert "geheim" not in repr(Endpoint(address="a:1", token="geheim"))


def test_without_any_server_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(errors.ServerNotFound) as caught:
        discover(environ={"KAPELL_DATA_DIR": str(tmp_path)})

    assert str(caught.value) == (
        f"no Kapell server is known - {tmp_path}/server.json does not exist - start one with `kapell up`, "
        "or set KAPELL_ADDRESS (and KAPELL_TOKEN) to reach one elsewhere"
    )
    assert not caught.value.from_server


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"grpc_address": 5}', "null"])
def test_a_damaged_server_file_is_told_in_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)

    with pytest.raises(errors.ServerNotFound, match=r"server\.json (is damaged|names no address)"):
        discover(environ={"KAPELL_DATA_DIR": str(tmp_path)})


@pytest.mark.parametrize("address", ["localhost", "http://localhost:80", ":50051", "host:port", "host:0", "host:99999"])
def test_an_address_that_is_none_is_refused_with_the_form_it_must_have(address: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="host:port") as caught:
        discover(address, environ={})

    assert caught.value.reason == "ADDRESS_INVALID"


def test_an_unreadable_token_is_told_with_its_path(tmp_path: Path) -> None:
    home = _running(tmp_path)
    (home / "admin.token").unlink()
    (home / "admin.token").mkdir()

    with pytest.raises(errors.Unauthenticated, match=r"admin\.token"):
        discover(environ={"KAPELL_DATA_DIR": str(home)})


def test_the_data_directory_follows_xdg(tmp_path: Path) -> None:
    assert data_dir({"XDG_DATA_HOME": "/xdg"}) == Path("/xdg/kapell")
    assert data_dir({}) == Path.home() / ".local/share/kapell"
    assert data_dir({"KAPELL_DATA_DIR": "/here", "XDG_DATA_HOME": "/xdg"}) == Path("/here")


def test_only_loopback_and_sockets_are_local() -> None:
    assert all(map(is_local, ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "unix:/run/kapell"]))
    assert not any(map(is_local, ["10.0.0.1:1", "kapell.example:1", "localhost.example:1", "127.0.0.1.example:1"]))


def test_importing_kapell_loads_neither_grpc_nor_protobuf() -> None:
    code = (
        "import sys, kapell, kapell.errors, kapell.discovery\n"
        "kapell.KapellError, kapell.discover, dir(kapell)\n"
        "heavy = [name for name in sys.modules if name.split('.')[0] in ('grpc', 'google', 'asyncio')]\n"
        "assert not heavy, heavy\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_every_name_that_kapell_offers_resolves() -> None:
    code = "import kapell\nfor name in kapell.__all__: getattr(kapell, name)\n"

    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
