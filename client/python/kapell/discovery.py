"""Where the server is and what proves who we are, without asking the user on his own machine.

Order for the address: the argument, KAPELL_ADDRESS, `server.json` in the data directory. Order
for the token: the argument, KAPELL_TOKEN, `admin.token` in the data directory. The admin token
is never sent to another machine: it is read only for the local server. TLS is spoken where the
argument `tls` or KAPELL_TLS_CA says so. Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kapell.errors import InvalidRequest, ServerNotFound, Unauthenticated

SYSTEM_CA = "system"

_LOCAL_HOSTS = frozenset({"localhost", "ip6-localhost", "::1", "0.0.0.0", "::"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Who is trusted, and what is shown, as PEM files. They are read when the connection is made."""

    ca: str = SYSTEM_CA
    """Who has signed the server's certificate; "system" for those that gRPC trusts by itself."""
    cert: str = ""
    """The client's certificate with its chain, where the server asks for one."""
    key: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server to talk to. `token` may be empty: the server then says whether it needs one."""

    address: str
    """As gRPC takes it: "host:port", or "unix:/path"."""
    token: str = field(default="", repr=False)
    tls: Tls | None = None
    """How the connection is encrypted; None for plain text."""

    @property
    def is_local(self) -> bool:
        """True when the address can only mean this machine."""
        return is_local(self.address)


def data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """The data directory of the local server: KAPELL_DATA_DIR, else $XDG_DATA_HOME/kapell or its default."""
    env = os.environ if environ is None else environ
    if chosen := env.get("KAPELL_DATA_DIR"):
        return Path(chosen).expanduser()
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "kapell"


def discover(
    address: str | None = None,
    *,
    token: str | None = None,
    tls: Tls | None = None,
    directory: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Endpoint:
    """Finds the server.

    Raises ServerNotFound when no address is given and no server is running here, InvalidRequest
    for an address that is none, Unauthenticated when the local token cannot be read.
    """
    env = os.environ if environ is None else environ
    home = Path(directory) if directory is not None else data_dir(env)
    address = address or env.get("KAPELL_ADDRESS") or ""
    found = _checked(address) if address else _running_server(home)
    if token is None:
        token = env.get("KAPELL_TOKEN")
    if token is None:
        token = _local_token(home) if is_local(found) else ""
    if tls is None and address and not found.startswith("unix:"):
        tls = tls_of(env)
    return Endpoint(address=found, token=token.strip(), tls=tls)


def tls_of(env: Mapping[str, str]) -> Tls | None:
    """What KAPELL_TLS_CA, KAPELL_TLS_CLIENT_CERT and KAPELL_TLS_CLIENT_KEY say; None where they say nothing."""
    ca, cert, key = (env.get(f"KAPELL_TLS_{name}", "") for name in ("CA", "CLIENT_CERT", "CLIENT_KEY"))
    return Tls(ca=ca or SYSTEM_CA, cert=cert, key=key) if ca or cert else None


def is_local(address: str) -> bool:
    """True when `address` can only mean this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    is_loopback = host.startswith("127.") and host.replace(".", "").isdecimal()
    return is_loopback or host in _LOCAL_HOSTS


def _checked(address: str) -> str:
    if _is_address(address):
        return address
    raise InvalidRequest(
        f"{address!r} is not an address of a server - it must be host:port, as in 127.0.0.1:50051 - "
        "mend KAPELL_ADDRESS or the address you passed",
        reason="ADDRESS_INVALID",
    )


def _is_address(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host, _, port = address.rpartition(":")
    return "//" not in address and bool(host) and port.isdecimal() and 0 < int(port) < 65536


def _running_server(home: Path) -> str:
    file = home / "server.json"
    try:
        address = json.loads(file.read_text(encoding="utf-8"))["grpc_address"]
        if isinstance(address, str) and _is_address(address):
            return address
        why = f"{file} names no address"
    except FileNotFoundError:
        why = f"{file} does not exist"
    except (OSError, UnicodeDecodeError) as error:
        why = f"{file} cannot be read ({error})"
    except (ValueError, KeyError, TypeError):
        why = f"{file} is damaged"
    raise ServerNotFound(
        f"no Kapell server is known - {why} - start one with `kapell up`, or set KAPELL_ADDRESS "
        "(and KAPELL_TOKEN) to reach one elsewhere",
        reason="SERVER_NOT_FOUND",
        metadata={"data_dir": str(home)},
    )


def _local_token(home: Path) -> str:
    file = home / "admin.token"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthenticated(
            f"the token of the local server cannot be read - {file}: {error} - run as the user who "
            "started the server, or set KAPELL_TOKEN",
            reason="TOKEN_MISSING",
        ) from error
