"""The landing log: authentic blocks in the order they came, append-only under a Merkle tree.

A leaf is the hash (RFC 6962) of: shard u16 | epoch id 16 | number u64 | records u32 | SHA-256 of the
block. The campaign is not in it: each campaign has a log of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from pli.blocks import BlockContext
from pli.errors import IntegrityError
from pli.vault.v1.deposit_pb2 import Verdict
from vault.merkle import Frontier, leaf_hash
from vault.store.landing_tables import LANDED_BLOCKS, LANDING_CONFLICTS, LANDING_LOG, LANDING_TOTALS
from vault.store.log_heads import read_head, write_head

LOG = "landing"
"""Name of the log's head in `log_heads`."""

_LEAF = Struct(">H16sQI32s")
_ROWS_AT_ONCE = 1_000

# Asked twice per block: building the statement anew each time costs more than running it.
_DIGEST_AT = select(LANDING_LOG.c.digest).where(
    LANDING_LOG.c.campaign_id == bindparam("campaign"),
    LANDING_LOG.c.epoch_id == bindparam("epoch"),
    LANDING_LOG.c.number == bindparam("block"),
)


@dataclass(frozen=True, slots=True, repr=False)
class Landed:
    """An authentic block on its way into the log."""

    context: BlockContext
    digest: bytes
    records: int
    raw: bytes


class LandingLog:
    """The log of one campaign within one transaction. What `take` took is written by `flush`."""

    def __init__(self, connection: Connection, campaign_id: str) -> None:
        self._connection = connection
        self._campaign_id = campaign_id
        self._new: dict[tuple[bytes, int], Landed] = {}
        self._conflicts: dict[bytes, Landed] = {}

    def digest_at(self, epoch_id: bytes, number: int) -> bytes | None:
        """SHA-256 of the block that has this place in the log."""
        taken = self._new.get((epoch_id, number))
        if taken is not None:
            return taken.digest
        place = {"campaign": self._campaign_id, "epoch": epoch_id, "block": number}
        found: bytes | None = self._connection.execute(_DIGEST_AT, place).scalar_one_or_none()
        return found

    def take(self, block: Landed) -> Verdict.ValueType:
        """New, duplicate or conflict; a conflict is kept beside the log, each distinct one once."""
        epoch_id, number = block.context.epoch_id, block.context.number
        known = self.digest_at(epoch_id, number)
        if known is None:
            self._new[epoch_id, number] = block
            return Verdict.VERDICT_NEW
        if known == block.digest or self._is_known_conflict(block.digest):
            return Verdict.VERDICT_DUPLICATE
        self._conflicts[block.digest] = block
        return Verdict.VERDICT_CONFLICT

    def flush(self) -> Frontier:
        """Writes what was taken; returns the log's head afterwards."""
        head = read_head(self._connection, self._campaign_id, LOG)
        if self._new:
            self._write_new(head.size)
            head = head.extend(_leaf(block) for block in self._new.values())
            write_head(self._connection, self._campaign_id, LOG, head)
        if self._conflicts:
            self._write_conflicts()
        self._add_totals()
        self._new, self._conflicts = {}, {}
        return head

    def _is_known_conflict(self, digest: bytes) -> bool:
        if digest in self._conflicts:
            return True
        return (
            self._connection.execute(
                select(LANDING_CONFLICTS.c.shard).where(
                    LANDING_CONFLICTS.c.campaign_id == self._campaign_id, LANDING_CONFLICTS.c.digest == digest
                )
            ).one_or_none()
            is not None
        )

    def _write_new(self, size: int) -> None:
        rows, blocks = [], []
        for position, block in enumerate(self._new.values(), start=size):
            rows.append(
                {
                    **self._place(block),
                    "position": position,
                    "previous_hash": block.context.previous_hash,
                }
            )
            blocks.append({"campaign_id": self._campaign_id, "position": position, "block": block.raw})
        self._connection.execute(insert(LANDING_LOG), rows)
        self._connection.execute(insert(LANDED_BLOCKS), blocks)

    def _write_conflicts(self) -> None:
        rows = [{**self._place(block), "block": block.raw, "run": 0} for block in self._conflicts.values()]
        self._connection.execute(insert(LANDING_CONFLICTS), rows)

    def _place(self, block: Landed) -> dict[str, Any]:
        return {
            "campaign_id": self._campaign_id,
            "shard": block.context.shard,
            "epoch_id": block.context.epoch_id,
            "number": block.context.number,
            "digest": block.digest,
            "records": block.records,
        }

    def _add_totals(self) -> None:
        added = {
            "blocks": len(self._new),
            "records": sum(block.records for block in self._new.values()),
            "conflict_records": sum(block.records for block in self._conflicts.values()),
        }
        columns = LANDING_TOTALS.c
        changed = self._connection.execute(
            update(LANDING_TOTALS)
            .where(columns.campaign_id == self._campaign_id)
            .values({name: columns[name] + value for name, value in added.items()})
        )
        if changed.rowcount == 0:
            self._connection.execute(insert(LANDING_TOTALS), {"campaign_id": self._campaign_id, **added})


def verify_log(connection: Connection, campaign_id: str) -> Frontier:
    """The head of the log, proved by all its entries. Reads no block.

    Raises:
        IntegrityError: an entry was changed, removed, inserted or moved.
    """
    log = LANDING_LOG.c
    rows = connection.execute(
        select(log.position, log.shard, log.epoch_id, log.number, log.records, log.digest)
        .where(log.campaign_id == campaign_id)
        .order_by(log.position),
        execution_options={"yield_per": _ROWS_AT_ONCE},
    )
    found = Frontier().extend(leaf_hash(_LEAF.pack(*place)) for _, *place in rows)
    stated = read_head(connection, campaign_id, LOG)
    if found != stated:
        raise IntegrityError(
            f"the landing log of campaign {campaign_id} ({found.size} blocks) does not fit its root "
            f"({stated.size} blocks): restore the vault's database from a backup, and find who changed it"
        )
    return stated


def _leaf(block: Landed) -> bytes:
    context = block.context
    return leaf_hash(_LEAF.pack(context.shard, context.epoch_id, context.number, block.records, block.digest))
