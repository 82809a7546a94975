"""Sealing: what turns accepted answers into blocks that the vault alone can open.

`SealingEpoch` owns one epoch key. It seals records and tags blocks, counts nonces, and wipes the key
when it ends. Nothing here opens anything: that is vault/opening.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pli.blocks import RECORD, SECTION, BlockContext, assemble
from pli.errors import StateError
from pli.records import (
    NONCE,
    PLACE,
    RECORD_DOMAIN,
    TAG_DOMAIN,
    TAG_LABEL,
    pad,
    record_context,
)
from pli.secret import Secret

MAX_EPOCH_RECORDS = 1 << 20
"""After so many records the key is replaced; far below the 2³² that the nonce could count."""

NewRecord = tuple[int, int, int, bytes]
"""seq, seat, kind (RecordKind), payload (canonical bytes)."""


class SealingEpoch:
    """One epoch key in use, for one process and shard. Not safe for two tasks at once."""

    __slots__ = ("_aes", "_campaign_id", "_context", "_counter", "_key", "_shard", "_tags", "epoch_id", "header")

    def __init__(self, campaign_id: str, shard: int, key: Secret, header: bytes, epoch_id: bytes) -> None:
        self.header = header
        self.epoch_id = epoch_id
        self._campaign_id = campaign_id
        self._shard = shard
        self._key = key
        self._aes: AESGCM | None = AESGCM(key.reveal())
        self._context = record_context(campaign_id, epoch_id)
        self._counter = 0
        self._tags = 0

    @property
    def sealed_records(self) -> int:
        """Records sealed so far; the caller replaces the epoch before MAX_EPOCH_RECORDS."""
        return self._counter

    def seal_section(self, pseudonym: bytes, writer: bytes, opening: int, records: Sequence[NewRecord]) -> bytes:
        """One session's part of a block: its place, then each record sealed to that place."""
        aes = self._aes
        if aes is None:
            raise StateError("this key epoch has ended; seal under the next one")
        counter = self._counter
        # Claimed before the first use: a nonce is gone even if a record below cannot be packed.
        self._counter = counter + len(records)
        context = self._context
        parts = [SECTION.pack(pseudonym, writer, opening, len(records))]
        for seq, seat, kind, payload in records:
            place = context + PLACE.pack(pseudonym, opening, writer, seat, seq)
            ciphertext = aes.encrypt(NONCE.pack(RECORD_DOMAIN, counter), pad(kind, payload), place)
            parts.append(RECORD.pack(seq, seat, counter, len(ciphertext)))
            parts.append(ciphertext)
            counter += 1
        return b"".join(parts)

    def seal_block(self, number: int, previous_hash: bytes, sections: Sequence[bytes], records: int) -> bytes:
        """The block of these sections. Every call uses a fresh tag nonce, also for the same number."""
        if self._aes is None:
            raise StateError("this key epoch has ended; seal under the next one")
        context = BlockContext(self._campaign_id, self._shard, self.epoch_id, number, self._tags, previous_hash)
        content = assemble(context, sections, records)
        self._tags += 1
        return content + self._aes.encrypt(NONCE.pack(TAG_DOMAIN, context.tag_counter), b"", TAG_LABEL + content)

    def end(self) -> None:
        """Forgets the key: its bytearray is overwritten; nothing can be sealed any more."""
        self._aes = None
        self._key.wipe()

    def __repr__(self) -> str:
        return f"SealingEpoch({self.epoch_id.hex()[:8]}…)"
