"""The audit log: durable before anything it permits, append-only, and readable without any name in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import Connection, Executable, delete, insert, select, update

from pli.errors import IntegrityError, VaultLocked
from pli.identity import Peer
from tests.support.vault_parts import CAMPAIGN, NOW_MS, VaultParts, vault_parts
from vault.audit import LOG, WHOLE_VAULT, Audit, read_audit, verify_audit
from vault.keystore import Scope
from vault.merkle import consistency_proof, leaf_hash, verify_consistency
from vault.store.campaign_tables import AUDIT, LOG_HEADS

RITA = Peer("reporter", "rita")
NAME = "Zoé Bäcker".encode()


@pytest_asyncio.fixture
async def parts(tmp_path: Path) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as parts:
        await parts.create()
        yield parts


async def looked(parts: VaultParts, times: int = 1, purpose: str = "a reason") -> None:
    for _ in range(times):
        await parts.audit.record(RITA, "look", CAMPAIGN, purpose, NAME, 1)


async def test_an_entry_says_who_did_what_when_why_and_to_how_many(parts: VaultParts) -> None:
    await parts.audit.record(RITA, "look", CAMPAIGN, "a reason", NAME, 3)
    (entry,) = parts.audit_entries()
    said = json.loads(entry)
    subjects = bytes.fromhex(said.pop("subjects"))
    assert said == {
        "action": "look",
        "actor": "rita",
        "campaign": CAMPAIGN,
        "count": 3,
        "purpose": "a reason",
        "role": "reporter",
        "time_ms": NOW_MS,
    }
    assert parts.identities.rows.open(LOG, bytes(8), subjects) == NAME


async def test_whom_it_is_about_is_sealed_for_its_own_entry(parts: VaultParts) -> None:
    await looked(parts, 2)
    first, second = (bytes.fromhex(json.loads(entry)["subjects"]) for entry in parts.audit_entries())
    assert all(NAME not in entry for entry in parts.audit_entries())
    with pytest.raises(IntegrityError):
        parts.identities.rows.open(LOG, bytes(8), second)
    with pytest.raises(IntegrityError):
        parts.identities.rows.open(LOG, (1).to_bytes(8, "big"), first)


async def test_entries_are_canonical_so_that_their_hash_can_be_made_again(parts: VaultParts) -> None:
    await looked(parts, purpose="élève n° 1")
    (entry,) = parts.audit_entries()
    again = json.dumps(json.loads(entry), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert again == entry


async def test_what_is_recorded_is_on_disk_when_the_call_returns(parts: VaultParts) -> None:
    await looked(parts)
    with vault_parts(parts.directory) as again:
        assert again.audit_entries() == parts.audit_entries()
        assert await again.audit.check()


async def test_the_log_of_yesterday_is_a_prefix_of_today_s(parts: VaultParts) -> None:
    heads = []
    for _ in range(5):
        await looked(parts, 2)
        heads.append(parts.database.read_now(verify_audit))
    hashes = [leaf_hash(entry) for entry in parts.audit_entries()]
    today = heads[-1]
    for head in heads:
        proof = consistency_proof(hashes, head.size)
        verify_consistency(head.size, head.root(), today.size, today.root(), proof)


async def test_entries_side_by_side_are_all_there_once(parts: VaultParts) -> None:
    await asyncio.gather(*(looked(parts, purpose=f"reason {number}") for number in range(20)))
    purposes = {json.loads(entry)["purpose"] for entry in parts.audit_entries()}
    assert len(parts.audit_entries()) == len(purposes) == 20
    assert await parts.audit.check()


@pytest.mark.parametrize(
    "tampering",
    [
        [update(AUDIT).where(AUDIT.c.number == 1).values(entry=b"{}")],
        [delete(AUDIT).where(AUDIT.c.number == 1)],
        [delete(AUDIT).where(AUDIT.c.number == 2)],
        [delete(AUDIT).where(AUDIT.c.number == 0)],
        [insert(AUDIT).values(number=3, entry=b"{}")],
        [
            update(AUDIT).where(AUDIT.c.number == 0).values(number=9),
            update(AUDIT).where(AUDIT.c.number == 1).values(number=0),
            update(AUDIT).where(AUDIT.c.number == 9).values(number=1),
        ],
        [delete(AUDIT)],
        [update(LOG_HEADS).values(size=2)],
        [update(LOG_HEADS).values(frontier=bytes(64))],
        [delete(LOG_HEADS)],
    ],
    ids=["edited", "removed", "truncated", "beheaded", "added", "swapped", "emptied", "size", "frontier", "head"],
)
async def test_a_log_that_was_tampered_with_is_found_and_lets_no_name_out(
    parts: VaultParts, tampering: list[Executable]
) -> None:
    await looked(parts, 3)
    assert await parts.audit.check()
    for change in tampering:
        parts.database.write_now(partial(Connection.execute, statement=change))
    assert not await parts.audit.check()
    with pytest.raises(IntegrityError):
        await looked(parts)


async def test_after_a_check_that_failed_collection_goes_on_and_notes_are_kept(parts: VaultParts) -> None:
    await looked(parts, 2)
    parts.database.write_now(lambda c: c.execute(update(AUDIT).where(AUDIT.c.number == 0).values(entry=b"{}")))
    assert not await parts.audit.check()
    with pytest.raises(IntegrityError, match="audit log"):
        await looked(parts)
    await parts.audit.note(RITA, "open-window", CAMPAIGN)
    assert json.loads(parts.audit_entries()[-1])["action"] == "open-window"


async def test_nothing_about_persons_is_recorded_while_identities_are_locked(parts: VaultParts) -> None:
    parts.keystore.lock(Scope.IDENTITIES)
    with pytest.raises(VaultLocked):
        await looked(parts)
    assert parts.audit_entries() == []
    await parts.audit.record(RITA, "count", CAMPAIGN, "a reason", None, 0)
    assert "subjects" not in json.loads(parts.audit_entries()[0])


async def test_an_entry_that_cannot_be_written_is_an_error_and_a_note_is_not(parts: VaultParts) -> None:
    full = "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    parts.database.write_now(lambda connection: connection.exec_driver_sql(full))
    with pytest.raises(Exception, match="disk full"):
        await looked(parts)
    head = select(LOG_HEADS.c.size).where(LOG_HEADS.c.campaign_id == WHOLE_VAULT)
    assert parts.database.read_now(lambda c: c.execute(head).scalar_one_or_none()) is None
    assert parts.audit_entries() == []


async def test_an_empty_log_is_whole(parts: VaultParts) -> None:
    assert await Audit(parts.database, parts.keyring, lambda: NOW_MS).check()
    assert parts.database.read_now(lambda c: list(read_audit(c))) == []
