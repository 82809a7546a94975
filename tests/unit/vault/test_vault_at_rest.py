"""What lies on the vault's disks says no name, no code, no key of an item."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from tests.support.vault_parts import CAMPAIGN, VaultParts, vault_parts
from vault.code_issue import issued_codes
from vault.instrument_store import current_instrument
from vault.publication import make_bundle
from vault.roster_store import pupils


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as made:
        await made.create()
        await made.fill()
        yield made


def files_of(directory: Path) -> dict[Path, bytes]:
    """Every file below, the database's write-ahead log among them."""
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def forms(marker: str) -> list[bytes]:
    """The ways in which a text may lie in a file."""
    return [
        marker.encode(),
        marker.encode("utf-16-le"),
        marker.encode().hex().encode(),
        json.dumps(marker).strip('"').encode(),
        marker.lower().encode(),
    ]


def found(directory: Path, markers: set[str]) -> set[str]:
    """Which of the markers any file below holds in any form."""
    content = b"\0".join(files_of(directory).values())
    return {marker for marker in markers if any(form in content for form in forms(marker))}


def names(parts: VaultParts) -> set[str]:
    roster = parts.database.read_now(lambda c: list(pupils(c, parts.identities)))
    markers: set[str] = set()
    for pupil in roster:
        cells = [pupil.school_name, pupil.school_id, pupil.class_name, pupil.family_name, pupil.given_name]
        # Texts of three characters and fewer turn up in random bytes by themselves.
        markers |= {cell for cell in (*cells, pupil.birth_date.isoformat()) if len(cell) >= 5}
    assert len(markers) > 20
    assert date(2015, 12, 31).isoformat() in markers
    return markers


def codes(parts: VaultParts) -> set[str]:
    issued = parts.database.read_now(lambda c: list(issued_codes(c, parts.identities)))
    assert len(issued) == 12
    return {form for _, _, code in issued for form in (code.reveal(), code.printed())}


def item_keys(parts: VaultParts) -> set[str]:
    instrument = parts.database.read_now(lambda c: current_instrument(c, parts.answers))
    return {key for item in instrument.items for key in item.scores if isinstance(key, str) and len(key) >= 5}


async def test_no_file_of_the_vault_holds_a_name_a_code_or_a_key_of_an_item(parts: VaultParts) -> None:
    version_1 = parts.database.read_now(lambda c: make_bundle(c, parts.answers, parts.campaign(), 1))
    secret = names(parts) | codes(parts)
    keys = item_keys(parts)
    assert keys
    assert found(parts.directory, secret | keys) == set()
    parts.store_bundle(version_1, 1)
    assert found(parts.directory, secret) == set()


async def test_that_search_would_find_what_lies_in_clear(parts: VaultParts) -> None:
    assert found(parts.state_dir, {CAMPAIGN}) == {CAMPAIGN}, "in clear on purpose"
    name, code = "L\u2019Hôte, de", min(codes(parts))
    for form in (*forms(name), code.encode()):
        leak(parts, form)
        marker = code if form == code.encode() else name
        assert found(parts.state_dir, {marker}) == {marker}
        parts.database.write_now(lambda connection: connection.execute(text("DROP TABLE leak")))


def leak(parts: VaultParts, content: bytes) -> None:
    """Writes something into the database in clear."""

    def write(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE leak (content BLOB)"))
        connection.execute(text("INSERT INTO leak VALUES (:content)"), {"content": content})

    parts.database.write_now(write)


async def test_it_holds_after_the_database_was_closed_too(tmp_path: Path) -> None:
    with vault_parts(tmp_path) as parts:
        await parts.create()
        await parts.fill()
        secret = names(parts) | codes(parts) | item_keys(parts)
    assert found(tmp_path, secret) == set()
    assert not list(parts.state_dir.glob("*-wal")), "the write-ahead log went into the file"


async def test_the_registry_in_clear_holds_pseudonyms_and_nothing_of_pupils(parts: VaultParts) -> None:
    issued = parts.database.read_now(lambda c: list(issued_codes(c, parts.identities)))
    content = b"\0".join(files_of(parts.state_dir).values())
    assert all(pseudonym in content for _, pseudonym, _ in issued), "control: pseudonyms are in clear"
    key = parts.answers.pseudonym.reveal()
    assert key not in content
    assert key.hex().encode() not in content
