"""Settlement: from landed blocks to one script per pseudonym, then to results.

A run takes a bounded number of blocks that have landed and are not settled (vault/progress.py). It
goes through the pseudonyms in partitions, so that memory stays bounded however many there are: per
partition it walks over the run's blocks, opens the records of that partition alone (each record is
opened once), merges them into the scripts, and stores scripts, counts and the step to the next
partition in one transaction. A run that was cut off goes on at the partition that is due; nothing is
lost and nothing counted twice.

Only settlement writes scripts. Merging reads them outside the writing transaction, so that deposits
go on meanwhile; a second process that settles the same campaign finds its partition already stored and
is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sqlalchemy import Connection, delete

from pli.blocks import block_hash
from pli.errors import IntegrityError, StateError
from vault.counts import accounted, campaign_counts, landed_blocks, landed_records, scripts_stored
from vault.due_blocks import due_blocks
from vault.epochs import OpenEpochs
from vault.keyring import AnswerKeys, KeyRing
from vault.landing_log import verify_log
from vault.partition import Partition, bounds
from vault.progress import Run, advance, begin_run, forget_progress, last_run
from vault.registry import known_pseudonyms
from vault.results import is_scored, score_due
from vault.script_store import OldScripts
from vault.store.database import Database
from vault.store.landing_tables import RESULTS, SCRIPT_CONFLICTS, SCRIPTS, SETTLEMENT_COUNTS

PARTITION_RECORDS = 2_000_000
"""About 300 MB while such a partition is merged."""

RUN_PARTITIONS = 2
"""Of a full run. More of them walk over the run's blocks more often; fewer make the runs smaller, so
that scripts are touched by more of them. Both cost about the same here."""

_TWO_VAULTS = "another process settles campaign {}; let one vault do it"


class Settlement:
    """Settles campaigns, one at a time. One per vault process.

    `on_stored` is told (campaign, partition) after each partition is on disk; tests cut off there.
    """

    def __init__(
        self,
        database: Database,
        keyring: KeyRing,
        epochs: OpenEpochs | None = None,
        *,
        partition_records: int = PARTITION_RECORDS,
        on_stored: Callable[[str, int], None] = lambda _campaign_id, _partition: None,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._epochs = epochs if epochs is not None else OpenEpochs()
        self._partition_records = partition_records
        self._on_stored = on_stored
        self._one = asyncio.Lock()

    async def settle(self, campaign_id: str) -> None:
        """Settles all that had landed when it began, scores what changed, and checks the sums.

        Raises:
            VaultLocked: the answers of this campaign are locked, or were locked meanwhile.
            IntegrityError: a landed block was altered in the database, or the sums do not agree.
            StateError: another process settles this campaign.
        """
        async with self._one:
            self._keyring.answers(campaign_id)
            below = await self._database.read(lambda connection: landed_blocks(connection, campaign_id))
            await self._go_on(campaign_id)
            while await self._database.write(lambda connection: self._begin(connection, campaign_id, below)):
                await self._go_on(campaign_id)
            await score_due(self._database, self._keyring, campaign_id)
            await self._database.read(lambda connection: _check(connection, campaign_id))

    async def resettle(self, campaign_id: str) -> None:
        """Throws every script and result away and makes them again from the landing log."""
        self._keyring.answers(campaign_id)
        async with self._one:
            await self._database.write(lambda connection: _forget(connection, campaign_id))
        await self.settle(campaign_id)

    def _begin(self, connection: Connection, campaign_id: str, below: int) -> bool:
        if not last_run(connection, campaign_id).ended:
            raise StateError(_TWO_VAULTS.format(campaign_id))
        return begin_run(connection, campaign_id, below, RUN_PARTITIONS * self._partition_records, RUN_PARTITIONS)

    async def _go_on(self, campaign_id: str) -> None:
        """Does what is left of the last run, partition by partition."""
        while not (run := await self._database.read(lambda connection: last_run(connection, campaign_id))).ended:
            partition = await self._merged(self._keyring.answers(campaign_id), run)
            await self._store(campaign_id, run, partition)
            self._on_stored(campaign_id, run.next_partition)

    async def _merged(self, keys: AnswerKeys, run: Run) -> Partition:
        try:
            return await self._database.read(lambda connection: self._merge(connection, keys, run))
        finally:
            self._epochs.forget_if_locked(self._keyring, keys)

    async def _store(self, campaign_id: str, run: Run, partition: Partition) -> None:
        def store(connection: Connection) -> None:
            if not advance(connection, campaign_id, run):
                raise StateError(_TWO_VAULTS.format(campaign_id))
            partition.store(connection, campaign_id)

        writing = asyncio.ensure_future(self._database.write(store))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The next to settle must find this partition either stored or not begun.
            await writing
            raise

    def _merge(self, connection: Connection, keys: AnswerKeys, run: Run) -> Partition:
        low, high = bounds(run.next_partition, run.partitions)
        entries = self._open(connection, keys, run, low, high)
        pseudonyms = sorted(entries)
        registry = known_pseudonyms(connection, keys.campaign_id, pseudonyms)
        partition = Partition(keys, OldScripts(connection, keys, pseudonyms))
        for pseudonym in pseudonyms:
            partition.take(pseudonym, entries.pop(pseudonym), registry.get(pseudonym))
        return partition

    def _open(
        self, connection: Connection, keys: AnswerKeys, run: Run, low: bytes, high: bytes
    ) -> dict[bytes, list[bytes]]:
        entries: dict[bytes, list[bytes]] = {}
        for block in due_blocks(connection, keys.campaign_id, run):
            # Locking ends a merge that is under way: nothing of it is stored.
            self._keyring.answers(keys.campaign_id)
            epoch = self._epochs.find(connection, keys, block.epoch_id)
            if epoch is None:
                raise IntegrityError(
                    f"the header of epoch {block.epoch_id.hex()} is gone; restore the vault's database"
                )
            try:
                context = epoch.collect(block.raw, low, high, entries)
                # The tag tells that a node made this block; only this tells that it is the one that landed here.
                if context.number != block.number or block_hash(block.raw) != block.digest:
                    raise IntegrityError(f"another block stands in the place of block {block.number}")
            except IntegrityError as error:
                raise IntegrityError(
                    f"a landed block of epoch {block.epoch_id.hex()} was altered in the vault's database "
                    f"({error.message}); restore the database from a backup"
                ) from error
        return entries


def _forget(connection: Connection, campaign_id: str) -> None:
    for table in (SCRIPTS, SCRIPT_CONFLICTS, RESULTS, SETTLEMENT_COUNTS):
        connection.execute(delete(table).where(table.c.campaign_id == campaign_id))
    forget_progress(connection, campaign_id)


def _check(connection: Connection, campaign_id: str) -> None:
    """Landed = settled + duplicate + conflict + quarantined, over the blocks that are settled."""
    verify_log(connection, campaign_id)
    landed = landed_records(connection, campaign_id)
    if landed.targeted != landed.accounted:
        raise IntegrityError(
            f"{landed.targeted} records have landed, but settlement accounts for {landed.accounted}; "
            "settle again from the landing log, and compare with a backup"
        )
    made, stored = campaign_counts(connection, campaign_id).scripts, scripts_stored(connection, campaign_id)
    if made != stored:
        raise IntegrityError(
            f"settlement made {made} scripts, but the vault's database holds {stored}; "
            "settle again from the landing log, and compare with a backup"
        )


def is_settled(connection: Connection, campaign_id: str) -> bool:
    """Whether scripts and results hold everything that has landed, and none of them is gone."""
    counts = campaign_counts(connection, campaign_id)
    return (
        counts.landed == accounted(counts)
        and counts.scripts == scripts_stored(connection, campaign_id)
        and is_scored(connection, campaign_id)
    )
