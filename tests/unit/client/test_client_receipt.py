"""A receipt is compared with the session, and verified against the authorities that are given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from pli.client.receipt import read_receipt
from pli.development_ca import DevelopmentAuthority
from pli.errors import IntegrityError
from pli.ingest.v1.ingest_pb2 import Finish, Receipt
from pli.signing import RECEIPT, sign_as_node
from tests.support.client_sessions import session_of
from tests.support.scripted_ingest import CAMPAIGN, ScriptedIngest, ScriptedStream, receipt_of

NOW = datetime(2026, 1, 5, 9, tzinfo=UTC)
FINISH = Finish(seq=5, count=4)


@pytest.fixture
def authority(tmp_path: Path) -> DevelopmentAuthority:
    return DevelopmentAuthority(tmp_path, now=NOW)


def signed(authority: DevelopmentAuthority, role: str = "ingest", label: bytes = RECEIPT, **fields: Any) -> Receipt:
    """A receipt signed as a node does, an hour after the certificate was made."""
    at = int((NOW + timedelta(hours=1)).timestamp() * 1000)
    receipt = receipt_of(FINISH, **{"finished_at_ms": at, **fields})
    files = authority.issue(role, f"{role}-1")
    key: Any = load_pem_private_key(files.key_file.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(files.certificate_file.read_bytes())
    receipt.signature = sign_as_node(key, label, receipt.body)
    receipt.certificate = certificate.public_bytes(Encoding.DER)
    return receipt


def read(receipt: Receipt, *authorities: DevelopmentAuthority) -> str:
    trusted = [authority.certificate for authority in authorities]
    return read_receipt(receipt, campaign_id=CAMPAIGN, last_seq=5, count=4, authorities=trusted).short()


def test_a_genuine_receipt_is_taken_and_kept_as_it_was_signed(authority: DevelopmentAuthority) -> None:
    receipt = signed(authority)
    taken = read_receipt(receipt, campaign_id=CAMPAIGN, last_seq=5, count=4, authorities=[authority.certificate])
    assert Receipt.FromString(taken.signed) == receipt
    assert receipt.certificate.hex() not in repr(taken)


@pytest.mark.parametrize(
    "fields",
    [{"campaign_id": "other"}, {"last_seq": 4}, {"count": 5}, {"pseudonym_prefix": b"123"}, {"pseudonym_prefix": b""}],
    ids=str,
)
def test_a_receipt_of_another_session_is_refused(authority: DevelopmentAuthority, fields: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="not of this session"):
        read(signed(authority, **fields))


def test_what_is_no_receipt_is_refused() -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        read(Receipt(body=b"\xff\xff"))


def test_a_receipt_from_a_foreign_authority_is_refused(authority: DevelopmentAuthority, tmp_path: Path) -> None:
    other = DevelopmentAuthority(tmp_path / "other", now=NOW)
    with pytest.raises(IntegrityError, match="no authority"):
        read(signed(authority), other)
    assert read(signed(other), authority, other)


def test_a_receipt_signed_by_another_role_is_refused(authority: DevelopmentAuthority) -> None:
    with pytest.raises(IntegrityError, match="role relay"):
        read(signed(authority, role="relay"), authority)


@pytest.mark.parametrize("days", [-1, 31])
def test_a_receipt_from_outside_its_certificates_time_is_refused(authority: DevelopmentAuthority, days: int) -> None:
    at = int((NOW + timedelta(days=days)).timestamp() * 1000)
    with pytest.raises(IntegrityError, match="not valid when"):
        read(signed(authority, finished_at_ms=at), authority)


def test_an_impossible_time_is_refused(authority: DevelopmentAuthority) -> None:
    with pytest.raises(IntegrityError, match="no possible time"):
        read(signed(authority, finished_at_ms=2**62), authority)


def test_a_signature_for_another_purpose_is_refused(authority: DevelopmentAuthority) -> None:
    with pytest.raises(IntegrityError, match="wrong signature"):
        read(signed(authority, label=b"pli/epoch/v1"), authority)


def test_a_signature_over_another_body_is_refused(authority: DevelopmentAuthority) -> None:
    receipt = signed(authority)
    receipt.body = receipt_of(FINISH, finished_at_ms=int(NOW.timestamp() * 1000)).body
    with pytest.raises(IntegrityError, match="wrong signature"):
        read(receipt, authority)


def test_a_certificate_that_is_none_is_refused(authority: DevelopmentAuthority) -> None:
    receipt = signed(authority)
    receipt.certificate = b"no certificate"
    with pytest.raises(IntegrityError, match="no certificate of a node"):
        read(receipt, authority)


async def test_a_session_given_authorities_finishes_only_with_a_genuine_receipt(
    authority: DevelopmentAuthority,
) -> None:
    receipts = [receipt_of(FINISH, last_seq=1, count=0), signed(authority, last_seq=1, count=0)]

    async def script(stream: ScriptedStream) -> None:
        await stream.let_in()
        await stream.finish()
        await stream.ack(1)
        await stream.finished(receipts[stream.number - 1])

    async with ScriptedIngest(script, script) as peer:
        for genuine in (False, True):
            async with session_of(peer, node_authorities=(authority.certificate,)) as session:
                if genuine:
                    assert (await session.finish()).last_seq == 1
                else:
                    with pytest.raises(IntegrityError):
                        await session.finish()
                    assert session.receipt is None
