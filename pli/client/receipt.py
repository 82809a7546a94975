"""The receipt of a finished session: read, compared with what the client knows, verified if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from google.protobuf.message import DecodeError

from pli.errors import Forbidden, IntegrityError
from pli.identity import identity_of
from pli.ingest.v1.ingest_pb2 import Receipt, ReceiptBody
from pli.pseudonym import PREFIX_BYTES
from pli.rpc.roles import INGEST
from pli.signing import RECEIPT, verify_node


@dataclass(frozen=True, slots=True)
class SessionReceipt:
    """What a pupil can show later."""

    campaign_id: str
    pseudonym_prefix: bytes
    """4 bytes: enough to find the session, too little to be it."""
    last_seq: int
    count: int
    """Answers that were accepted."""
    finished_at_ms: int
    """Unix time at the node."""
    signed: bytes = field(repr=False)
    """The serialised `Receipt`: body, signature and certificate, as the node made it. Keep this."""

    def short(self) -> str:
        """For people: pseudonym prefix, number of answers, first 4 bytes of SHA-256 of the signed body."""
        body = Receipt.FromString(self.signed).body
        return f"{self.pseudonym_prefix.hex()}-{self.count}-{sha256(body).hexdigest()[:8]}"


def read_receipt(
    receipt: Receipt, *, campaign_id: str, last_seq: int, count: int, authorities: Sequence[x509.Certificate] = ()
) -> SessionReceipt:
    """The receipt, once it agrees with this session; with `authorities`, once its signature holds too.

    Raises:
        IntegrityError: it is of another campaign or session, counts otherwise, or does not verify.
    """
    try:
        body = ReceiptBody.FromString(receipt.body)
    except DecodeError as error:
        raise IntegrityError("the receipt cannot be read") from error
    told = (body.campaign_id, len(body.pseudonym_prefix), body.last_seq, body.count)
    if told != (campaign_id, PREFIX_BYTES, last_seq, count):
        raise IntegrityError(
            f"the receipt is not of this session: it says {body.count} answers up to number {body.last_seq} "
            f"in campaign {body.campaign_id!r}; this session has {count} up to {last_seq}"
        )
    if authorities:
        _verify(receipt, body, authorities)
    return SessionReceipt(
        body.campaign_id,
        body.pseudonym_prefix,
        body.last_seq,
        body.count,
        body.finished_at_ms,
        receipt.SerializeToString(),
    )


def _verify(receipt: Receipt, body: ReceiptBody, authorities: Sequence[x509.Certificate]) -> None:
    """1. a certificate; 2. of an authority that may collect; 3. of a node; 4. valid then; 5. the signature."""
    try:
        certificate = x509.load_der_x509_certificate(receipt.certificate)
        role = identity_of(certificate).role
        # The moment of signing counts: a receipt stays good after its certificate has run out.
        finished = datetime.fromtimestamp(body.finished_at_ms / 1000, UTC)
    except (OverflowError, ValueError, Forbidden) as error:
        raise IntegrityError("the receipt has no certificate of a node, or no possible time") from error
    if not any(_issued(certificate, authority) for authority in authorities):
        raise IntegrityError("the receipt's certificate comes from no authority of this campaign")
    if role != INGEST:
        raise IntegrityError(f"the receipt was signed by role {role}; only role {INGEST} signs receipts")
    if not certificate.not_valid_before_utc <= finished <= certificate.not_valid_after_utc:
        raise IntegrityError("the receipt's certificate was not valid when the session finished")
    verify_node(certificate, RECEIPT, receipt.body, receipt.signature)


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        # ValueError: another issuer; TypeError: a kind of key that issues none of our certificates.
        return False
    return True
