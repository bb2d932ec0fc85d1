"""A disk that is really full: a file system of two megabytes, where the system lets a test make one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kapell_server.domain.errors import KapellError

from tests.support.live_engine import live_engine, new_task


class SmallDisk:
    """A mounted file system whose size can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def grow(self, size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounting.returncode:
        pytest.skip(f"no file system can be mounted here: {mounting.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", str(path)], check=True)


async def test_a_full_disk_refuses_writes_and_answers_reads_until_there_is_room(small_disk: SmallDisk) -> None:
    async with live_engine("", small_disk.path) as live:
        first = await live.create(prompt="first")
        refusals: list[KapellError] = []
        for number in range(100):
            try:
                await live.call(new_task(prompt="x" * 100_000, request_id=f"r{number}"))
            except KapellError as error:
                refusals.append(error)
                if len(refusals) == 5:
                    break
        assert {error.reason_name for error in refusals} == {"STORAGE_FULL"}
        with pytest.raises(KapellError, match="disk of the database is full"):
            await live.database.maintain()
        acknowledged = live.engine.revision

        assert (await live.task(first.task_id)).prompt == "first"
        assert len(await live.log()) == acknowledged

        small_disk.grow("50m")
        again = await live.call(new_task(prompt="x" * 100_000, request_id=f"r{number}"))
        assert (again.revision, again.replayed) == (acknowledged + 1, False)
        await live.database.maintain()
        await live.crash()
        assert len(await live.log()) == acknowledged + 1
