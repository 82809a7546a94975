"""Codes: one per pupil, each alone, stored so that nothing in clear ties a pupil to a pseudonym."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text

from pli.codes import Code, new_code, parse_code
from pli.errors import StateError, VaultLocked
from pli.pseudonym import pseudonym_of
from pli.vault.v1.bundle_pb2 import Signed
from tests.support.vault_parts import CAMPAIGN, VaultParts, vault_parts
from vault.code_issue import Issued, count_codes, issue_codes, issued_codes
from vault.keystore import Scope
from vault.registry import LIVE, PUPIL
from vault.roster_store import row_of
from vault.store.campaign_tables import CODES, IDENTITIES, REGISTRY

PUPILS = 12


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as made:
        await made.create()
        yield made


async def issue(parts: VaultParts) -> Issued:
    return await issue_codes(parts.database, parts.keyring, CAMPAIGN, secrets.randbits)


def codes(parts: VaultParts) -> list[tuple[int, bytes, Code]]:
    return parts.database.read_now(lambda connection: list(issued_codes(connection, parts.identities)))


def registry(parts: VaultParts) -> list[tuple[bytes, int, int, int]]:
    columns = REGISTRY.c
    rows = select(columns.pseudonym, columns.kind, columns.seats, columns.status)
    return parts.database.read_now(lambda connection: [tuple(row) for row in connection.execute(rows)])


async def test_every_pupil_gets_one_valid_code_whose_pseudonym_is_in_the_registry(parts: VaultParts) -> None:
    parts.import_roster()
    assert await issue(parts) == Issued(PUPILS, PUPILS)
    found = codes(parts)
    assert [ordinal for ordinal, _, _ in found] == list(range(PUPILS))
    assert len({code for _, _, code in found}) == PUPILS
    for _, pseudonym, code in found:
        assert parse_code(code.printed()) == code
        assert pseudonym == pseudonym_of(parts.answers.pseudonym, code)
    assert {row[0] for row in registry(parts)} == {pseudonym for _, pseudonym, _ in found}
    assert {row[1:] for row in registry(parts)} == {(PUPIL, 0, LIVE)}


async def test_repeated_it_issues_nothing_and_changes_nothing(parts: VaultParts) -> None:
    parts.import_roster()
    await issue(parts)
    before = codes(parts)
    assert await issue(parts) == Issued(0, PUPILS)
    assert codes(parts) == before


async def test_two_calls_at_once_give_each_pupil_one_code(parts: VaultParts) -> None:
    parts.import_roster()
    outcomes = await asyncio.gather(issue(parts), issue(parts), return_exceptions=True)
    assert Issued(PUPILS, PUPILS) in outcomes
    assert all(isinstance(outcome, Issued | StateError) for outcome in outcomes)
    assert parts.rows_in(CODES) == parts.rows_in(REGISTRY) == PUPILS


async def test_a_pupil_without_code_gets_one_and_the_others_keep_theirs(parts: VaultParts) -> None:
    parts.import_roster()
    await issue(parts)
    before = codes(parts)
    sealed = parts.identities.rows.seal(IDENTITIES.name, row_of(PUPILS), b"[]")
    late = {"campaign_id": CAMPAIGN, "ordinal": PUPILS, "sealed": sealed}
    parts.database.write_now(lambda connection: connection.execute(insert(IDENTITIES), late))
    assert await issue(parts) == Issued(1, PUPILS + 1)
    assert codes(parts)[:PUPILS] == before


async def test_a_draw_that_repeats_itself_still_gives_different_codes(parts: VaultParts) -> None:
    parts.import_roster()
    bad = deque([7] * 5 + list(range(100)))
    await issue_codes(parts.database, parts.keyring, CAMPAIGN, lambda _bits: bad.popleft())
    assert len({code for _, _, code in codes(parts)}) == PUPILS
    assert len(bad) == 105 - PUPILS - 5, "4 repetitions of the first draw, and the 7 that comes again in the range"


async def test_a_code_of_an_earlier_issue_is_not_given_again(parts: VaultParts) -> None:
    parts.import_roster()
    taken = pseudonym_of(parts.answers.pseudonym, new_code(lambda _bits: 7))
    entry = {"campaign_id": CAMPAIGN, "pseudonym": taken, "kind": 3, "seats": 0, "status": 2}
    parts.database.write_now(lambda connection: connection.execute(insert(REGISTRY), entry))
    bad = deque([7, *range(20, 100)])
    await issue_codes(parts.database, parts.keyring, CAMPAIGN, lambda _bits: bad.popleft())
    assert taken not in {pseudonym for _, pseudonym, _ in codes(parts)}


async def test_without_a_roster_it_says_what_to_do(parts: VaultParts) -> None:
    with pytest.raises(StateError, match="has no roster; import one"):
        await issue(parts)


@pytest.mark.parametrize("scope", list(Scope))
async def test_both_scopes_must_be_unlocked(parts: VaultParts, scope: Scope) -> None:
    parts.import_roster()
    parts.keystore.lock(scope)
    with pytest.raises(VaultLocked, match=f"unlock scope {scope}"):
        await issue(parts)
    assert parts.rows_in(CODES) == parts.rows_in(REGISTRY) == 0


@pytest.mark.parametrize("scope", list(Scope))
async def test_locking_in_the_middle_throws_away_what_was_drawn(parts: VaultParts, scope: Scope) -> None:
    parts.import_roster()
    drawn: list[int] = []

    def lock_at_the_fifth(bits: int) -> int:
        drawn.append(secrets.randbits(bits))
        if len(drawn) == 5:
            parts.keystore.lock(scope)
        return drawn[-1]

    with pytest.raises(VaultLocked):
        await issue_codes(parts.database, parts.keyring, CAMPAIGN, lock_at_the_fifth)
    assert len(drawn) >= PUPILS
    assert parts.rows_in(CODES) == parts.rows_in(REGISTRY) == 0


async def test_a_published_campaign_gets_no_more_codes(parts: VaultParts) -> None:
    parts.import_roster()
    parts.store_bundle(Signed(), 1)
    with pytest.raises(StateError, match="its codes are fixed"):
        await issue(parts)
    assert parts.rows_in(CODES) == 0


async def test_a_failure_at_the_last_row_leaves_nothing(parts: VaultParts) -> None:
    parts.import_roster()
    last = "CREATE TRIGGER full AFTER INSERT ON registry WHEN (SELECT count(*) FROM registry) = 12 BEGIN {} END"
    broken = last.format("SELECT RAISE(ABORT, 'the disk is full');")
    parts.database.write_now(lambda connection: connection.execute(text(broken)))
    with pytest.raises(Exception, match="disk is full"):
        await issue(parts)
    assert parts.rows_in(CODES) == parts.rows_in(REGISTRY) == 0
    parts.database.write_now(lambda connection: connection.execute(text("DROP TRIGGER full")))
    assert await issue(parts) == Issued(PUPILS, PUPILS)


async def test_the_registry_is_written_and_kept_in_the_order_of_pseudonyms(parts: VaultParts) -> None:
    parts.import_roster()

    def log_writes(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE written (number INTEGER PRIMARY KEY, pseudonym BLOB)"))
        connection.execute(
            text("CREATE TRIGGER log AFTER INSERT ON registry BEGIN "
                 "INSERT INTO written (pseudonym) VALUES (NEW.pseudonym); END")
        )  # fmt: skip

    parts.database.write_now(log_writes)
    await issue(parts)
    written = parts.database.read_now(
        lambda c: list(c.execute(text("SELECT pseudonym FROM written ORDER BY number")).scalars())
    )
    kept = [row[0] for row in registry(parts)]
    assert written == kept == sorted(kept)
    assert kept != [pseudonym for _, pseudonym, _ in codes(parts)], "control: the roster's order is another one"


async def test_the_registry_has_no_row_numbers_at_all(parts: VaultParts) -> None:
    for table in ("registry", "codes", "identities"):
        question = text(f"SELECT rowid FROM {table}")
        with pytest.raises(Exception, match="no such column: rowid"), parts.database.engine.connect() as connection:
            connection.execute(question)


async def test_codes_rows_have_the_form_that_exports_rely_on(parts: VaultParts) -> None:
    parts.import_roster()
    await issue(parts)
    fourth = select(CODES.c.sealed).where(CODES.c.ordinal == 3)
    sealed = parts.database.read_now(lambda connection: connection.execute(fourth).scalar_one())
    content = parts.identities.rows.open("codes", (3).to_bytes(8, "big"), sealed)
    _, pseudonym, code = codes(parts)[3]
    assert content == pseudonym + code.reveal().encode()
    assert len(content) == 28


async def test_codes_are_counted_without_keys(parts: VaultParts) -> None:
    parts.import_roster()
    await issue(parts)
    parts.keystore.lock(Scope.IDENTITIES)
    assert parts.database.read_now(lambda c: count_codes(c, CAMPAIGN)) == PUPILS
