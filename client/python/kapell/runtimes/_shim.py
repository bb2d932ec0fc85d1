"""Runs between fork and the program: ties the program's life to its host, then becomes the program.

Called as: _shim.py STATUS_FD HOST_PID OPEN_FILES PATH ARGV0 [ARG ...]; OPEN_FILES 0 sets no limit. It is a
separate interpreter because code between fork and exec in a process with threads can hang. STATUS_FD closes at a
successful exec; otherwise the error number is written to it.
"""

import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def main() -> None:
    """Becomes the program, or reports why not."""
    status, host = int(sys.argv[1]), int(sys.argv[2])
    open_files, path, argv = int(sys.argv[3]), sys.argv[4], sys.argv[5:]
    os.set_inheritable(status, False)
    try:
        if sys.platform == "linux":
            _die_with(host)
        _default_signals()
        if open_files:
            _limit_files(open_files)
        os.execv(path, argv)
    except OSError as error:
        os.write(status, str(error.errno or 0).encode())
    os._exit(127)


def _die_with(host: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    # The host may have died before the call above; then nobody would tell us.
    if os.getppid() != host:
        os._exit(127)


def _limit_files(count: int) -> None:
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = count if most == resource.RLIM_INFINITY else min(count, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def _default_signals() -> None:
    # The interpreter ignores these, and what is ignored stays so across exec.
    import _signal  # type: ignore[import-not-found]

    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
        _signal.signal(number, _signal.SIG_DFL)


if __name__ == "__main__":
    main()
