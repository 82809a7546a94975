"""Who a certificate says it is: exactly one URI SAN `spiffe://pli/<role>/<name>`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from pli.errors import Forbidden

TRUST_DOMAIN = "spiffe://pli/"


@dataclass(frozen=True, slots=True)
class Peer:
    """The other side of a call. Role "" and name "" for a client without a certificate."""

    role: str
    name: str


ANONYMOUS = Peer("", "")


def spiffe_id(role: str, name: str) -> str:
    """The URI of a role and name."""
    return f"{TRUST_DOMAIN}{role}/{name}"


def identity_of(certificate: x509.Certificate) -> Peer:
    """Role and name in a certificate.

    Raises:
        Forbidden: no URI SAN, more than one, one of another form, or extensions that cannot be read.
    """
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound as error:
        raise Forbidden("a certificate without subject alternative name has no role") from error
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise Forbidden("a certificate whose extensions cannot be read has no role") from error
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith(TRUST_DOMAIN):
        raise Forbidden(f"a certificate must have exactly one URI SAN {TRUST_DOMAIN}<role>/<name>")
    role, _, name = uris[0].removeprefix(TRUST_DOMAIN).partition("/")
    if not role or not name or "/" in name:
        raise Forbidden(f"a certificate must have exactly one URI SAN {TRUST_DOMAIN}<role>/<name>")
    return Peer(role, name)


@lru_cache(maxsize=1024)
def identity_of_pem(pem: bytes) -> Peer:
    """`identity_of`, for the PEM that gRPC hands over with each call."""
    return identity_of(x509.load_pem_x509_certificate(pem))
