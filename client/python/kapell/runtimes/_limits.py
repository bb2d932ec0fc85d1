"""What one attempt may use of the machine: looked at from outside, and ended when it uses more.

Memory, processor time and processes are those of the program and of all that it has started, together, several times
a second: a program can be a little over for that long. What processes share is counted once. The number of open files
is each process's own, and kept by the system (see `_shim`). While the program is stopped its time stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass

from kapell._worker.outcome import TaskFailed
from kapell.runtimes import _processes
from kapell.runtimes._processes import Use
from kapell.runtimes._program import Program
from kapell.v1.agent_pb2 import AgentLimits

_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class _Sum:
    memory_bytes: int
    cpu_seconds: float
    processes: int


class _Processor:
    """Processor time of a program and of all that it has ever started.

    A process adds the time of its children to its own when it takes leave of them; of those whose parent did not, only
    what was seen while they lived is known. So both are summed up, and the larger sum is the nearer one.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], float] = {}
        self._gone = 0.0
        self._most = 0.0

    def seconds(self, used: dict[tuple[int, int], Use]) -> float:
        """The time up to now, given what each process that lives has used, by its id and start."""
        self._gone += sum(seconds for who, seconds in self._seen.items() if who not in used)
        self._seen = {who: use.own_seconds for who, use in used.items()}
        seen = self._gone + sum(self._seen.values())
        self._most = max(self._most, seen, sum(use.cpu_seconds for use in used.values()))
        return self._most


class Limits:
    """The limits of a spec."""

    def __init__(self, spec: AgentLimits) -> None:
        self._spec = spec
        self.open_files = spec.open_files
        self._looks = bool(spec.memory_bytes or spec.processes or spec.HasField("cpu_time"))
        self.are_watched = bool(self._looks or spec.output_bytes or spec.HasField("wall_time"))
        """Whether there is anything to enforce."""

    async def enforce(self, program: Program) -> TaskFailed | None:
        """Kills the program when it uses more than it may, and says what that was; None when it ends before."""
        processor = _Processor()
        while not program.has_exited:
            found = await asyncio.to_thread(self._look, program, processor) if self._looks else None
            words = self._judge(found, program.seconds(), program.written())
            if words and not program.has_exited:
                program.signal_group(signal.SIGKILL)
                return TaskFailed("LIMIT_EXCEEDED", f"the program was ended: {words}", retryable=False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await program.exited()
        return None

    def _look(self, program: Program, processor: _Processor) -> _Sum:
        members = program.members()
        used = {(pid, use.start): use for pid in members if (use := _processes.use_of(pid)) is not None}
        memory = sum(use.resident_bytes for use in used.values())
        if self._spec.memory_bytes and memory > self._spec.memory_bytes:
            # Shared pages were counted for each who has them; the exact sum costs more, so only now.
            memory = sum(map(_processes.own_bytes_of, members)) or memory
        return _Sum(memory, processor.seconds(used), len(members))

    def _judge(self, found: _Sum | None, seconds: float, written: int) -> str:
        """Which limit was exceeded, in words; empty for none."""
        spec = self._spec
        if spec.output_bytes and written > spec.output_bytes:
            return f"it wrote more than {_size(spec.output_bytes)} (limits.output_bytes of its agent)"
        if spec.HasField("wall_time") and seconds > spec.wall_time.ToSeconds():
            return f"it ran for longer than {spec.wall_time.ToSeconds()} s (limits.wall_time of its agent)"
        if found is None:
            return ""
        if spec.memory_bytes and found.memory_bytes > spec.memory_bytes:
            used, most = _size(found.memory_bytes), _size(spec.memory_bytes)
            return f"it used {used} of memory, and may use {most} (limits.memory_bytes of its agent)"
        if spec.processes and found.processes > spec.processes:
            return f"it had {found.processes} processes, and may have {spec.processes} (limits.processes of its agent)"
        if spec.HasField("cpu_time") and found.cpu_seconds > spec.cpu_time.ToSeconds():
            return (
                f"it used {found.cpu_seconds:.1f} s of processor time, and may use {spec.cpu_time.ToSeconds()} s"
                " (limits.cpu_time of its agent)"
            )
        return ""


def _size(count: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.1f} GiB"
