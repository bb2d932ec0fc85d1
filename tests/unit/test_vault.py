"""Sealing of secrets: what opens them, what does not, and keys that change."""

from __future__ import annotations

from pathlib import Path

import pytest
from kapell_server.data_dir import DataDirectory, StartRefusedError
from kapell_server.vault import Vault

VALUE = "correct horse battery"


def vault(keys: bytes = b"k" * 32, environ: dict[str, str] | None = None) -> Vault:
    return Vault([keys], environ=environ or {})


def test_a_value_opens_under_its_own_name_and_key_only() -> None:
    sealed = vault().seal(VALUE, "token")

    assert VALUE.encode() not in sealed
    assert vault().open(sealed, "token") == VALUE
    assert vault().open(sealed, "other") is None
    assert vault(b"x" * 32).open(sealed, "token") is None
    assert vault().open(sealed[:-1] + b"?", "token") is None
    assert vault().open(b"", "token") is None
    assert vault().seal(VALUE, "token") != sealed


def test_while_keys_change_both_open_and_afterwards_only_what_is_used(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    ours = directory.vault()
    old = ours.seal(VALUE, "token")

    ours.begin_rotation()
    new = ours.seal(VALUE, "token")
    after_a_crash = DataDirectory(tmp_path).vault()
    assert [after_a_crash.open(sealed, "token") for sealed in (old, new)] == [VALUE, VALUE]

    ours.end_rotation([old, new])
    assert ours.open(old, "token") == VALUE
    ours.end_rotation([new])
    again = DataDirectory(tmp_path).vault()
    assert [again.open(sealed, "token") for sealed in (old, new)] == [None, VALUE]
    assert (tmp_path / "secrets.key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_key_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets.key").write_text("not hex\n")

    with pytest.raises(StartRefusedError, match="set the secrets again"):
        DataDirectory(tmp_path).vault()


def test_values_kept_elsewhere_are_read_when_they_are_needed(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{VALUE}\n")
    ours = vault(environ={"TOKEN": VALUE, "EMPTY": ""})

    assert ours.read("environment", "TOKEN") == VALUE
    assert ours.read("file", str(file)) == VALUE
    for kind, location in (("environment", "EMPTY"), ("environment", "NONE"), ("file", str(tmp_path / "none"))):
        assert ours.read(kind, location) is None
    file.write_bytes(b"\xff")
    assert ours.read("file", str(file)) is None
