"""What the server says of itself: log lines without secrets, and counts and times of calls.

A successful call leaves no log line, only a count and a place in a histogram: a line a call
would cost more than the call. Traces are not recorded; the aio interceptors of OpenTelemetry
cost more than two calls.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog
from kapell.v1.error_pb2 import ErrorReason

# Anything shaped like one of our tokens: admin, agent, ticket, lease (subject.attempt.mac), bearer headers,
# and passwords in URLs.
_SECRETS = re.compile(
    r"kapell_(?:admin|agent|ticket)_[\w.\-]+"
    r"|task_[a-z0-9_\-]+(?:\.[0-9a-f]+){1,3}\.[0-9a-f]{36}"
    r"|(?i:bearer)\s+[\w.\-~+/=]+"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)
HIDDEN = "[hidden]"

# Bucket i holds calls of 2**(i-1) to 2**i microseconds; the last one takes everything above 33 s.
BUCKETS = 26


def hide_secrets(text: str) -> str:
    """The text with everything that looks like a token or a password replaced."""
    return _SECRETS.sub(HIDDEN, text)


class Lasting:
    """A stream whose reader may go away, as a closed terminal or a killed parent: what cannot be written
    is dropped, because words that nobody reads must not stop the server half-way.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


def configure_logging(log_format: str, *, stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Sends all log lines, those of libraries included, to `stream` (stderr) as "console" text or "json"."""
    out = Lasting(stream if stream is not None else sys.stderr)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
    )
    exceptions: list[Any] = [structlog.processors.format_exc_info] if log_format == "json" else []
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *exceptions, renderer, _hide],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, out)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *exceptions,
                renderer,
                _hide,
            ],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def _hide(_: Any, __: str, line: str | MutableMapping[str, Any]) -> str:
    return hide_secrets(str(line))


class CallStats:
    """Counts and times of one rpc since the process began."""

    __slots__ = ("buckets", "calls", "errors", "method")

    def __init__(self, method: str) -> None:
        self.method = method
        self.calls = 0
        self.errors: dict[str, int] = {}
        self.buckets = [0] * BUCKETS

    def observe(self, seconds: float) -> None:
        """Counts one call that took `seconds`, whatever its outcome."""
        self.calls += 1
        bucket = int(seconds * 1e6).bit_length()
        self.buckets[bucket if bucket < BUCKETS else BUCKETS - 1] += 1

    def count_error(self, reason: ErrorReason.ValueType) -> None:
        """Counts the reason of a failed call."""
        name = ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
        self.errors[name] = self.errors.get(name, 0) + 1

    def quantile(self, share: float) -> float:
        """Upper bound in seconds of the fastest `share` (0 to 1) of the calls; 0 without calls."""
        seen = 0
        for bucket, count in enumerate(self.buckets):
            seen += count
            if seen and seen >= share * self.calls:
                return float(2**bucket) / 1e6
        return 0.0


class Telemetry:
    """The CallStats of all rpcs, by path."""

    def __init__(self) -> None:
        self._stats: dict[str, CallStats] = {}

    def of(self, method: str) -> CallStats:
        """The stats of one method, made on first use."""
        return self._stats.setdefault(method, CallStats(method))

    def __iter__(self) -> Iterator[CallStats]:
        return iter(self._stats.values())

    def summary(self) -> Mapping[str, Mapping[str, float]]:
        """Calls, errors, p50 and p99 of every method that was called, by path."""
        return {
            stats.method: {
                "calls": stats.calls,
                "errors": sum(stats.errors.values()),
                "p50": stats.quantile(0.5),
                "p99": stats.quantile(0.99),
            }
            for stats in self
            if stats.calls
        }
