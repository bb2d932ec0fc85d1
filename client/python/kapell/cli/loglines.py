"""Log lines of tasks and agents: what a program wrote to stdout goes to stdout, the rest to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from kapell.cli.live import LiveLine
from kapell.cli.output import as_data, write_line
from kapell.cli.terminal import Terminal, log_line
from kapell.cli.times import clock, iso

if TYPE_CHECKING:
    from kapell.v1.common_pb2 import LogEntry


class LogPrinter:
    """Writes the entries of one log as they come, above the live line where one stands.

    `format` is that of `-o`; json and jsonl give one object a line, everything else plain lines.
    With `aside` all of it goes to stderr, because stdout is wanted for something else.
    """

    def __init__(self, terminal: Terminal, format: str | None, *, times: bool = False, aside: bool = False) -> None:
        self._terminal = terminal
        self._format = format
        self._times = times
        self._aside = aside
        self._attempt = 0
        self.live = LiveLine(terminal)

    def write(self, entry: LogEntry, *, attempt: int = 0, offset: int = 0) -> None:
        """Writes one entry; a new attempt is announced on stderr."""
        if self._format in ("json", "jsonl", "yaml") and not self._aside:
            data: dict[str, Any] = {"attempt": attempt, "offset": offset} if attempt else {"offset": offset}
            write_line(data | as_data(entry), self._format)
            return
        with self.live.above():
            if attempt > 1 and attempt != self._attempt:
                sys.stderr.write(self._terminal.err(f"-- attempt {attempt} --", "dim") + "\n")
            self._attempt = attempt
            self._write_text(entry)

    def _write_text(self, entry: LogEntry) -> None:
        from kapell.v1.common_pb2 import LOG_STREAM_STDERR, LOG_STREAM_SYSTEM

        to_stderr = self._aside or entry.stream in (LOG_STREAM_STDERR, LOG_STREAM_SYSTEM)
        stream = sys.stderr if to_stderr else sys.stdout
        is_seen = stream.isatty()
        colour = self._terminal.colour_err if to_stderr else self._terminal.colour_out
        text = log_line(entry.text, colour=colour) if is_seen else entry.text
        if entry.stream == LOG_STREAM_SYSTEM:
            text = self._terminal.err(text, "dim")
        if self._times:
            text = f"{clock(entry.time) if is_seen else iso(entry.time)}  {text}"
        stream.write(text + "\n")
        stream.flush()
