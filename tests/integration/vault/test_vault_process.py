"""The vault as a process: what it serves, how it dies, how it comes back, and why it does not start."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import signal
import socket
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest

from pli.config import write_secret_file
from pli.errors import IntegrityError, NotFound, PliError, Unavailable, VaultLocked, VaultUnavailable
from pli.rpc.client import typed
from pli.rpc.roles import RELAY
from pli.vault.v1.bundle_pb2 import Bundle
from pli.vault.v1.campaign_pb2 import (
    CloseWindowRequest,
    ImportRosterRequest,
    OpenWindowRequest,
    PublishRequest,
    SettleRequest,
)
from pli.vault.v1.deposit_pb2 import DepositReceipt, FetchBundleRequest, SyncRequest, Verdict
from pli.vault.v1.export_pb2 import ExportKind, ExportRequest
from pli.vault.v1.keys_pb2 import GetLockStateRequest, KeyScope, UnlockRequest
from pli.vault.v1.rehearsal_pb2 import VerifyLedgerRequest
from tests.support.played_platform import RELAY_NAME, PlayedPlatform
from tests.support.processes import run
from tests.support.vault_process import CAMPAIGN, PUPILS, VaultProcess
from tests.support.waiting import until

BOTH = [KeyScope.KEY_SCOPE_ANSWERS, KeyScope.KEY_SCOPE_IDENTITIES]
DAY_MS = 86_400_000


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[VaultProcess]:
    async with VaultProcess(tmp_path / "vault") as vault:
        yield vault


async def refusal(call: Awaitable[object]) -> PliError:
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return typed(error)
    raise AssertionError(f"expected a refusal, got {response!r}")


async def platform_of(vault: VaultProcess, shards: int = 1) -> PlayedPlatform:
    """A platform that has loaded the published bundle."""
    parts = [part async for part in vault.deposits.FetchBundle(FetchBundleRequest(campaign_id=CAMPAIGN))]
    bundle = Bundle.FromString(parts[0].bundle.body)
    platform = PlayedPlatform(CAMPAIGN, bundle.answer_public_key, vault.authority, shards)
    await synchronise(vault, platform)
    return platform


async def synchronise(vault: VaultProcess, platform: PlayedPlatform) -> None:
    """The relay does what it is told and says so: what it did last is reported, too."""
    platform.follow(await vault.deposits.Sync(platform.report()))
    await vault.deposits.Sync(platform.report())


async def carry(vault: VaultProcess, platform: PlayedPlatform) -> DepositReceipt:
    """The relay deposits all that waits in shard 0, and forgets what the receipt names."""
    response = await vault.deposits.Deposit(platform.deposit())
    platform.forget()
    return DepositReceipt.FromString(response.receipt.body)


def publish(vault: VaultProcess) -> Any:
    return vault.campaigns.Publish(PublishRequest(campaign_id=CAMPAIGN))


def open_window(vault: VaultProcess, closes_at_ms: int = 0) -> Any:
    return vault.campaigns.OpenWindow(OpenWindowRequest(campaign_id=CAMPAIGN, closes_at_ms=closes_at_ms))


def close_window(vault: VaultProcess, grace_ms: int = 0) -> Any:
    return vault.campaigns.CloseWindow(CloseWindowRequest(campaign_id=CAMPAIGN, grace_ms=grace_ms))


def steps(vault: VaultProcess) -> list[tuple[str, str]]:
    """(from, to) of every finished step, read from the file itself."""
    with closing(sqlite3.connect(f"file:{database_file(vault)}?mode=ro", uri=True)) as connection:
        return connection.execute(
            "SELECT from_state, to_state FROM transitions WHERE done_at_ms IS NOT NULL ORDER BY number"
        ).fetchall()


def database_file(vault: VaultProcess) -> Path:
    return vault.directory / "state" / "vault.sqlite3"


# What it serves


async def test_all_five_services_answer(vault: VaultProcess) -> None:
    await vault.create()
    assert (await vault.status()).state == "DRAFT"
    assert list((await vault.keys.GetLockState(GetLockStateRequest())).unlocked) == BOTH
    relay = SyncRequest(campaign_id="other", relay=RELAY_NAME)
    assert isinstance(await refusal(vault.deposits.Sync(relay)), NotFound)
    export = ExportRequest(campaign_id="other", kind=ExportKind.EXPORT_KIND_CODES, purpose="a test")
    assert isinstance(await refusal(_all(vault.exports.Export(export))), NotFound)
    ledger = VerifyLedgerRequest(campaign_id="other", ledger_key=bytes(32))
    assert isinstance(await refusal(vault.rehearsals.VerifyLedger(iter([ledger]))), NotFound)


async def test_it_serves_by_tls_alone_and_only_whom_it_can_name(vault: VaultProcess) -> None:
    root = vault.authority.authority_file.read_bytes()
    for opened in (
        grpc.aio.insecure_channel(vault.address),
        grpc.aio.secure_channel(vault.address, grpc.ssl_channel_credentials(root)),
    ):
        async with opened:
            call: Any = opened.unary_unary("/pli.vault.v1.KeyService/GetLockState")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(b"", timeout=5)
            assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert await vault.serving()


async def test_auto_unlock_makes_key_files_for_the_owner_alone_and_is_loud(vault: VaultProcess) -> None:
    await vault.create()
    status = await vault.status()
    assert (status.auto_unlock, list(status.unlocked)) == (True, ["answers", "identities"])
    for name in ("answers", "identities"):
        file = vault.directory / "keys" / f"{name}.key"
        assert stat.S_IMODE(file.stat().st_mode) == 0o400
        assert len(file.read_bytes()) == 32
    assert "FOR DEVELOPMENT ONLY" in vault.running.output()
    await vault.restart()
    assert (await vault.status()).state == "DRAFT"


async def test_the_database_is_open_to_its_owner_alone(vault: VaultProcess) -> None:
    await vault.create()
    for file in (vault.directory / "state").glob("vault.sqlite3*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_it_starts_locked_and_is_locked_again_after_a_crash(tmp_path: Path) -> None:
    for name in ("answers", "identities"):
        (tmp_path / "vault" / "keys").mkdir(parents=True, exist_ok=True)
        write_secret_file(tmp_path / "vault" / "keys" / f"{name}.key", secrets.token_bytes(32))
    async with VaultProcess(tmp_path / "vault", auto_unlock=False) as vault:
        assert await vault.serving()
        await _unlock(vault)
        await vault.fill()
        await publish(vault)
        platform = await platform_of(vault)
        await vault.restart()
        assert list((await vault.keys.GetLockState(GetLockStateRequest())).unlocked) == []
        assert isinstance(await refusal(publish(vault)), VaultLocked)
        assert isinstance(await refusal(vault.deposits.Sync(platform.report())), VaultUnavailable)
        assert (await vault.status()).state in ("DRAFT", "READY")
        await _unlock(vault)
        await synchronise(vault, platform)
        await vault.reached("READY")
        assert "FOR DEVELOPMENT ONLY" not in vault.running.output()


async def test_a_whole_campaign_passes_through_one_process(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    await vault.reached("READY")
    await open_window(vault)
    await synchronise(vault, platform)
    parts = [part async for part in vault.deposits.FetchBundle(FetchBundleRequest(campaign_id=CAMPAIGN))]
    pupil = parts[1].registry.entries[:16]
    platform.node().commit(3, pseudonym=pupil)
    await carry(vault, platform)
    await close_window(vault)
    await until(lambda: _closed(vault, platform), "the shard to flip")
    await carry(vault, platform)
    await synchronise(vault, platform)
    status = await vault.reached("DRAINED")
    assert (list(status.waiting_for), status.counts.spool_left, status.counts.landed) == ([], 0, 3)
    counts = (await vault.campaigns.Settle(SettleRequest(campaign_id=CAMPAIGN))).counts
    assert (counts.landed, counts.settled, counts.scripts) == (3, 3, 1)
    export = ExportRequest(campaign_id=CAMPAIGN, kind=ExportKind.EXPORT_KIND_RESULTS, purpose="a test")
    lines = b"".join([part.chunk for part in await _all(vault.exports.Export(export))]).splitlines()
    assert lines[0].startswith(b"pupil_id,score,max_score,")
    assert len(lines) == 1 + PUPILS


# How it dies, and comes back


async def test_a_vault_that_is_killed_after_every_step_resumes(vault: VaultProcess) -> None:
    await vault.create()
    await vault.restart()
    await vault.fill()
    await vault.restart()
    assert (await publish(vault)).bundle_version == 1
    await vault.restart()
    assert (await publish(vault)).bundle_version == 1
    platform = await platform_of(vault)
    await vault.restart()
    await vault.reached("READY")
    assert (await open_window(vault)).window_version == 2
    await vault.restart()
    assert (await open_window(vault)).window_version == 2
    await synchronise(vault, platform)
    node = platform.node()
    node.commit(2)
    await carry(vault, platform)
    await vault.restart()
    assert (await close_window(vault, DAY_MS)).window_version == 3
    await vault.restart()
    assert (await vault.status()).state == "CLOSING"
    assert (await close_window(vault)).window_version == 4
    await vault.restart()
    await until(lambda: _closed(vault, platform), "the shard to flip")
    await vault.restart()
    await vault.reached("CLOSED")
    await carry(vault, platform)
    await vault.restart()
    await synchronise(vault, platform)
    await vault.reached("DRAINED")
    await vault.restart()
    assert (await vault.status()).state == "DRAINED"
    states = ["DRAFT", "READY", "OPEN", "CLOSING", "CLOSING", "CLOSED", "DRAINED"]
    assert steps(vault) == list(pairwise(states))


CALLS: dict[str, Callable[[VaultProcess], Any]] = {
    "publish": publish,
    "open": open_window,
    "close": lambda vault: close_window(vault, DAY_MS),
}


@pytest.mark.parametrize("after_ms", [0, 4])
@pytest.mark.parametrize("call", list(CALLS))
async def test_a_call_that_dies_with_the_vault_is_repeated_and_done_once(
    vault: VaultProcess, call: str, after_ms: int
) -> None:
    await vault.fill()
    if call != "publish":
        await publish(vault)
        await platform_of(vault)
        await vault.reached("READY")
    if call == "close":
        await open_window(vault)
    dying = asyncio.ensure_future(CALLS[call](vault))
    await asyncio.sleep(after_ms / 1000)
    await vault.kill()
    await asyncio.gather(dying, return_exceptions=True)
    await vault.start()
    await CALLS[call](vault)
    if call == "publish":
        await platform_of(vault)
    state = {"publish": "READY", "open": "OPEN", "close": "CLOSING"}[call]
    await vault.reached(state)
    assert [to_state for _, to_state in steps(vault)].count(state) == 1


async def test_what_was_receipted_is_there_after_a_kill_in_the_middle_of_deposits(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    node = platform.node()
    receipted: list[bytes] = []
    several = asyncio.Event()

    async def deposit() -> None:
        for _ in range(1_000):
            node.commit(20)
            receipt = await carry(vault, platform)
            receipted.extend(verdict.digest for verdict in receipt.blocks)
            if len(receipted) > 20:
                several.set()

    depositing = asyncio.ensure_future(deposit())
    await several.wait()
    await vault.kill()
    await asyncio.gather(depositing, return_exceptions=True)
    await vault.start()
    with closing(sqlite3.connect(f"file:{database_file(vault)}?mode=ro", uri=True)) as connection:
        held = {digest for (digest,) in connection.execute("SELECT digest FROM landing_log")}
    assert set(receipted) <= held


async def test_a_receipt_that_was_lost_with_the_vault_is_given_again(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    platform.node().commit(5)
    request = platform.deposit()
    first = DepositReceipt.FromString((await vault.deposits.Deposit(request)).receipt.body)
    await vault.restart()
    again = DepositReceipt.FromString((await vault.deposits.Deposit(request)).receipt.body)
    assert [verdict.verdict for verdict in again.blocks] == [Verdict.VERDICT_DUPLICATE]
    assert (again.log_size, again.log_root, again.number) == (first.log_size, first.log_root, first.number + 1)


async def test_sigterm_under_load_ends_with_0_within_10_seconds(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    node = platform.node()
    receipts: list[DepositReceipt] = []
    loaded = asyncio.Event()

    async def deposit() -> None:
        for _ in range(10_000):
            node.commit(50)
            receipts.append(await carry(vault, platform))
            loaded.set()

    depositing = asyncio.ensure_future(deposit())
    watching = asyncio.ensure_future(_poll(vault))
    await loaded.wait()
    began = monotonic()
    assert await vault.terminate() == 0
    assert monotonic() - began < 10
    ended = await asyncio.gather(depositing, watching, return_exceptions=True)
    assert all(isinstance(error, grpc.aio.AioRpcError) for error in ended)
    assert '"event": "stopped"' in vault.running.tail()
    await vault.start()
    assert (await vault.status()).counts.landed >= sum(len(receipt.blocks) * 50 for receipt in receipts)


async def test_sigterm_lets_running_calls_finish(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    platform.node().commit(5)
    with held_database(vault):
        depositing = asyncio.ensure_future(vault.deposits.Deposit(platform.deposit()))
        # On the same connection, hence answered after the deposit has begun.
        assert await vault.serving(RELAY, RELAY_NAME)
        vault.running.send(signal.SIGTERM)
        await until(lambda: _logs(vault, "draining"), "the vault to drain")
    receipt = DepositReceipt.FromString((await depositing).receipt.body)
    assert [verdict.verdict for verdict in receipt.blocks] == [Verdict.VERDICT_NEW]
    assert await vault.running.ended() == 0


async def test_sigterm_does_not_wait_for_an_upload_that_never_ends(tmp_path: Path) -> None:
    async with VaultProcess(tmp_path / "vault", drain_ms=500) as vault:
        await vault.create()
        began = asyncio.Event()

        async def stalled() -> AsyncIterator[ImportRosterRequest]:
            yield ImportRosterRequest(campaign_id=CAMPAIGN, file_name="roster.csv")
            began.set()
            await asyncio.Event().wait()

        uploading = asyncio.ensure_future(vault.campaigns.ImportRoster(stalled()))
        await began.wait()
        assert await vault.serving()
        started = monotonic()
        assert await vault.terminate() == 0
        assert monotonic() - started < 10
        assert isinstance(await refusal(uploading), Unavailable)


async def test_sigterm_cuts_off_what_a_thread_cannot_finish(tmp_path: Path) -> None:
    async with VaultProcess(tmp_path / "vault", drain_ms=200) as vault:
        await vault.fill()
        await publish(vault)
        platform = await platform_of(vault)
        with held_database(vault):
            blocked = asyncio.ensure_future(vault.deposits.Sync(platform.report()))
            # Answered while the write above waits for the file: the process itself is well.
            assert (await vault.keys.GetLockState(GetLockStateRequest())).auto_unlock
            began = monotonic()
            assert await vault.terminate() == 0
            assert monotonic() - began < 10
            assert isinstance(await refusal(blocked), Unavailable)
        assert '"event": "cut_off"' in vault.running.tail()
        await vault.start()
        assert await vault.serving()


async def test_a_disk_that_takes_no_more_is_said_by_health_and_passes(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    assert await vault.serving()
    everything = resource.prlimit(vault.running.pid, resource.RLIMIT_FSIZE)
    # Enough for the log it writes, and less than what the database's log has grown to: no write succeeds.
    limit = vault.log.stat().st_size + 65_536
    assert database_file(vault).with_name("vault.sqlite3-wal").stat().st_size > limit
    resource.prlimit(vault.running.pid, resource.RLIMIT_FSIZE, (limit, everything[1]))
    platform.node().commit(5)
    assert isinstance(await refusal(vault.deposits.Deposit(platform.deposit())), VaultUnavailable)
    await until(lambda: _is_serving(vault, expected=False), "health to say NOT_SERVING")
    assert (await vault.status()).counts.landed == 0
    resource.prlimit(vault.running.pid, resource.RLIMIT_FSIZE, everything)
    await until(lambda: _is_serving(vault, expected=True), "health to say SERVING again")
    await carry(vault, platform)
    assert (await vault.status()).counts.landed == 5


async def test_a_damaged_audit_log_is_loud_lets_no_name_out_and_does_not_stop_collection(vault: VaultProcess) -> None:
    await vault.fill()
    await publish(vault)
    platform = await platform_of(vault)
    await vault.kill()
    with closing(sqlite3.connect(database_file(vault))) as connection, connection:
        assert connection.execute("UPDATE audit SET entry = replace(entry, 'ada', 'eve') WHERE number = 3").rowcount
    await vault.start()
    assert '"event": "audit_damaged"' in vault.running.output()
    platform.node().commit(5)
    assert [verdict.verdict for verdict in (await carry(vault, platform)).blocks] == [Verdict.VERDICT_NEW]
    await synchronise(vault, platform)
    export = ExportRequest(campaign_id=CAMPAIGN, kind=ExportKind.EXPORT_KIND_CODES, purpose="a test")
    assert isinstance(await refusal(_all(vault.exports.Export(export))), IntegrityError)


# Why it does not start


async def why(config: Path, log: Path, environ: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit status and what it said on the way out."""
    status, output = await run(
        ["vault.main.vault", "--config", str(config)], log, None if environ is None else {**os.environ, **environ}
    )
    assert "Traceback" not in output, output
    return status, output


@pytest.fixture
def stopped(tmp_path: Path) -> VaultProcess:
    """A vault that was configured and never started."""
    return VaultProcess(tmp_path / "vault")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lisen": "127.0.0.1:1"}, "lisen: unknown key; remove it or correct its name"),
        ({"listen": "somewhere"}, "'somewhere' is not an address; write host:port"),
        ({"tick_ms": 0}, "tick_ms: Input should be greater than or equal to 10"),
        ({"answers_key_file": None}, "auto_unlock needs answers_key_file and identities_key_file"),
        ({"state_dir": None}, "state_dir: Field required"),
    ],
)
async def test_a_wrong_configuration_says_which_key_and_what_to_do(
    stopped: VaultProcess, changed: dict[str, Any], told: str
) -> None:
    status, output = await why(stopped.write_config("wrong.toml", **changed), stopped.log)
    assert (status, told in output) == (2, True), output


async def test_a_missing_configuration_and_an_unknown_variable_are_named(stopped: VaultProcess) -> None:
    status, output = await why(stopped.directory / "none.toml", stopped.log)
    assert (status, "none.toml does not exist; give the path of a TOML file" in output) == (2, True), output
    status, output = await why(stopped.config, stopped.log, {"PLI_TICKS": "1"})
    assert (status, "unknown environment variable PLI_TICKS" in output) == (2, True), output


async def test_secrets_inside_the_state_directory_are_refused(stopped: VaultProcess) -> None:
    config = stopped.write_config("inside.toml", state_dir=stopped.directory)
    status, output = await why(config, stopped.log)
    assert (status, "lies inside state_dir" in output) == (2, True), output


async def test_a_secret_that_others_can_read_is_refused(stopped: VaultProcess) -> None:
    stopped.files.key_file.chmod(0o644)
    status, output = await why(stopped.config, stopped.log)
    assert (status, f"chmod 0400 {stopped.files.key_file}" in output) == (2, True), output
    stopped.files.key_file.chmod(0o400)
    keys = stopped.directory / "keys"
    keys.mkdir()
    write_secret_file(keys / "answers.key", secrets.token_bytes(32), mode=0o440)
    status, output = await why(stopped.config, stopped.log)
    assert (status, f"chmod 0400 {keys / 'answers.key'}" in output) == (2, True), output


async def test_a_certificate_of_another_role_is_refused(stopped: VaultProcess) -> None:
    files = stopped.authority.issue(RELAY, "relay-9", ("127.0.0.1",))
    status, output = await why(stopped.write_config("relay.toml", tls=files.model_dump()), stopped.log)
    assert (status, "has role relay; the vault needs role vault" in output) == (2, True), output


async def test_a_certificate_that_is_none_is_refused(stopped: VaultProcess) -> None:
    stopped.files.certificate_file.write_text("not a certificate")
    status, output = await why(stopped.config, stopped.log)
    assert (status, "is no certificate of role vault" in output) == (2, True), output


async def test_a_port_in_use_is_refused_even_if_it_could_be_shared(stopped: VaultProcess) -> None:
    with closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", int(stopped.address.rpartition(":")[2])))
        other.listen()
        status, output = await why(stopped.config, stopped.log)
    assert (status, f"cannot listen on {stopped.address}: Address already in use" in output) == (2, True), output


async def test_a_second_vault_on_the_same_state_is_refused_and_the_first_goes_on(vault: VaultProcess) -> None:
    config = vault.write_config("second.toml", listen="127.0.0.1:0")
    status, output = await why(config, vault.directory / "second.log")
    assert status == 2
    assert f"a vault already runs on {vault.directory / 'state'}; stop it, or give this one its own" in output
    assert await vault.serving()


async def test_a_database_of_a_newer_version_is_not_touched(vault: VaultProcess) -> None:
    await vault.kill()
    with closing(sqlite3.connect(database_file(vault))) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    status, output = await why(vault.config, vault.log)
    assert (status, "newer version of pli (schema 9999)" in output) == (2, True), output


async def test_a_damaged_database_is_not_taken_for_an_empty_one(vault: VaultProcess) -> None:
    await vault.kill()
    for file in (vault.directory / "state").glob("vault.sqlite3-*"):
        file.unlink()
    database_file(vault).write_bytes(b"not a database, but as long as one " * 200)
    status, output = await why(vault.config, vault.log)
    assert (status, "the vault's database is damaged" in output) == (1, True), output


async def test_a_damaged_keystore_is_not_taken_for_an_empty_one(vault: VaultProcess) -> None:
    await vault.kill()
    keystore = vault.directory / "state" / "keystore" / "keystore.json"
    keystore.write_bytes(keystore.read_bytes()[:-20])
    status, output = await why(vault.config, vault.log)
    assert (status, "keystore.json is damaged; restore it from a backup" in output) == (2, True), output


async def test_a_keystore_of_another_day_than_the_database_is_refused(vault: VaultProcess) -> None:
    keystore = vault.directory / "state" / "keystore" / "keystore.json"
    of_the_day_before = keystore.read_bytes()
    await vault.create()
    await vault.kill()
    keystore.write_bytes(of_the_day_before)
    status, output = await why(vault.config, vault.log)
    assert status == 2
    assert f"the database holds campaign {CAMPAIGN}, the keystore has no keys for it; restore database" in output
    assert keystore.read_bytes() == of_the_day_before


async def test_a_key_file_that_was_lost_is_not_replaced_by_one_that_opens_nothing(vault: VaultProcess) -> None:
    await vault.kill()
    (vault.directory / "keys" / "answers.key").unlink()
    status, output = await why(vault.config, vault.log)
    assert status == 2
    assert "answers.key" in output
    assert not (vault.directory / "keys" / "answers.key").exists()


# What these tests share


async def _unlock(vault: VaultProcess) -> None:
    for scope in BOTH:
        await vault.keys.Unlock(UnlockRequest(scope=scope))


async def _closed(vault: VaultProcess, platform: PlayedPlatform) -> bool:
    await synchronise(vault, platform)
    return platform.shards[0].closed


async def _is_serving(vault: VaultProcess, *, expected: bool) -> bool:
    return await vault.serving() is expected


async def _logs(vault: VaultProcess, event: str) -> bool:
    return f'"event": "{event}"' in vault.running.output()


async def _poll(vault: VaultProcess) -> None:
    while True:
        await vault.status()


async def _all(stream: Any) -> list[Any]:
    return [part async for part in stream]


@contextmanager
def held_database(vault: VaultProcess) -> Iterator[None]:
    """Another process writes to the file and does not come to an end."""
    with closing(sqlite3.connect(database_file(vault), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
