"""The data directory: one holder, secrets made once and for their owner alone."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from kapell_server.data_dir import DataDirectory, StartRefusedError, explain
from kapell_server.domain.access import CallerKind
from structlog.testing import capture_logs


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


def test_what_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "logs").mkdir(parents=True)
    (data / "sites").mkdir()
    left = [data / name for name in ("server.key", "admin.token", "kapell.db", "kapell.db-wal", "server.json")]
    for path in (*left, data / "notes", tmp_path / "elsewhere"):
        path.write_bytes(b"")
        path.chmod(0o644)
    (data / "place").symlink_to(tmp_path / "elsewhere")
    for path in (data, data / "logs", data / "sites"):
        path.chmod(0o755)
    directory = DataDirectory(data)

    with capture_logs() as logs:
        directory.acquire()

    assert {path.name: mode(path) for path in left} == {path.name: 0o600 for path in left}
    assert (mode(data), mode(data / "logs")) == (0o700, 0o700)
    assert {entry["path"] for entry in logs} == {str(path) for path in (data, data / "logs", *left)}
    assert (mode(data / "notes"), mode(data / "sites"), mode(tmp_path / "elsewhere")) == (0o644, 0o755, 0o644)
    directory.release()
    with capture_logs() as logs:
        directory.acquire()
    assert logs == []
    directory.release()


def test_a_directory_behind_a_link_is_closed_as_any(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    disk.chmod(0o755)
    (tmp_path / "data").symlink_to(disk)
    directory = DataDirectory(tmp_path / "data")

    directory.acquire()

    assert mode(disk) == 0o700
    directory.release()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


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

    directory.announce(grpc_address="127.0.0.1:1", http_address="127.0.0.1:2", log_id="log_1")

    note = json.loads((tmp_path / "server.json").read_text())
    addresses = {"grpc_address": "127.0.0.1:1", "http_address": "127.0.0.1:2"}
    assert note == {**addresses, "pid": os.getpid(), "log_id": "log_1"}
    directory.withdraw()
    assert not (tmp_path / "server.json").exists()


def settled(path: Path) -> DataDirectory:
    path.mkdir()
    directory = DataDirectory(path)
    directory.settle()
    return directory


def test_a_directory_that_was_never_recorded_is_no_copy(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)

    assert directory.copied_from() is None


def test_the_place_is_recorded_for_its_owner_alone(tmp_path: Path) -> None:
    directory = settled(tmp_path / "data")

    assert directory.copied_from() is None
    assert (tmp_path / "data" / "place").stat().st_mode & 0o777 == 0o600


def test_a_copy_is_known_until_it_has_settled(tmp_path: Path) -> None:
    settled(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copy = DataDirectory(tmp_path / "copy")

    assert copy.copied_from() == (tmp_path / "data").resolve()
    copy.settle()
    assert copy.copied_from() is None


def test_a_moved_directory_is_no_copy(tmp_path: Path) -> None:
    settled(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")

    assert DataDirectory(tmp_path / "moved").copied_from() is None


def test_a_directory_restored_in_place_is_no_copy(tmp_path: Path) -> None:
    settled(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    (tmp_path / "data").rename(tmp_path / "broken")
    (tmp_path / "backup").rename(tmp_path / "data")

    assert DataDirectory(tmp_path / "data").copied_from() is None


def test_a_copy_at_the_place_a_moved_directory_left_is_a_copy(tmp_path: Path) -> None:
    settled(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    DataDirectory(tmp_path / "moved").settle()
    shutil.copytree(tmp_path / "moved", tmp_path / "data")

    assert DataDirectory(tmp_path / "data").copied_from() == (tmp_path / "moved").resolve()


def test_another_way_to_the_directory_is_no_copy(tmp_path: Path) -> None:
    settled(tmp_path / "data")
    (tmp_path / "link").symlink_to(tmp_path / "data")

    assert DataDirectory(tmp_path / "link").copied_from() is None


def test_the_same_inode_on_another_device_is_a_copy(tmp_path: Path) -> None:
    settled(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "snapshot")
    place = tmp_path / "snapshot" / "place"
    known = json.loads(place.read_text())
    place.write_text(json.dumps(known | {"device": known["device"] + 1}))

    assert DataDirectory(tmp_path / "snapshot").copied_from() == (tmp_path / "data").resolve()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"path": "x", "device": 1, "inode": "y"}'])
def test_a_damaged_place_is_refused_rather_than_guessed(tmp_path: Path, content: str) -> None:
    (tmp_path / "place").write_text(content)

    with pytest.raises(StartRefusedError, match=r"place is damaged.*Delete it, unless"):
        DataDirectory(tmp_path).copied_from()


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
