"""Who a certificate says it is: exactly one URI SAN, of one form."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from pli.development_ca import DevelopmentAuthority
from pli.errors import Forbidden
from pli.identity import ANONYMOUS, Peer, identity_of, identity_of_pem, spiffe_id
from tests.unit.pli.certificates import Authority, uris

AUTHORITY = Authority.new()


def identity(names: Sequence[x509.GeneralName] | None) -> Peer:
    return identity_of(AUTHORITY.issue(names)[0])


def test_role_and_name_come_from_the_one_uri() -> None:
    assert identity(uris("spiffe://pli/ingest/node-1")) == Peer("ingest", "node-1")
    hosts = [x509.DNSName("relay.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    assert identity([*hosts, *uris(spiffe_id("campaign-admin", "zoe"))]) == Peer("campaign-admin", "zoe")


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        [x509.DNSName("spiffe")],
        [x509.DNSName("ingest.example")],
        uris("spiffe://pli/ingest/a", "spiffe://pli/ingest/b"),
        uris("spiffe://pli/ingest/a", "spiffe://pli/ingest/a"),
        uris("spiffe://pli/ingest/a", "https://example.org/"),
        uris("spiffe://example.org/ingest/a"),
        uris("spiffe://pli.example.org/ingest/a"),
        uris("spiffe://plij/ingest/a"),
        uris("SPIFFE://pli/ingest/a"),
        uris("https://pli/ingest/a"),
        uris("spiffe://pli/"),
        uris("spiffe://pli/ingest"),
        uris("spiffe://pli/ingest/"),
        uris("spiffe://pli//a"),
        uris("spiffe://pli/ingest/a/b"),
        uris("spiffe://pli/ingest/a/"),
        uris("x spiffe://pli/ingest/a"),
    ],
)
def test_any_other_name_has_no_role(names: Sequence[x509.GeneralName] | None) -> None:
    with pytest.raises(Forbidden):
        identity(names)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_certificate_with_any_bit_flipped_is_someone_or_refused() -> None:
    der = AUTHORITY.issue(uris("spiffe://pli/ingest/node-1"))[0].public_bytes(Encoding.DER)
    refused = 0
    for bit in range(8 * len(der)):
        altered = bytearray(der)
        altered[bit // 8] ^= 1 << bit % 8
        try:
            certificate = x509.load_der_x509_certificate(bytes(altered))
        except (ValueError, x509.InvalidVersion):
            continue
        try:
            identity_of(certificate)
        except Forbidden:
            refused += 1
    assert refused > 50


def test_the_pem_that_grpc_hands_over_is_read_the_same() -> None:
    certificate = AUTHORITY.issue(uris("spiffe://pli/relay/r"))[0]
    assert identity_of_pem(certificate.public_bytes(Encoding.PEM)) == Peer("relay", "r")


def test_nobody_can_be_certified_as_the_one_without_certificate() -> None:
    assert Peer("", "") == ANONYMOUS
    with pytest.raises(Forbidden):
        identity(uris(spiffe_id("", "")))


def test_the_development_authority_issues_one_role_and_name(tmp_path: Path) -> None:
    files = DevelopmentAuthority(tmp_path).issue("vault", "office", ("127.0.0.1", "vault.example"))
    certificate = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
    assert identity_of(certificate) == Peer("vault", "office")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["vault.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1")]
    assert files.key_file.stat().st_mode & 0o077 == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "authority.pem",
        "vault-office.key",
        "vault-office.pem",
    ]
