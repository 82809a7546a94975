"""A process's own certificate: who it says the process is, and when its files were replaced."""

from __future__ import annotations

from cryptography import x509

from pli.errors import ConfigError, Forbidden
from pli.identity import Peer, identity_of
from pli.tls import TlsFiles, read_file

Stamps = tuple[int, ...]


def certificate_of(files: TlsFiles, role: str) -> tuple[x509.Certificate, Peer]:
    """The certificate, and who it says the process is.

    Raises:
        ConfigError: unreadable, or of another role.
    """
    try:
        certificate = x509.load_pem_x509_certificate(read_file(files.certificate_file))
        peer = identity_of(certificate)
    except ValueError as error:
        raise ConfigError(f"{files.certificate_file} is not a readable PEM certificate") from error
    except Forbidden as error:
        raise ConfigError(f"{files.certificate_file}: {error.message}") from error
    if peer.role != role:
        raise ConfigError(f"{files.certificate_file} has role {peer.role}; this process needs role {role}")
    return certificate, peer


class CertificateWatch:
    """Notices new files. Certificates are short-lived: they are replaced while the process runs."""

    def __init__(self, files: TlsFiles) -> None:
        self._paths = (files.certificate_file, files.key_file, files.authority_file)
        self._taken = self._stamps()

    def changed(self) -> Stamps | None:
        """The stamps of files that were not taken yet; None when there are none, or one of them is missing."""
        stamps = self._stamps()
        return None if stamps in ((), self._taken) else stamps

    def take(self, stamps: Stamps) -> None:
        """What `changed` returned was read and is in use."""
        self._taken = stamps

    def _stamps(self) -> Stamps:
        try:
            return tuple(path.stat().st_mtime_ns for path in self._paths)
        except OSError:
            # In the middle of a replacement: the next look finds all of them.
            return ()
