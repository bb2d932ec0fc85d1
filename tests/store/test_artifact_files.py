"""The files of uploads: offsets, what a crash leaves, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kapell_server.domain.errors import KapellError
from kapell_server.store.artifact_files import ArtifactFiles, Upload

TASK, ARTIFACT = "task_01", "artifact_01"


@pytest.fixture
def files(tmp_path: Path) -> ArtifactFiles:
    return ArtifactFiles(tmp_path / "artifacts", free_bytes=0)


@pytest.fixture
def upload(files: ArtifactFiles) -> Upload:
    return begun(files)


def begun(files: ArtifactFiles) -> Upload:
    return Upload(files, TASK, ARTIFACT, None)


def content(files: ArtifactFiles) -> bytes:
    return files.path(TASK, ARTIFACT).read_bytes()


def refusal(work: object) -> KapellError:
    with pytest.raises(KapellError) as caught:
        work()  # type: ignore[operator]
    return caught.value


def test_chunks_follow_one_another(files: ArtifactFiles, upload: Upload) -> None:
    assert upload.write(0, b"one") == 3
    assert upload.write(3, b"two") == 6

    assert content(files) == b"onetwo"
    assert upload.seal() == (6, hashlib.sha256(b"onetwo").hexdigest())


def test_what_was_written_is_a_repeat_and_dropped(files: ArtifactFiles, upload: Upload) -> None:
    upload.write(0, b"one")

    assert upload.write(0, b"one") == 3
    assert upload.write(1, b"ne and more") == 12
    assert upload.write(2, b"e") == 12
    assert content(files) == b"one and more"


def test_a_gap_is_refused_and_says_where_to_go_on(files: ArtifactFiles, upload: Upload) -> None:
    upload.write(0, b"one")

    gap = refusal(lambda: upload.write(4, b"x"))

    assert (gap.reason_name, gap.metadata["expected"]) == ("ARTIFACT_OFFSET_GAP", "3")
    assert content(files) == b"one"


def test_a_new_process_goes_on_where_the_old_one_stopped(files: ArtifactFiles, upload: Upload) -> None:
    upload.write(0, b"one")
    upload.write(3, b"two")

    again = begun(files)

    assert again.recover() == 6
    assert again.write(6, b"three") == 11
    assert content(files) == b"onetwothree"


@pytest.mark.parametrize("torn", [b"t", b"two", b"\0\0\0", b"two and what nobody sent"])
def test_a_chunk_without_its_part_is_cut_off(files: ArtifactFiles, upload: Upload, torn: bytes) -> None:
    upload.write(0, b"one")
    with files.path(TASK, ARTIFACT).open("ab") as file:
        file.write(torn)

    again = begun(files)

    assert again.recover() == 3
    assert content(files) == b"one"
    assert again.write(3, b"two") == 6
    assert content(files) == b"onetwo"


@pytest.mark.parametrize("cut", [1, 5, 15])
def test_half_a_part_counts_for_nothing(files: ArtifactFiles, upload: Upload, cut: int) -> None:
    upload.write(0, b"one")
    upload.write(3, b"two")
    parts = files.path(TASK, ARTIFACT).with_name(ARTIFACT + ".parts")
    os.truncate(parts, parts.stat().st_size - cut)

    again = begun(files)

    assert again.recover() == 3
    assert again.write(3, b"zwei") == 7
    assert begun(files).recover() == 7


@pytest.mark.parametrize("damage", ["lost", "zeros", "shorter"])
def test_a_part_whose_chunk_is_not_whole_counts_for_nothing(files: ArtifactFiles, upload: Upload, damage: str) -> None:
    upload.write(0, b"one")
    upload.write(3, b"two")
    path = files.path(TASK, ARTIFACT)
    path.write_bytes({"lost": b"one", "zeros": b"one\0\0\0", "shorter": b"onetw"}[damage])

    assert begun(files).recover() == 3
    assert content(files) == b"one"


def test_an_upload_without_a_chunk_begins_at_zero(files: ArtifactFiles, upload: Upload) -> None:
    assert upload.recover() == 0
    assert upload.seal() == (0, hashlib.sha256(b"").hexdigest())
    assert content(files) == b""


@pytest.mark.parametrize("failing", ["fdatasync", "pwrite"])
def test_a_full_disk_leaves_the_upload_as_it_was(
    files: ArtifactFiles, upload: Upload, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    upload.write(0, b"one")

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        assert refusal(lambda: upload.write(3, b"two")).reason_name == "STORAGE_FULL"

    assert upload.write(3, b"zwei") == 7
    assert content(files) == b"onezwei"
    assert begun(files).recover() == 7


def test_the_last_of_the_disk_is_left_to_the_database(tmp_path: Path) -> None:
    files = ArtifactFiles(tmp_path / "artifacts", free_bytes=1 << 60)
    upload = begun(files)

    assert refusal(lambda: upload.write(0, b"one")).reason_name == "STORAGE_FULL"
    assert not (tmp_path / "artifacts").exists()


def test_bytes_that_were_not_what_was_meant_are_dropped(files: ArtifactFiles, upload: Upload) -> None:
    upload.write(0, b"wrong")
    upload.seal()
    assert refusal(lambda: upload.write(5, b"!")).reason_name == "ARTIFACT_STATE_CONFLICT"

    upload.restart()

    assert begun(files).recover() == 0
    assert upload.write(0, b"right") == 5
    assert content(files) == b"right"


def test_a_dropped_upload_takes_nothing_and_leaves_nothing(files: ArtifactFiles, upload: Upload) -> None:
    upload.write(0, b"one")

    upload.drop()

    assert refusal(lambda: upload.write(3, b"two")).reason_name == "ARTIFACT_NOT_FOUND"
    assert refusal(upload.seal).reason_name == "ARTIFACT_NOT_FOUND"
    upload.restart()
    assert list(files.all_ids()) == []
    assert refusal(lambda: files.read(TASK, ARTIFACT, 0, 9)).reason_name == "ARTIFACT_NOT_FOUND"


def test_chunks_of_many_threads_do_not_mix(files: ArtifactFiles, upload: Upload) -> None:
    everything = random.Random(7).randbytes(100_000)

    def send() -> None:
        offset = 0
        while offset < len(everything):
            try:
                offset = upload.write(offset, everything[offset : offset + 7_000])
            except KapellError as gap:
                offset = int(gap.metadata["expected"])

    with ThreadPoolExecutor(8) as threads:
        for sender in [threads.submit(send) for _ in range(8)]:
            sender.result()

    assert content(files) == everything
    assert begun(files).recover() == len(everything)


def test_names_on_disk_are_ids(files: ArtifactFiles) -> None:
    for task_id, artifact_id in (("../task", ARTIFACT), (TASK, "../artifact"), (TASK, "a.parts")):
        with pytest.raises(AssertionError):
            files.path(task_id, artifact_id)


def test_files_that_come_and_go_in_one_directory_do_not_meet(files: ArtifactFiles) -> None:
    def come_and_go(number: int) -> None:
        for turn in range(50):
            upload = Upload(files, TASK, f"artifact_{number}_{turn}", None)
            assert upload.write(0, b"x") == 1
            upload.drop()

    with ThreadPoolExecutor(4) as threads:
        for running in [threads.submit(come_and_go, number) for number in range(4)]:
            running.result()

    assert list(files.all_ids()) == []


def test_an_answer_comes_after_all_it_rests_on_is_on_the_disk(
    files: ArtifactFiles, upload: Upload, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[int] = []
    for name in ("fsync", "fdatasync"):
        sync = getattr(os, name)
        monkeypatch.setattr(os, name, lambda fd, sync=sync: (synced.append(os.fstat(fd).st_ino), sync(fd)))

    def inodes(*paths: Path) -> set[int]:
        return {path.stat().st_ino for path in paths}

    upload.write(0, b"one")
    path = files.path(TASK, ARTIFACT)
    parts = path.with_name(ARTIFACT + ".parts")
    assert set(synced) == inodes(path, parts, *[*path.parents][:4])
    assert tmp_path in [*path.parents][:4]
    synced.clear()
    upload.write(3, b"two")

    assert synced == [path.stat().st_ino, parts.stat().st_ino]
