"""Whose process is it? Finds what a program started and left running, and ends it.

A program's family is everything it started, however far it ran away: members of its session, and
whatever carries its mark in the environment. Where the host is a subreaper, every orphan below it
becomes its child, so that looking at one's own children is enough to know that nobody is left, and
even an orphan that hid its mark and its session is found as soon as no other program is running.
"""

from __future__ import annotations

import asyncio
import os

from kapell.runtimes import _processes
from kapell.runtimes._processes import Process

MARK = "KAPELL_PROGRAM_MARK"
"""Environment variable that names the attempt a process belongs to; unique for each start of a program."""

_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


class Families:
    """The programs that one host runs, and their families."""

    def __init__(self, *, is_subreaper: bool) -> None:
        self._is_subreaper = is_subreaper
        self._marks: dict[int, str] = {}

    def adopt(self, leader: int, mark: str) -> None:
        """Counts the program with process id `leader` among the running ones."""
        self._marks[leader] = mark

    def dismiss(self, leader: int) -> None:
        """The program is over and its family ended; its id may be used anew from now on."""
        self._marks.pop(leader, None)
        if not self._marks and self._is_subreaper:
            self.reap_orphans()

    async def end(self, leader: int, *, within: float = 5.0) -> tuple[int, list[int]]:
        """Kills what is left of the family after its leader ended.

        Returns how many were killed, and the ids of those that would not go within the time.
        Must be called before the leader is reaped: until then nobody else can have its id.
        """
        deadline = asyncio.get_running_loop().time() + within
        killed: set[tuple[int, int]] = set()
        pause = _PAUSE
        while True:
            if self._is_subreaper:
                self.reap_orphans()
            # The system's list of children can miss one while another ends, so "nobody" is asked twice.
            left = self._left_of(leader) or self._left_of(leader)
            if not left:
                return len(killed), []
            if asyncio.get_running_loop().time() >= deadline:
                return len(killed), [process.pid for process in left]
            for process in left:
                _processes.kill(process)
                killed.add((process.pid, process.start))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def group_lives(self, leader: int) -> bool:
        """Whether anybody but zombies is left in the program's session after the program itself."""
        return any(not process.is_zombie and process.session == leader for process in self._left_of(leader))

    def members(self, leader: int) -> list[int]:
        """Ids of the program's processes: itself, what it has started, and those of them that ran away.

        May be asked in a thread, while programs come and go: it looks at a copy, and reaps nobody.
        """
        marks = dict(self._marks)
        first = _processes.look_at(leader)
        if first is None or leader not in marks:
            return []
        found = {
            process.pid
            for process in (*_with_descendants(first), *self._left_of(leader, marks))
            if not process.is_zombie
        }
        return sorted(found)

    def reap_orphans(self) -> None:
        """Takes leave of ended orphans that became our children; running ones and programs stay."""
        for pid in _processes.children_of(os.getpid()):
            if pid in self._marks:
                continue
            process = _processes.look_at(pid)
            if process is not None and process.is_zombie and process.session != os.getsid(0):
                _processes.reap(pid)

    def _left_of(self, leader: int, marks: dict[int, str] | None = None) -> list[Process]:
        marks = self._marks if marks is None else marks
        if self._is_subreaper:
            return _left_among_orphans(leader, marks)
        mark = _entry(marks[leader])
        first = _processes.look_at(leader)
        oldest = first.start if first is not None else 0
        return [
            process
            for process in _processes.everyone()
            if process.pid != leader
            and process.start >= oldest
            and not process.is_zombie
            and (process.session == leader or mark in _processes.environment_of(process.pid))
        ]


def _left_among_orphans(leader: int, marks: dict[int, str]) -> list[Process]:
    found: list[Process] = []
    for pid in _processes.children_of(os.getpid()):
        process = None if pid in marks else _processes.look_at(pid)
        if process is not None and _owner(process, marks) == leader:
            found += _with_descendants(process)
    return [process for process in found if not process.is_zombie]


def _owner(process: Process, marks: dict[int, str]) -> int | None:
    """The leader of the orphan's family; None for the host's own helpers and for the unknown."""
    if process.session in marks:
        return process.session
    environment = _processes.environment_of(process.pid)
    for leader, mark in marks.items():
        if _entry(mark) in environment:
            return leader
    if process.session == os.getsid(0):
        return None
    return next(iter(marks)) if len(marks) == 1 else None


def _entry(mark: str) -> bytes:
    return f"{MARK}={mark}\0".encode()


def _with_descendants(process: Process) -> list[Process]:
    found, unseen = [], [process]
    while unseen:
        current = unseen.pop()
        found.append(current)
        below = (_processes.look_at(pid) for pid in _processes.children_of(current.pid))
        unseen += [child for child in below if child is not None]
    return found
