"""One agent's host process: started or adopted, watched by its pidfd, signalled without a race.

Made by `HostLauncher` and owned by the agent's keeper. A host is nobody's pipe: it writes to its
log file and outlives the server. Exits are noticed by the pidfd, for children and adopted hosts
alike; the exit status of an adopted host is not ours to know and is reported as unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from google.protobuf.json_format import MessageToJson
from kapell.v1.agent_pb2 import AgentSpec
from kapell.v1.common_pb2 import ProcessExit

from kapell_server.domain.access import Keyring
from kapell_server.spawner.environment import allowed
from kapell_server.spawner.process_tree import ADDRESS, MARK, TICKET, Process, mark_of, open_verified

# -P keeps the working directory out of the import path; -u lets every line reach the log at once.
HOST_COMMAND = (sys.executable, "-P", "-u", "-m", "kapell.host")

_SPEC_FILE = "spec.json"
_LOG_FILE = "host.log"


class HostProcess:
    """A live or ended host. `exit` is None until it has ended; `on_exit` is called once, then."""

    def __init__(self, pid: int, pidfd: int, on_exit: Callable[[], None]) -> None:
        """Takes over the pidfd. To be called on the loop thread."""
        self.pid = pid
        self.exit: ProcessExit | None = None
        self._pidfd = pidfd
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._ended)

    def send(self, signum: signal.Signals) -> None:
        """Signals the host, and nobody else; nothing happens when it has ended."""
        if self.exit is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signum)

    def release(self) -> None:
        """Stops watching; the host lives on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self) -> None:
        self.exit = _reap(self._pidfd)
        self.release()
        self._on_exit()


def _reap(pidfd: int) -> ProcessExit:
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        result = None
    if result is None:
        return ProcessExit(message="ended; its exit status is unknown, because an earlier server process started it")
    if result.si_code == os.CLD_EXITED:
        return ProcessExit(code=result.si_status, message=f"exited with code {result.si_status}")
    return ProcessExit(signal=result.si_status, message=f"killed by {_signal_name(result.si_status)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class HostLauncher:
    """Knows where agents live and what a host is started with."""

    def __init__(
        self,
        *,
        data_dir: Path,
        log_id: str,
        server_address: Callable[[], str],
        keyring: Keyring,
        environ: Mapping[str, str],
        command: Sequence[str] = HOST_COMMAND,
    ) -> None:
        self.address = server_address
        self._agents_dir = data_dir / "agents"
        # Not below the agent's own directory: worktrees outlive the agents that have made them.
        self._workspaces_dir = data_dir.absolute() / "workspaces"
        self._log_id = log_id
        self._keyring = keyring
        self._environ = environ
        self._command = tuple(command)

    def directory(self, agent_id: str) -> Path:
        """The agent's directory: its host's log, spec and working directory."""
        return self._agents_dir / agent_id

    def log_path(self, agent_id: str) -> Path:
        """The host's standard output and error."""
        return self.directory(agent_id) / _LOG_FILE

    def known_directories(self) -> list[str]:
        """Ids of the agents that have a directory. Blocks."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in self._agents_dir.iterdir())
        return []

    async def launch(self, agent_id: str, spec: AgentSpec, on_exit: Callable[[], None]) -> HostProcess:
        """Starts the agent's host. Raises OSError where the machine refuses."""
        pid, pidfd = await asyncio.to_thread(self._start, agent_id, spec)
        return HostProcess(pid, pidfd, on_exit)

    def _start(self, agent_id: str, spec: AgentSpec) -> tuple[int, int]:
        if not hasattr(os, "pidfd_open"):
            raise OSError(errno.ENOSYS, "the server spawns agents on Linux 5.3 or newer only; run a worker by itself")
        directory = self.directory(agent_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec_file = directory / _SPEC_FILE
        _write_private(spec_file, MessageToJson(spec, preserving_proto_field_name=True))
        log = os.open(self.log_path(agent_id), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                self._command,
                cwd=directory,
                env=self._environment(agent_id, spec_file),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        # Only the pidfd reaps it: Popen would warn of a running child, and later steal its status.
        child.returncode = 0
        return child.pid, os.pidfd_open(child.pid)

    def _environment(self, agent_id: str, spec_file: Path) -> dict[str, str]:
        return allowed(self._environ) | {
            ADDRESS: self.address(),
            TICKET: self._keyring.ticket(agent_id),
            MARK: mark_of(self._log_id, agent_id, self._environ.get(MARK, "")),
            "KAPELL_AGENT_ID": agent_id,
            "KAPELL_SPEC_FILE": str(spec_file),
            "KAPELL_WORKSPACES_DIR": str(self._workspaces_dir),
        }


def adopt(process: Process, on_exit: Callable[[], None]) -> HostProcess | None:
    """Takes over a host that an earlier server process started; None when it has just ended."""
    pidfd = open_verified(process)
    return None if pidfd is None else HostProcess(process.pid, pidfd, on_exit)


def _write_private(path: Path, text: str) -> None:
    """Replaces the file at once, readable by its owner only."""
    fresh = path.with_suffix(".new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)
