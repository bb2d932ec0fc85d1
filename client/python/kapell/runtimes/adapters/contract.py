"""What an adapter is: lines of a program's output in, effects out, and a verdict when it has ended.

Adapters do no I/O and know no clock. No line may make one raise: what it does not understand becomes
a line of the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from kapell._worker.outcome import TaskFailed


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log, or several."""

    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """What is being done; `fraction` of all of it, None where that is not known."""

    step: str
    message: str = ""
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What was used, in the words of a provider; see `Attempt.usage_from`."""

    payload: Mapping[str, Any]
    record_id: str = ""
    series: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """The session that the program keeps, by which a later attempt can go on."""

    session_id: str


Effect: TypeAlias = Say | Step | Use | Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the output says of how the program has ended. Its exit code is for the runtime to judge."""

    message: str = ""
    """The last word of the agent, which is its result."""
    failure: TaskFailed | None = None
    used: list[Use] = field(default_factory=list)
    """What is known of usage only now."""
    session_refused: bool = False
    """The session it was to continue is not known to it; nothing was done."""


@runtime_checkable
class Recording(Protocol):
    """What an adapter is besides where its program keeps a file about its run."""

    record: str
    """The file; relative to the program's directory. Empty where the command line names none."""

    def take_record(self, said: str) -> None:
        """What is in the file, told before the end; not called where it is not there, or too large."""
        ...


class Adapter(Protocol):
    """Reads the output of one run of a program."""

    def feed(self, line: str) -> Iterable[Effect]:
        """What a line of standard output, without its newline, says. Must be read to the end."""
        ...

    def end(self, *, code: int, stderr: str, now: float) -> Verdict:
        """Called once after the last line, however the program ended: with its exit code (0 for a signal),
        the end of its standard error, and the time in seconds since 1970."""
        ...
