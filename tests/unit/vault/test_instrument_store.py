"""Instruments at rest: a version names one content, and after publication nothing changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from pli.errors import InputError, IntegrityError, StateError
from pli.vault.v1.bundle_pb2 import Signed
from tests.support.vault_parts import CAMPAIGN, INSTRUMENT, VaultParts, vault_parts
from vault.instrument import Instrument, parse_instrument
from vault.instrument_store import current_instrument, has_instrument
from vault.store.campaign_tables import INSTRUMENTS

OTHER = INSTRUMENT.replace(b'version = "2026-a"', b'version = "2026-b"').replace(b'key = "C"', b'key = "D"', 1)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[VaultParts]:
    with vault_parts(tmp_path) as made:
        await made.create()
        yield made


def current(parts: VaultParts) -> Instrument:
    return parts.database.read_now(lambda connection: current_instrument(connection, parts.answers))


async def test_what_was_put_is_in_force_with_its_keys(parts: VaultParts) -> None:
    parts.put_instrument()
    assert current(parts) == parse_instrument(INSTRUMENT, "instrument.toml")
    assert parts.database.read_now(lambda c: has_instrument(c, CAMPAIGN))


async def test_without_one_it_says_what_to_do(parts: VaultParts) -> None:
    assert not parts.database.read_now(lambda c: has_instrument(c, CAMPAIGN))
    with pytest.raises(StateError, match="has no instrument; put one"):
        current(parts)


async def test_the_same_again_changes_nothing_even_laid_out_differently(parts: VaultParts) -> None:
    parts.put_instrument()
    parts.put_instrument()
    parts.put_instrument(b"# a comment more\n" + INSTRUMENT)
    assert parts.rows_in(INSTRUMENTS) == 1


async def test_a_new_version_takes_over(parts: VaultParts) -> None:
    parts.put_instrument()
    parts.put_instrument(OTHER)
    assert current(parts).version == "2026-b"
    assert parts.rows_in(INSTRUMENTS) == 2


async def test_an_earlier_one_put_again_is_in_force_again(parts: VaultParts) -> None:
    for content in (INSTRUMENT, OTHER, INSTRUMENT):
        parts.put_instrument(content)
    assert current(parts).version == "2026-a"


@pytest.mark.parametrize("between", [False, True])
async def test_a_version_reused_with_other_content_is_refused_with_its_line(parts: VaultParts, between: bool) -> None:
    parts.put_instrument()
    if between:
        parts.put_instrument(OTHER)
    rows, version = parts.rows_in(INSTRUMENTS), current(parts).version
    with pytest.raises(InputError, match=r"line 4, column version: '2026-a': version reused with other content"):
        parts.put_instrument(INSTRUMENT.replace(b'key = "C"', b'key = "D"', 1))
    assert (parts.rows_in(INSTRUMENTS), current(parts).version) == (rows, version)


async def test_a_published_campaign_keeps_its_instrument(parts: VaultParts) -> None:
    parts.put_instrument()
    parts.store_bundle(Signed(), 1)
    parts.put_instrument()
    with pytest.raises(StateError, match="is published, its instrument is fixed"):
        parts.put_instrument(OTHER)
    assert current(parts).version == "2026-a"


async def test_rows_have_the_form_that_scoring_relies_on_and_hold_nothing_in_clear(parts: VaultParts) -> None:
    parts.put_instrument()
    sealed = parts.database.read_now(lambda c: c.execute(select(INSTRUMENTS.c.sealed)).scalar_one())
    opened = parts.answers.rows.open("instruments", (1).to_bytes(8, "big"), sealed)
    assert opened == b"instrument.toml\0" + INSTRUMENT
    with pytest.raises(IntegrityError):
        parts.answers.rows.open("instruments", (2).to_bytes(8, "big"), sealed)
