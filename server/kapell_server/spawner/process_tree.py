"""What an agent has started, found wherever it went, and killed only after a second look.

Called by `sweep` in a thread: reading /proc of a busy machine takes tens of milliseconds. Linux
only: it needs /proc and pidfds (5.3).

A process belongs to an agent when its environment carries the agent's mark, or when it descends
from such a process, or when it lives in a session that one of them opened. The mark survives
double forks, setsid and a new parent; descent and session catch a program that cleared its
environment. While the host lives nothing leaves its tree by descent, because the host adopts
orphans; that is why the host is stopped first and killed last. What remains out of reach: a
process that cleared its environment and left its session, in the tree of a host that died by
itself before anybody asked.

A reading of /proc is no snapshot: a process that forks and exits, again and again, is never where
one looks. So a reading goes on with the pids that were given away meanwhile until none was; then
whoever lives has been seen.

The surprise: a mark may hold several parts, joined by ":", where a Kapell server runs inside an
agent of another; each server looks for its own part.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

MARK = "KAPELL_MARK"
TICKET = "KAPELL_TICKET"
ADDRESS = "KAPELL_ADDRESS"

_KERNEL_THREAD = 0x00200000
_CHUNK = 16 * 1024
# A process in the middle of exec shows an empty environment for microseconds: look again so often.
_EMPTY_LOOKS = 3
_LOOK_PAUSE = 0.0005
# How often a reading goes after the pids that were given away while it was looking.
_CHASES = 64
# For how long after a reading a process group may be killed of which no seen member is left, seconds. Its
# number could only be another's by then if the pids of the machine had gone round in that time.
_FRESH = 0.5
# Most pidfds held while waiting for the killed to vanish.
_WATCHED_EXITS = 128


@dataclass(frozen=True, slots=True)
class Process:
    """A process as /proc showed it. `started` (clock ticks since boot) tells it from a later one of the same pid."""

    pid: int
    parent: int
    group: int
    session: int
    started: int
    # The agent whose mark it carries; empty without a mark.
    marked: str = ""
    # It is an agent's host: it carries the ticket, which programs never get, and leads its session.
    host: bool = False
    # For a host: the address of the server it reports to.
    address: str = ""


def mark_of(log_id: str, agent_id: str, outer: str = "") -> str:
    """The mark for an agent's environment. `outer` is the mark of the server's own environment, if it has one."""
    mark = f"{log_id}/{agent_id}"
    return f"{outer}:{mark}" if outer else mark


class ProcessTable:
    """One reading of /proc, sorted by agent. Zombies and kernel threads are left out.

    `complete` says that nobody who lives can have been missed.
    """

    def __init__(self, processes: dict[int, Process], *, complete: bool = True) -> None:
        self.complete = complete
        self.read_at = time.monotonic()
        self._processes = processes
        self._owners = _owners(processes)
        self._trees: dict[str, list[Process]] = defaultdict(list)
        for pid, agent_id in self._owners.items():
            self._trees[agent_id].append(processes[pid])

    @classmethod
    def read(cls, log_id: str, *, on_sight: Callable[[Process], None] | None = None) -> ProcessTable:
        """Reads all processes; those of agents of the server with this log are told apart. Blocks.

        `on_sight` is shown each marked process as soon as it is seen.
        """
        found: dict[int, Process] = {}
        if sys.platform != "linux":
            return cls(found)

        def see(pid: int) -> None:
            process = _read_process(pid, log_id)
            if process is not None:
                found[pid] = process
                if process.marked and on_sight is not None:
                    on_sight(process)

        latest = _latest_pid()
        with os.scandir("/proc") as entries:
            for entry in entries:
                if entry.name.isdigit():
                    see(int(entry.name))
        for _ in range(_CHASES):
            newest = _latest_pid()
            if newest == latest:
                return cls(found, complete=True)
            for pid in _given_since(latest, newest):
                if pid not in found and _is_process(pid):
                    see(pid)
            latest = newest
        return cls(found, complete=False)

    @property
    def agent_ids(self) -> set[str]:
        """Agents of which at least one process lives."""
        return set(self._trees)

    def tree(self, agent_id: str) -> list[Process]:
        """All processes of the agent, in no order."""
        return self._trees.get(agent_id, [])

    def host(self, agent_id: str, pid: int = 0) -> Process | None:
        """The agent's host, which must be the process `pid` where that is known.

        Where it is not known the oldest is taken: a program looks like its host between fork and exec.
        """
        hosts = [process for process in self.tree(agent_id) if process.host and pid in (0, process.pid)]
        return min(hosts, key=lambda process: process.started, default=None)

    def closed_group(self, process: Process) -> bool:
        """Whether everybody in the process's group is of its agent, so that the group may be killed as one."""
        return process.session != os.getsid(0) and (
            process.session not in self._processes or process.session in self._owners
        )


def _owners(processes: dict[int, Process]) -> dict[int, str]:
    """Agent by pid: by mark, then by descent and session, until nothing is added."""
    children: dict[int, list[int]] = defaultdict(list)
    sessions: dict[int, list[int]] = defaultdict(list)
    for process in processes.values():
        children[process.parent].append(process.pid)
        sessions[process.session].append(process.pid)
    own_pid, own_session = os.getpid(), os.getsid(0)
    owners = {pid: process.marked for pid, process in processes.items() if process.marked and pid != own_pid}
    queue = deque(owners)
    spread: set[int] = set()
    while queue:
        pid = queue.popleft()
        related = children.get(pid, [])
        session = processes[pid].session
        # A session counts only when its leader is ours or gone: a shell that runs a marked command by
        # hand must not be taken for the agent.
        if session not in spread and session != own_session and (session in owners or session not in processes):
            spread.add(session)
            related = related + sessions[session]
        for other in related:
            if other not in owners and other not in (own_pid, 1):
                owners[other] = owners[pid]
                queue.append(other)
    return owners


def _read_process(pid: int, log_id: str) -> Process | None:
    """None for what is gone, dead or of the kernel."""
    fields = _stat(pid)
    if fields is None:
        return None
    threads = int(fields[17])
    if fields[0] in (b"Z", b"X") and threads <= 1:
        return None
    if int(fields[6]) & _KERNEL_THREAD:
        return None
    session = int(fields[3])
    environment = _environment(pid)
    marked, host, address = "", False, ""
    mark = _variable(environment, MARK)
    if mark:
        marked = _part_of(mark, log_id)
        if marked and pid == session:
            host = bool(_variable(environment, TICKET))
            address = _variable(environment, ADDRESS) if host else ""
    return Process(
        pid=pid,
        parent=int(fields[1]),
        group=int(fields[2]),
        session=session,
        started=int(fields[19]),
        marked=marked,
        host=host,
        address=address,
    )


def _latest_pid() -> int:
    """The pid given away last, as threads get them too (proc(5), loadavg)."""
    return int((_read("/proc/loadavg") or b"0").rsplit(b" ", 1)[-1])


def _given_since(before: int, latest: int) -> Iterable[int]:
    """The pids given away after `before`, the latest first; they start again at the bottom when all are used up."""
    if latest > before:
        return range(latest, before, -1)
    top = int(_read("/proc/sys/kernel/pid_max") or b"4194304")
    return itertools.chain(range(latest, 0, -1), range(top, before, -1))


def _is_process(pid: int) -> bool:
    """Whether it is a process that lives, and not one of the threads that /proc shows but does not list."""
    try:
        os.close(os.pidfd_open(pid))
    except OSError:
        return False
    return True


def _part_of(mark: str, log_id: str) -> str:
    """The agent that the mark names for this server; the innermost where there are several."""
    for part in reversed(mark.split(":")):
        log, _, agent_id = part.partition("/")
        if log == log_id:
            return agent_id
    return ""


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat from the state on (proc(5)); None when the process is gone."""
    data = _read(f"/proc/{pid}/stat")
    if not data:
        return None
    return data[data.rindex(b")") + 2 :].split(b" ", 20)


def _environment(pid: int) -> bytes:
    """The environment as the process got it, NUL between variables; empty where it may not be read."""
    for _ in range(_EMPTY_LOOKS):
        data = _read(f"/proc/{pid}/environ")
        if data is None:
            return b""
        if data:
            return b"\0" + data
        time.sleep(_LOOK_PAUSE)
    return b""


def _variable(environment: bytes, name: str) -> str:
    key = b"\0" + name.encode() + b"="
    begin = environment.find(key)
    if begin < 0:
        return ""
    begin += len(key)
    end = environment.find(b"\0", begin)
    return environment[begin : end if end >= 0 else None].decode(errors="replace")


def _read(path: str) -> bytes | None:
    """A file of /proc; None where it is gone or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        data = os.read(fd, _CHUNK)
        while len(data) and len(data) % _CHUNK == 0:
            more = os.read(fd, _CHUNK)
            if not more:
                break
            data += more
        return data
    except (ProcessLookupError, PermissionError):
        return None
    finally:
        os.close(fd)


def open_verified(process: Process) -> int | None:
    """A pidfd of exactly this process, to be closed by the caller; None when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    # The same start before and after opening: nobody else can have had the pid in between.
    fields = _stat(process.pid)
    if fields is None or int(fields[19]) != process.started:
        os.close(pidfd)
        return None
    return pidfd


@contextlib.contextmanager
def _opened(process: Process) -> Iterator[int | None]:
    pidfd = open_verified(process)
    try:
        yield pidfd
    finally:
        if pidfd is not None:
            os.close(pidfd)


def send(process: Process, signum: signal.Signals) -> bool:
    """Signals exactly this process; False when it is gone or not ours to signal."""
    with _opened(process) as pidfd:
        if pidfd is None:
            return False
        try:
            signal.pidfd_send_signal(pidfd, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Round:
    """What a round saw before it killed it, by agent; whether it may have missed somebody."""

    found: dict[str, list[Process]]
    complete: bool


def kill_round(
    log_id: str, agent_ids: Collection[str], *, patience: float, cornered: Collection[str] = (), insist: bool = False
) -> Round:
    """Reads the table once and kills what it shows of these agents; waits up to `patience` seconds for their end.

    A host is stopped, then its tree is killed; a host found alone, in a complete reading or where
    the caller insists, is killed itself. Agents in `cornered` have been through a round: whoever of
    theirs turns up now is killed on sight, before it can fork again. Blocks.
    """
    chased = frozenset(cornered)

    def on_sight(process: Process) -> None:
        if process.marked in chased and not process.host:
            send(process, signal.SIGKILL)

    table = ProcessTable.read(log_id, on_sight=on_sight)
    found = {agent_id: tree for agent_id in agent_ids if (tree := table.tree(agent_id))}
    victims: list[Process] = []
    for tree in found.values():
        hosts = [process for process in tree if process.host]
        for host in hosts:
            send(host, signal.SIGSTOP)
        others = [process for process in tree if not process.host]
        _kill_groups(table, others, spared={host.group for host in hosts})
        if others:
            victims += others
        elif table.complete or insist:
            victims += hosts
    _kill_and_wait(victims, patience)
    return Round(found, table.complete)


def _kill_groups(table: ProcessTable, processes: list[Process], *, spared: set[int]) -> None:
    """Kills whole process groups at a stroke, which not even a fork bomb outruns."""
    members = {process.group: process for process in processes if table.closed_group(process)}
    for group in members.keys() - spared:
        with _opened(members[group]) as pidfd:
            # A group's number is not given away while it has a member.
            lives = pidfd is not None and _group_of(members[group].pid) == group
            if lives or time.monotonic() < table.read_at + _FRESH:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _kill_and_wait(victims: list[Process], patience: float) -> None:
    poll = select.poll()
    watched: set[int] = set()
    try:
        for process in victims:
            pidfd = open_verified(process)
            if pidfd is None:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if len(watched) < _WATCHED_EXITS:
                watched.add(pidfd)
                poll.register(pidfd, select.POLLIN)
            else:
                os.close(pidfd)
        deadline = time.monotonic() + patience
        waiting = len(watched)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for pidfd, _ in poll.poll(left * 1000):
                poll.unregister(pidfd)
                waiting -= 1
    finally:
        for pidfd in watched:
            os.close(pidfd)
