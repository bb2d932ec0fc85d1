"""Parts of the worker that are easier to see alone: the log's bounds, JSON values, failures."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell._worker.logs import (
    BATCH_BYTES,
    BATCH_ENTRIES,
    DROP_BEYOND_ROOMS,
    MAX_LINE_BYTES,
    MAX_LOG_BYTES,
    ROOM_BYTES,
    LogBuffer,
)
from kapell._worker.outcome import MAX_MESSAGE_CHARS, TaskFailed
from kapell._worker.values import MAX_DEPTH, from_value, to_value
from kapell.v1.common_pb2 import LOG_STREAM_SYSTEM
from kapell.v1.task_pb2 import Task
from kapell.v1.worker_pb2 import LeaseTasksResponse

SERVER_LIMIT = 16 * 1024 * 1024


def drain(log: LogBuffer) -> list[str]:
    """Takes everything that waits, as a server would."""
    texts: list[str] = []
    while batch := log.batch():
        assert len(batch) <= BATCH_ENTRIES
        assert sum(entry.ByteSize() for entry in batch) <= BATCH_BYTES + MAX_LINE_BYTES
        texts += [entry.text for entry in batch]
        log.taken(log.offset + len(batch))
    return texts


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n"), max_size=30), min_size=1, max_size=30))
def test_lines_come_out_as_they_went_in(lines: list[str]) -> None:
    log = LogBuffer()

    log.append("\n".join(lines))

    assert drain(log) == [line.encode(errors="replace").decode() for line in lines]
    assert log.offset == len(lines)


@given(st.text(alphabet="aé€𝄞", min_size=1, max_size=8), st.integers(MAX_LINE_BYTES // 8, MAX_LINE_BYTES))
def test_long_line_is_cut_between_characters(word: str, count: int) -> None:
    line = word * count
    log = LogBuffer()

    log.append(line)

    parts = drain(log)
    assert "".join(parts) == line
    assert all(len(part.encode()) <= MAX_LINE_BYTES for part in parts)


def test_repeated_and_late_answers_take_nothing_twice() -> None:
    log = LogBuffer()
    log.append("a\nb\nc")

    log.taken(2)
    log.taken(1)

    assert (log.offset, drain(log)) == (2, ["c"])


async def test_room_is_short_when_much_waits_and_comes_back_when_it_is_taken() -> None:
    log = LogBuffer()
    while log.batch() is not None and not _is_short(log):
        log.append("x" * 1000)

    waiting = sum(len(entry.text) for entry in log.batch())
    drain(log)

    assert 0 < waiting <= ROOM_BYTES
    async with asyncio.timeout(1):
        await log.room()


def _is_short(log: LogBuffer) -> bool:
    waiter = log.room()
    try:
        waiter.send(None)
    except StopIteration:
        return False
    waiter.close()
    return True


def test_lines_of_who_does_not_wait_are_dropped_and_counted() -> None:
    log = LogBuffer()
    count = DROP_BEYOND_ROOMS * ROOM_BYTES // 1000
    for number in range(count):
        log.append(f"{number:6}" + "x" * 994)

    kept = drain(log)

    dropped = count - (len(kept) - 1)
    assert dropped > 0
    assert f"{dropped} lines were dropped: they came faster than the server took them" in kept


def test_full_log_says_so_once_keeps_remarks_and_fits_on_the_server() -> None:
    log = LogBuffer()
    taken: list[str] = []
    for _ in range(MAX_LOG_BYTES // 8000 + 10):
        log.append("x" * 8000)
        taken += drain(log)
    assert log.is_full
    log.append("a line")
    log.append("a remark", LOG_STREAM_SYSTEM)
    taken += drain(log)

    assert taken[-2:] == ["the log is full (15 MiB): what follows is not kept", "a remark"]
    assert sum(len(text) + 32 for text in taken) < SERVER_LIMIT


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_json_survives_the_way_to_the_server_and_back(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError):
            to_value(value)
        return

    assert from_value(to_value(value)) == value


def test_deepest_value_still_fits_into_a_message() -> None:
    deep: object = {"x": 1}
    for _ in range(MAX_DEPTH - 1):
        deep = {"x": deep}
    task = Task(result=to_value(deep))
    response = LeaseTasksResponse()
    response.offers.add(task=task)

    assert LeaseTasksResponse.FromString(response.SerializeToString()) == response
    with pytest.raises(ValueError, match="levels deep"):
        to_value([deep])


@pytest.mark.parametrize("value", [b"bytes", {1: 2}, {"a", "b"}, 10**400, float("inf"), Task(), object()])
def test_what_is_not_json_is_refused_in_words(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|string"):
        to_value(value)


def test_long_message_keeps_its_first_line_and_its_end() -> None:
    failure = TaskFailed("EXIT_CODE", "sh exited with code 1:\n" + "x" * 5000 + "\nthe end").to_message()

    assert len(failure.message) <= MAX_MESSAGE_CHARS
    assert failure.message.startswith("sh exited with code 1:\n…\n")
    assert failure.message.endswith("\nthe end")


@pytest.mark.parametrize("reason", ["", "lower", "9LIVES", "A" * 64, "WITH SPACE"])
def test_reason_of_another_form_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match="upper snake case"):
        TaskFailed(reason)


@pytest.mark.parametrize("details", [{"x": object()}, {"x": "y" * 20_000}])
def test_details_that_cannot_be_sent_are_replaced_by_the_reason(details: dict[str, object]) -> None:
    failure = TaskFailed("BROKEN", details=details).to_message()

    assert list(failure.details.fields) == ["details_left_out"]
