"""Frozen tables of epochs: what a shard held at the moment it was closed.

The spool's `close_window` writes one as the last entry of the shard's Redis stream, in the same atomic
step that refuses every later commit. The drain compares it with what has landed. Layout, integers
big-endian, because the writer can only put strings one after another:

    magic "PLIC" 1 | campaign length u8, campaign | shard u16 | marker of the store 16 | epochs u32 |
    per epoch: epoch id 16 | last block number u64 | SHA-256 of the last block 32

Epochs stand in any order, each once. It is not signed: the spool has no key. A false table shows as a
gap at the drain, or as an epoch that landed and is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from struct import error as struct_error

from pli.errors import IntegrityError

MAGIC = b"PLIC\x01"
MARKER_BYTES = 16
MAX_CLOSING_BYTES = 4 << 20
"""About 75 000 epochs: 64 busy processes, each with one a minute, for nineteen hours."""

_PLACE = Struct(">H16sI")
_EPOCH = Struct(">16sQ32s")


@dataclass(frozen=True, slots=True)
class ClosedEpoch:
    """One epoch of the table: its last block, by number and SHA-256 (pli.blocks.block_hash)."""

    epoch_id: bytes
    last_number: int
    last_digest: bytes


@dataclass(frozen=True, slots=True)
class Closing:
    """A frozen table. `marker` is the 16-byte identity of the store that wrote it."""

    campaign_id: str
    shard: int
    marker: bytes
    epochs: tuple[ClosedEpoch, ...]


def write_closing(campaign_id: str, shard: int, marker: bytes, epochs: Sequence[ClosedEpoch]) -> bytes:
    """The table as bytes."""
    campaign = campaign_id.encode()
    return b"".join(
        (
            MAGIC,
            bytes((len(campaign),)),
            campaign,
            _PLACE.pack(shard, marker, len(epochs)),
            *(_EPOCH.pack(epoch.epoch_id, epoch.last_number, epoch.last_digest) for epoch in epochs),
        )
    )


def read_closing(raw: bytes) -> Closing:
    """Takes a table apart. Whole or not at all: nothing missing, left over, empty or named twice.

    Raises:
        IntegrityError: not a closing of this version.
    """
    if len(raw) > MAX_CLOSING_BYTES or not raw.startswith(MAGIC):
        raise IntegrityError("a closing has another format than this version reads")
    try:
        start = len(MAGIC) + 1
        end = start + raw[start - 1]
        campaign = raw[start:end].decode()
        shard, marker, count = _PLACE.unpack_from(raw, end)
    except (struct_error, IndexError, UnicodeDecodeError) as error:
        raise IntegrityError("a closing is cut short") from error
    at = end + _PLACE.size
    if len(raw) - at != count * _EPOCH.size:
        raise IntegrityError("a closing's count does not fit its length")
    epochs = tuple(ClosedEpoch(*fields) for fields in _EPOCH.iter_unpack(raw[at:]))
    if len({epoch.epoch_id for epoch in epochs}) != count:
        raise IntegrityError("a closing names an epoch twice")
    if any(epoch.last_number == 0 for epoch in epochs):
        raise IntegrityError("a closing names an epoch without blocks")
    return Closing(campaign, shard, marker, epochs)
