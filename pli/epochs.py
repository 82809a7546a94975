"""Key epochs: the life of one sealing key, and the header that hands it to the vault.

Layout of a header, integers big-endian, `*` = preceded by its length (2 bytes):

    magic "PLIE" 1 | campaign* | shard u16 | answer-key id 16 | node-key id 16 | process id 16 |
    started_at_ms u64 | previous epoch 16 | last block of the previous epoch u64 |
    sealed key* | certificate (DER)* | signature (DER)*

The key is sealed by HPKE with `info` = label, suite and everything before the sealed key; the
signature covers everything before itself. The epoch id is the first 16 bytes of SHA-256 over all.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from struct import error as struct_error
from struct import pack, unpack_from

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pli.errors import IntegrityError
from pli.hpke import SUITE_NAME, PublicKey
from pli.signing import EPOCH, read_certificate, sign_as_node, verify_node

MAGIC = b"PLIE\x01"
INFO_LABEL = b"pli/epoch-key/v1\0" + SUITE_NAME + b"\0"
EPOCH_ID_BYTES = 16
EPOCH_KEY_BYTES = 32
NO_EPOCH = bytes(EPOCH_ID_BYTES)
MAX_HEADER_BYTES = 16_384
"""A header with a certificate of ordinary size has about 2 kB."""


@dataclass(frozen=True, slots=True)
class EpochContext:
    """What an epoch key is bound to. Ids are 16 bytes each."""

    campaign_id: str
    shard: int
    answer_key_id: bytes
    node_key_id: bytes
    process_id: bytes
    started_at_ms: int
    previous_epoch: bytes
    previous_last: int

    def serialise(self) -> bytes:
        """The first part of the header."""
        return b"".join(
            (
                MAGIC,
                _prefixed(self.campaign_id.encode()),
                pack(">H", self.shard),
                self.answer_key_id,
                self.node_key_id,
                self.process_id,
                pack(">Q", self.started_at_ms),
                self.previous_epoch,
                pack(">Q", self.previous_last),
            )
        )


@dataclass(frozen=True, slots=True)
class EpochHeader:
    """A header as read. Nothing in it is trusted before `verify_signature` and the vault's checks."""

    context: EpochContext
    sealed_key: bytes
    certificate_der: bytes
    signature: bytes
    signed_part: bytes
    epoch_id: bytes

    def certificate(self) -> x509.Certificate:
        """The signer's certificate.

        Raises:
            IntegrityError: not a certificate.
        """
        return read_certificate(self.certificate_der)

    def verify_signature(self) -> x509.Certificate:
        """The certificate whose key signed this header and whose id the header names.

        The caller must still decide whether that certificate is trusted for this campaign.

        Raises:
            IntegrityError: signature or node-key id do not fit.
        """
        certificate = self.certificate()
        verify_node(certificate, EPOCH, self.signed_part, self.signature)
        if node_key_id(certificate) != self.context.node_key_id:
            raise IntegrityError("an epoch header names another node key than its certificate holds")
        return certificate

    def info(self) -> bytes:
        """What the sealed key is bound to."""
        return INFO_LABEL + self.context.serialise()


def node_key_id(certificate: x509.Certificate) -> bytes:
    """First 16 bytes of SHA-256 over the certificate's public key (SubjectPublicKeyInfo, DER)."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(spki).digest()[:EPOCH_ID_BYTES]


def make_header(
    context: EpochContext,
    epoch_key: bytes | bytearray,
    answer_key: PublicKey,
    signing_key: ec.EllipticCurvePrivateKey,
    certificate_der: bytes,
) -> bytes:
    """Seals a fresh epoch key (32 bytes) to the vault and signs the header. About 150 µs."""
    fixed = context.serialise()
    sealed = answer_key.encrypt(bytes(epoch_key), INFO_LABEL + fixed)
    signed_part = fixed + _prefixed(sealed) + _prefixed(certificate_der)
    return signed_part + _prefixed(sign_as_node(signing_key, EPOCH, signed_part))


def epoch_id(header: bytes) -> bytes:
    """First 16 bytes of SHA-256 over the whole header."""
    return sha256(header).digest()[:EPOCH_ID_BYTES]


def read_header(raw: bytes) -> EpochHeader:
    """Takes a header apart. Whole or not at all: nothing may be missing or left over.

    Raises:
        IntegrityError: not a header of this version.
    """
    if len(raw) > MAX_HEADER_BYTES or not raw.startswith(MAGIC):
        raise IntegrityError("an epoch header has another format than this version reads")
    try:
        campaign, at = _read_prefixed(raw, len(MAGIC))
        shard, answer_key_id, key_id, process_id, started, previous, last = unpack_from(">H16s16s16sQ16sQ", raw, at)
        at += 82
        context = EpochContext(campaign.decode(), shard, answer_key_id, key_id, process_id, started, previous, last)
        sealed, at = _read_prefixed(raw, at)
        certificate, at = _read_prefixed(raw, at)
        signed_part = raw[:at]
        signature, at = _read_prefixed(raw, at)
    except (struct_error, UnicodeDecodeError) as error:
        raise IntegrityError("an epoch header is cut short") from error
    if at != len(raw):
        raise IntegrityError("an epoch header has bytes after its end")
    return EpochHeader(context, sealed, certificate, signature, signed_part, epoch_id(raw))


def _prefixed(content: bytes) -> bytes:
    return pack(">H", len(content)) + content


def _read_prefixed(raw: bytes, at: int) -> tuple[bytes, int]:
    (length,) = unpack_from(">H", raw, at)
    end = at + 2 + length
    if end > len(raw):
        raise IntegrityError("an epoch header is cut short")
    return raw[at + 2 : end], end
