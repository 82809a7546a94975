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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Connection, delete, insert, text, update

from pli.blocks import block_hash
from pli.errors import IntegrityError, StateError
from vault.counts import accounted, campaign_counts, landed_blocks, landed_records, scripts_stored
from vault.epochs import OpenEpochs
from vault.keyring import AnswerKeys, KeyRing
from vault.landing_log import verify_log
from vault.progress import Run, advance, begin_run, due_blocks, forget_progress, last_run
from vault.registry import CLASS, RegistryEntry, known_pseudonyms
from vault.results import is_scored, score_due
from vault.script_store import OldScripts
from vault.scripts import NOTHING, SEAT, join, merge
from vault.store.database import Database
from vault.store.landing_tables import RESULTS, SCRIPT_CONFLICTS, SCRIPTS, SETTLEMENT_COUNTS

PARTITION_RECORDS = 1_000_000
"""About 150 MB while such a partition is merged."""

RUN_PARTITIONS = 2
"""Of a full run. More of them walk over the run's blocks more often; fewer make the runs smaller, so
that scripts are touched by more of them. Both cost about the same here."""

_TWO_VAULTS = "another process settles campaign {}; let one vault do it"

_PUT_SCRIPTS = text(
    "INSERT INTO scripts (campaign_id, pseudonym, version, records, answers, digests_agree, digests_differ, sealed) "
    "VALUES (:campaign_id, :pseudonym, :version, :records, :answers, :digests_agree, :digests_differ, :sealed) "
    "ON CONFLICT (campaign_id, pseudonym) DO UPDATE SET version = excluded.version, records = excluded.records, "
    "answers = excluded.answers, digests_agree = excluded.digests_agree, "
    "digests_differ = excluded.digests_differ, sealed = excluded.sealed"
)
_PUT_CONFLICTS = text(
    "INSERT INTO script_conflicts (campaign_id, pseudonym, records, sealed) "
    "VALUES (:campaign_id, :pseudonym, :records, :sealed) "
    "ON CONFLICT (campaign_id, pseudonym) DO UPDATE SET records = excluded.records, sealed = excluded.sealed"
)


@dataclass(slots=True)
class Sums:
    """What a partition adds to `settlement_counts`, column by column."""

    settled: int = 0
    duplicate: int = 0
    conflict: int = 0
    quarantined: int = 0
    scripts: int = 0
    answers: int = 0
    digests_agree: int = 0
    digests_differ: int = 0


@dataclass(slots=True, repr=False)
class _Merged:
    """A partition, ready to be stored."""

    scripts: list[dict[str, Any]] = field(default_factory=list)
    conflicts: list[dict[str, Any]] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)


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
            merged = await self._merged(self._keyring.answers(campaign_id), run)
            await self._store(campaign_id, run, merged)
            self._on_stored(campaign_id, run.next_partition)

    async def _merged(self, keys: AnswerKeys, run: Run) -> _Merged:
        try:
            return await self._database.read(lambda connection: self._merge(connection, keys, run))
        finally:
            self._epochs.forget_if_locked(self._keyring, keys)

    async def _store(self, campaign_id: str, run: Run, merged: _Merged) -> None:
        writing = asyncio.ensure_future(
            self._database.write(lambda connection: _store(connection, campaign_id, run, merged))
        )
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The next to settle must find this partition either stored or not begun.
            await writing
            raise

    def _merge(self, connection: Connection, keys: AnswerKeys, run: Run) -> _Merged:
        low, high = bounds(run.next_partition, run.partitions)
        entries = self._open(connection, keys, run, low, high)
        pseudonyms = sorted(entries)
        registry = known_pseudonyms(connection, keys.campaign_id, pseudonyms)
        old = OldScripts(connection, keys, pseudonyms)
        merged = _Merged()
        for pseudonym in pseudonyms:
            found = entries.pop(pseudonym)
            accepted = _of_known_seats(found, registry.get(pseudonym))
            merged.sums.quarantined += len(found) - len(accepted)
            if accepted:
                _merge_script(merged, keys, pseudonym, accepted, old)
        return merged

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


def bounds(partition: int, partitions: int) -> tuple[bytes, bytes]:
    """The pseudonyms low ≤ p < high of a partition; all partitions together cover every pseudonym."""
    low = (partition << 64) // partitions
    high = ((partition + 1) << 64) // partitions
    # 17 bytes of ones stand above every pseudonym, which has 16.
    return low.to_bytes(8, "big"), b"\xff" * 17 if partition + 1 == partitions else high.to_bytes(8, "big")


def _of_known_seats(entries: list[bytes], entry: RegistryEntry | None) -> list[bytes]:
    """The records that belong to a code of this vault; the rest is counted as quarantined."""
    if entry is None:
        return []
    last = (entry.seats if entry.kind == CLASS else 0).to_bytes(2, "big")
    return [found for found in entries if found[SEAT] <= last]


def _merge_script(
    merged: _Merged, keys: AnswerKeys, pseudonym: bytes, new: Sequence[bytes], scripts: OldScripts
) -> None:
    known = scripts.find(pseudonym)
    old, version = (known.script, known.version) if known is not None else (NOTHING, 0)
    script = merge(old, new)
    sums = merged.sums
    sums.settled += len(script.kept) - len(old.kept)
    sums.conflict += len(script.losers) - len(old.losers)
    sums.duplicate += len(new) - len(script.kept) - len(script.losers) + len(old.kept) + len(old.losers)
    sums.scripts += known is None
    sums.answers += script.answers - old.answers
    sums.digests_agree += script.digests_agree - old.digests_agree
    sums.digests_differ += script.digests_differ - old.digests_differ
    place = {"campaign_id": keys.campaign_id, "pseudonym": pseudonym}
    if script.kept != old.kept:
        merged.scripts.append(
            {
                **place,
                "version": version + 1,
                "records": len(script.kept),
                "answers": script.answers,
                "digests_agree": script.digests_agree,
                "digests_differ": script.digests_differ,
                "sealed": keys.rows.seal(SCRIPTS.name, pseudonym, join(script.kept)),
            }
        )
    if script.losers != old.losers:
        sealed = keys.rows.seal(SCRIPT_CONFLICTS.name, pseudonym, join(script.losers))
        merged.conflicts.append({**place, "records": len(script.losers), "sealed": sealed})


def _store(connection: Connection, campaign_id: str, run: Run, merged: _Merged) -> None:
    if not advance(connection, campaign_id, run):
        raise StateError(_TWO_VAULTS.format(campaign_id))
    if merged.scripts:
        connection.execute(_PUT_SCRIPTS, merged.scripts)
    if merged.conflicts:
        connection.execute(_PUT_CONFLICTS, merged.conflicts)
    added = {one.name: getattr(merged.sums, one.name) for one in fields(Sums)}
    columns = SETTLEMENT_COUNTS.c
    changed = connection.execute(
        update(SETTLEMENT_COUNTS)
        .where(columns.campaign_id == campaign_id)
        .values({name: columns[name] + value for name, value in added.items()})
    )
    if changed.rowcount == 0:
        connection.execute(insert(SETTLEMENT_COUNTS), {"campaign_id": campaign_id, **added})


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
