"""The drain: what is still missing until everything that the platform acknowledged is in the vault.

Each shard's frozen table of epochs (pli/closings.py) is compared with the landing log, and the log with
itself, by four rules:

1. every shard has closed, its table has landed, nothing waits in its stream, nothing is in quarantine;
2. of every epoch in a table the vault holds the blocks 1 … last, and the last one is the table's;
3. every block names the hash of the one before it, and every landed epoch stands in its shard's table;
4. every epoch header names the epoch before it in its process, and that one has landed as far as it says.

The table is not signed. Rule 2 finds a block that was lost on the way and a table that claims too much,
rule 3 a table that leaves out what landed, rule 4 an epoch that was dropped and left out as well. What
the platform never showed to anyone (the end of a process's last epoch) only the clients' digests find.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Connection, and_, case, func, select

from pli.blocks import NO_HASH, read_context
from pli.closings import ClosedEpoch, Closing
from pli.epochs import NO_EPOCH
from vault.closings import load_closings
from vault.store.landing_tables import EPOCH_HEADERS, LANDING_CONFLICTS, LANDING_LOG, LANDING_TOTALS, QUARANTINE
from vault.sync import Shard, load_shards

MAX_SENTENCES = 20
"""What a person reads at one time; the rest is counted by a last sentence."""

MAX_NUMBERS = 5
"""Missing blocks of one epoch that are named one by one."""


@dataclass(frozen=True, slots=True)
class LandedEpoch:
    """What the landing log holds of one epoch."""

    epoch_id: bytes
    shard: int
    blocks: int
    last_number: int


class Drain:
    """Finds what is missing, and remembers it per campaign until something lands or changes.

    Comparing the whole log takes seconds for a large campaign, and is asked for every second.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, list[str]]] = {}

    def missing(self, connection: Connection, campaign_id: str) -> list[str]:
        """Sentences that name shard, epoch and number; empty when the drain is complete."""
        shards = load_shards(connection, campaign_id)
        closings = load_closings(connection, campaign_id)
        seen = (_extent(connection, campaign_id), tuple(_facts(shard) for shard in shards), tuple(closings.items()))
        known = self._known.get(campaign_id)
        if known is None or known[0] != seen:
            known = seen, _shortened(find_missing(connection, campaign_id, shards, closings))
            self._known[campaign_id] = known
        return list(known[1])


def find_missing(
    connection: Connection, campaign_id: str, shards: list[Shard], closings: dict[int, Closing]
) -> Iterator[str]:
    """All that is missing, by the rules in the module's text, the cheap ones first."""
    yield from _open_shards(shards, closings)
    yield from _quarantined(connection, campaign_id)
    landed = {epoch.epoch_id: epoch for epoch in _landed_epochs(connection, campaign_id)}
    for shard, closing in sorted(closings.items()):
        for closed in closing.epochs:
            yield from _short_of_table(connection, campaign_id, shard, closed, landed.get(closed.epoch_id))
    yield from _unknown_to_table(closings, landed)
    yield from _unlinked_blocks(connection, campaign_id)
    yield from _unlinked_epochs(connection, campaign_id, landed)


# Rule 1


def _open_shards(shards: list[Shard], closings: dict[int, Closing]) -> Iterator[str]:
    for shard in shards:
        closing = closings.get(shard.shard)
        if shard.exchanged:
            yield f"shard {shard.shard}: the relay has another store than the one that was adopted; restore that one"
        if not shard.closed:
            yield f"shard {shard.shard}: it has not closed yet"
        if shard.blocks_waiting:
            yield f"shard {shard.shard}: entries waiting in the spool for the relay: {shard.blocks_waiting}"
        if closing is None:
            yield f"shard {shard.shard}: its frozen table of epochs has not landed"
        elif closing.marker != shard.marker:
            yield f"shard {shard.shard}: its frozen table of epochs was written by another store"


def _quarantined(connection: Connection, campaign_id: str) -> Iterator[str]:
    columns = QUARANTINE.c
    rows = connection.execute(
        select(columns.shard, columns.kind, func.count())
        .where(columns.campaign_id == campaign_id)
        .group_by(columns.shard, columns.kind)
        .order_by(columns.shard, columns.kind)
    )
    for shard, kind, count in rows:
        yield f"shard {shard}: in quarantine, of kind {kind}: {count}; examine why they do not authenticate"


# Rule 2


def _landed_epochs(connection: Connection, campaign_id: str) -> Iterator[LandedEpoch]:
    columns = LANDING_LOG.c
    rows = connection.execute(
        select(columns.epoch_id, func.min(columns.shard), func.count(), func.max(columns.number))
        .where(columns.campaign_id == campaign_id)
        .group_by(columns.epoch_id)
        .order_by(func.min(columns.shard), columns.epoch_id)
    )
    for row in rows:
        yield LandedEpoch(*row)


def _short_of_table(
    connection: Connection, campaign_id: str, shard: int, closed: ClosedEpoch, landed: LandedEpoch | None
) -> Iterator[str]:
    epoch = _named(shard, closed.epoch_id)
    if landed is None:
        yield f"{epoch}: nothing of it has landed, the frozen table ends at block {closed.last_number}"
    elif landed.shard != shard:
        yield f"{epoch}: it landed from shard {landed.shard}"
    elif landed.last_number > closed.last_number:
        yield f"{epoch}: block {landed.last_number} has landed, the frozen table ends at {closed.last_number}"
    elif landed.blocks < closed.last_number:
        yield f"{epoch}: {_blocks_absent(connection, campaign_id, closed)}"
    elif closed.last_digest not in _digests_at(connection, campaign_id, closed.epoch_id, closed.last_number):
        yield f"{epoch}: block {closed.last_number} has another hash than the frozen table says"


def _blocks_absent(connection: Connection, campaign_id: str, closed: ClosedEpoch) -> str:
    columns = LANDING_LOG.c
    held = set(
        connection.execute(
            select(columns.number).where(columns.campaign_id == campaign_id, columns.epoch_id == closed.epoch_id)
        ).scalars()
    )
    count = closed.last_number - len(held)
    absent = (number for number in range(1, closed.last_number + 1) if number not in held)
    named = ", ".join(str(number) for number in islice(absent, MAX_NUMBERS))
    more = f" and {count - MAX_NUMBERS} more" if count > MAX_NUMBERS else ""
    return f"of {closed.last_number} blocks these have not landed: {named}{more}"


def _digests_at(connection: Connection, campaign_id: str, epoch_id: bytes, number: int) -> set[bytes]:
    """The hashes of all authentic blocks of this place: the landed one, and its conflicts beside it."""
    found: set[bytes] = set()
    for table in (LANDING_LOG, LANDING_CONFLICTS):
        columns = table.c
        found.update(
            connection.execute(
                select(columns.digest).where(
                    columns.campaign_id == campaign_id, columns.epoch_id == epoch_id, columns.number == number
                )
            ).scalars()
        )
    return found


# Rule 3


def _unknown_to_table(closings: dict[int, Closing], landed: dict[bytes, LandedEpoch]) -> Iterator[str]:
    listed = {closed.epoch_id for closing in closings.values() for closed in closing.epochs}
    for epoch in landed.values():
        if epoch.shard in closings and epoch.epoch_id not in listed:
            yield (
                f"{_named(epoch.shard, epoch.epoch_id)}: blocks up to {epoch.last_number} have landed, "
                "the shard's frozen table does not know it"
            )


def _unlinked_blocks(connection: Connection, campaign_id: str) -> Iterator[str]:
    with_conflicts = _epochs_with_conflicts(connection, campaign_id)
    for shard, epoch_id, number in _broken_links(connection, campaign_id):
        if epoch_id not in with_conflicts:
            yield f"{_named(shard, epoch_id)}: block {number} does not follow the one before it"
    for epoch_id, shard in with_conflicts.items():
        number = _first_unreachable(connection, campaign_id, epoch_id)
        if number:
            yield f"{_named(shard, epoch_id)}: block {number} does not follow any block before it"


def _broken_links(connection: Connection, campaign_id: str) -> Iterator[Any]:
    """(shard, epoch id, number) of landed blocks whose previous hash is not that of the block before.

    A block whose predecessor has not landed is none of these: rule 2 names the missing one.
    """
    this, before = LANDING_LOG.alias(), LANDING_LOG.alias()
    expected = case((this.c.number == 1, NO_HASH), else_=before.c.digest)
    joined = this.outerjoin(
        before,
        and_(
            before.c.campaign_id == this.c.campaign_id,
            before.c.epoch_id == this.c.epoch_id,
            before.c.number == this.c.number - 1,
        ),
    )
    yield from connection.execute(
        select(this.c.shard, this.c.epoch_id, this.c.number)
        .select_from(joined)
        .where(this.c.campaign_id == campaign_id, this.c.previous_hash != expected)
        .order_by(this.c.shard, this.c.epoch_id, this.c.number)
    )


def _epochs_with_conflicts(connection: Connection, campaign_id: str) -> dict[bytes, int]:
    columns = LANDING_CONFLICTS.c
    rows = connection.execute(
        select(columns.epoch_id, func.min(columns.shard))
        .where(columns.campaign_id == campaign_id)
        .group_by(columns.epoch_id)
    )
    return {row[0]: row[1] for row in rows}


def _first_unreachable(connection: Connection, campaign_id: str, epoch_id: bytes) -> int:
    """The first number at which no chain from block 1 goes on; 0 when one reaches the last block.

    Of blocks in conflict either may be the one that the node went on from.
    """
    places: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    log, conflicts = LANDING_LOG.c, LANDING_CONFLICTS.c
    for number, digest, previous_hash in connection.execute(
        select(log.number, log.digest, log.previous_hash).where(
            log.campaign_id == campaign_id, log.epoch_id == epoch_id
        )
    ):
        places[number].append((digest, previous_hash))
    for number, digest, block in connection.execute(
        select(conflicts.number, conflicts.digest, conflicts.block).where(
            conflicts.campaign_id == campaign_id, conflicts.epoch_id == epoch_id
        )
    ):
        places[number].append((digest, read_context(block).previous_hash))
    reached = {NO_HASH}
    for number in range(1, max(places) + 1):
        reached = {digest for digest, previous_hash in places[number] if previous_hash in reached}
        if not reached:
            return number
    return 0


# Rule 4


def _unlinked_epochs(connection: Connection, campaign_id: str, landed: dict[bytes, LandedEpoch]) -> Iterator[str]:
    columns = EPOCH_HEADERS.c
    rows = connection.execute(
        select(columns.epoch_id, columns.shard, columns.process_id, columns.previous_epoch, columns.previous_last)
        .where(columns.campaign_id == campaign_id)
        .order_by(columns.shard, columns.epoch_id)
    ).all()
    owners = {row.epoch_id: (row.shard, row.process_id) for row in rows}
    for row in rows:
        if row.previous_epoch == NO_EPOCH:
            continue
        epoch, before = _named(row.shard, row.epoch_id), row.previous_epoch.hex()[:8]
        previous = landed.get(row.previous_epoch)
        if previous is None:
            yield f"{epoch}: it follows block {row.previous_last} of epoch {before}, of which nothing has landed"
        elif owners.get(row.previous_epoch) != (row.shard, row.process_id):
            yield f"{epoch}: it follows epoch {before}, which belongs to another process or shard"
        elif previous.last_number < row.previous_last:
            yield (
                f"{epoch}: it follows block {row.previous_last} of epoch {before}, "
                f"of which only blocks up to {previous.last_number} have landed"
            )


# What is remembered


def _extent(connection: Connection, campaign_id: str) -> tuple[Any, ...]:
    """Changes whenever something lands: blocks, records, conflicts, headers, quarantine."""
    totals = LANDING_TOTALS.c
    row = connection.execute(
        select(totals.blocks, totals.conflict_records).where(totals.campaign_id == campaign_id)
    ).one_or_none()
    counts = [
        connection.execute(select(func.count()).where(table.c.campaign_id == campaign_id)).scalar_one()
        for table in (EPOCH_HEADERS, LANDING_CONFLICTS, QUARANTINE)
    ]
    return (None if row is None else tuple(row), *counts)


def _facts(shard: Shard) -> tuple[object, ...]:
    return shard.marker, shard.reported_marker, shard.closed, shard.blocks_waiting


def _shortened(sentences: Iterator[str]) -> list[str]:
    shown = list(islice(sentences, MAX_SENTENCES))
    more = sum(1 for _ in sentences)
    return [*shown, f"and {more} more"] if more else shown


def _named(shard: int, epoch_id: bytes) -> str:
    return f"shard {shard}, epoch {epoch_id.hex()[:8]}"
