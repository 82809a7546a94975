"""One partition of a settlement run: what its pseudonyms gave, merged into their scripts and stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, insert, text, update

from vault.keyring import AnswerKeys
from vault.registry import CLASS, RegistryEntry
from vault.script_store import OldScripts
from vault.scripts import NOTHING, SEAT, join, merge
from vault.store.landing_tables import SCRIPT_CONFLICTS, SCRIPTS, SETTLEMENT_COUNTS

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


def bounds(partition: int, partitions: int) -> tuple[bytes, bytes]:
    """The pseudonyms low ≤ p < high of a partition; all partitions together cover every pseudonym."""
    low = (partition << 64) // partitions
    high = ((partition + 1) << 64) // partitions
    # 17 bytes of ones stand above every pseudonym, which has 16.
    return low.to_bytes(8, "big"), b"\xff" * 17 if partition + 1 == partitions else high.to_bytes(8, "big")


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


class Partition:
    """Takes pseudonyms in ascending order; nothing is stored before `store`."""

    def __init__(self, keys: AnswerKeys, old: OldScripts) -> None:
        self.sums = Sums()
        self._keys = keys
        self._old = old
        self._scripts: list[dict[str, Any]] = []
        self._conflicts: list[dict[str, Any]] = []

    def take(self, pseudonym: bytes, entries: Sequence[bytes], entry: RegistryEntry | None) -> None:
        """Merges what came for a pseudonym. `entry` is None for a code that this vault did not issue."""
        accepted = _of_known_seats(entries, entry)
        self.sums.quarantined += len(entries) - len(accepted)
        if accepted:
            self._merge(pseudonym, accepted)

    def store(self, connection: Connection, campaign_id: str) -> None:
        """Stores scripts and counts, in the transaction that takes the step to the next partition."""
        if self._scripts:
            connection.execute(_PUT_SCRIPTS, self._scripts)
        if self._conflicts:
            connection.execute(_PUT_CONFLICTS, self._conflicts)
        added = {one.name: getattr(self.sums, one.name) for one in fields(Sums)}
        columns = SETTLEMENT_COUNTS.c
        changed = connection.execute(
            update(SETTLEMENT_COUNTS)
            .where(columns.campaign_id == campaign_id)
            .values({name: columns[name] + value for name, value in added.items()})
        )
        if changed.rowcount == 0:
            connection.execute(insert(SETTLEMENT_COUNTS), {"campaign_id": campaign_id, **added})

    def _merge(self, pseudonym: bytes, new: Sequence[bytes]) -> None:
        known = self._old.find(pseudonym)
        old, version = (known.script, known.version) if known is not None else (NOTHING, 0)
        script = merge(old, new)
        sums = self.sums
        sums.settled += len(script.kept) - len(old.kept)
        sums.conflict += len(script.losers) - len(old.losers)
        sums.duplicate += len(new) - len(script.kept) - len(script.losers) + len(old.kept) + len(old.losers)
        sums.scripts += known is None
        sums.answers += script.answers - old.answers
        sums.digests_agree += script.digests_agree - old.digests_agree
        sums.digests_differ += script.digests_differ - old.digests_differ
        place = {"campaign_id": self._keys.campaign_id, "pseudonym": pseudonym}
        seal = self._keys.rows.seal
        if script.kept != old.kept:
            self._scripts.append(
                {
                    **place,
                    "version": version + 1,
                    "records": len(script.kept),
                    "answers": script.answers,
                    "digests_agree": script.digests_agree,
                    "digests_differ": script.digests_differ,
                    "sealed": seal(SCRIPTS.name, pseudonym, join(script.kept)),
                }
            )
        if script.losers != old.losers:
            sealed = seal(SCRIPT_CONFLICTS.name, pseudonym, join(script.losers))
            self._conflicts.append({**place, "records": len(script.losers), "sealed": sealed})


def _of_known_seats(entries: Sequence[bytes], entry: RegistryEntry | None) -> Sequence[bytes]:
    """The records that belong to a code of this vault; the rest is counted as quarantined."""
    if entry is None:
        return []
    last = (entry.seats if entry.kind == CLASS else 0).to_bytes(2, "big")
    if max(map(_seat, entries)) <= last:
        return entries
    return [found for found in entries if _seat(found) <= last]


_seat = itemgetter(SEAT)
