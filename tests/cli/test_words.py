"""Terminals, tables, YAML, times and states: the small parts that every command stands on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from kapell.cli import states, yaml_text
from kapell.cli.live import LiveLine, bar
from kapell.cli.table import Cell, Column, Line, card, moment, peer, rows_for_pipe, rows_for_terminal
from kapell.cli.terminal import Terminal, cells, cut, detect, log_line, visible
from kapell.cli.times import MOMENT, age, clock, iso, local, parse_duration, short
from kapell.v1.agent_pb2 import AgentActivity, AgentState
from kapell.v1.queue_pb2 import QueueState
from kapell.v1.task_pb2 import AttemptState, TaskState


def screen(**changes: Any) -> Terminal:
    """A terminal of 40 columns without colour."""
    plain = {"is_tty": True, "colour_out": False, "colour_err": False, "live": False, "marks": True, "width": 40}
    return Terminal(**{**plain, **changes})


class Tty(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "colour", "live"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "0"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, True),
    ],
)
def test_what_a_terminal_may_show(environ: Mapping[str, str], colour: bool, live: bool) -> None:
    terminal = detect(environ, out=Tty(), err=Tty())

    assert (terminal.is_tty, terminal.colour_out, terminal.colour_err, terminal.live) == (True, colour, colour, live)


def test_a_pipe_shows_no_colour() -> None:
    terminal = detect({}, out=io.StringIO(), err=Tty())

    assert (terminal.is_tty, terminal.colour_out, terminal.colour_err) == (False, False, True)


@pytest.mark.parametrize(
    ("enum", "table"),
    [
        (TaskState, states.TASK_STATES),
        (AttemptState, states.ATTEMPT_STATES),
        (AgentState, states.AGENT_STATES),
        (AgentActivity, states.AGENT_ACTIVITIES),
        (QueueState, states.QUEUE_STATES),
    ],
)
def test_every_state_of_the_api_has_a_look(enum: Any, table: dict[str, states.Look]) -> None:
    known = {name for name, value in enum.items() if value != 0 or enum is AgentActivity}

    assert table.keys() == known
    assert len({look.word for look in table.values()}) == len(table)


def test_a_state_of_a_newer_server_is_shown_as_unknown() -> None:
    assert states.task_look(99).word == "unknown"


def test_words_stand_for_states() -> None:
    assert states.state_name(states.TASK_STATES, "failed") == "TASK_STATE_FAILED"
    with pytest.raises(KeyError):
        states.state_name(states.TASK_STATES, "sleeping")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand", "two lines and"),
        ("\x1b[2Jclear", "\\x1b[2Jclear"),
        ("bell\x07", "bell\\x07"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("turn \u202eback", "turn \\u202eback"),
        ("日本語", "日本語"),
    ],
)
def test_controls_are_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_log_line_keeps_its_colours_and_nothing_else() -> None:
    line = "\x1b[31mred\x1b[0m\ttab \x1b]0;title\x07"

    assert log_line(line, colour=True) == "\x1b[31mred\x1b[0m\ttab \\x1b]0;title\\x07\x1b[0m"
    assert log_line(line, colour=False) == "red\ttab \\x1b]0;title\\x07"


@given(st.text(max_size=60), st.integers(min_value=1, max_value=40))
def test_a_cut_text_fits(text: str, width: int) -> None:
    shown = cut(visible(text), width)

    assert cells(shown) <= width
    assert shown == visible(text) or shown.endswith("…")


def test_wide_characters_take_two_columns() -> None:
    assert cells("日本") == 4
    assert cut("日本語", 5) == "日本…"


COLUMNS = (
    Column("ID", lambda row: Cell(row[0])),
    Column("STATE", lambda row: Cell(row[1], "red", "✗")),
    Column("NAME", lambda row: row[2], flexible=True),
    Column("N", lambda row: row[3], right=True),
)
ROWS = [("a", "failed", "a name that is far too long for the room", "1"), ("long-id", "failed", "短い", "22")]


def test_a_table_is_aligned_and_fits_the_terminal() -> None:
    lines = rows_for_terminal(COLUMNS, ROWS, screen())

    assert [cells(line) for line in lines] == [40, 40, 40]
    assert lines[1].startswith("a        ✗ failed  a name that is")
    assert lines[2].startswith("long-id  ✗ failed  短い ")


@pytest.mark.parametrize(
    ("width", "titles"),
    [(60, "ID STATE NAME SINCE BY"), (40, "ID STATE NAME SINCE"), (30, "ID STATE NAME"), (20, "ID STATE NAME")],
)
def test_spare_columns_go_before_others_are_cut(width: int, titles: str) -> None:
    columns = (
        *(COLUMNS[0], COLUMNS[1], Column("NAME", lambda row: row[2], flexible=True, keep=14)),
        *(Column("SINCE", lambda _: "2m", spare=True), Column("BY", lambda _: "somebody", spare=True)),
    )

    lines = rows_for_terminal(columns, ROWS, screen(width=width))

    assert lines[0].split() == titles.split()
    assert all(cells(line) <= max(width, 28) for line in lines)
    assert rows_for_pipe(columns, ROWS)[1].split("\t")[3:] == ["2m", "somebody"]


def test_a_time_and_a_peer_are_whole_for_programs_and_short_for_eyes() -> None:
    since = Timestamp(seconds=1_900_000_000, nanos=7_000_000)
    columns = (Column("SINCE", lambda _: moment(since)), Column("FROM", lambda _: peer("ipv4:10.0.0.1:7")))

    assert rows_for_pipe(columns, [None]) == ["2030-03-17T17:46:40.007Z\tipv4:10.0.0.1:7"]
    assert rows_for_terminal(columns, [None], screen())[1].endswith("  10.0.0.1:7")
    assert moment(Timestamp()) == Cell("-")


def test_a_table_without_unicode_has_words_only() -> None:
    lines = rows_for_terminal(COLUMNS, ROWS[:1], screen(marks=False, width=200))

    assert "✗" not in "".join(lines)
    assert "failed" in lines[1]


def test_a_pipe_gets_full_values_between_tabs() -> None:
    assert rows_for_pipe(COLUMNS, [("a", "failed", "tab\tand\nline\\n", "1")]) == [
        r"a	failed	tab\tand\nline\\n	1"
    ]


def test_a_card_leaves_out_what_is_empty() -> None:
    lines = [Line("Name", "x"), Line("Nothing", ""), Line("Long", "one\ntwo")]

    assert card(lines, screen()) == ["Name  x", "Long  one", "      two"]
    assert card(lines, screen(is_tty=False)) == ["Name\tx", r"Long	one\ntwo"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1, "b": [1, "two"], "c": {}}, "a: 1\nb:\n  - 1\n  - two\nc: {}\n"),
        ({"text": "one\ntwo\n"}, "text: |\n  one\n  two\n"),
        ({"word": "yes", "number": "12", "empty": ""}, 'word: "yes"\nnumber: "12"\nempty: ""\n'),
        ([{"a": 1, "b": 2}], "- a: 1\n  b: 2\n"),
        ([["x"]], "- - x\n"),
    ],
)
def test_yaml_is_what_people_write(value: Any, text: str) -> None:
    assert yaml_text.dump(value) == text


@given(json_values)
def test_yaml_never_breaks_a_line_into_something_else(value: Any) -> None:
    text = yaml_text.dump({"value": value, "after": "end"})

    assert text.endswith("after: end\n")
    assert text.startswith("value:")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120), ("1h30m", 5400), ("2d", 172800)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-3s", "1m2x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0.0s"),
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (7800, "2h 10m"),
        (442800, "5d 3h"),
    ],
)
def test_spans_are_told_in_two_units(seconds: float, text: str) -> None:
    assert short(seconds) == text


def test_times_are_told() -> None:
    moment = Timestamp(seconds=1_800_000_000, nanos=123_456_789)

    assert age(moment, now=1_800_000_200.0) == "3m"
    assert age(moment, now=1_799_999_999.0) == "0s"
    assert (age(Timestamp()), iso(Timestamp()), local(Timestamp())) == ("-", "", "")
    assert iso(moment) == "2027-01-15T08:00:00.123Z"
    assert len(clock(moment)) == 8


def test_a_moment_is_a_time_or_a_span_from_now() -> None:
    assert MOMENT.convert("2027-01-15T08:00:00Z", None, None) == 1_800_000_000
    assert MOMENT.convert("1h", None, None) > 3600


def test_a_bar_shows_how_far_it_is() -> None:
    assert bar(0.5, screen(marks=False)) == "##########.........."
    assert bar(-1, screen()) == ""
    assert len(bar(2, screen())) == 20


def test_a_live_line_is_taken_away_for_what_scrolls_by(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveLine(screen(live=True))

    live.set("●", "cyan", "running")
    with live.above():
        print("a line")
    live.clear()

    written = capsys.readouterr()
    assert written.out == "a line\n"
    assert written.err == "\r\x1b[2K● running" + "\r\x1b[2K" + "● running" + "\r\x1b[2K"


def test_nothing_is_drawn_where_it_cannot_be_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveLine(screen(live=False))

    live.set("●", "cyan", "running")
    live.clear()

    assert capsys.readouterr().err == ""
