"""Output of programs: lines, progress, floods."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kapell.runtimes._output import MAX_LINE_BYTES, Kept, Lines, parse_progress

from tests.host.attempts import RecordedAttempt
from tests.host.test_command import a_task, run, sh

LIMIT = 8
chunks = st.lists(st.one_of(st.binary(max_size=20), st.sampled_from([b"\n", b"a" * LIMIT, "é€𝄞".encode()])))


@given(chunks)
def test_pieces_together_are_the_stream_and_never_too_long(data: list[bytes]) -> None:
    lines = Lines(LIMIT)

    pieces = [piece for chunk in data for piece in lines.feed(chunk)] + list(lines.finish())

    assert b"".join(piece.data for piece in pieces) == b"".join(data)
    assert all(len(piece.text) <= LIMIT for piece in pieces)
    *complete, rest = b"".join(data).split(b"\n")
    expected = [line for line in [*complete, *([rest] if rest else [])] if len(line) <= LIMIT]
    assert [piece.data.removesuffix(b"\n") for piece in pieces if piece.is_whole] == expected


@given(chunks)
def test_skimming_takes_the_same_bytes_as_reading(data: list[bytes]) -> None:
    lines = Lines(LIMIT)

    taken = b"".join(lines.skim(chunk, b"\xff\xff\xffnever") or b"" for chunk in data)

    assert taken + b"".join(piece.data for piece in lines.finish()) == b"".join(data)


@given(st.lists(st.binary(max_size=50)), st.integers(1, 40))
def test_kept_is_the_end_of_what_was_added(data: list[bytes], limit: int) -> None:
    kept = Kept(limit)
    for part in data:
        kept.add(part)

    everything = b"".join(data)
    assert kept.total == len(everything)
    assert kept.is_cut == (len(everything) > limit)
    if not kept.is_cut:
        assert kept.text() == everything.removesuffix(b"\n").removesuffix(b"\r").decode(errors="replace")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"::progress 40% linking", (0.4, "linking")),
        (b"::progress 12.5%", (0.125, "")),
        (b"::progress 100%   done  ", (1.0, "done")),
        (b"::progress - thinking", (None, "thinking")),
        (b"::progress 101% x", None),
        (b"::progress x% y", None),
        (b"::progress 40 linking", None),
        (b"::progress", None),
        (b" ::progress 40% x", None),
        (b"::progress 40%linking", None),
    ],
)
def test_progress_line_is_recognised_by_its_exact_form(line: bytes, expected: object) -> None:
    assert parse_progress(line) == expected


async def test_progress_lines_become_progress_and_neither_log_nor_result(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    script = "echo one; echo '::progress 40% half'; echo '::progress nonsense'; echo '::progress 1% e' >&2; echo two"

    result = await run(tmp_path, sh(script), attempt=attempt)

    assert attempt.progress_seen == [(0.4, "", "half")]
    assert result == "one\n::progress nonsense\ntwo"
    assert attempt.stdout == ["one", "::progress nonsense", "two"]
    assert attempt.stderr == ["::progress 1% e"]


async def test_every_line_of_both_streams_is_logged(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    await run(tmp_path, sh("seq 1 20000; seq 1 20000 >&2; printf unfinished"), attempt=attempt)

    assert attempt.stdout == [*map(str, range(1, 20001)), "unfinished"]
    assert attempt.stderr == [*map(str, range(1, 20001))]


async def test_bytes_that_are_no_utf8_are_replaced(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    await run(tmp_path, sh(r"printf 'a\377b\303\n\r\n\000c\r\n'"), attempt=attempt)

    assert attempt.stdout == ["a�b�", "", "\0c"]


async def test_long_line_is_split_without_breaking_characters(tmp_path: Path) -> None:
    attempt = RecordedAttempt()

    await run(tmp_path, sh("yes é | tr -d '\\n' | head -c 100000; echo; echo next"), attempt=attempt)

    assert "".join(attempt.stdout[:-1]) == "é" * 50_000
    assert all(len(line.encode()) <= MAX_LINE_BYTES for line in attempt.stdout)
    assert attempt.stdout[-1] == "next"


async def test_program_waits_while_the_log_has_no_room(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    attempt.room.clear()
    flag = tmp_path / "written"
    running = asyncio.create_task(run(tmp_path, sh(f"yes | head -c 400000; touch {flag}"), attempt=attempt))
    await attempt.until_stdout(1)

    held_back, is_done = len(attempt.stdout), flag.exists()
    attempt.room.set()
    await running

    assert held_back * 2 < 350_000
    assert not is_done
    assert len(attempt.stdout) == 200_000


async def test_program_that_has_ended_needs_no_room(tmp_path: Path) -> None:
    attempt = RecordedAttempt()
    attempt.room.clear()

    assert await run(tmp_path, sh("seq 1 5"), attempt=attempt) == "1\n2\n3\n4\n5"

    assert len(attempt.stdout) == 5


async def test_flood_of_a_gigabyte_passes_in_bounded_memory(tmp_path: Path) -> None:
    attempt = RecordedAttempt(capacity=1_000_000)
    script = "yes 'a line of the flood' | head -c 1000000000; echo; echo '::progress 99% last'; echo end"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    result = await run(tmp_path, sh(script), a_task(), attempt)

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024, f"{grown} KiB more at the peak"
    assert isinstance(result, str)
    assert result.endswith("\nend")
    assert attempt.progress_seen == [(0.99, "", "last")]
