"""The log store: offsets, durability, torn tails, caps and waiting."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from kapell.v1.common_pb2 import LOG_STREAM_STDERR, LOG_STREAM_STDOUT, LogEntry
from kapell.v1.error_pb2 import (
    ERROR_REASON_LOG_OFFSET_GAP,
    ERROR_REASON_PAYLOAD_TOO_LARGE,
    ERROR_REASON_STORAGE_FULL,
)
from kapell_server.domain.errors import KapellError
from kapell_server.store.logs import READ_BYTES, LogStore

TASK = "task_01"
LONG = 30.0


def lines(first: int, count: int, *, text: str = "line") -> list[LogEntry]:
    return [
        LogEntry(time=Timestamp(seconds=number), stream=LOG_STREAM_STDERR, text=f"{text} {number}")
        for number in range(first, first + count)
    ]


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path)
    yield store
    store.close()


def log_file(root: Path) -> Path:
    (found,) = root.rglob("*.log")
    return found


async def test_what_was_appended_is_read_back_in_order(logs: LogStore) -> None:
    assert await logs.append(TASK, 1, 0, lines(0, 3)) == 3
    assert await logs.append(TASK, 1, 3, lines(3, 2)) == 5

    assert await logs.read(TASK, 1, 0) == lines(0, 5)
    assert await logs.read(TASK, 1, 2, max_entries=2) == lines(2, 2)
    assert await logs.read(TASK, 1, 5) == []


async def test_attempts_and_tasks_have_logs_of_their_own(logs: LogStore) -> None:
    await logs.append(TASK, 1, 0, lines(0, 1, text="first"))
    await logs.append(TASK, 2, 0, lines(0, 1, text="second"))
    await logs.append("task_02", 1, 0, lines(0, 1, text="other"))

    assert (await logs.read(TASK, 2, 0))[0].text == "second 0"
    assert (await logs.read("task_02", 1, 0))[0].text == "other 0"


async def test_a_log_that_was_never_written_is_empty_and_leaves_no_file(logs: LogStore, tmp_path: Path) -> None:
    assert await logs.read(TASK, 1, 0) == []
    assert list(tmp_path.iterdir()) == []


async def test_a_repeated_append_changes_nothing(logs: LogStore) -> None:
    await logs.append(TASK, 1, 0, lines(0, 3))

    assert await logs.append(TASK, 1, 0, lines(0, 3)) == 3
    assert await logs.append(TASK, 1, 1, lines(1, 4)) == 5

    assert await logs.read(TASK, 1, 0) == lines(0, 5)


async def test_an_append_beyond_the_end_is_refused_and_says_where_the_end_is(logs: LogStore) -> None:
    await logs.append(TASK, 1, 0, lines(0, 3))

    with pytest.raises(KapellError) as refusal:
        await logs.append(TASK, 1, 5, lines(5, 1))

    assert refusal.value.reason == ERROR_REASON_LOG_OFFSET_GAP
    assert refusal.value.metadata == {"expected": "3"}
    assert await logs.read(TASK, 1, 0) == lines(0, 3)


async def test_reading_beyond_the_end_is_refused(logs: LogStore) -> None:
    await logs.append(TASK, 1, 0, lines(0, 3))

    with pytest.raises(KapellError) as refusal:
        await logs.read(TASK, 1, 4)

    assert refusal.value.reason == ERROR_REASON_LOG_OFFSET_GAP


async def test_the_cap_of_an_attempt_holds_and_changes_nothing_when_hit(tmp_path: Path) -> None:
    logs = LogStore(tmp_path, max_bytes=100)
    await logs.append(TASK, 1, 0, lines(0, 3))

    with pytest.raises(KapellError) as refusal:
        await logs.append(TASK, 1, 3, lines(3, 20))

    assert refusal.value.reason == ERROR_REASON_PAYLOAD_TOO_LARGE
    assert refusal.value.metadata == {"limit": "100"}
    assert await logs.read(TASK, 1, 0) == lines(0, 3)
    logs.close()


async def test_an_entry_without_a_stream_counts_as_stdout(logs: LogStore) -> None:
    await logs.append(TASK, 1, 0, [LogEntry(), LogEntry(text="x")])

    assert await logs.read(TASK, 1, 0) == [
        LogEntry(time=Timestamp(), stream=LOG_STREAM_STDOUT),
        LogEntry(time=Timestamp(), stream=LOG_STREAM_STDOUT, text="x"),
    ]


async def test_a_read_of_long_lines_stops_at_a_message_of_moderate_size(logs: LogStore) -> None:
    long = [LogEntry(stream=LOG_STREAM_STDOUT, text="x" * 16384) for _ in range(100)]
    await logs.append(TASK, 1, 0, long)

    found = await logs.read(TASK, 1, 0)

    assert 0 < len(found) < 100
    assert sum(entry.ByteSize() for entry in found) < READ_BYTES + 20_000


@pytest.mark.parametrize("seed", range(5))
async def test_any_slice_of_any_way_of_appending_is_right(logs: LogStore, seed: int) -> None:
    random_ = random.Random(seed)
    everything = lines(0, 1000)
    written = 0
    while written < 1000:
        count = random_.randint(1, 200)
        written = await logs.append(TASK, 1, written, everything[written : written + count])

    for _ in range(50):
        offset, count = random_.randint(0, 1000), random_.randint(1, 400)
        assert await logs.read(TASK, 1, offset, count) == everything[offset : offset + count]


async def test_a_new_process_goes_on_where_the_old_one_stopped(logs: LogStore, tmp_path: Path) -> None:
    await logs.append(TASK, 1, 0, lines(0, 300))

    again = LogStore(tmp_path)

    assert await again.append(TASK, 1, 300, lines(300, 5)) == 305
    assert await again.read(TASK, 1, 299) == lines(299, 6)
    again.close()


@pytest.mark.parametrize("cut", range(1, 14))
async def test_half_an_entry_at_the_end_is_cut_off(logs: LogStore, tmp_path: Path, cut: int) -> None:
    await logs.append(TASK, 1, 0, lines(0, 3))
    path = log_file(tmp_path)
    os.truncate(path, path.stat().st_size - cut)

    again = LogStore(tmp_path)

    assert await again.read(TASK, 1, 0) == lines(0, 2)
    assert await again.append(TASK, 1, 2, lines(2, 3)) == 5
    assert await again.read(TASK, 1, 0) == lines(0, 5)
    again.close()


@pytest.mark.parametrize("rubbish", [b"\0" * 4096, b"\xff" * 40, b"\x05\xff\xff\xff\xff\xff"])
async def test_rubbish_after_a_power_loss_is_cut_off(logs: LogStore, tmp_path: Path, rubbish: bytes) -> None:
    await logs.append(TASK, 1, 0, lines(0, 3))
    with log_file(tmp_path).open("ab") as file:
        file.write(rubbish)

    again = LogStore(tmp_path)

    assert await again.append(TASK, 1, 3, lines(3, 1)) == 4
    assert await again.read(TASK, 1, 0) == lines(0, 4)
    again.close()


async def test_waiting_ends_with_the_entry(logs: LogStore) -> None:
    waiting = asyncio.ensure_future(logs.wait(TASK, 1, 1, LONG))

    await logs.append(TASK, 1, 0, lines(0, 1))
    await logs.append(TASK, 1, 1, lines(1, 1))

    assert await waiting is True
    assert await logs.wait(TASK, 1, 0, LONG) is True


async def test_waiting_in_vain_ends_with_false(logs: LogStore) -> None:
    await logs.append(TASK, 1, 0, lines(0, 1))

    assert await logs.wait(TASK, 1, 1, 0.0) is False


async def test_an_append_whose_caller_is_gone_is_finished_and_its_repeat_dropped(logs: LogStore) -> None:
    waiting = asyncio.ensure_future(logs.wait(TASK, 1, 0, LONG))
    append = asyncio.ensure_future(logs.append(TASK, 1, 0, lines(0, 3)))
    await asyncio.sleep(0)

    append.cancel()

    assert await waiting is True
    assert await logs.append(TASK, 1, 0, lines(0, 3)) == 3
    assert await logs.read(TASK, 1, 0) == lines(0, 3)


async def test_concurrent_appends_of_one_attempt_do_not_mix(logs: LogStore) -> None:
    everything = lines(0, 40)

    await asyncio.gather(*(logs.append(TASK, 1, 0, everything) for _ in range(16)))

    assert await logs.read(TASK, 1, 0) == everything


async def test_deleting_a_task_removes_its_logs_and_ends_the_waits(logs: LogStore, tmp_path: Path) -> None:
    await logs.append(TASK, 1, 0, lines(0, 1))
    await logs.append(TASK, 2, 0, lines(0, 1))
    waiting = asyncio.ensure_future(logs.wait(TASK, 1, 1, LONG))
    await asyncio.sleep(0)

    await logs.delete(TASK)
    await logs.delete("task_unknown")

    assert await waiting is False
    assert list(tmp_path.rglob("*.log")) == []
    assert await logs.read(TASK, 1, 0) == []


async def test_more_attempts_than_are_kept_open_lose_nothing(logs: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kapell_server.store.logs._KEPT_OPEN", 4)

    await asyncio.gather(*(logs.append(f"task_{n}", 1, 0, lines(n, 2)) for n in range(50)))

    for number in range(50):
        assert await logs.read(f"task_{number}", 1, 0) == lines(number, 2)
    await logs.read("task_new", 1, 0)
    assert len(logs._logs) <= 5


async def test_a_path_is_no_task_id(logs: LogStore) -> None:
    with pytest.raises(AssertionError, match="no task id"):
        await logs.read("../../etc/passwd", 1, 0)


async def test_a_full_disk_is_named_and_leaves_the_log_as_it_was(
    logs: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await logs.append(TASK, 1, 0, lines(0, 1))
    write = os.pwrite

    def write_half(descriptor: int, data: bytes, position: int) -> int:
        write(descriptor, data[: len(data) // 2], position)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(KapellError) as refusal:
        patched.setattr(os, "pwrite", write_half)
        await logs.append(TASK, 1, 1, lines(1, 3))

    assert refusal.value.reason == ERROR_REASON_STORAGE_FULL
    assert await logs.append(TASK, 1, 1, lines(1, 1)) == 2
    assert await logs.read(TASK, 1, 0) == lines(0, 2)
