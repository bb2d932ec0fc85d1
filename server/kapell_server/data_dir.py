"""The data directory: who may use it, its secrets, and the note that says where the server is.

One server a directory: a lock that dies with its holder keeps the second one out. Secrets are
made at the first start, whole or not at all, readable by their owner alone. The directory
remembers where it is, so that a copy is told from the original.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
from pathlib import Path

import structlog

from kapell_server.domain.access import Keyring
from kapell_server.vault import KEY_BYTES as VAULT_KEY_BYTES
from kapell_server.vault import Vault

_log = structlog.get_logger(__name__)

KEY_BYTES = 32
ADMIN_PREFIX = "kapell_admin_"
SHORTEST_TOKEN = 16
_OURS = frozenset(
    {"lock", "server.key", "secrets.key", "admin.token", "place", "server.json", "logs", "artifacts", "agents"}
)
"""What the server keeps here, besides its database."""
LONGEST_SOCKET = 100
"""Bytes of a path; the system's limit is 107."""


class StartRefusedError(Exception):
    """The server cannot start; the text is one sentence or two that say why and what to do."""


class DataDirectory:
    """A data directory that this process holds until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._admin_token = ""

    @property
    def database(self) -> Path:
        return self.path / "kapell.db"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    @property
    def admin_token_file(self) -> Path:
        return self.path / "admin.token"

    def local_address(self) -> str:
        """Where the server listens for this machine alone. Raises StartRefusedError where the path is too long."""
        path = self.path.absolute() / "local.sock"
        if len(os.fsencode(path)) > LONGEST_SOCKET:
            raise StartRefusedError(
                f"{path} is too long for a socket. Say with --local-address where the agents of this machine are to"
                " reach the server, as in 127.0.0.1:50052."
            )
        return f"unix:{path}"

    def remove_socket(self) -> None:
        """Removes the socket of `local_address`."""
        (self.path / "local.sock").unlink(missing_ok=True)

    def acquire(self) -> None:
        """Makes the directory if need be and takes its lock. Raises StartRefusedError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartRefusedError(explain(error, self.path)) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise StartRefusedError(
                f"Another Kapell server (process {holder}) uses the data directory {self.path}."
                " Stop it, or choose another directory with --data-dir."
            ) from None
        except OSError as error:
            os.close(lock)
            raise StartRefusedError(explain(error, self.path)) from None
        self._lock = lock
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise StartRefusedError(explain(error, self.path)) from None
        self._narrow()

    def _narrow(self) -> None:
        """Closes to others what they could read of it: an older version, a backup or a hand may have left it open.

        Its own folders and what lies beside them: in a folder that is closed nobody gets at the rest.
        """
        home = self.path.resolve()  # it may be a link to another disk
        for path in (home, *(path for path in sorted(home.iterdir()) if _is_ours(path.name))):
            try:
                status = path.lstat()
                wide = stat.S_IMODE(status.st_mode)
                if wide & 0o077 and (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                    path.chmod(wide & 0o700)
                    _log.warning("closed to others what they could read", path=str(path), mode=oct(wide))
            except OSError as error:
                _log.warning("others can get at it", path=str(path), why=error.strerror)

    def release(self) -> None:
        """Lets go of the lock; its file stays, since removing it would let two servers in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def copied_from(self) -> Path | None:
        """Where the directory was when `settle` was last called, if this is a copy of it; else None.

        Moved, it is the same directory; restored in place, it is at the same path. A copy is neither.
        Raises StartRefusedError.
        """
        known, here = self._recorded_place(), self._place()
        if known is None or known["path"] == here["path"]:
            return None
        # An inode is unique on its device only: snapshots keep the numbers, and roots of volumes share them.
        if (known["device"], known["inode"]) == (here["device"], here["inode"]):
            return None
        return Path(str(known["path"]))

    def settle(self) -> None:
        """Records where the directory is now. To be called once a copy has become its own. Raises StartRefusedError."""
        here = self._place()
        if self._recorded_place() == here:
            return
        try:
            self._create(self._place_file, f"{json.dumps(here)}\n".encode())
        except OSError as error:
            raise StartRefusedError(explain(error, self._place_file)) from None

    # A copy keeps the key and the admin token: who may use the original may use the copy. Tokens of the
    # original's agents are genuine for it too, but do not let them in: in the copy these agents have ended.
    def keyring(self) -> Keyring:
        """The server's key and the admin token, made if they are not there. Raises StartRefusedError."""
        key = self._secret("server.key", secrets.token_bytes(KEY_BYTES))
        if len(key) < KEY_BYTES:
            raise StartRefusedError(
                f"{self.path / 'server.key'} is damaged: it has {len(key)} bytes, not {KEY_BYTES}."
                " Restore it from a backup, or delete it; agents then have to be started again."
            )
        return Keyring(key, admin_token=self.admin_token())

    def admin_token(self) -> str:
        """The token of the owner, made if it is not there. Raises StartRefusedError."""
        fresh = ADMIN_PREFIX + secrets.token_urlsafe(32)
        token = self._secret("admin.token", f"{fresh}\n".encode()).decode(errors="replace").strip()
        if len(token) < SHORTEST_TOKEN:
            raise StartRefusedError(
                f"{self.admin_token_file} holds no token. Delete the file; a new token is made at the next start."
            )
        self._admin_token = token
        return token

    def changed_admin_token(self) -> str | None:
        """The token of the owner where the file has another one than when it was last read; else None.

        A file that is gone, or has no token, changes nothing: the server goes on with the one it has.
        """
        try:
            token = self.admin_token_file.read_text(errors="replace").strip()
        except OSError:
            return None
        if token == self._admin_token or len(token) < SHORTEST_TOKEN:
            return None
        self._admin_token = token
        return token

    def keys(self) -> tuple[Keyring, Vault, str]:
        """All that is secret here: the server's key, what seals secrets, the admin token. Raises StartRefusedError."""
        return self.keyring(), self.vault(), self.admin_token()

    def vault(self) -> Vault:
        """What seals secrets, its key made if there is none. Raises StartRefusedError."""
        name = "secrets.key"
        text = self._secret(name, f"{secrets.token_hex(VAULT_KEY_BYTES)}\n".encode())
        try:
            keys = [bytes.fromhex(line) for line in text.decode("ascii").split()]
        except ValueError:
            keys = []
        if not keys or any(len(key) != VAULT_KEY_BYTES for key in keys):
            raise StartRefusedError(
                f"{self.path / name} is damaged. Restore it from a backup, or delete it and set the secrets again."
            )

        def store(keys: list[bytes]) -> None:
            self._create(self.path / name, "".join(f"{key.hex()}\n" for key in keys).encode())

        return Vault(keys, store=store)

    def announce(self, *, grpc_address: str, log_id: str, http_address: str = "") -> None:
        """Writes server.json, by which local clients find the server."""
        note = {"grpc_address": grpc_address, "http_address": http_address, "pid": os.getpid(), "log_id": log_id}
        whole = self.path / "server.json.new"
        whole.write_text(json.dumps(note) + "\n")
        whole.replace(self.path / "server.json")

    def withdraw(self) -> None:
        """Removes server.json."""
        (self.path / "server.json").unlink(missing_ok=True)

    @property
    def _place_file(self) -> Path:
        return self.path / "place"

    def _place(self) -> dict[str, int | str]:
        try:
            status = self.path.stat()
            return {"path": str(self.path.resolve()), "device": status.st_dev, "inode": status.st_ino}
        except OSError as error:
            raise StartRefusedError(explain(error, self.path)) from None

    def _recorded_place(self) -> dict[str, int | str] | None:
        """None where no server has settled here yet. A damaged record is refused: to guess could kill."""
        try:
            known = json.loads(self._place_file.read_bytes())
            return {"path": str(known["path"]), "device": int(known["device"]), "inode": int(known["inode"])}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartRefusedError(explain(error, self._place_file)) from None
        except (ValueError, KeyError, TypeError):
            raise StartRefusedError(
                f"{self._place_file} is damaged, so that a copied directory cannot be told from the original."
                " Delete it, unless the directory is a copy of one whose server or agents still run."
            ) from None

    def _secret(self, name: str, fresh: bytes) -> bytes:
        """The content of a secret file; `fresh` becomes it where there is none yet."""
        path = self.path / name
        try:
            if not path.exists():
                self._create(path, fresh)
            return path.read_bytes()
        except OSError as error:
            raise StartRefusedError(explain(error, path)) from None

    def _create(self, path: Path, content: bytes) -> None:
        """Writes the file under another name first: after a crash it is there whole or not at all."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                os.write(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            draft.rename(path)
        finally:
            draft.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _is_ours(name: str) -> bool:
    return name in _OURS or name.startswith("kapell.db")


def explain(error: OSError, path: Path) -> str:
    """A failure of the file system as a sentence that says what to do."""
    match error.errno:
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return (
                f"Cannot write to {path}: it is read-only for this user."
                " Change its permissions, or choose another directory with --data-dir."
            )
        case errno.ENOSPC | errno.EDQUOT:
            return f"Cannot write to {path}: the disk is full. Free some space, then start again."
        case errno.ENOTDIR | errno.EEXIST:
            return f"{path} is not a directory. Choose another one with --data-dir."
        case _:
            return f"Cannot use {path}: {error.strerror or error}. Choose another directory with --data-dir."
