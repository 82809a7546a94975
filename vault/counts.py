"""Counts of a campaign from landing to settlement, for the sums that must agree and for every screen."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from pli.vault.v1.campaign_pb2 import CampaignCounts
from vault.progress import Numbers, last_run
from vault.quarantine import quarantined_blocks
from vault.store.landing_tables import (
    LANDING_CONFLICTS,
    LANDING_LOG,
    LANDING_TOTALS,
    SCRIPTS,
    SETTLEMENT_COUNTS,
    SETTLEMENT_PROGRESS,
)

_NAMES_AT_ONCE = 500
"""Parameters of one statement; SQLite takes 32 766, and more bring nothing."""


@dataclass(frozen=True, slots=True)
class LandedRecords:
    """Where the records of a campaign are.

    `landed`: in the landing log and in the conflicts beside it, as landing counted them. `targeted`:
    those of the blocks that are settled, summed up from the log itself. `accounted`: settled +
    duplicate + conflict + quarantined, as settlement counted them.
    """

    landed: int
    targeted: int
    accounted: int


def landed_records(connection: Connection, campaign_id: str) -> LandedRecords:
    """The sums. While a run is under way `accounted` is ahead of `targeted`. Reads the whole log."""
    counts = campaign_counts(connection, campaign_id)
    return LandedRecords(counts.landed, _targeted(connection, campaign_id), accounted(counts))


def campaign_counts(connection: Connection, campaign_id: str) -> CampaignCounts:
    """What landing and settlement count. Pupils, codes and what is left in the spool stay 0 here."""
    counts = _settlement(connection, campaign_id)
    totals = LANDING_TOTALS.c
    row = connection.execute(
        select(totals.blocks, totals.records, totals.conflict_records).where(totals.campaign_id == campaign_id)
    ).one_or_none()
    if row is not None:
        counts.landed_blocks = row.blocks
        counts.landed = row.records + row.conflict_records
    counts.quarantined_blocks = quarantined_blocks(connection, campaign_id)
    return counts


def landed_blocks(connection: Connection, campaign_id: str) -> int:
    """Blocks in the landing log: the position that the next one will get."""
    return campaign_counts(connection, campaign_id).landed_blocks


def accounted(counts: CampaignCounts) -> int:
    """Records whose fate settlement has decided; equal to `counts.landed` once all is settled."""
    return counts.settled + counts.duplicate + counts.conflict + counts.quarantined


def scripts_stored(connection: Connection, campaign_id: str) -> int:
    """How many scripts the table holds; `CampaignCounts.scripts` is how many settlement made."""
    return connection.execute(select(func.count()).where(SCRIPTS.c.campaign_id == campaign_id)).scalar_one()


def _settlement(connection: Connection, campaign_id: str) -> CampaignCounts:
    row = connection.execute(
        select(SETTLEMENT_COUNTS).where(SETTLEMENT_COUNTS.c.campaign_id == campaign_id)
    ).one_or_none()
    if row is None:
        return CampaignCounts()
    return CampaignCounts(
        settled=row.settled,
        duplicate=row.duplicate,
        conflict=row.conflict,
        quarantined=row.quarantined,
        scripts=row.scripts,
        answers=row.answers,
        digests_agree=row.digests_agree,
        digests_differ=row.digests_differ,
    )


def _targeted(connection: Connection, campaign_id: str) -> int:
    log, progress, conflicts = LANDING_LOG.c, SETTLEMENT_PROGRESS.c, LANDING_CONFLICTS.c
    contiguous = connection.execute(
        select(func.coalesce(func.sum(log.records), 0))
        .select_from(LANDING_LOG)
        .join(
            SETTLEMENT_PROGRESS,
            and_(
                progress.campaign_id == log.campaign_id,
                progress.epoch_id == log.epoch_id,
                log.number <= progress.contiguous,
            ),
        )
        .where(log.campaign_id == campaign_id)
    ).scalar_one()
    rows = connection.execute(
        select(progress.epoch_id, progress.contiguous, progress.extras).where(
            progress.campaign_id == campaign_id, func.length(progress.extras) > 0
        )
    ).all()
    extras = sum(
        _records_of(connection, campaign_id, row.epoch_id, sorted(Numbers.read(row.contiguous, row.extras).extras))
        for row in rows
    )
    run = last_run(connection, campaign_id)
    beside = connection.execute(
        select(func.coalesce(func.sum(conflicts.records), 0)).where(
            conflicts.campaign_id == campaign_id,
            conflicts.run > 0,
            conflicts.run <= (run.number if run.ended else run.number - 1),
        )
    ).scalar_one()
    return int(contiguous) + extras + int(beside)


def _records_of(connection: Connection, campaign_id: str, epoch_id: bytes, numbers: list[int]) -> int:
    log, total = LANDING_LOG.c, 0
    for start in range(0, len(numbers), _NAMES_AT_ONCE):
        some = numbers[start : start + _NAMES_AT_ONCE]
        total += connection.execute(
            select(func.coalesce(func.sum(log.records), 0)).where(
                log.campaign_id == campaign_id, log.epoch_id == epoch_id, log.number.in_(some)
            )
        ).scalar_one()
    return total
