"""The blocks that a settlement run is to settle, as the landing log has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, and_, select

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
    log, blocks = LANDING_LOG.c, LANDED_BLOCKS.c
    rows = connection.execute(
        select(log.number, log.digest, blocks.block)
        .join(LANDED_BLOCKS, and_(blocks.campaign_id == log.campaign_id, blocks.position == log.position))
        .where(
            log.campaign_id == campaign_id,
            log.epoch_id == epoch_id,
            log.number > settled.contiguous,
            log.number <= max(target.extras, default=target.contiguous),
        )
        .order_by(log.number),
        execution_options={"yield_per": BLOCKS_AT_ONCE},
    )
    missing = len(target) - len(settled)
    for number, digest, raw in rows:
        if number in target and number not in settled:
            missing -= 1
            yield DueBlock(epoch_id, number, digest, raw)
    if missing:
        raise IntegrityError(
            f"{missing} landed blocks of epoch {epoch_id.hex()} are gone from the vault's database; "
            "restore the database from a backup"
        )
