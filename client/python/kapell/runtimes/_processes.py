"""What the system knows of processes: parents, sessions, environments. Reads, signals, decides nothing.

On Linux it reads /proc; elsewhere it asks psutil. A process that ends while it is looked at is
simply not there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LINUX = sys.platform == "linux"
PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """One process at the moment it was looked at."""

    pid: int
    parent: int
    session: int
    start: int
    """When it started, in ticks of the system; tells it from a later process with the same id."""
    is_zombie: bool


@dataclass(frozen=True, slots=True)
class Use:
    """What a process uses."""

    resident_bytes: int
    cpu_seconds: float
    """With the time of those ended children that it took leave of."""
    own_seconds: float
    start: int
    """As that of `Process`."""


def become_subreaper() -> bool:
    """Makes this process the parent of all orphans below it, so that none can slip away. Linux only."""
    if not LINUX:
        return False
    import ctypes

    done: int = ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return done == 0


def look_at(pid: int) -> Process | None:
    """The process, or None where there is none."""
    if not LINUX:
        return _look_with_psutil(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in brackets and may itself hold spaces and brackets.
    fields = text[text.rindex(")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        start=int(fields[19]),
        is_zombie=fields[0] in ("Z", "X"),
    )


def use_of(pid: int) -> Use | None:
    """What the process uses now, or None where there is none."""
    if not LINUX:
        return _use_with_psutil(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    own, children = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
    return Use(int(fields[21]) * _PAGE, (own + children) / _TICKS, own / _TICKS, int(fields[19]))


def own_bytes_of(pid: int) -> int:
    """Resident memory of a process in which what it shares counts in part; 0 where the system does not tell."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def oom_kills() -> int:
    """How many processes the system has killed because it had no memory left; 0 where it does not tell."""
    try:
        lines = (_PROC / "vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def everyone() -> Iterator[Process]:
    """All processes of the machine."""
    if LINUX:
        pids = [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    else:
        import psutil

        pids = psutil.pids()
    for pid in pids:
        process = look_at(pid)
        if process is not None:
            yield process


def children_of(pid: int) -> list[int]:
    """The direct children of a process, zombies included."""
    if not LINUX:
        return [process.pid for process in everyone() if process.parent == pid]
    found: list[int] = []
    try:
        threads = list((_PROC / str(pid) / "task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            found += map(int, (thread / "children").read_text().split())
        except FileNotFoundError:
            # The thread has ended, or this kernel keeps no list of children.
            return [process.pid for process in everyone() if process.parent == pid]
        except OSError:
            continue
    return found


def below(pid: int) -> list[Process]:
    """All that a process has started, and what that has started, without zombies."""
    found, unseen = [], children_of(pid)
    while unseen:
        process = look_at(unseen.pop())
        if process is not None:
            unseen += children_of(process.pid)
            if not process.is_zombie:
                found.append(process)
    return found


def environment_of(pid: int) -> bytes:
    """The environment a process was started with, NUL after each entry; empty where it is not ours to see."""
    if LINUX:
        try:
            return (_PROC / str(pid) / "environ").read_bytes()
        except OSError:
            return b""
    import psutil

    try:
        entries = psutil.Process(pid).environ().items()
    except (psutil.Error, OSError):
        return b""
    return b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in entries)


def kill(process: Process) -> None:
    """Sends SIGKILL to exactly this process: never to a later one that has got its id."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(process.pid)
            try:
                if _is_still(process):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)
    elif _is_still(process):
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)


def reap(pid: int) -> None:
    """Takes leave of an ended child, so that it does not stay as a zombie."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def signal_name(number: int) -> str:
    """The name of a signal, as in SIGKILL."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _is_still(process: Process) -> bool:
    now = look_at(process.pid)
    return now is not None and now.start == process.start


def _look_with_psutil(pid: int) -> Process | None:
    import psutil

    try:
        found = psutil.Process(pid)
        with found.oneshot():
            return Process(
                pid=pid,
                parent=found.ppid() or 0,
                session=os.getsid(pid),
                start=int(found.create_time() * 1000),
                is_zombie=found.status() == psutil.STATUS_ZOMBIE,
            )
    except (psutil.Error, OSError):
        return None


def _use_with_psutil(pid: int) -> Use | None:
    import psutil

    try:
        found = psutil.Process(pid)
        with found.oneshot():
            times = found.cpu_times()
            return Use(found.memory_info().rss, sum(times[:4]), sum(times[:2]), int(found.create_time() * 1000))
    except (psutil.Error, OSError):
        return None
