"""The log of a host: numbered lines, read while they are written, and a head that is given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kapell.v1.error_pb2 import ERROR_REASON_LOG_OFFSET_GAP
from kapell_server.domain.errors import KapellError
from kapell_server.spawner.host_log import LINE_BYTES, LogPage, follow_log, read_log, trim


def texts(page: LogPage) -> list[str]:
    return [entry.text for entry in page.entries]


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host.log"


async def test_lines_are_read_from_any_offset(path: Path) -> None:
    append(path, "one\ntwo\r\nthree\n")

    assert texts(await read_log(path, 0)) == ["one", "two", "three"]
    page = await read_log(path, 1, 1)
    assert (texts(page), page.offset, page.next_offset) == (["two"], 1, 2)
    assert texts(await read_log(path, 3)) == []


async def test_log_that_does_not_exist_is_empty(path: Path) -> None:
    assert await read_log(path, 0) == LogPage(0, [])


async def test_offset_beyond_the_end_is_a_gap(path: Path) -> None:
    append(path, "one\n")

    with pytest.raises(KapellError) as refusal:
        await read_log(path, 2)

    assert refusal.value.reason == ERROR_REASON_LOG_OFFSET_GAP
    assert refusal.value.metadata == {"expected": "1"}


async def test_line_without_its_newline_counts_when_the_host_has_ended(path: Path) -> None:
    append(path, "one\ntw")

    assert texts(await read_log(path, 0)) == ["one"]
    assert texts(await read_log(path, 0, ended=True)) == ["one", "tw"]


async def test_long_line_is_cut_and_keeps_its_number(path: Path) -> None:
    append(path, "x" * 200_000 + "\nnext\n")

    page = await read_log(path, 0)

    assert len(page.entries[0].text.encode()) <= LINE_BYTES
    assert page.entries[0].text.endswith("… (cut)")
    assert texts(page)[1:] == ["next"]
    assert texts(await read_log(path, 1)) == ["next"]


async def test_bytes_that_are_not_utf8_are_replaced_within_the_limit(path: Path) -> None:
    path.write_bytes(b"\xff" * LINE_BYTES + b"\n" + b"a\xffb\n")

    page = await read_log(path, 0)

    assert len(page.entries[0].text.encode()) <= LINE_BYTES
    assert page.entries[1].text == "a\ufffdb"


async def test_page_is_bounded_by_bytes_and_goes_on_where_it_ended(path: Path) -> None:
    append(path, "".join(f"{number:05d} {'x' * 10_000}\n" for number in range(100)))

    seen: list[str] = []
    pages = 0
    while (page := await read_log(path, len(seen))).entries:
        seen += [text[:5] for text in texts(page)]
        pages += 1

    assert seen == [f"{number:05d}" for number in range(100)]
    assert pages > 1


async def test_follower_gets_each_line_once_and_ends_after_the_last(path: Path) -> None:
    ended = asyncio.Event()
    append(path, "one\n")
    seen: list[str] = []

    async for page in follow_log(path, 0, ended):
        assert page.offset == len(seen)
        seen += texts(page)
        match len(seen):
            case 1:
                append(path, "two\nth")
            case 2:
                append(path, "ree\nfour")
            case 3:
                ended.set()

    assert seen == ["one", "two", "three", "four"]


async def test_follower_of_a_log_that_is_not_there_yet_waits_for_it(path: Path) -> None:
    ended = asyncio.Event()
    pages = follow_log(path, 0, ended)
    first = asyncio.create_task(anext(pages))
    await asyncio.sleep(0)

    append(path, "one\n")

    assert texts(await first) == ["one"]
    ended.set()
    assert [page async for page in pages] == []


async def test_trimmed_log_keeps_the_newest_lines_and_their_numbers(path: Path) -> None:
    append(path, "".join(f"line {number:06d}\n" for number in range(100_000)))
    size = path.stat().st_size

    given_up = trim(path, keep=100_000)

    page = await read_log(path, 0)
    assert page.offset > 90_000
    assert texts(page)[0] == f"line {page.offset:06d}"
    assert path.stat().st_size == size, "nothing moves under the writer"
    assert path.stat().st_blocks * 512 <= size - given_up + 8192, "the disk has its blocks back"
    assert texts(await read_log(path, 99_999)) == ["line 099999"]


async def test_small_log_is_left_alone(path: Path) -> None:
    append(path, "one\n" * 100)

    assert trim(path, keep=1000) == 0
    assert trim(path.with_name("none"), keep=1000) == 0


async def test_log_is_trimmed_again_and_again_while_it_is_written_and_followed(path: Path) -> None:
    ended = asyncio.Event()
    numbers: list[int] = []
    written = 0
    write(path, 0, 1000)

    async for page in follow_log(path, 0, ended):
        numbers += [int(text) for text in texts(page)]
        assert numbers[-1] == page.next_offset - 1
        written += 1
        if written < 50:
            write(path, written * 1000, 1000)
            trim(path, keep=2000)
        else:
            ended.set()

    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 49_999
    assert path.stat().st_blocks * 512 < 50_000


async def test_line_that_never_ends_loses_its_beginning(path: Path) -> None:
    append(path, "first\n" + "x" * 100_000)

    assert trim(path, keep=10_000) > 80_000

    assert texts(await read_log(path, 0)) == []
    append(path, "\nnext\n")
    page = await read_log(path, 0)
    assert page.offset == 1
    assert texts(page)[1] == "next"


def write(path: Path, start: int, count: int) -> None:
    append(path, "".join(f"{number}\n" for number in range(start, start + count)))
