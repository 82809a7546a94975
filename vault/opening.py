"""Opening: the only place where epoch keys and records are decrypted.

A security decision in numbered steps (docs/life-of-an-answer.md names them):

1. the header is well-formed, for this campaign, signed by its certificate's key;
2. the certificate was issued by an authority enrolled for this campaign, with role ingest
   (vault/epochs.py asks that);
3. the epoch key opens under the answer key and the header's own context;
4. the block's tag holds;
5. every record opens at the place the block says it has.

What the caller must still do: check that blocks are gapless and linked (vault/drain.py), and decide
duplicates and conflicts on opened content (vault/settlement.py).

`authenticate` and `collect` walk over the bytes of a block in one pass instead of asking
`pli.blocks.read_block`: the vault does it hundreds of thousands of times a second, and the objects in
between cost more than the cryptography.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from struct import error as struct_error

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pli.blocks import RECORD, SECTION, TAG_BYTES, Block, BlockContext, read_fixed
from pli.epochs import EPOCH_KEY_BYTES, EpochHeader
from pli.errors import IntegrityError
from pli.hpke import PrivateKey
from pli.records import (
    NONCE,
    PLACE,
    RECORD_DOMAIN,
    TAG_DOMAIN,
    TAG_LABEL,
    record_context,
    unpad,
)

OpenedRecord = tuple[bytes, bytes, int, int, int, int, bytes]
"""pseudonym, writer, opening (of the stream), seq, seat, kind (RecordKind), payload (canonical bytes)."""

ENTRY = Struct(">IHB16sQI")
"""Head of an entry: opening (of the stream), seat, kind, writer, seq, length of the payload that follows.

An opened record as settlement groups and stores it (vault/scripts.py says which slice means what).
"""

_PREFIX = Struct(">BI")
_SHAPE = "a block's counts do not fit its length"


class OpeningEpoch:
    """One epoch key, for reading."""

    __slots__ = ("_aes", "_context", "epoch_id")

    def __init__(self, campaign_id: str, epoch_id: bytes, key: bytes) -> None:
        self.epoch_id = epoch_id
        self._aes = AESGCM(key)
        self._context = record_context(campaign_id, epoch_id)

    @classmethod
    def from_header(cls, header: EpochHeader, answer_key: PrivateKey) -> OpeningEpoch:
        """Step 3.

        Raises:
            IntegrityError: the key was sealed to another answer key or under another context.
        """
        key = answer_key.decrypt(header.sealed_key, header.info())
        if len(key) != EPOCH_KEY_BYTES:
            raise IntegrityError("an epoch key has a wrong length")
        return cls(header.context.campaign_id, header.epoch_id, key)

    def verify_tag(self, block: Block) -> None:
        """Step 4.

        Raises:
            IntegrityError: the block was altered, or made without the epoch key.
        """
        self._verify(block.context, block.tag, block.tagged_part)

    def open_records(self, block: Block) -> Iterator[OpenedRecord]:
        """Step 5, record by record in the block's order.

        Raises:
            IntegrityError: a record was altered, or belongs to another place.
        """
        decrypt, context = self._aes.decrypt, self._context
        pack_place, pack_nonce = PLACE.pack, NONCE.pack
        for section in block.sections:
            pseudonym, writer, opening = section.pseudonym, section.writer, section.opening
            for seq, seat, counter, ciphertext in section.records:
                place = context + pack_place(pseudonym, opening, writer, seat, seq)
                try:
                    plaintext = decrypt(pack_nonce(RECORD_DOMAIN, counter), ciphertext, place)
                except InvalidTag as error:
                    raise _not_here(seq, block.context) from error
                kind, payload = unpad(plaintext)
                yield pseudonym, writer, opening, seq, seat, kind, payload

    def authenticate(self, raw: bytes) -> int:
        """Steps 4 and 5 for a whole block; returns its number of records and keeps nothing.

        Raises:
            IntegrityError: malformed, altered, or made for another place.
        """
        context, sections, records, at = self._tagged(raw)
        end, seen, seq = len(raw) - TAG_BYTES, 0, 0
        decrypt, shared = self._aes.decrypt, self._context
        read_section, read_record, read_prefix = SECTION.unpack_from, RECORD.unpack_from, _PREFIX.unpack_from
        section_bytes, record_bytes, prefix_bytes = SECTION.size, RECORD.size, _PREFIX.size
        pack_nonce, pack_place = NONCE.pack, PLACE.pack
        try:
            for _ in range(sections):
                pseudonym, writer, opening, count = read_section(raw, at)
                at += section_bytes
                seen += count
                while count:
                    count -= 1
                    seq, seat, counter, length = read_record(raw, at)
                    start = at + record_bytes
                    at = start + length
                    plaintext = decrypt(
                        pack_nonce(RECORD_DOMAIN, counter),
                        raw[start:at],
                        shared + pack_place(pseudonym, opening, writer, seat, seq),
                    )
                    kind, size = read_prefix(plaintext)
                    if not 1 <= kind <= 3 or size + prefix_bytes > len(plaintext):
                        raise _impossible(seq, context)
        except InvalidTag as error:
            raise _not_here(seq, context) from error
        except struct_error as error:
            raise IntegrityError(_SHAPE) from error
        if at != end or seen != records:
            raise IntegrityError(_SHAPE)
        return records

    def collect(self, raw: bytes, low: bytes, high: bytes, entries: dict[bytes, list[bytes]]) -> BlockContext:
        """Steps 4 and 5 for the records of pseudonyms in low ≤ p < high, added to `entries` by pseudonym.

        Records of other pseudonyms are stepped over unopened. Returns where the block belongs, which the
        tag has proved. On an error `entries` may hold a part of the block: throw it away.

        Raises:
            IntegrityError: malformed, altered, or made for another place.
        """
        context, sections, _, at = self._tagged(raw)
        seq = 0
        decrypt, shared, find, pack_entry = self._aes.decrypt, self._context, entries.get, ENTRY.pack
        read_section, read_record, read_prefix = SECTION.unpack_from, RECORD.unpack_from, _PREFIX.unpack_from
        section_bytes, record_bytes, prefix_bytes = SECTION.size, RECORD.size, _PREFIX.size
        pack_nonce, pack_place = NONCE.pack, PLACE.pack
        try:
            for _ in range(sections):
                pseudonym, writer, opening, count = read_section(raw, at)
                at += section_bytes
                if not low <= pseudonym < high:
                    for _ in range(count):
                        at += record_bytes + read_record(raw, at)[3]
                    continue
                found = find(pseudonym)
                if found is None:
                    found = entries[pseudonym] = []
                while count:
                    count -= 1
                    seq, seat, counter, length = read_record(raw, at)
                    start = at + record_bytes
                    at = start + length
                    plaintext = decrypt(
                        pack_nonce(RECORD_DOMAIN, counter),
                        raw[start:at],
                        shared + pack_place(pseudonym, opening, writer, seat, seq),
                    )
                    kind, size = read_prefix(plaintext)
                    after = prefix_bytes + size
                    if not 1 <= kind <= 3 or after > len(plaintext):
                        raise _impossible(seq, context)
                    found.append(pack_entry(opening, seat, kind, writer, seq, size) + plaintext[prefix_bytes:after])
        except InvalidTag as error:
            raise _not_here(seq, context) from error
        except struct_error as error:
            raise IntegrityError(_SHAPE) from error
        return context

    def _tagged(self, raw: bytes) -> tuple[BlockContext, int, int, int]:
        """Step 4 on raw bytes; returns what `read_fixed` does."""
        fixed = read_fixed(raw)
        self._verify(fixed[0], raw[-TAG_BYTES:], raw[:-TAG_BYTES])
        return fixed

    def _verify(self, context: BlockContext, tag: bytes, tagged_part: bytes) -> None:
        nonce = NONCE.pack(TAG_DOMAIN, context.tag_counter)
        try:
            self._aes.decrypt(nonce, tag, TAG_LABEL + tagged_part)
        except InvalidTag as error:
            raise IntegrityError(f"the tag of block {context.number} does not hold") from error

    def __repr__(self) -> str:
        return f"OpeningEpoch({self.epoch_id.hex()[:8]}…)"


def _not_here(seq: int, context: BlockContext) -> IntegrityError:
    return IntegrityError(f"record {seq} of block {context.number} does not open at its place")


def _impossible(seq: int, context: BlockContext) -> IntegrityError:
    return IntegrityError(f"record {seq} of block {context.number} has an impossible kind or length")
