"""`kapell task artifacts` and `kapell artifact …`: what a person and a script see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.shell import Shell


@pytest.fixture
def uploaded(cast: Shell, tmp_path: Path) -> str:
    """The id of an artifact of task_waiting."""
    (tmp_path / "report.txt").write_text("all is well\n")
    result = cast.pipe("artifact", "upload", "task_waiting", str(tmp_path / "report.txt"), "-l", "a=b", "-o", "id")
    assert result.code == 0, result.err
    return result.out.strip()


def test_a_file_goes_up_is_listed_shown_and_comes_back(cast: Shell, uploaded: str, tmp_path: Path) -> None:
    listed = cast.pipe("task", "artifacts", "task_waiting", "-n", "1")
    assert listed.out.rstrip("\n").split("\t") == [uploaded, "report.txt", "ready", "12 B", "user"]
    shown = cast.terminal("artifact", "get", uploaded).out
    assert "text/plain" in shown
    assert "a=b" in shown
    detail = json.loads(cast.pipe("artifact", "get", uploaded, "-o", "json").out)
    assert (detail["state"], detail["size"]) == ("ARTIFACT_STATE_READY", "12")

    there = cast.pipe("artifact", "download", uploaded, "-O", str(tmp_path / "back"))

    assert there.out.strip() == str(tmp_path / "back")
    assert (tmp_path / "back").read_text() == "all is well\n"


def test_a_download_replaces_a_file_only_when_told_to(
    cast: Shell, uploaded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "report.txt"
    there.write_text("mine\n")
    monkeypatch.chdir(tmp_path)

    for place in ((), ("-O", str(tmp_path))):
        refused = cast.pipe("artifact", "download", uploaded, *place)
        assert refused.code == 5
        assert "report.txt exists already" in refused.err
        assert "--force" in refused.err
        assert there.read_text() == "mine\n"
    assert list(tmp_path.glob(".*")) == []

    assert cast.pipe("artifact", "download", uploaded, "--force").code == 0
    assert there.read_text() == "all is well\n"
    there.write_text("mine\n")
    assert cast.pipe("artifact", "download", uploaded, "-O", "report.txt").code == 0
    assert there.read_text() == "all is well\n"


def test_a_download_goes_to_stdout(cast: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/bytes.bin").write_text("no\nnewline")
    monkeypatch.chdir(tmp_path / "in")
    id = cast.pipe("artifact", "upload", "task_waiting", "bytes.bin", "-o", "id").out.strip()

    result = cast.pipe("artifact", "download", id, "-O", "-")

    assert (result.code, result.out, result.err) == (0, "no\nnewline", "")
    assert [file.name for file in (tmp_path / "in").iterdir()] == ["bytes.bin"]


def test_upload_says_on_a_terminal_what_was_kept(cast: Shell, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"x" * 1536 * 1024)

    said = cast.terminal("artifact", "upload", "task_waiting", str(tmp_path / "big.bin"), "--name", "out/big.bin").out

    assert "ready" in said
    assert "1.5 MiB" in said
    assert "out/big.bin" in said


def test_lists_are_filtered(cast: Shell, uploaded: str) -> None:
    assert uploaded in cast.pipe("task", "artifacts", "task_waiting", "--name", "report.txt", "-o", "id").out
    assert cast.pipe("task", "artifacts", "task_waiting", "--name", "nothing").out == ""
    assert cast.pipe("task", "artifacts", "task_waiting", "--attempt", "1").out == ""
    assert "kapell artifact upload task_good FILE" in cast.terminal("task", "artifacts", "task_good").out


def test_an_upload_is_gone_on_with(cast: Shell, uploaded: str, tmp_path: Path) -> None:
    again = cast.pipe(
        "artifact", "upload", "task_waiting", str(tmp_path / "report.txt"), "--resume", uploaded, "-o", "id"
    )

    assert again.out.strip() == uploaded


def test_artifacts_are_deleted(cast: Shell, uploaded: str) -> None:
    looked = cast.pipe("artifact", "delete", uploaded, "--dry-run")
    assert "would delete 1 artifacts" in looked.err
    assert cast.pipe("artifact", "delete", uploaded).code == 2

    assert cast.pipe("artifact", "delete", "--yes", "-", stdin=uploaded).code == 0

    gone = cast.pipe("artifact", "get", uploaded)
    assert gone.code == 3
    assert f"There is no artifact {uploaded}".lower() in gone.err.lower()


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (("artifact", "upload", "task_waiting", "no-such-file"), 2, "no such file"),
        (("artifact", "upload", "task_nobody_knows", "README.md"), 3, "task_nobody_knows"),
        (("artifact", "upload", "task_waiting", "README.md", "--name", "../up"), 2, "relative path"),
        (("artifact", "download", "artifact_nothing"), 3, "artifact_nothing"),
        (("task", "artifacts", "task_nobody_knows"), 3, "task_nobody_knows"),
    ],
)
def test_refusals_say_what_is_wrong(cast: Shell, line: tuple[str, ...], code: int, words: str) -> None:
    result = cast.pipe(*line)

    assert result.code == code
    assert words in result.err.lower()
