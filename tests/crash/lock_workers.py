"""Processes that fight over locks, write what they do down at once, and may be killed at any moment.

Run as: python -m tests.crash.lock_workers ADDRESS TOKEN DIRECTORY COUNT SEED. One process imports
everything and then forks the workers: nothing of gRPC runs in it, and so 64 of them start in a
second and share their memory. Ended workers are replaced; ids go to standard output, and when
standard input ends, all end.

Every line of a worker's file is one write, whole or cut by its death. Times are of the monotonic
clock, which all processes of the machine share. What a worker writes:

    granted  the server has answered with these locks, some time after it gave them
    hold     it believes from now on that it has these locks, until `until` at the latest
    wrote    the guard let its write through; `asked` and `told` enclose the moment of the check
    refused  the guard did not
    release  from now on it does not believe so any more
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from kapell.connection import channel_options, translate
from kapell.errors import KapellError
from kapell.v1 import lock_pb2 as pb
from kapell.v1.lock_pb2_grpc import LockServiceStub

PATHS = (
    *("web", "web/src", "web/src/a", "web/src/b", "web/src/b/c", "web/docs", "web/docs/x", "web/test"),
    *("api", "api/src", "api/src/a", "api/src/a/b", "api/docs", "port", "port/1", "port/2", "gpu/0", "gpu/1"),
    *("db", "db/test"),
)
TTL = 1.0
SHARED = pb.LOCK_MODE_SHARED


class Worker:
    """One of the fighters."""

    def __init__(self, address: str, token: str, directory: Path, rng: random.Random) -> None:
        channel = grpc.insecure_channel(address, options=channel_options(local=True))
        self._stub = LockServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._rng = rng
        name = f"{os.getpid()}.{rng.randrange(2**32)}.jsonl"
        self._file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(self) -> None:
        """Fights on until it is killed."""
        while True:
            try:
                if self._rng.random() < 0.3:
                    self._as_session()
                else:
                    self._hold(pb.AcquireLocksRequest(ttl={"seconds": int(TTL)}))
            except KapellError as error:
                # Lost, held, deadlock, or the server is away: the next try begins with nothing.
                if not error.from_server:
                    time.sleep(0.05)

    def _as_session(self) -> None:
        """Takes one lock and then another, as deadlocks are made."""
        sent = time.monotonic()
        session = self._call("OpenSession", pb.OpenSessionRequest(ttl={"seconds": int(TTL)})).session
        wanted = pb.AcquireLocksRequest(session_id=session.session_id)
        until = sent + TTL
        try:
            self._hold(wanted, until=until, inner=lambda: self._hold(wanted, until=until))
        finally:
            self._call("CloseSession", pb.CloseSessionRequest(session_id=session.session_id))

    def _hold(self, wanted: pb.AcquireLocksRequest, *, until: float | None = None, inner: Any = None) -> None:
        """Acquires some locks, writes under them, and mostly gives them back."""
        request = pb.AcquireLocksRequest()
        request.CopyFrom(wanted)
        paths = self._rng.sample(PATHS, self._rng.choice((1, 1, 1, 2, 3)))
        request.items.extend(pb.LockItem(path=path, mode=self._rng.choice((1, 1, SHARED))) for path in paths)
        request.wait.FromMilliseconds(self._rng.choice((0, 200, 1000)))
        request.request_id = f"{self._rng.randrange(2**63):x}"
        answer = self._call("AcquireLocks", request)
        if until is None:
            # How long the grant has waited for us nobody knows; the renewal begins now.
            self._say("granted", locks=_told(answer.locks))
            sent = time.monotonic()
            self._call("RenewLocks", pb.RenewLocksRequest(lock_ids=[lock.lock_id for lock in answer.locks]))
            until = sent + TTL
        self._say("hold", locks=_told(answer.locks), until=until)
        try:
            for _ in range(self._rng.randrange(4)):
                self._write(self._rng.choice(answer.locks))
            if inner is not None:
                inner()
            if self._rng.random() < 0.03:
                # Stands still for longer than its time, and then goes on as if nothing had happened.
                time.sleep(TTL * 1.2)
                self._write(self._rng.choice(answer.locks))
        finally:
            # Whatever went wrong: a session is closed after this, and with it its locks.
            self._say("release", locks=_told(answer.locks))
        self._call("ReleaseLocks", pb.ReleaseLocksRequest(lock_ids=[lock.lock_id for lock in answer.locks]))

    def _write(self, lock: pb.Lock) -> None:
        """An effect below the path of a lock, through the guard."""
        path = lock.path + self._rng.choice(("", "/file", "/deep/file"))
        request = pb.CheckFenceRequest(path=path, fencing_token=lock.fencing_token, mode=lock.mode)
        asked = time.monotonic()
        try:
            self._call("CheckFence", request)
        except KapellError as error:
            if error.reason != "FENCING_TOKEN_STALE":
                raise
            self._say("refused", path=path, token=lock.fencing_token)
        else:
            self._say("wrote", path=path, mode=lock.mode, token=lock.fencing_token, asked=asked, told=time.monotonic())

    def _say(self, what: str, **details: Any) -> None:
        line = json.dumps({"what": what, "at": time.monotonic(), **details})
        os.write(self._file, f"{line}\n".encode())

    def _call(self, method: str, request: Any) -> Any:
        try:
            return getattr(self._stub, method)(request, timeout=10, metadata=self._metadata)
        except grpc.RpcError as error:
            raise translate(error) from None


def _told(locks: Any) -> list[dict[str, Any]]:
    return [{"id": lock.lock_id, "path": lock.path, "mode": lock.mode, "token": lock.fencing_token} for lock in locks]


def main() -> None:
    """Keeps so many workers alive."""
    address, token, directory, count, seed = sys.argv[1:]
    rng = random.Random(int(seed))
    alive: set[int] = set()
    while True:
        while len(alive) < int(count):
            own = rng.randrange(2**64)
            pid = os.fork()
            if not pid:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                Worker(address, token, Path(directory), random.Random(own)).run()
            alive.add(pid)
            print(pid, flush=True)
        if select.select([sys.stdin], [], [], 0.01)[0] and not sys.stdin.readline():
            break
        while alive:
            ended, _ = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            alive.discard(ended)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
