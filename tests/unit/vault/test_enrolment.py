"""Enrolment: a node of an enrolled authority gets the pseudonym key, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from pli.errors import Forbidden, IntegrityError, NotFound, PliError, VaultLocked
from pli.hpke import PrivateKey, key_id
from pli.pseudonym import pseudonym_of
from pli.secret import Secret
from pli.signing import ENROLLED, ENROLMENT, EPOCH, sign_as_node, verify
from pli.vault.v1.bundle_pb2 import Enrolled, NodeEnrolment, Signed, SignedEnrolment
from tests.support.issuer import CLIENT, DAY, SERVER, Issuer
from tests.support.vault_parts import CAMPAIGN, NOW, VaultParts, vault_parts
from vault.code_issue import issued_codes
from vault.enrolment import enrol, verify_node_certificate
from vault.keystore import Scope

ISSUER = Issuer(NOW)
NODE_KEY = ec.generate_private_key(ec.SECP256R1())
URI = "spiffe://pli/ingest/node-1"
GOOD = ISSUER.issue(NODE_KEY, URI)


def refused(certificate: x509.Certificate, *authorities: x509.Certificate, moment: datetime = NOW) -> PliError:
    with pytest.raises((Forbidden, IntegrityError)) as caught:
        verify_node_certificate(certificate, authorities or (ISSUER.certificate,), moment)
    return caught.value


def test_a_certificate_of_an_enrolled_authority_is_trusted() -> None:
    verify_node_certificate(GOOD, [ISSUER.certificate], NOW)
    verify_node_certificate(GOOD, [Issuer(NOW, "another").certificate, ISSUER.certificate], NOW)
    verify_node_certificate(ISSUER.issue(NODE_KEY, URI, usages=(SERVER, CLIENT)), [ISSUER.certificate], NOW)


def test_moments_are_moments_whatever_their_time_zone() -> None:
    ends = GOOD.not_valid_after_utc
    tahiti = timezone(timedelta(hours=-10))
    verify_node_certificate(GOOD, [ISSUER.certificate], (ends - timedelta(minutes=1)).astimezone(tahiti))
    refused(GOOD, moment=(ends + timedelta(minutes=1)).astimezone(tahiti))


@pytest.mark.parametrize("moment", [NOW - 2 * DAY, NOW + 2 * DAY, NOW - 20_000 * DAY])
def test_expired_and_not_yet_valid_certificates_are_refused(moment: datetime) -> None:
    assert "not valid at this time" in refused(GOOD, moment=moment).message


def test_an_expired_authority_is_refused() -> None:
    brief = Issuer(NOW, valid_days=0)
    certificate = brief.issue(NODE_KEY, URI)
    refused(certificate, brief.certificate, moment=NOW + timedelta(hours=1))


def test_other_authorities_are_refused_even_under_the_same_name() -> None:
    impostor = Issuer(NOW)
    assert impostor.name == ISSUER.name
    refused(impostor.issue(NODE_KEY, URI))
    refused(GOOD, impostor.certificate)
    refused(GOOD, Issuer(NOW, "another").certificate)


def test_a_self_signed_certificate_is_refused() -> None:
    alone = Issuer(NOW, "node", key=NODE_KEY)
    refused(alone.issue(NODE_KEY, URI))


def test_an_enrolled_certificate_that_is_no_authority_issues_nothing() -> None:
    leaf = Issuer(NOW, is_authority=False)
    refused(leaf.issue(NODE_KEY, URI), leaf.certificate)


def test_a_certificate_issued_by_a_nodes_own_certificate_is_refused() -> None:
    middle = Issuer(NOW, "middle")
    refused(middle.issue(NODE_KEY, URI), ISSUER.certificate)


def test_an_authority_is_no_node() -> None:
    refused(ISSUER.issue(NODE_KEY, URI, is_authority=True))


def test_an_altered_certificate_is_refused() -> None:
    der = bytearray(GOOD.public_bytes(Encoding.DER))
    at = der.index(b"node-1")
    der[at : at + 6] = b"node-2"
    refused(x509.load_der_x509_certificate(bytes(der)))


@pytest.mark.parametrize(
    ("uris", "rule"),
    [
        (("spiffe://pli/relay/node-1",), "role relay"),
        (("spiffe://pli/campaign-admin/node-1",), "role campaign-admin"),
        ((URI, "spiffe://pli/ingest/node-2"), "exactly one URI SAN"),
        ((URI, URI), "exactly one URI SAN"),
        (("https://pli/ingest/node-1",), "exactly one URI SAN"),
        (("spiffe://pli/ingest/a/b",), "exactly one URI SAN"),
        (("spiffe://pli/ingest/",), "exactly one URI SAN"),
    ],
)
def test_a_certificate_names_exactly_one_ingest_identity(uris: tuple[str, ...], rule: str) -> None:
    assert rule in refused(ISSUER.issue(NODE_KEY, *uris)).message


def test_a_certificate_without_names_is_refused() -> None:
    refused(ISSUER.issue(NODE_KEY))


@pytest.mark.parametrize("usages", [None, (SERVER,), (ExtendedKeyUsageOID.CODE_SIGNING,)])
def test_a_certificate_must_be_for_clients(usages: Sequence[x509.ObjectIdentifier] | None) -> None:
    refused(ISSUER.issue(NODE_KEY, URI, usages=usages))


@pytest.mark.parametrize(
    ("uris", "extension"),
    [
        ((URI,), x509.UnrecognizedExtension(ExtensionOID.CERTIFICATE_POLICIES, b"no DER")),
        # An x400Address beside nothing else: a kind of name that no library reads.
        ((), x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, b"\x30\x04\xa3\x02\x05\x00")),
    ],
)
def test_extensions_that_cannot_be_read_are_refused(uris: tuple[str, ...], extension: x509.ExtensionType) -> None:
    error = refused(ISSUER.issue(NODE_KEY, *uris, extension=extension))
    assert isinstance(error, IntegrityError)


def test_without_any_authority_nobody_is_trusted() -> None:
    with pytest.raises(PliError):
        verify_node_certificate(GOOD, [], NOW)


# Enrolment


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as made:
        authority = tmp_path / "nodes.pem"
        authority.write_bytes(ISSUER.certificate.public_bytes(Encoding.PEM))

        class Enrolled:
            authority_file = authority

        await made.create(Enrolled())  # type: ignore[arg-type]  # only its file is read
        yield made


RECEIVER = PrivateKey.generate()
ZERO_X25519 = RECEIVER.public_raw[:-32] + bytes(32)


def body(**changes: object) -> NodeEnrolment:
    given = {
        "campaign_id": CAMPAIGN,
        "node_name": "node-1",
        "node_public_key": RECEIVER.public_raw,
        "requested_at_ms": 1,
        **changes,
    }
    return NodeEnrolment(**given)  # type: ignore[arg-type]  # fields by name


def request(
    content: NodeEnrolment | None = None,
    *,
    key: ec.EllipticCurvePrivateKey = NODE_KEY,
    label: bytes = ENROLMENT,
    certificate: x509.Certificate = GOOD,
) -> SignedEnrolment:
    raw = (content or body()).SerializeToString()
    return SignedEnrolment(
        body=raw, signature=sign_as_node(key, label, raw), certificate=certificate.public_bytes(Encoding.DER)
    )


def answer(parts: VaultParts, asked: SignedEnrolment, moment: datetime = NOW) -> Signed:
    return parts.database.read_now(lambda connection: enrol(connection, parts.keyring, asked, moment))


def opened(parts: VaultParts, statement: Signed) -> Secret:
    """As server/campaign_store.py does it."""
    enrolled = Enrolled.FromString(verify(parts.answers.signing.public_key(), ENROLLED, statement))
    assert enrolled.campaign_id == CAMPAIGN
    assert enrolled.node_key_id == key_id(RECEIVER.public_raw)
    info = b"\0".join((b"pli/pseudonym-key/v1", CAMPAIGN.encode(), key_id(RECEIVER.public_raw)))
    return Secret(RECEIVER.decrypt(enrolled.sealed_pseudonym_key, info))


async def test_a_node_gets_the_key_under_which_codes_were_issued(parts: VaultParts) -> None:
    await parts.fill()
    key = opened(parts, answer(parts, request()))
    for _, pseudonym, code in parts.database.read_now(lambda c: list(issued_codes(c, parts.identities))):
        assert pseudonym_of(key, code) == pseudonym


async def test_names_may_stay_locked_but_answers_not(parts: VaultParts) -> None:
    parts.keystore.lock(Scope.IDENTITIES)
    opened(parts, answer(parts, request()))
    parts.keystore.lock(Scope.ANSWERS)
    with pytest.raises(VaultLocked):
        answer(parts, request())


async def test_the_key_is_sealed_for_this_node_and_campaign_alone(parts: VaultParts) -> None:
    enrolled = Enrolled.FromString(answer(parts, request()).body)
    node_key_id = key_id(RECEIVER.public_raw)
    good = b"\0".join((b"pli/pseudonym-key/v1", CAMPAIGN.encode(), node_key_id))
    for key, info in (
        (PrivateKey.generate(), good),
        (RECEIVER, good.replace(CAMPAIGN.encode(), b"another")),
        (RECEIVER, good[:-1] + bytes((good[-1] ^ 1,))),
        (RECEIVER, b""),
    ):
        with pytest.raises(IntegrityError):
            key.decrypt(enrolled.sealed_pseudonym_key, info)
    assert parts.answers.pseudonym.reveal() not in enrolled.sealed_pseudonym_key


REFUSED: list[tuple[str, Callable[[], SignedEnrolment], type[PliError]]] = [
    ("signed by another key", lambda: request(key=ec.generate_private_key(ec.SECP256R1())), IntegrityError),
    ("signed for another purpose", lambda: request(label=EPOCH), IntegrityError),
    ("for another campaign", lambda: request(body(campaign_id="other")), NotFound),
    ("for no campaign", lambda: request(body(campaign_id="")), NotFound),
    ("in another node's name", lambda: request(body(node_name="node-2")), Forbidden),
    ("of a relay", lambda: request(certificate=ISSUER.issue(NODE_KEY, "spiffe://pli/relay/node-1")), Forbidden),
    ("of another authority", lambda: request(certificate=Issuer(NOW).issue(NODE_KEY, URI)), Forbidden),
    ("with a certificate of yesterday", lambda: request(certificate=ISSUER.issue(NODE_KEY, URI, ends=NOW)), Forbidden),
    ("without a key", lambda: request(body(node_public_key=b"")), IntegrityError),
    ("with a short key", lambda: request(body(node_public_key=RECEIVER.public_raw[:-1])), IntegrityError),
    ("with a long key", lambda: request(body(node_public_key=RECEIVER.public_raw + b"x")), IntegrityError),
    ("with an impossible ML-KEM key", lambda: request(body(node_public_key=b"\xff" * 1216)), IntegrityError),
    ("with a zero X25519 key", lambda: request(body(node_public_key=ZERO_X25519)), IntegrityError),
    ("without certificate", lambda: SignedEnrolment(body=b"", signature=b"", certificate=b""), IntegrityError),
    ("with a certificate that is none", lambda: SignedEnrolment(body=b"", certificate=b"rubbish"), IntegrityError),
]


@pytest.mark.parametrize(("what", "make", "kind"), REFUSED, ids=[what for what, _, _ in REFUSED])
async def test_an_enrolment_is_refused(
    parts: VaultParts, what: str, make: Callable[[], SignedEnrolment], kind: type[PliError]
) -> None:
    with pytest.raises(PliError) as caught:
        answer(parts, make(), NOW + timedelta(seconds=1))
    assert type(caught.value) is kind, what


async def test_a_body_that_is_no_message_is_refused(parts: VaultParts) -> None:
    raw = b"\xff\xff\xff"
    asked = SignedEnrolment(
        body=raw, signature=sign_as_node(NODE_KEY, ENROLMENT, raw), certificate=GOOD.public_bytes(Encoding.DER)
    )
    with pytest.raises(IntegrityError, match="not readable"):
        answer(parts, asked)


async def test_every_flipped_byte_of_a_request_is_found(parts: VaultParts) -> None:
    asked = request()
    answer(parts, asked)
    for at in range(len(asked.body)):
        flipped = asked.body[:at] + bytes((asked.body[at] ^ 1,)) + asked.body[at + 1 :]
        with pytest.raises(PliError):
            answer(parts, SignedEnrolment(body=flipped, signature=asked.signature, certificate=asked.certificate))
