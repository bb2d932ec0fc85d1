"""Runs the command line as a shell would: in this process on a pipe, or as a process on a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pexpect
from kapell.cli.main import run as run_kapell
from pexpect.fdpexpect import fdspawn

WAIT = 30
"""Seconds to wait for words of a process before the test fails."""


@dataclass(frozen=True)
class Result:
    """How a command ended and what it wrote. On a terminal both streams are in `out`."""

    code: int
    out: str
    err: str = ""

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass(frozen=True)
class Shell:
    """A shell on one server. `environment` is all that commands see."""

    environment: Mapping[str, str] = field(default_factory=dict)

    def pipe(self, *args: str, stdin: str = "") -> Result:
        """Runs `kapell ARGS` in this process with its output on a pipe."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        with (
            patch.dict(os.environ, self.environment, clear=True),
            patch.object(sys, "stdin", io.StringIO(stdin)),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            code = run_kapell(args)
        return Result(code, _text(out), _text(err))

    def process(self, *args: str, **options: object) -> subprocess.Popen[str]:
        """Starts `kapell ARGS` as a process with pipes, in a process group of its own."""
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            [*KAPELL, *args],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
            env=dict(self.environment),
            text=True,
            process_group=0,
        )

    def open_terminal(self, *args: str, size: tuple[int, int] = (24, 80), **environment: str) -> TerminalRun:
        """Starts `kapell ARGS` on a terminal of 24 lines and 80 columns."""
        return TerminalRun([*KAPELL, *args], {**self.environment, "TERM": "xterm-256color", **environment}, size)

    def terminal(self, *args: str, **environment: str) -> Result:
        """Runs `kapell ARGS` on a terminal to its end."""
        return self.open_terminal(*args, **environment).finish()


# Takes the terminal it was started on as its own, as a shell's children have it, then becomes the command.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


class TerminalRun:
    """A command on a pseudo-terminal. Not `pexpect.spawn`, which forks: a process that knows grpc must not."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], size: tuple[int, int]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(environment),
            start_new_session=True,
        )
        os.close(slave)
        self._screen = fdspawn(self._master, timeout=WAIT, encoding="utf-8")

    def expect(self, pattern: str) -> str:
        """Waits for words that match; what came before them and they themselves."""
        self._wait_for(pattern)
        return clean(f"{self._screen.before}{self._screen.after}")

    def type(self, text: str) -> None:
        """Types; "\x03" is Ctrl-C."""
        self._screen.send(text)

    def resize(self, lines: int, columns: int) -> None:
        """Gives the terminal another size; the kernel tells whoever runs on it."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def hang_up(self) -> None:
        """Closes the terminal, as a window that is shut does."""
        self._screen.close()

    def finish(self) -> Result:
        """Reads what is left and waits for the end."""
        self._wait_for(pexpect.EOF)
        written = clean(self._screen.before or "")
        code = self.process.wait(WAIT)
        self._screen.close()
        return Result(code, written)

    def _wait_for(self, pattern: object) -> None:
        try:
            self._screen.expect(pattern)
        except pexpect.TIMEOUT:
            self.process.kill()
            self.process.wait(WAIT)
            raise


KAPELL: Sequence[str] = (sys.executable, "-m", "kapell.cli.main")


def clean(text: str) -> str:
    """What a terminal got, with line ends as in files."""
    return text.replace("\r\n", "\n")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode()  # type: ignore[attr-defined, no-any-return]


_FORGET = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "LOCAL-TIME"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "HH:MM:SS"),
    (re.compile(r"127\.0\.0\.1:\d+"), "ADDRESS"),
    (re.compile(r"(?<=process )\d+"), "PID"),
    (re.compile(r'"(etag|revision|queueRank|contentBytes|pid|logId|residentBytes)": ?"?[^",\n]+"?'), r'"\1": …'),
    (re.compile(r"(?m)^(\s*)(etag|revision|queueRank|pid): .+$"), r"\1\2: …"),
    (re.compile(r"\b\d+d \d+h\b|\b\d+h \d\dm\b|\b\d+m \d\ds\b|\b\d+\.\ds\b"), "AGE"),
    (re.compile(r"(?<![\w.-])\d+[smhd]\b(?! grace)"), "AGE"),
    (re.compile(r"(?m)^ *\d+(?=\s+HH:MM:SS|\tTIME)"), "REVISION"),
    (re.compile(r"revision \d+"), "revision N"),
    (re.compile(r"(Process(?:\s|‹0›)+)\d+"), r"\1PID"),
    (re.compile(r"version \d+\.\d+\.\d+\S*"), "version V"),
    (re.compile(r" +(?=AGE\b)"), "  "),
)


def forget(text: str, places: Mapping[str, str]) -> str:
    """`text` without what differs from run to run; colours become readable."""
    text = re.sub("\x1b\\[([0-9;]*)m", r"‹\1›", text).replace("\x1b", "␛")
    for place, name in places.items():
        text = text.replace(place, name)
    for pattern, name in _FORGET:
        text = pattern.sub(name, text)
    return text


GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cli"


def compare(name: str, text: str) -> None:
    """Compares with tests/golden/cli/NAME.txt; with UPDATE_GOLDEN=1 in the environment writes it."""
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"{file} is missing; write it with UPDATE_GOLDEN=1"
    assert text == file.read_text(encoding="utf-8"), f"look at the difference; accept it with UPDATE_GOLDEN=1 ({name})"
