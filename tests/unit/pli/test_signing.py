"""Signatures: by the right key, for the right purpose, over exactly these bytes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from pli import signing
from pli.errors import IntegrityError
from pli.signing import read_certificate, sign, sign_as_node, verify, verify_node
from pli.vault.v1.bundle_pb2 import Signed

LABELS = [value for name, value in vars(signing).items() if name.isupper() and isinstance(value, bytes)]
VAULT = Ed25519PrivateKey.generate()
NODE = ec.generate_private_key(ec.SECP256R1())
NOW = datetime(2026, 9, 1, tzinfo=UTC)


def certificate(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    return builder.sign(key, hashes.SHA256())


def test_labels_name_seven_purposes_of_version_1() -> None:
    assert len(LABELS) == len(set(LABELS)) == 7
    assert all(label.startswith(b"pli/") and label.endswith(b"/v1") and b"\0" not in label for label in LABELS)


def test_a_statement_of_the_vault_is_verified_for_its_purpose_alone() -> None:
    for label, other in permutations(LABELS, 2):
        signed = sign(VAULT, label, b"body")
        assert verify(VAULT.public_key(), label, signed) == b"body"
        with pytest.raises(IntegrityError, match="wrong signature"):
            verify(VAULT.public_key(), other, signed)


def test_a_statement_of_a_node_is_verified_for_its_purpose_alone() -> None:
    issued = certificate(NODE)
    for label, other in permutations(LABELS, 2):
        signature = sign_as_node(NODE, label, b"body")
        verify_node(issued, label, b"body", signature)
        with pytest.raises(IntegrityError, match="wrong signature"):
            verify_node(issued, other, b"body", signature)


@pytest.mark.parametrize("body", [b"", b"bod", b"body\0", b"Body"])
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(IntegrityError):
        verify(VAULT.public_key(), LABELS[0], Signed(body=body, signature=sign(VAULT, LABELS[0], b"body").signature))
    with pytest.raises(IntegrityError):
        verify_node(certificate(NODE), LABELS[0], body, sign_as_node(NODE, LABELS[0], b"body"))


def test_label_and_body_cannot_be_shifted_into_each_other() -> None:
    signed = sign(VAULT, b"pli/a", b"b\0body")
    with pytest.raises(IntegrityError):
        verify(VAULT.public_key(), b"pli/a\0b", Signed(body=b"dy", signature=signed.signature))
    assert signed.body == b"b\0body"


@pytest.mark.parametrize(
    "signature", [b"", b"\0", bytes(63), bytes(64), bytes(65), b"\x30\x06\2\1\1\2\1\1", b"x" * 500]
)
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(IntegrityError):
        verify(VAULT.public_key(), LABELS[0], Signed(body=b"body", signature=signature))
    with pytest.raises(IntegrityError):
        verify_node(certificate(NODE), LABELS[0], b"body", signature)


def test_another_key_is_refused() -> None:
    with pytest.raises(IntegrityError):
        verify(Ed25519PrivateKey.generate().public_key(), LABELS[0], sign(VAULT, LABELS[0], b"body"))
    with pytest.raises(IntegrityError):
        verify_node(
            certificate(ec.generate_private_key(ec.SECP256R1())), LABELS[0], b"", sign_as_node(NODE, LABELS[0], b"")
        )


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65_537, 2048)])
def test_a_node_signs_by_p256_and_nothing_else(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    with pytest.raises(IntegrityError, match="P-256"):
        verify_node(certificate(key), LABELS[0], b"body", b"signature")


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_flipped_bit_of_a_certificate_is_a_typed_refusal_or_another_certificate() -> None:
    original = certificate(NODE)
    der = original.public_bytes(Encoding.DER)
    signature = sign_as_node(NODE, LABELS[0], b"body")
    refused = 0
    for bit in range(8 * len(der)):
        altered = bytearray(der)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            found = read_certificate(bytes(altered))
            verify_node(found, LABELS[0], b"body", signature)
        except IntegrityError:
            refused += 1
        else:
            assert found != original
    assert refused > 1_000


@pytest.mark.parametrize("der", [b"", b"\x30", b"-----BEGIN CERTIFICATE-----", bytes(1_000)])
def test_what_is_no_certificate_is_refused(der: bytes) -> None:
    with pytest.raises(IntegrityError, match="not readable"):
        read_certificate(der)
