"""The blocks that a settlement run is to settle, as the landing log has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, select

from pli.errors import IntegrityError
from vault.progress import Numbers, Run
from vault.store.landing_tables import LANDED_BLOCKS, LANDING_CONFLICTS, LANDING_LOG, SETTLEMENT_PROGRESS

BLOCKS_AT_ONCE = 64
"""Blocks (1 MiB each at most) read into memory at one time."""


@dataclass(frozen=True, slots=True, repr=False)
class DueBlock:
    """A block as the log has it: its bytes must be those, and of this place."""

    epoch_id: bytes
    number: int
    digest: bytes
    raw: bytes


def due_blocks(connection: Connection, campaign_id: str, run: Run) -> Iterator[DueBlock]:
    """Everything the run settles, epoch by epoch.

    Raises:
        IntegrityError: a block is gone from the database.
    """
    progress = SETTLEMENT_PROGRESS.c
    rows = connection.execute(select(SETTLEMENT_PROGRESS).where(progress.campaign_id == campaign_id)).all()
    for row in rows:
        settled = Numbers.read(row.contiguous, row.extras)
        target = Numbers.read(row.target_contiguous, row.target_extras)
        if settled != target:
            yield from _blocks_of(connection, campaign_id, row.epoch_id, settled, target)
    conflicts = LANDING_CONFLICTS.c
    beside = connection.execute(
        select(conflicts.epoch_id, conflicts.number, conflicts.digest, conflicts.block).where(
            conflicts.campaign_id == campaign_id, conflicts.run == run.number
        ),
        execution_options={"yield_per": BLOCKS_AT_ONCE},
    )
    for epoch_id, number, digest, raw in beside:
        yield DueBlock(epoch_id, number, digest, raw)


def _blocks_of(
    connection: Connection, campaign_id: str, epoch_id: bytes, settled: Numbers, target: Numbers
) -> Iterator[DueBlock]:
    log = LANDING_LOG.c
    due = [
        (position, number, digest)
        for position, number, digest in connection.execute(
            select(log.position, log.number, log.digest)
            .where(
                log.campaign_id == campaign_id,
                log.epoch_id == epoch_id,
                log.number > settled.contiguous,
            )
            .order_by(log.number)
        )
        if number in target and number not in settled
    ]
    missing = len(target) - len(settled) - len(due)
    for start in range(0, len(due), BLOCKS_AT_ONCE):
        some = due[start : start + BLOCKS_AT_ONCE]
        found = _read_blocks(connection, campaign_id, [position for position, _, _ in some])
        missing += len(some) - len(found)
        for position, number, digest in some:
            if position in found:
                yield DueBlock(epoch_id, number, digest, found[position])
    if missing:
        raise IntegrityError(
            f"{missing} landed blocks of epoch {epoch_id.hex()} are gone from the vault's database; "
            "restore the database from a backup"
        )


def _read_blocks(connection: Connection, campaign_id: str, positions: list[int]) -> dict[int, bytes]:
    blocks = LANDED_BLOCKS.c
    rows = connection.execute(
        select(blocks.position, blocks.block).where(blocks.campaign_id == campaign_id, blocks.position.in_(positions))
    )
    return {row.position: row.block for row in rows}
