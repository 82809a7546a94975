"""Settlement's progress: which blocks of each epoch are settled, and which a run is to settle.

Progress is a set of block numbers per epoch (1 … contiguous, and extras beyond a gap), never a row id:
rows may become visible in another order than their ids. A run fixes its targets when it begins, so
that a run that was cut off ends with the same blocks in every partition.

Every partition of a run walks over all blocks of the run, so a run is bounded too: a campaign of many
runs costs a walk per run, not a walk over everything per partition. A run takes blocks in the order
they landed, because the answers of one pupil land within the hour: few scripts are touched twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import pack, unpack

from sqlalchemy import Connection, and_, delete, func, insert, select, update

from vault.store.landing_tables import (
    LANDING_CONFLICTS,
    LANDING_LOG,
    SETTLEMENT_PROGRESS,
    SETTLEMENT_RUNS,
)

ROWS_AT_ONCE = 1_000
"""Rows of the log (some hundred bytes each) read at one time."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A set of block numbers: 1 … contiguous, and extras above contiguous + 1."""

    contiguous: int = 0
    extras: frozenset[int] = frozenset()

    def __contains__(self, number: int) -> bool:
        return 1 <= number <= self.contiguous or number in self.extras

    def __len__(self) -> int:
        return self.contiguous + len(self.extras)

    def packed_extras(self) -> bytes:
        """The extras in ascending order, 8 bytes each."""
        return pack(f">{len(self.extras)}Q", *sorted(self.extras))

    def with_more(self, numbers: Iterable[int]) -> Numbers:
        """This set and these numbers (each at least 1)."""
        left, contiguous = self.extras.union(numbers), self.contiguous
        while contiguous + 1 in left:
            contiguous += 1
        return Numbers(contiguous, frozenset(number for number in left if number > contiguous))

    @classmethod
    def read(cls, contiguous: int, packed: bytes) -> Numbers:
        """What is stored."""
        return cls(contiguous, frozenset(unpack(f">{len(packed) // 8}Q", packed)))


@dataclass(frozen=True, slots=True)
class Run:
    """A settlement run: partition `next_partition` of `partitions` is due."""

    number: int
    partitions: int
    next_partition: int

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.next_partition >= self.partitions


def last_run(connection: Connection, campaign_id: str) -> Run:
    """The run under way, or the last one; number 0 before the first."""
    row = connection.execute(select(SETTLEMENT_RUNS).where(SETTLEMENT_RUNS.c.campaign_id == campaign_id)).one_or_none()
    return Run(0, 0, 0) if row is None else Run(row.run, row.partitions, row.next_partition)


def begin_run(connection: Connection, campaign_id: str, below: int, run_records: int, partitions: int) -> bool:
    """Fixes what a new run settles. False if there is nothing to settle.

    It takes blocks at positions below `below`, as many as have `run_records` records together (at least
    one block), and the conflicts that no run has taken. `partitions` is into how many parts a full run
    is divided; a smaller one has fewer.
    """
    last = last_run(connection, campaign_id)
    chosen, records = _choose(connection, campaign_id, below, run_records)
    _write_targets(connection, campaign_id, chosen)
    conflicts = LANDING_CONFLICTS.c
    unsettled = (conflicts.campaign_id == campaign_id, conflicts.run == 0)
    beside = connection.execute(select(func.sum(conflicts.records)).where(*unsettled)).scalar_one()
    connection.execute(update(LANDING_CONFLICTS).where(*unsettled).values(run=last.number + 1))
    if not chosen and beside is None:
        return False
    due = records + (beside or 0)
    content = {
        "run": last.number + 1,
        "partitions": max(1, -(-due * partitions // run_records)),
        "next_partition": 0,
    }
    if last.number == 0:
        connection.execute(insert(SETTLEMENT_RUNS), {"campaign_id": campaign_id, **content})
    else:
        connection.execute(
            update(SETTLEMENT_RUNS).where(SETTLEMENT_RUNS.c.campaign_id == campaign_id).values(**content)
        )
    return True


@dataclass(slots=True)
class _Epoch:
    """What a new run takes of one epoch; `is_new` before any of it was settled."""

    shard: int
    settled: Numbers
    is_new: bool
    numbers: list[int]


def _choose(connection: Connection, campaign_id: str, below: int, run_records: int) -> tuple[dict[bytes, _Epoch], int]:
    """Blocks that are not settled, in the order they landed; and how many records they hold."""
    log, progress = LANDING_LOG.c, SETTLEMENT_PROGRESS.c
    rows = connection.execute(
        select(log.epoch_id, log.number, log.records, log.shard, progress.contiguous, progress.extras)
        .outerjoin(
            SETTLEMENT_PROGRESS,
            and_(progress.campaign_id == log.campaign_id, progress.epoch_id == log.epoch_id),
        )
        .where(
            log.campaign_id == campaign_id,
            log.position < below,
            log.number > func.coalesce(progress.contiguous, 0),
        )
        .order_by(log.position),
        execution_options={"yield_per": ROWS_AT_ONCE},
    )
    chosen: dict[bytes, _Epoch] = {}
    records = 0
    for row in rows:
        if chosen and records + row.records > run_records:
            break
        epoch = chosen.get(row.epoch_id)
        if epoch is None:
            settled = Numbers.read(row.contiguous or 0, row.extras or b"")
            epoch = _Epoch(row.shard, settled, row.contiguous is None, [])
        if row.number not in epoch.settled:
            chosen[row.epoch_id] = epoch
            epoch.numbers.append(row.number)
            records += row.records
    return chosen, records


def _write_targets(connection: Connection, campaign_id: str, chosen: dict[bytes, _Epoch]) -> None:
    """Targets become what is settled (as they are between runs), and what was chosen."""
    for epoch_id, epoch in chosen.items():
        target = epoch.settled.with_more(epoch.numbers)
        _write_target(connection, campaign_id, epoch_id, epoch.shard, target, is_new=epoch.is_new)


def _write_target(
    connection: Connection, campaign_id: str, epoch_id: bytes, shard: int, target: Numbers, *, is_new: bool
) -> None:
    content = {"target_contiguous": target.contiguous, "target_extras": target.packed_extras()}
    if is_new:
        place = {"campaign_id": campaign_id, "epoch_id": epoch_id, "shard": shard}
        connection.execute(insert(SETTLEMENT_PROGRESS), {**place, "contiguous": 0, "extras": b"", **content})
        return
    connection.execute(
        update(SETTLEMENT_PROGRESS)
        .where(SETTLEMENT_PROGRESS.c.campaign_id == campaign_id, SETTLEMENT_PROGRESS.c.epoch_id == epoch_id)
        .values(**content)
    )


def advance(connection: Connection, campaign_id: str, run: Run) -> bool:
    """Records that the due partition is stored; False if another process has stored it already.

    With the last partition the targets become what is settled.
    """
    runs, progress = SETTLEMENT_RUNS.c, SETTLEMENT_PROGRESS.c
    moved = connection.execute(
        update(SETTLEMENT_RUNS)
        .where(
            runs.campaign_id == campaign_id,
            runs.run == run.number,
            runs.next_partition == run.next_partition,
        )
        .values(next_partition=run.next_partition + 1)
    )
    if moved.rowcount != 1:
        return False
    if run.next_partition + 1 == run.partitions:
        connection.execute(
            update(SETTLEMENT_PROGRESS)
            .where(progress.campaign_id == campaign_id)
            .values(contiguous=progress.target_contiguous, extras=progress.target_extras)
        )
    return True


def forget_progress(connection: Connection, campaign_id: str) -> None:
    """Everything that has landed is to be settled again. Numbers of runs go on rising."""
    connection.execute(delete(SETTLEMENT_PROGRESS).where(SETTLEMENT_PROGRESS.c.campaign_id == campaign_id))
    connection.execute(update(LANDING_CONFLICTS).where(LANDING_CONFLICTS.c.campaign_id == campaign_id).values(run=0))
    connection.execute(
        update(SETTLEMENT_RUNS)
        .where(SETTLEMENT_RUNS.c.campaign_id == campaign_id)
        .values(next_partition=SETTLEMENT_RUNS.c.partitions)
    )
