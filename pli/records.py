"""Records: what is sealed for the vault, and the context it is bound to.

Plaintext: kind u8 | length u32 | payload | zeros up to 64, 128, 256 … bytes, so that the length of an
answer shows only in powers of two. Additional data binds the record to its place: label, campaign,
epoch, pseudonym, opening, writer, seat and seq. It cannot be moved to another pupil, place or campaign.

Nonce (12 bytes): domain u8 | zeros 7 | counter u32. Domain 0 is for records, 1 for block tags; a
counter is used once per epoch and domain, and an epoch ends before it could wrap.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from pli.errors import IntegrityError

LABEL = b"pli/record/v1\0"
TAG_LABEL = b"pli/block/v1\0"
MIN_PADDED_BYTES = 64
_PREFIX = Struct(">BI")
_PREFIX_BYTES = _PREFIX.size
PLACE = Struct(">16sI16sHQ")
"""pseudonym | opening | writer | seat | seq."""

NONCE = Struct(">B7xI")
RECORD_DOMAIN = 0
TAG_DOMAIN = 1


class RecordKind(IntEnum):
    """What a record holds; the payload is the canonical protobuf message of that name."""

    ANSWER = 1
    MARK = 2
    FINISH = 3


def pad(kind: int, payload: bytes) -> bytes:
    """The plaintext of a record: 64·2ᵏ bytes."""
    size = len(payload) + _PREFIX_BYTES
    padded = MIN_PADDED_BYTES
    while padded < size:
        padded <<= 1
    return (_PREFIX.pack(kind, len(payload)) + payload).ljust(padded, b"\0")


def unpad(plaintext: bytes) -> tuple[int, bytes]:
    """Kind (RecordKind) and payload.

    Raises:
        IntegrityError: too short, or with a kind or length that cannot be. What stands in the padding is
            not looked at: only who holds the epoch key could put anything there.
    """
    if len(plaintext) < MIN_PADDED_BYTES:
        raise IntegrityError("a record is shorter than any record")
    kind, length = _PREFIX.unpack_from(plaintext)
    end = _PREFIX_BYTES + length
    if end > len(plaintext) or not 1 <= kind <= 3:
        raise IntegrityError("a record has an impossible kind or length")
    return kind, plaintext[_PREFIX_BYTES:end]


def record_context(campaign_id: str, epoch_id: bytes) -> bytes:
    """The part of the additional data that all records of an epoch share."""
    campaign = campaign_id.encode()
    return LABEL + bytes((len(campaign),)) + campaign + epoch_id
