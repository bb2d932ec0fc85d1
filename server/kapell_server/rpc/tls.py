"""TLS: the server's certificate and what clients must show, read anew when the files change.

grpc asks at each handshake whether there is something new; connections that are open go on. Files
that do not fit together, as while one of two is being replaced, change nothing: the server goes on
with what it has, and says so once. Called on threads of grpc, one at a time.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

_log = structlog.get_logger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]
_NO_PASSWORD = "a key with a password cannot be used"


class TlsUnusableError(Exception):
    """The files cannot be used; the text says which, why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca` every client must show a certificate that one of these has signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.cert, self.key) if self.client_ca is None else (self.cert, self.key, self.client_ca)


class Tls:
    """The credentials of a server. Raises TlsUnusableError where the files cannot be used as they are."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._stamp, self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """What a port is opened with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
            self._changed,  # type: ignore[arg-type]  # None says that nothing has changed
            require_client_authentication=self._files.client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What to go on with where the files have changed; None to go on as before. Never raises."""
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp == self._stamp:
                    return None
                self._stamp = stamp  # said once, whatever comes of it
                self._stamp, self._configuration = self._read()
            except (OSError, TlsUnusableError) as error:
                _log.warning("changed TLS files are not used; the server goes on with those before", why=str(error))
                return None
            _log.info("the TLS files were read anew", cert=str(self._files.cert))
            return self._configuration

    def _stamp_now(self) -> _Stamp:
        found = [file.stat() for file in self._files.all]
        return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)

    def _read(self) -> tuple[_Stamp, grpc.ServerCertificateConfiguration]:
        """The files as they are, after checking that they fit together."""
        files = self._files
        try:
            stamp = self._stamp_now()
            cert, key = files.cert.read_bytes(), files.key.read_bytes()
            client_ca = files.client_ca.read_bytes() if files.client_ca is not None else None
        except OSError as error:
            raise TlsUnusableError(
                f"{error.filename} cannot be read: {error.strerror}. Check --tls-cert, --tls-key and --tls-client-ca."
            ) from None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(files.cert, files.key, password=_refuse_password)
        except (ssl.SSLError, ValueError) as error:
            raise TlsUnusableError(
                f"{files.cert} and {files.key} are no certificate and its key: {_why(error)}."
                " Give the PEM file of the certificate with its chain, and that of its key."
            ) from None
        if files.client_ca is not None:
            try:
                context.load_verify_locations(files.client_ca)
            except ssl.SSLError as error:
                raise TlsUnusableError(
                    f"{files.client_ca} has no certificate: {_why(error)}. Give the PEM file of who signs clients."
                ) from None
        return stamp, grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)


def _refuse_password() -> bytes:
    raise ValueError(_NO_PASSWORD)


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error).lower().replace("_", " ")
