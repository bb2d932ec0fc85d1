"""A scripted host: real processes for the spawner to start, without a server to talk to.

    python stand_in_host.py FIFO WORD...

Every process of its tree holds the FIFO open for writing, so a reader sees its end exactly when
the last of them is gone, whatever became of parents, sessions and environments. Each writes one
line to it when it is ready. SIGUSR1 stands for the directive STOP and makes the host exit with 0.
What its programs do is said by the words.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

SLEEP = "/bin/sleep"
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    fifo, words = sys.argv[1], sys.argv[2:]
    # Programs never get it.
    os.environ.pop("KAPELL_TICKET", None)
    report = os.open(fifo, os.O_WRONLY)
    os.set_inheritable(report, True)
    if "adopting" in words:
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    if "deaf" in words:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    for word in words:
        if word.startswith("exit="):
            os.write(report, b"host\n")
            os._exit(int(word.removeprefix("exit=")))
        if word.startswith("say="):
            print(word.removeprefix("say="), flush=True)
        program = PROGRAMS.get(word)
        if program is not None:
            program(report)
    os.write(report, b"host\n")
    if "hydra" in words:
        regrow(report)
    while True:
        signal.pause()


def child(report: int) -> None:
    """A child of the host."""
    if os.fork() == 0:
        sleep(report, b"child")


def stubborn(report: int) -> None:
    """A child that ignores every polite signal."""
    if os.fork() == 0:
        ignore_signals()
        sleep(report, b"stubborn")


def session(report: int) -> None:
    """A child in a session of its own."""
    if os.fork() == 0:
        os.setsid()
        sleep(report, b"session")


def daemon(report: int) -> None:
    """A grandchild in a session of its own, without a parent, that ignores every polite signal."""
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            ignore_signals()
            sleep(report, b"daemon")
        os._exit(0)
    os.waitpid(middle, 0)


def bare(report: int) -> None:
    """As daemon, and with an empty environment: nothing but its descent tells whose it is."""
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", BARE, str(report)], {})
        os._exit(0)
    os.waitpid(middle, 0)


BARE = "import os, signal, sys; os.write(int(sys.argv[1]), b'bare\\n'); signal.pause()"


def regrow(report: int) -> None:
    """Starts a new session for each one that dies, as fast as it can."""
    while True:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            sleep(report, b"head")
        os.waitpid(pid, 0)


FORKING_SECONDS = 60
"""A tree that a broken kill leaves behind must not outlive its test for long."""


def bomb(report: int) -> None:
    """A group in which every process starts the next and dies, for as long as a test may take."""
    if os.fork() == 0:
        os.setsid()
        os.write(report, b"bomb\n")
        end = time.monotonic() + FORKING_SECONDS
        while time.monotonic() < end:
            if os.fork() != 0:
                os._exit(0)
        os._exit(0)


def runaway(report: int) -> None:
    """As bomb, with a session of its own for each process, so that there is no group to kill."""
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", RUNAWAY, str(report)])


RUNAWAY = f"""
import os, sys, time
os.write(int(sys.argv[1]), b'runaway\\n')
end = time.monotonic() + {FORKING_SECONDS}
while time.monotonic() < end:
    if os.fork() != 0:
        os._exit(0)
    os.setsid()
"""


def ignore_signals() -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)


def sleep(report: int, name: bytes) -> None:
    os.write(report, name + b"\n")
    os.execv(SLEEP, [SLEEP, "infinity"])


PROGRAMS = {
    "child": child,
    "stubborn": stubborn,
    "session": session,
    "daemon": daemon,
    "bare": bare,
    "bomb": bomb,
    "runaway": runaway,
}

if __name__ == "__main__":
    main()
