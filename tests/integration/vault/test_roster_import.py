"""Rosters over the real service: what is wrong is named with its place, and nothing is half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from pli.errors import AlreadyExists, InputError, StreamViolation, Unavailable
from pli.tls import client_credentials, read_file
from pli.vault.v1.campaign_pb2 import GetCampaignRequest, ImportRosterRequest, PutInstrumentRequest
from pli.vault.v1.campaign_pb2_grpc import CampaignServiceStub
from tests.support.cuts import CuttingProxy
from tests.support.vault_parts import CAMPAIGN, INSTRUMENT, ROSTER
from tests.support.vault_server import Knobs, VaultServer, content, refusal, roster_requests, vault_server
from vault.store.campaign_tables import IDENTITIES, INSTRUMENTS, ROSTERS

HEADER = b"school_id,school_name,class_id,class_name,pupil_id,family_name,given_name,birth_date,sex\n"
ROW = b"S1,\xc3\x89cole,C1,6e A,P1,Ba,Zo\xc3\xa9,2015-01-01,F\n"
MANY_ROWS = b"".join(ROW.replace(b"P1", b"P%d" % number) for number in range(25_000))


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> AsyncIterator[VaultServer]:
    """An unlocked vault with one empty campaign."""
    async with vault_server(tmp_path) as running:
        running.parts.unlock()
        await running.create()
        yield running


ROSTER_FAULTS = [
    ("missing header", HEADER.replace(b",birth_date", b""), "line 1, column birth_date", "must name this column"),
    ("empty file", b"", "line 1", "empty"),
    ("UTF-16", (HEADER + ROW).decode().encode("utf-16"), "line 1", "this is UTF-16"),
    ("Latin-1", HEADER + ROW.decode().encode("latin-1"), "line 2, column school_name", "must be UTF-8"),
    ("duplicate pupil", HEADER + ROW + ROW, "line 3, column pupil_id", "duplicate pupil; the first is on line 2"),
    ("pupil in two classes", HEADER + ROW + ROW.replace(b"C1", b"C2"), "line 3, column pupil_id", "in two classes"),
    (
        "class in two schools",
        HEADER + ROW + ROW.replace(b"S1", b"S2").replace(b"P1", b"P2"),
        "line 3, column class_id",
        "one class in two schools",
    ),
    ("31 February", HEADER + ROW.replace(b"2015-01-01", b"2015-02-31"), "line 2, column birth_date", "no such date"),
    ("future", HEADER + ROW.replace(b"2015-01-01", b"2026-09-22"), "line 2, column birth_date", "in the future"),
    ("empty name", HEADER + ROW.replace(b"Ba", b""), "line 2, column family_name", "must not be empty"),
    ("long name", HEADER + ROW.replace(b"Ba", b"B" * 201), "line 2, column family_name", "more than 200 characters"),
    ("NUL", HEADER + ROW.replace(b"Ba", b"B\0a"), "line 2, column family_name", "NUL is not allowed"),
    ("ragged row", HEADER + ROW + b"S1,x\n", "line 3", "the row has 2 fields where the header has 9"),
    ("open quote", HEADER + ROW + b'"S1,x\n', "line 3", "never closed"),
    ("too large", HEADER + MANY_ROWS, "roster.csv", "the file is larger than 1048576 bytes"),
]


@pytest.mark.parametrize(("name", "file", "place", "rule"), ROSTER_FAULTS, ids=[fault[0] for fault in ROSTER_FAULTS])
async def test_a_faulty_roster_is_refused_with_place_and_rule_and_leaves_nothing(
    vault: VaultServer, name: str, file: bytes, place: str, rule: str
) -> None:
    before = content(vault)
    error = await refusal(vault.import_roster(file))
    assert isinstance(error, InputError), name
    assert place in error.message
    assert rule in error.message
    assert "nothing of it was taken" in error.message
    assert content(vault) == before
    assert "import-roster" not in {action for action, _, _ in vault.audited()}


ACCEPTED = [
    ("byte order mark", b"\xef\xbb\xbf" + HEADER + ROW),
    ("CRLF", (HEADER + ROW).replace(b"\n", b"\r\n")),
    ("CRLF in a quoted field", HEADER + ROW.replace(b"6e A", b'"6e\r\nA"')),
    ("accents and apostrophes", HEADER + ROW.replace(b"Ba", "L\u2019Hôte d'Éon".encode())),
    ("a formula", HEADER + ROW.replace(b"Ba", b"=1+1")),
]


@pytest.mark.parametrize(("name", "file"), ACCEPTED, ids=[each[0] for each in ACCEPTED])
async def test_what_real_files_look_like_is_taken(vault: VaultServer, name: str, file: bytes) -> None:
    assert (await vault.import_roster(file)).pupils == 1, name


async def test_two_hundred_thousand_pupils_are_taken_in_one_file(tmp_path: Path) -> None:
    rows = b"".join(ROW.replace(b"P1", b"P%d" % number) for number in range(200_000))
    async with vault_server(tmp_path, Knobs(max_roster_bytes=1 << 30)) as vault:
        vault.parts.unlock()
        await vault.create()
        stub = await vault.campaigns()
        imported = await stub.ImportRoster(roster_requests(HEADER + rows, size=1 << 20))
        assert (imported.pupils, imported.classes, imported.schools) == (200_000, 1, 1)
        assert vault.parts.rows_in(IDENTITIES) == 200_000


async def test_a_file_full_of_faults_says_the_first_twenty_and_how_many_there_are(vault: VaultServer) -> None:
    rows = [f"S1,École,C1,6e A,P{number},,Zoé,{'é' * 250},F\n".encode() for number in range(500)]
    error = await refusal(vault.import_roster(HEADER + b"".join(rows), file_name="élèves " * 25 + ".csv"))
    assert isinstance(error, InputError)
    assert "line 2, column family_name" in error.message
    assert "more" in error.message


async def test_another_roster_is_refused_and_the_first_one_stays(vault: VaultServer) -> None:
    await vault.import_roster()
    before = content(vault)
    error = await refusal(vault.import_roster(HEADER + ROW))
    assert isinstance(error, AlreadyExists)
    assert "make a new campaign" in error.message
    assert content(vault) == before


async def test_a_chunk_of_any_size_up_to_the_limit_is_taken(vault: VaultServer) -> None:
    stub = await vault.campaigns()
    assert (await stub.ImportRoster(roster_requests(ROSTER, size=7))).pupils == 12
    whole = [ImportRosterRequest(campaign_id=CAMPAIGN, file_name="r.csv", chunk=ROSTER)]
    assert (await stub.ImportRoster(iter(whole))).pupils == 12


BAD_STREAMS: list[tuple[str, list[ImportRosterRequest], str]] = [
    ("nothing", [], "the first message of an import names the campaign"),
    ("no campaign", [ImportRosterRequest(chunk=ROSTER)], "the first message of an import names the campaign"),
    ("named twice", [*roster_requests(ROSTER), *roster_requests(ROSTER)], "only the first message"),
    ("a chunk too large", [*roster_requests(ROSTER), ImportRosterRequest(chunk=b"x" * 1048577)], "at most 1048576"),
]


@pytest.mark.parametrize(("name", "requests", "rule"), BAD_STREAMS, ids=[each[0] for each in BAD_STREAMS])
async def test_a_stream_that_breaks_the_contract_is_refused(
    vault: VaultServer, name: str, requests: list[ImportRosterRequest], rule: str
) -> None:
    before = content(vault)
    error = await refusal((await vault.campaigns()).ImportRoster(iter(requests)))
    assert isinstance(error, StreamViolation), name
    assert rule in error.message
    assert content(vault) == before


@pytest.mark.parametrize("file_name", ["a\nb.csv", "a\x00.csv", "a\u202e.csv", "x" * 201])
async def test_a_file_name_that_is_no_line_is_refused(vault: VaultServer, file_name: str) -> None:
    stub = await vault.campaigns()
    for call in (
        vault.import_roster(file_name=file_name),
        stub.PutInstrument(PutInstrumentRequest(campaign_id=CAMPAIGN, file_name=file_name, toml=INSTRUMENT)),
    ):
        error = await refusal(call)
        assert isinstance(error, InputError)
        assert "file name" in error.message
    assert vault.parts.rows_in(ROSTERS) == vault.parts.rows_in(INSTRUMENTS) == 0


async def test_an_upload_that_stalls_is_given_up(tmp_path: Path) -> None:
    async with vault_server(tmp_path, Knobs(stalled_seconds=0.05)) as vault:
        vault.parts.unlock()
        await vault.create()
        call = (await vault.campaigns()).ImportRoster()
        for request in roster_requests(ROSTER):
            await call.write(request)
        error = await refusal(call)
        assert isinstance(error, Unavailable)
        assert "import it again" in error.message
        assert vault.parts.rows_in(IDENTITIES) == 0


@pytest.mark.parametrize("how", ["cancelled", "closed", "cut"])
async def test_a_roster_cut_between_two_rows_is_not_taken_for_a_whole_one(vault: VaultServer, how: str) -> None:
    """To its reader a stream that was cut ends like a complete one, and this one holds clean rows alone."""
    clean = HEADER + b"".join(ROW.replace(b"P1", b"P%d" % number) for number in range(50))
    files = vault.authority.issue("campaign-admin", "dave")
    credentials = client_credentials(read_file(files.authority_file), files)
    host, _, port = vault.address.rpartition(":")
    async with CuttingProxy(host, int(port)) as proxy:
        for _attempt in range(8):
            async with grpc.aio.secure_channel(proxy.address, credentials) as channel:
                stub: Any = CampaignServiceStub(channel)
                call = stub.ImportRoster()
                for request in roster_requests(clean):
                    await call.write(request)
                # Answered on the same connection after all that was written before it.
                await stub.GetCampaign(GetCampaignRequest(campaign_id=CAMPAIGN))
                if how == "cancelled":
                    call.cancel()
                elif how == "closed":
                    await channel.close()
                else:
                    assert proxy.reset_all() == 1
                with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
                    await call
            # Both places for imports are taken and left once: nothing of the cut one is still under way.
            for refused in [vault.import_roster(HEADER), vault.import_roster(HEADER)]:
                assert isinstance(await refusal(refused), InputError)
            assert vault.parts.rows_in(ROSTERS) == vault.parts.rows_in(IDENTITIES) == 0
    assert (await vault.import_roster(clean)).pupils == 50, "control: the file is clean"
