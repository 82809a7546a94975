"""Settlement's progress: which blocks of each epoch are settled, and which a run is to settle.

Progress is a set of block numbers per epoch (1 … contiguous, and extras beyond a gap), never a row id:
rows may become visible in another order than their ids. A run fixes its targets when it begins, so
that a run that was cut off ends with the same blocks in every partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import pack, unpack

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from vault.store.landing_tables import (
    LANDED_BLOCKS,
    LANDING_CONFLICTS,
    LANDING_LOG,
    SETTLEMENT_PROGRESS,
    SETTLEMENT_RUNS,
)

BLOCKS_AT_ONCE = 64
"""Blocks (1 MiB each at most) read into memory at one time."""


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

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Numbers:
        """The set of these numbers (each at least 1)."""
        left = set(numbers)
        contiguous = 0
        while contiguous + 1 in left:
            contiguous += 1
            left.discard(contiguous)
        return cls(contiguous, frozenset(left))

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


def begin_run(connection: Connection, campaign_id: str, partition_records: int) -> Run | None:
    """Fixes what a new run settles: everything landed and not settled. None if there is nothing.

    `partition_records` is how many records a partition should hold at most, on average.
    """
    numbers = _open_targets(connection, campaign_id)
    last = last_run(connection, campaign_id)
    taken = connection.execute(
        update(LANDING_CONFLICTS)
        .where(LANDING_CONFLICTS.c.campaign_id == campaign_id, LANDING_CONFLICTS.c.run == 0)
        .values(run=last.number + 1)
    ).rowcount
    if not numbers and not taken:
        return None
    records = _records_due(connection, campaign_id, numbers)
    run = Run(last.number + 1, max(1, -(-records // partition_records)), 0)
    content = {"run": run.number, "partitions": run.partitions, "next_partition": 0}
    if last.number == 0:
        connection.execute(insert(SETTLEMENT_RUNS), {"campaign_id": campaign_id, **content})
    else:
        connection.execute(
            update(SETTLEMENT_RUNS).where(SETTLEMENT_RUNS.c.campaign_id == campaign_id).values(**content)
        )
    return run


def _open_targets(connection: Connection, campaign_id: str) -> list[bytes]:
    """Sets targets to what has landed; returns the epochs whose targets exceed what is settled."""
    log, progress = LANDING_LOG.c, SETTLEMENT_PROGRESS.c
    landed = connection.execute(
        select(log.epoch_id, func.min(log.shard), func.count())
        .where(log.campaign_id == campaign_id)
        .group_by(log.epoch_id)
    ).all()
    settled = {
        row.epoch_id: Numbers.read(row.contiguous, row.extras)
        for row in connection.execute(
            select(progress.epoch_id, progress.contiguous, progress.extras).where(progress.campaign_id == campaign_id)
        )
    }
    changed: list[bytes] = []
    for epoch_id, shard, count in landed:
        known = settled.get(epoch_id)
        if known is not None and len(known) == count:
            continue
        target = Numbers.of(
            connection.execute(
                select(log.number).where(log.campaign_id == campaign_id, log.epoch_id == epoch_id)
            ).scalars()
        )
        _write_target(connection, campaign_id, epoch_id, shard, target, is_new=known is None)
        changed.append(epoch_id)
    return changed


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


def _records_due(connection: Connection, campaign_id: str, epochs: list[bytes]) -> int:
    # Epochs that are settled in part count whole: this only chooses the number of partitions.
    log = LANDING_LOG.c
    by_epoch = select(func.sum(log.records)).where(log.campaign_id == campaign_id, log.epoch_id == bindparam("epoch"))
    return sum(connection.execute(by_epoch, {"epoch": epoch_id}).scalar_one() for epoch_id in epochs)


def due_blocks(connection: Connection, campaign_id: str, run: Run) -> Iterator[tuple[bytes, bytes]]:
    """(epoch id, block) of everything the run settles, epoch by epoch."""
    progress = SETTLEMENT_PROGRESS.c
    rows = connection.execute(select(SETTLEMENT_PROGRESS).where(progress.campaign_id == campaign_id)).all()
    for row in rows:
        settled = Numbers.read(row.contiguous, row.extras)
        target = Numbers.read(row.target_contiguous, row.target_extras)
        if settled != target:
            yield from _blocks_of(connection, campaign_id, row.epoch_id, settled, target)
    conflicts = LANDING_CONFLICTS.c
    yield from connection.execute(
        select(conflicts.epoch_id, conflicts.block).where(
            conflicts.campaign_id == campaign_id, conflicts.run == run.number
        )
    )


def _blocks_of(
    connection: Connection, campaign_id: str, epoch_id: bytes, settled: Numbers, target: Numbers
) -> Iterator[tuple[bytes, bytes]]:
    log, blocks = LANDING_LOG.c, LANDED_BLOCKS.c
    positions = [
        position
        for number, position in connection.execute(
            select(log.number, log.position)
            .where(
                log.campaign_id == campaign_id,
                log.epoch_id == epoch_id,
                log.number > settled.contiguous,
            )
            .order_by(log.number)
        )
        if number in target and number not in settled
    ]
    for start in range(0, len(positions), BLOCKS_AT_ONCE):
        some = positions[start : start + BLOCKS_AT_ONCE]
        for block in connection.execute(
            select(blocks.block).where(blocks.campaign_id == campaign_id, blocks.position.in_(some))
        ).scalars():
            yield epoch_id, block


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
