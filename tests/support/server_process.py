"""A real server as a process of its own, to be used, killed and started again.

The data directory outlives every process, and so does the port: clients that hold the address
find the server again after a restart, as in life.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

START_SECONDS = 20.0
STOP_SECONDS = 20.0


class ServerProcess:
    """`python -m kapell_server` on a free port of the loopback and a data directory of its own.

    HTTP is left out unless `http_address` says where, as in "127.0.0.1:0". `prefix` goes before the command line,
    as in ("taskset", "-c", "0"). What the process writes is in `log_file`, over all restarts. Everything here blocks;
    use it from the test's own thread.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        http_address: str = "",
    ) -> None:
        self.data_dir = data_dir
        self.address = f"127.0.0.1:{free_port()}"
        self.http_address = ""
        self.log_file = data_dir.with_name(data_dir.name + ".server.log")
        self._command = [
            *prefix,
            *(sys.executable, "-m", "kapell_server", "--log-format", "json"),
            *("--data-dir", str(data_dir), "--grpc-address", self.address, "--http-address", http_address),
            *arguments,
        ]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. The server must have been started."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    @property
    def admin_token(self) -> str:
        """The token that the first start has made."""
        return (self.data_dir / "admin.token").read_text().strip()

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def start(self) -> None:
        """Starts the process and waits until it serves. Fails with its log otherwise."""
        assert self._process is None, "the server is running"
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self._wait_until_serving()

    def kill(self) -> None:
        """SIGKILL, as a crash would be; waits for the end."""
        self._end(signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks for the end and waits for it; the exit code. SIGINT ends the spawned agents too."""
        return self._end(number)

    def restart(self) -> None:
        """Kills and starts again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Ends what is left, agents included, however the test ended."""
        if self._process is None:
            return
        try:
            self.stop(signal.SIGINT)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _end(self, number: signal.Signals) -> int:
        process = self._process
        assert process is not None, "the server is not running"
        process.send_signal(number)
        code = process.wait(STOP_SECONDS)
        self._process = None
        return code

    def _wait_until_serving(self) -> None:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        first_words: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reader = threading.Thread(
            target=self._read, args=(process.stdout, first_words), name="server-output", daemon=True
        )
        reader.start()
        try:
            line = first_words.get(timeout=START_SECONDS)
        except queue.Empty:
            line = b""
        if not line:
            self._process = None
            process.kill()
            code = process.wait()
            raise AssertionError(f"the server did not serve (exit code {code}):\n{self.log}")
        note = json.loads(line)
        self.address, self.http_address = note["grpc_address"], note["http_address"]

    def _read(self, stdout: IO[bytes], first_words: queue.SimpleQueue[bytes]) -> None:
        """Moves the output to the log, so that the server is never blocked by a full pipe.

        The line that says "serving" is put into `first_words`, or nothing at the end.
        """
        with stdout, self.log_file.open("ab", buffering=0) as log:
            for line in stdout:
                log.write(line)
                if b'"serving"' in line:
                    first_words.put(line)
        first_words.put(b"")


def free_port() -> int:
    """A port of the loopback that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
