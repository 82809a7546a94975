"""Blocks: the sealed records of one commit, as they lie in the spool and in the landing log.

Layout, integers big-endian:

    magic "PLIB" 1 | campaign length u8, campaign | shard u16 | epoch id 16 | number u64 |
    tag counter u32 | hash of the previous block 32 | sessions u16 | records u32 |
    per session: pseudonym 16 | writer 16 | opening u32 | records u16 |
        per record: seq u64 | seat u16 | counter u32 | length u16 | ciphertext |
    tag 16

The tag is AES-256-GCM of nothing, with everything before it as additional data, under the epoch key
in a nonce domain of its own. Numbers are 1, 2, 3 … per epoch without gap; the previous hash is
SHA-256 over the whole previous block of the epoch, zeros for number 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from struct import error as struct_error

from pli.errors import IntegrityError

MAGIC = b"PLIB\x01"
MAX_BLOCK_BYTES = 1 << 20
"""What one spool call takes (DESIGN 7): a larger one would stall the single-threaded store."""

MAX_BLOCK_SESSIONS = 1000
"""The spool's checks cost about 2 µs a session and Lua's `unpack` breaks near 4 000 arguments."""

TAG_BYTES = 16
NO_HASH = bytes(32)

FIXED = Struct(">H16sQI32sHI")
SECTION = Struct(">16s16sIH")
RECORD = Struct(">QHIH")


@dataclass(frozen=True, slots=True)
class BlockContext:
    """Where a block belongs."""

    campaign_id: str
    shard: int
    epoch_id: bytes
    number: int
    tag_counter: int
    previous_hash: bytes


SealedRecord = tuple[int, int, int, bytes]
"""seq, seat, nonce counter, ciphertext: one record as it travels. A plain tuple, because the vault reads
hundreds of thousands of them a second."""


@dataclass(frozen=True, slots=True)
class Section:
    """The records of one session in one block, in ascending order of seq."""

    pseudonym: bytes
    writer: bytes
    opening: int
    records: list[SealedRecord]


@dataclass(frozen=True, slots=True)
class Block:
    """A block as read. Its content is trusted only once its tag and its records have been opened."""

    context: BlockContext
    sections: list[Section]
    record_count: int
    tagged_part: bytes
    tag: bytes


def assemble(context: BlockContext, sections: Sequence[bytes], records: int) -> bytes:
    """Everything but the tag. `sections` are serialised by pli.sealing, `records` counts their records."""
    campaign = context.campaign_id.encode()
    return b"".join(
        (
            MAGIC,
            bytes((len(campaign),)),
            campaign,
            FIXED.pack(
                context.shard,
                context.epoch_id,
                context.number,
                context.tag_counter,
                context.previous_hash,
                len(sections),
                records,
            ),
            *sections,
        )
    )


def block_hash(raw: bytes) -> bytes:
    """SHA-256 over a whole block, its name in receipts and in the next block."""
    return sha256(raw).digest()


def read_context(raw: bytes) -> BlockContext:
    """Where a block says it belongs, without reading its records.

    Raises:
        IntegrityError: not a block of this version.
    """
    return read_fixed(raw)[0]


def read_block(raw: bytes) -> Block:
    """Takes a block apart. Whole or not at all: counts must fit and nothing may be left over.

    Raises:
        IntegrityError: not a well-formed block of this version.
    """
    context, section_count, record_count, at = read_fixed(raw)
    end = len(raw) - TAG_BYTES
    sections: list[Section] = []
    seen = 0
    try:
        unpack_record, record_size = RECORD.unpack_from, RECORD.size
        for _ in range(section_count):
            pseudonym, writer, opening, count = SECTION.unpack_from(raw, at)
            at += SECTION.size
            records: list[SealedRecord] = []
            for _ in range(count):
                seq, seat, counter, length = unpack_record(raw, at)
                start = at + record_size
                at = start + length
                records.append((seq, seat, counter, raw[start:at]))
            seen += count
            sections.append(Section(pseudonym, writer, opening, records))
            if at > end:
                break
    except struct_error as error:
        raise IntegrityError("a block is cut short") from error
    if at != end or seen != record_count:
        raise IntegrityError("a block's counts do not fit its length")
    return Block(context, sections, record_count, raw[:end], raw[end:])


def read_fixed(raw: bytes) -> tuple[BlockContext, int, int, int]:
    """Context, number of sections, number of records, and where the first section begins.

    For a reader that walks over sections and records by itself (vault/opening.py).

    Raises:
        IntegrityError: not a block of this version.
    """
    if len(raw) > MAX_BLOCK_BYTES or not raw.startswith(MAGIC):
        raise IntegrityError("a block has another format than this version reads")
    try:
        start = len(MAGIC) + 1
        end = start + raw[start - 1]
        campaign = raw[start:end].decode()
        shard, epoch, number, tag_counter, previous, sections, records = FIXED.unpack_from(raw, end)
    except (struct_error, IndexError, UnicodeDecodeError) as error:
        raise IntegrityError("a block is cut short") from error
    context = BlockContext(campaign, shard, epoch, number, tag_counter, previous)
    return context, sections, records, end + FIXED.size
