"""Instruments over the real service: what is wrong is named with its place, and nothing is half done."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from pli.errors import InputError
from pli.vault.v1.campaign_pb2 import PutInstrumentRequest
from tests.support.vault_parts import CAMPAIGN, INSTRUMENT
from tests.support.vault_server import VaultServer, content, refusal, vault_server


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> AsyncIterator[VaultServer]:
    """An unlocked vault with one empty campaign."""
    async with vault_server(tmp_path) as running:
        running.parts.unlock()
        await running.create()
        yield running


def changed(old: str, new: str) -> bytes:
    text = INSTRUMENT.decode()
    assert old in text
    return text.replace(old, new, 1).encode()


INSTRUMENT_FAULTS = [
    ("duplicate item", changed('id = "fra-02"', 'id = "fra-01"'), "column id", "duplicate item; the first is on line"),
    ("key not an option", changed('key = "C"', 'key = "E"'), "column key: 'E'", "the key is not among the options"),
    ("score too high", changed('"verbe" = 0.5', '"verbe" = 101'), "column scores: '101'", "score above maximum"),
    ("unknown type", changed('type = "choice"', 'type = "essay"'), "column type: 'essay'", "unknown type"),
    ("groups out of order", changed("from = 0.65", "from = 0.35"), "column from: '0.35'", "groups out of order"),
    ("no TOML", b"id = \n", "line 1", "not valid TOML"),
    ("not UTF-8", INSTRUMENT.decode().encode("cp1252"), "line 3", "must be UTF-8"),
    ("5 MB", INSTRUMENT + b"#" * (5 << 20), "instrument.toml", "more than 4194304"),
]


@pytest.mark.parametrize(
    ("name", "file", "place", "rule"), INSTRUMENT_FAULTS, ids=[fault[0] for fault in INSTRUMENT_FAULTS]
)
async def test_a_faulty_instrument_is_refused_with_place_and_rule_and_leaves_nothing(
    vault: VaultServer, name: str, file: bytes, place: str, rule: str
) -> None:
    before = content(vault)
    call = (await vault.campaigns()).PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=file))
    error = await refusal(call)
    assert isinstance(error, InputError), name
    assert place in error.message
    assert rule in error.message
    assert content(vault) == before


async def test_a_version_reused_with_other_content_is_refused_with_place_and_rule(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    await stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=INSTRUMENT))
    before = content(vault)
    other = PutInstrumentRequest(campaign_id=CAMPAIGN, file_name="b.toml", toml=changed('key = "C"', 'key = "D"'))
    error = await refusal(stub.PutInstrument(other))
    assert isinstance(error, InputError)
    assert "b.toml, line 4, column version: '2026-a': version reused with other content" in error.message
    assert content(vault) == before


async def test_a_file_beyond_what_a_message_may_hold_is_refused_by_the_transport(vault: VaultServer) -> None:
    call = (await vault.campaigns()).PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, toml=bytes(10 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
