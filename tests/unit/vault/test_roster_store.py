"""Rosters at rest: whole or not at all, once, every row sealed to its place."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text, update

from pli.errors import AlreadyExists, InputError, IntegrityError, StateError
from pli.vault.v1.bundle_pb2 import Signed
from tests.support.vault_parts import CAMPAIGN, ROSTER, TODAY, VaultParts, vault_parts
from vault.roster import COLUMNS, parse_roster
from vault.roster_store import RosterSize, pupils, read_roster, roster_size, row_of, store_roster
from vault.store.campaign_tables import IDENTITIES, ROSTERS


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as made:
        await made.create()
        yield made


def stored(parts: VaultParts) -> list[tuple[int, bytes]]:
    rows = select(IDENTITIES.c.ordinal, IDENTITIES.c.sealed).order_by(IDENTITIES.c.ordinal)
    return parts.database.read_now(lambda connection: [tuple(row) for row in connection.execute(rows)])


async def test_pupils_come_back_as_they_were_in_the_order_of_the_roster(parts: VaultParts) -> None:
    parts.import_roster()
    expected = parse_roster([ROSTER], "roster.csv", TODAY)
    assert parts.database.read_now(lambda c: list(pupils(c, parts.identities))) == expected.pupils
    size = parts.database.read_now(lambda c: roster_size(c, CAMPAIGN))
    assert size == RosterSize(len(expected.pupils), len(expected.classes), len(expected.schools))


async def test_rows_have_the_form_that_exports_rely_on(parts: VaultParts) -> None:
    parts.import_roster()
    _, sealed = stored(parts)[1]
    content = parts.identities.rows.open("identities", (1).to_bytes(8, "big"), sealed)
    assert dict(zip(COLUMNS, json.loads(content), strict=True)) == {
        "school_id": "0130001A",
        "school_name": "Collège Émile-Zola",
        "class_id": "6A",
        "class_name": "6e A",
        "pupil_id": "E02",
        "family_name": "L\u2019Hôte, de",
        "given_name": "Noël",
        "birth_date": "2015-12-31",
        "sex": "M",
    }


async def test_without_a_roster_there_is_neither_size_nor_pupil(parts: VaultParts) -> None:
    assert parts.database.read_now(lambda c: roster_size(c, CAMPAIGN)) is None
    assert parts.database.read_now(lambda c: list(pupils(c, parts.identities))) == []


async def test_the_same_file_again_changes_nothing(parts: VaultParts) -> None:
    parts.import_roster()
    before = stored(parts)
    parts.import_roster()
    assert stored(parts) == before


async def test_another_file_is_refused_and_says_to_make_a_new_campaign(parts: VaultParts) -> None:
    parts.import_roster()
    before = stored(parts)
    with pytest.raises(AlreadyExists, match="make a new campaign"):
        parts.import_roster(ROSTER.replace("Bäcker".encode(), b"Becker"))
    assert stored(parts) == before


async def test_a_faulty_file_leaves_nothing(parts: VaultParts) -> None:
    with pytest.raises(InputError, match="line 3, column birth_date"):
        parts.import_roster(ROSTER.replace(b"2015-12-31", b"2015-02-31"))
    assert parts.rows_in(IDENTITIES) == parts.rows_in(ROSTERS) == 0


async def test_a_failure_in_the_middle_of_storing_leaves_nothing(parts: VaultParts) -> None:
    file = read_roster([ROSTER], "roster.csv", TODAY)

    def store_and_break(connection: Connection) -> None:
        connection.execute(text("CREATE TEMP TRIGGER full AFTER INSERT ON identities WHEN NEW.ordinal = 9 "
                                "BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"))  # fmt: skip
        store_roster(connection, parts.identities, file)

    with pytest.raises(Exception, match="disk is full"):
        parts.database.write_now(store_and_break)
    assert parts.rows_in(IDENTITIES) == parts.rows_in(ROSTERS) == 0


async def test_a_published_campaign_takes_no_roster(tmp_path: Path, parts: VaultParts) -> None:
    parts.store_bundle(Signed(), 1)
    with pytest.raises(StateError, match="is published, its roster is fixed"):
        parts.import_roster()
    assert parts.rows_in(IDENTITIES) == 0


async def test_a_repeated_import_after_publication_is_still_the_same_import(parts: VaultParts) -> None:
    parts.import_roster()
    parts.store_bundle(Signed(), 1)
    parts.import_roster()
    with pytest.raises(AlreadyExists):
        parts.import_roster(ROSTER.replace(b"2015-12-31", b"2015-12-30"))


async def test_rows_that_were_swapped_do_not_open(parts: VaultParts) -> None:
    parts.import_roster()
    (_, first), (_, second), *_ = stored(parts)

    def swap(connection: Connection) -> None:
        for ordinal, sealed in ((0, second), (1, first)):
            connection.execute(update(IDENTITIES).where(IDENTITIES.c.ordinal == ordinal).values(sealed=sealed))

    parts.database.write_now(swap)
    with pytest.raises(IntegrityError, match="identities"):
        parts.database.read_now(lambda c: list(pupils(c, parts.identities)))


async def test_every_flipped_byte_of_a_row_is_found(parts: VaultParts) -> None:
    parts.import_roster()
    _, sealed = stored(parts)[0]
    rows = parts.identities.rows
    assert rows.open("identities", row_of(0), sealed)
    for at in range(len(sealed)):
        flipped = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
        with pytest.raises(IntegrityError):
            rows.open("identities", row_of(0), flipped)


async def test_the_digest_of_the_file_is_kept_sealed(parts: VaultParts) -> None:
    parts.import_roster()
    digest = read_roster([ROSTER], "roster.csv", TODAY).digest
    sealed = parts.database.read_now(lambda c: c.execute(select(ROSTERS.c.sealed)).scalar_one())
    assert digest not in sealed
    assert parts.identities.rows.open("rosters", b"roster", sealed) == digest
