"""The data directory: one holder, secrets made once and for their owner alone."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from kapell_server.data_dir import DataDirectory, StartRefusedError, explain
from kapell_server.domain.access import CallerKind


def test_secrets_are_made_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "data")
    directory.acquire()

    first = directory.keyring().ticket("agent_1")
    token = directory.admin_token()

    assert directory.keyring().ticket("agent_1") == first
    assert directory.admin_token() == token
    assert directory.keyring().authenticate(token).kind is CallerKind.USER  # type: ignore[union-attr]
    for name in ("server.key", "admin.token", "lock"):
        assert (tmp_path / "data" / name).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    directory.release()


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.acquire()

    with pytest.raises(StartRefusedError, match=rf"process {os.getpid()}.*--data-dir"):
        second.acquire()

    first.release()
    second.acquire()
    second.release()


def test_a_damaged_key_is_refused_rather_than_replaced(tmp_path: Path) -> None:
    (tmp_path / "server.key").write_bytes(b"short")

    with pytest.raises(StartRefusedError, match="damaged: it has 5 bytes"):
        DataDirectory(tmp_path).keyring()

    assert (tmp_path / "server.key").read_bytes() == b"short"


def test_an_empty_token_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("\n")

    with pytest.raises(StartRefusedError, match="holds no token"):
        DataDirectory(tmp_path).admin_token()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    with pytest.raises(StartRefusedError, match="is not a directory"):
        DataDirectory(tmp_path / "data").acquire()


def test_the_note_says_where_the_server_is_until_it_is_withdrawn(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)

    directory.announce(grpc_address="127.0.0.1:1", log_id="log_1")

    note = json.loads((tmp_path / "server.json").read_text())
    assert note == {"grpc_address": "127.0.0.1:1", "pid": os.getpid(), "log_id": "log_1"}
    directory.withdraw()
    assert not (tmp_path / "server.json").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only for this user"),
        (errno.ENOSPC, "the disk is full. Free some space"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_failures_of_the_disk_are_explained(number: int, said: str, tmp_path: Path) -> None:
    text = explain(OSError(number, os.strerror(number)), tmp_path)

    assert said in text
    assert str(tmp_path) in text
