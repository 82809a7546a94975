"""Exports: the right file, an audit entry on disk before its first byte, and no byte without it."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from secrets import randbits

import grpc
import pytest
import pytest_asyncio
from sqlalchemy import delete, update

from pli.errors import InputError, IntegrityError, NotFound, PliError, StateError, VaultLocked
from pli.identity import Peer
from pli.ingest.v1.ingest_pb2 import Presence
from pli.responses import parse_codes, parse_responses
from pli.rpc.client import typed
from pli.vault.v1.export_pb2 import ExportKind, ExportRequest
from tests.support.sealing_node import Writer
from tests.support.settled_vault import SettledVault, served, settled_vault
from tests.support.vault_parts import CAMPAIGN, SMALL
from tests.support.waiting import until
from vault.audit import LOG
from vault.code_issue import issue_codes
from vault.exports import EXPORTS_AT_ONCE, ExportFile, Exports
from vault.keystore import Scope
from vault.roster import COLUMNS
from vault.store.campaign_tables import AUDIT, CODES, IDENTITIES, REGISTRY, ROSTERS
from vault.store.landing_tables import RESULTS

RITA = Peer("reporter", "rita")
PURPOSE = "results for the ministry"
PUPILS = [f"E{number:02}" for number in range(1, 13)]


@pytest_asyncio.fixture
async def vault(tmp_path: Path) -> AsyncIterator[SettledVault]:
    async with settled_vault(tmp_path) as vault:
        yield vault


def exports(vault: SettledVault) -> Exports:
    return Exports(vault.parts.database, vault.parts.keyring, vault.parts.audit)


async def exported(vault: SettledVault, file: ExportFile, purpose: str = PURPOSE, campaign_id: str = CAMPAIGN) -> bytes:
    return b"".join([piece async for piece in exports(vault).stream(RITA, campaign_id, file, purpose)])


def responses(vault: SettledVault) -> dict[str, list[tuple[str, str]]]:
    return parse_responses((SMALL / "responses.csv").read_bytes(), "responses.csv", vault.public, PUPILS)


def entries(vault: SettledVault) -> list[dict[str, object]]:
    """Audit entries that exports have left."""
    found = [json.loads(entry) for entry in vault.parts.audit_entries()]
    return [entry for entry in found if str(entry["action"]).startswith("export")]


async def enrol_many(vault: SettledVault, count: int) -> None:
    """Another roster, large enough for a file of several pieces."""
    for table in (ROSTERS, IDENTITIES, CODES, REGISTRY):
        vault.execute(delete(table))
    rows = (f"S,School,C,Class,P{number:05},Name,Given,2015-01-01,F" for number in range(count))
    vault.parts.import_roster("\n".join([",".join(COLUMNS), *rows]).encode())
    await issue_codes(vault.parts.database, vault.parts.keyring, CAMPAIGN, randbits)


# The files


async def test_results_are_those_that_the_given_responses_must_get(vault: SettledVault) -> None:
    await vault.play(responses(vault))
    content = await exported(vault, ExportFile.RESULTS)
    without_maximum = [row[:2] + row[3:] for row in csv.reader(content.decode().splitlines())]
    assert without_maximum == list(csv.reader((SMALL / "expected_scores.csv").read_text().splitlines()))


async def test_who_gave_nothing_has_zeros_and_who_was_absent_nothing(vault: SettledVault) -> None:
    writer = Writer(vault.codes["E02"][0])
    await vault.land(writer.sends(writer.mark(Presence.PRESENCE_ABSENT)))
    await vault.settle()
    content = (await exported(vault, ExportFile.RESULTS)).decode().splitlines()
    assert content[1] == "E01,0,15,0,0,0,0,0,0,0,0,0,0"
    assert content[2] == "E02,,15,,,,,,,,,,"


async def test_codes_are_those_that_open_the_pupils_sessions_in_roster_order(vault: SettledVault) -> None:
    content = await exported(vault, ExportFile.CODES)
    expected = {pupil_id: code.printed() for pupil_id, (_, code) in vault.codes.items()}
    assert parse_codes(content, "codes.csv") == expected
    assert list(expected) == PUPILS


async def test_a_large_file_comes_in_pieces_that_fit_a_message(vault: SettledVault) -> None:
    await enrol_many(vault, 8_000)
    pieces = [piece async for piece in exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE)]
    assert len(pieces) > 2
    assert max(map(len, pieces)) <= 1 << 20
    lines = b"".join(pieces).decode().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [f"P{number:05}" for number in range(8_000)]
    rows = (await exported(vault, ExportFile.RESULTS)).decode().splitlines()
    assert [line.split(",")[0] for line in rows[1:]] == [f"P{number:05}" for number in range(8_000)]


# The audit entry


async def test_the_audit_entry_is_on_disk_before_the_first_byte(vault: SettledVault) -> None:
    stream = exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE)
    async with aclosing(stream):
        assert entries(vault) == []
        assert await anext(stream)
        # As any other process sees the file at this moment.
        other = sqlite3.connect(vault.parts.state_dir / "vault.sqlite3")
        rows = other.execute("SELECT entry FROM audit ORDER BY number DESC LIMIT 1").fetchall()
        other.close()
    assert json.loads(rows[0][0])["action"] == "export codes.csv"


async def test_the_entry_says_who_why_what_and_how_many_and_seals_about_whom(vault: SettledVault) -> None:
    await exported(vault, ExportFile.CODES, f"  {PURPOSE} ")
    (entry,) = entries(vault)
    subjects = bytes.fromhex(str(entry.pop("subjects")))
    del entry["time_ms"]
    assert entry == {
        "action": "export codes.csv",
        "actor": "rita",
        "role": "reporter",
        "campaign": CAMPAIGN,
        "purpose": PURPOSE,
        "count": 12,
    }
    number = len(vault.parts.audit_entries()) - 1
    about = json.loads(vault.parts.identities.rows.open(LOG, number.to_bytes(8, "big"), subjects))
    assert about["pupils"] == "all of the roster"
    assert not any(pupil_id.encode() in entry for pupil_id in PUPILS for entry in vault.parts.audit_entries())


async def test_no_byte_leaves_when_the_entry_cannot_be_written(vault: SettledVault) -> None:
    full = "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    vault.parts.database.write_now(lambda connection: connection.exec_driver_sql(full))
    with pytest.raises(Exception, match="disk full"):
        await anext(exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE))


async def test_no_byte_leaves_when_the_log_is_damaged(vault: SettledVault) -> None:
    await exported(vault, ExportFile.CODES)
    vault.execute(update(AUDIT).where(AUDIT.c.number == 0).values(entry=b"{}"))
    assert not await vault.parts.audit.check()
    with pytest.raises(IntegrityError):
        await anext(exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE))


# Refused before any byte, and before any entry


@pytest.mark.parametrize("purpose", ["", "ab", "  a  ", "x" * 501, "be\x00cause", "be\u202ecause"])
async def test_a_purpose_that_is_none_is_refused(vault: SettledVault, purpose: str) -> None:
    with pytest.raises(InputError, match="purpose"):
        await exported(vault, ExportFile.CODES, purpose)
    assert entries(vault) == []


@pytest.mark.parametrize("scope", list(Scope))
@pytest.mark.parametrize("file", list(ExportFile))
async def test_both_scopes_must_be_unlocked(vault: SettledVault, scope: Scope, file: ExportFile) -> None:
    vault.parts.keystore.lock(scope)
    with pytest.raises(VaultLocked, match=str(scope)):
        await exported(vault, file)
    assert vault.parts.rows_in(AUDIT) == 0


async def test_results_wait_until_all_that_landed_is_settled_and_scored(vault: SettledVault) -> None:
    await vault.play(responses(vault))
    writer = Writer(vault.codes["E01"][0], opening=2)
    await vault.land(writer.sends(*vault.answers(writer, [("fra-01", "A")])))
    with pytest.raises(StateError, match="settle it first"):
        await exported(vault, ExportFile.RESULTS)
    await vault.settle()
    assert (await exported(vault, ExportFile.RESULTS)).decode().splitlines()[1].startswith("E01,14,")
    vault.execute(delete(RESULTS).where(RESULTS.c.pseudonym == vault.codes["E03"][0]))
    with pytest.raises(StateError, match="settle it first"):
        await exported(vault, ExportFile.RESULTS)
    assert len(entries(vault)) == 1


async def test_pupils_without_a_code_stop_the_file(vault: SettledVault) -> None:
    vault.execute(delete(CODES).where(CODES.c.ordinal == 7))
    for file in ExportFile:
        with pytest.raises(StateError, match="IssueCodes"):
            await exported(vault, file)
    assert entries(vault) == []


async def test_without_a_roster_there_is_nothing_to_export(vault: SettledVault) -> None:
    for table in (ROSTERS, IDENTITIES, CODES):
        vault.execute(delete(table))
    with pytest.raises(StateError, match="ImportRoster"):
        await exported(vault, ExportFile.CODES)


async def test_an_unknown_campaign_is_refused(vault: SettledVault) -> None:
    with pytest.raises(NotFound):
        await exported(vault, ExportFile.CODES, campaign_id="eval-2027")


@pytest.mark.parametrize("table", [IDENTITIES, CODES], ids=lambda table: table.name)
async def test_an_altered_row_stops_the_file_before_it_begins(vault: SettledVault, table: object) -> None:
    assert table in (IDENTITIES, CODES)
    moved = IDENTITIES if table is IDENTITIES else CODES
    vault.execute(update(moved).where(moved.c.ordinal == 11).values(sealed=b"x" * 60))
    with pytest.raises(IntegrityError, match=moved.name):
        await exported(vault, ExportFile.CODES)
    assert entries(vault) == []


# While it runs


async def test_locking_ends_a_file_that_is_under_way(vault: SettledVault) -> None:
    await enrol_many(vault, 8_000)
    stream = exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE)
    assert await anext(stream)
    vault.parts.keystore.lock(Scope.IDENTITIES)
    with pytest.raises(VaultLocked):
        await anext(stream)
    assert connections_out(vault) == 0


def connections_out(vault: SettledVault) -> int:
    """Database connections that somebody holds."""
    pool = vault.parts.database.engine.pool
    return int(pool.checkedout())  # type: ignore[attr-defined]  # what the pool of a file database has


async def test_a_reader_that_stops_early_leaves_no_snapshot_behind(vault: SettledVault) -> None:
    await enrol_many(vault, 8_000)
    for _ in range(EXPORTS_AT_ONCE + 1):
        stream = exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE)
        async with aclosing(stream):
            assert await anext(stream)
            assert connections_out(vault) == 1
        assert connections_out(vault) == 0


async def test_a_file_is_of_one_moment(vault: SettledVault) -> None:
    await enrol_many(vault, 8_000)
    stream = exports(vault).stream(RITA, CAMPAIGN, ExportFile.CODES, PURPOSE)
    first = await anext(stream)
    vault.execute(delete(CODES))
    rest = [piece async for piece in stream]
    assert len(b"".join([first, *rest]).splitlines()) == 8_001


# The service


async def fetched(call: object) -> bytes:
    parts = []
    try:
        async for response in call:  # type: ignore[attr-defined]  # a stub's stream
            parts.append(response.chunk)  # noqa: PERF401  # an error in the middle must keep what came
    except grpc.aio.AioRpcError as error:
        raise typed(error) from error
    return b"".join(parts)


def asked(kind: ExportKind.ValueType, purpose: str = PURPOSE) -> ExportRequest:
    return ExportRequest(campaign_id=CAMPAIGN, kind=kind, purpose=purpose)


async def test_a_reporter_gets_the_files_and_is_named_in_the_log(vault: SettledVault, tmp_path: Path) -> None:
    await vault.play(responses(vault))
    async with served(vault, tmp_path / "certificates") as stubs:
        codes = await fetched(stubs.exports.Export(asked(ExportKind.EXPORT_KIND_CODES)))
        results = await fetched(stubs.exports.Export(asked(ExportKind.EXPORT_KIND_RESULTS)))
    assert codes == await exported(vault, ExportFile.CODES)
    assert results == await exported(vault, ExportFile.RESULTS)
    assert [(entry["action"], entry["role"], entry["actor"]) for entry in entries(vault)[:2]] == [
        ("export codes.csv", "reporter", "rita"),
        ("export results.csv", "reporter", "rita"),
    ]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asked(ExportKind.EXPORT_KIND_UNSPECIFIED), InputError),
        (asked(ExportKind.EXPORT_KIND_CODES, "no"), InputError),
        (ExportRequest(campaign_id="eval-2027", kind=ExportKind.EXPORT_KIND_CODES, purpose=PURPOSE), NotFound),
    ],
)
async def test_a_wrong_request_is_told_so_and_gets_no_byte(
    vault: SettledVault, tmp_path: Path, request_: ExportRequest, error: type[PliError]
) -> None:
    async with served(vault, tmp_path / "certificates") as stubs:
        with pytest.raises(error):
            await fetched(stubs.exports.Export(request_))
    assert vault.parts.rows_in(AUDIT) == 0


async def test_a_reporter_that_hangs_up_leaves_no_snapshot_behind(vault: SettledVault, tmp_path: Path) -> None:
    await enrol_many(vault, 20_000)
    async with served(vault, tmp_path / "certificates") as stubs:
        call = stubs.exports.Export(asked(ExportKind.EXPORT_KIND_CODES))
        assert await call.read()
        call.cancel()

        async def released() -> bool:
            return connections_out(vault) == 0

        await until(released, "the snapshot to be released")
    assert len(entries(vault)) == 1
