"""TLS for every connection: credentials from files, reloaded without a restart.

gRPC's Python server has no argument for the minimum version; its BoringSSL speaks TLS 1.2 and 1.3.
Certificates are ECDSA P-256: Ed25519 fails in gRPC on both sides.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from pli.config import Section, read_secret_file
from pli.errors import ConfigError


class TlsFiles(Section):
    """Where one process's certificate lies."""

    certificate_file: Path
    """PEM, leaf first. Role and name in its URI SAN; servers also a DNS or IP SAN."""

    key_file: Path
    """PEM, readable by its owner alone."""

    authority_file: Path
    """PEM of the authority that the other side's certificate must come from."""


def server_credentials(files: TlsFiles, *, ask_for_certificate: bool) -> grpc.ServerCredentials:
    """Credentials of a listener; new files are taken by the next handshake.

    `ask_for_certificate` makes it an mTLS listener, which no client without one gets through.

    Raises:
        ConfigError: a file is missing, unreadable, or open to others.
    """
    reader = _Reader(files, ask_for_certificate)
    return grpc.dynamic_ssl_server_credentials(
        reader.read(),
        reader.fetch,  # type: ignore[arg-type]  # gRPC takes None for "unchanged", its stubs do not know
        require_client_authentication=ask_for_certificate,
    )


def client_credentials(authority: bytes, files: TlsFiles | None = None) -> grpc.ChannelCredentials:
    """Credentials of a client that trusts `authority` (PEM); with `files`, one with a certificate."""
    if files is None:
        return grpc.ssl_channel_credentials(root_certificates=authority)
    return grpc.ssl_channel_credentials(
        root_certificates=authority,
        private_key=read_secret_file(files.key_file).reveal(),
        certificate_chain=read_file(files.certificate_file),
    )


def read_file(path: Path) -> bytes:
    """A public file's bytes.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"file {path} cannot be read: {error.strerror}") from error


class _Reader:
    """Reads the files again when one of them changed; keeps the old ones when the new are broken."""

    def __init__(self, files: TlsFiles, ask_for_certificate: bool) -> None:
        self._files = files
        self._ask = ask_for_certificate
        self._seen: tuple[int, ...] = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        self._seen = self._stamps()
        pair = (read_secret_file(self._files.key_file).reveal(), read_file(self._files.certificate_file))
        authority = read_file(self._files.authority_file) if self._ask else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=authority)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at each handshake; None means unchanged."""
        try:
            return None if self._stamps() == self._seen else self.read()
        except ConfigError:
            # A half-replaced pair must not take the listener down: the next handshake looks again.
            self._seen = ()
            return None

    def _stamps(self) -> tuple[int, ...]:
        files = self._files
        return tuple(map(_stamp, (files.certificate_file, files.key_file, files.authority_file)))


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(f"file {path} cannot be read: {error.strerror}") from error
