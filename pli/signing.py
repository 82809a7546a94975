"""Signatures: the vault's Ed25519 statements and the nodes' ECDSA ones, each under a label.

A label keeps a signature made for one purpose from serving another. What is signed is always
label ‖ NUL ‖ body, and the body travels exactly as signed.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pli.errors import IntegrityError
from pli.vault.v1.bundle_pb2 import Signed

BUNDLE = b"pli/bundle/v1"
WINDOW = b"pli/window/v1"
ENROLLED = b"pli/enrolled/v1"
DEPOSIT_RECEIPT = b"pli/deposit-receipt/v1"
RECEIPT = b"pli/receipt/v1"
ENROLMENT = b"pli/enrolment/v1"
EPOCH = b"pli/epoch/v1"


def sign(key: Ed25519PrivateKey, label: bytes, body: bytes) -> Signed:
    """The vault's statement."""
    return Signed(body=body, signature=key.sign(label + b"\0" + body))


def verify(key: Ed25519PublicKey, label: bytes, signed: Signed) -> bytes:
    """The body of a genuine statement of the vault.

    Raises:
        IntegrityError: not signed by this key for this purpose.
    """
    try:
        key.verify(signed.signature, label + b"\0" + signed.body)
    except InvalidSignature as error:
        raise IntegrityError(f"a vault statement ({label.decode()}) has a wrong signature") from error
    return signed.body


def sign_as_node(key: ec.EllipticCurvePrivateKey, label: bytes, body: bytes) -> bytes:
    """ECDSA P-256 with SHA-256 over label NUL body, DER, by the key of the node's certificate."""
    return key.sign(label + b"\0" + body, ec.ECDSA(hashes.SHA256()))


def read_certificate(der: bytes) -> x509.Certificate:
    """A certificate that came with a statement; whether it is trusted is asked elsewhere.

    Raises:
        IntegrityError: not a certificate.
    """
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise IntegrityError("the certificate beside a node statement is not readable") from error


def verify_node(certificate: x509.Certificate, label: bytes, body: bytes, signature: bytes) -> None:
    """Checks a node's signature against its certificate; whether that is trusted is asked elsewhere.

    Raises:
        IntegrityError: not signed by this certificate's key for this purpose.
    """
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IntegrityError("a node's certificate holds a key that cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IntegrityError("a node's certificate holds no ECDSA P-256 key")
    try:
        key.verify(signature, label + b"\0" + body, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise IntegrityError(f"a node statement ({label.decode()}) has a wrong signature") from error
