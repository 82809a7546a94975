"""DepositService over real mTLS: what relays bring, what they are told, and what they are refused."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from pli.development_ca import DevelopmentAuthority
from pli.errors import Forbidden, InputError, IntegrityError, NotFound, StateError, VaultUnavailable
from pli.hpke import PrivateKey
from pli.identity import Peer
from pli.process import clock_ms
from pli.pseudonym import PSEUDONYM_BYTES
from pli.rpc.roles import INGEST, RELAY
from pli.signing import BUNDLE, DEPOSIT_RECEIPT, ENROLLED, WINDOW, verify
from pli.vault.v1.bundle_pb2 import Bundle, Enrolled, WindowOrder
from pli.vault.v1.deposit_pb2 import (
    DepositReceipt,
    DepositRequest,
    EnrolNodeRequest,
    FetchBundleRequest,
    SyncRequest,
    Verdict,
)
from pli.vault.v1.deposit_pb2_grpc import DepositServiceStub
from server.identity import NodeIdentity
from tests.support.played_platform import RELAY_NAME, PlayedPlatform
from tests.support.vault_parts import CAMPAIGN
from tests.support.vault_server import VaultServer, content, refusal, vault_server
from vault.code_issue import issue_codes
from vault.keystore import Scope
from vault.life_cycle import LifeCycle
from vault.store.landing_tables import LANDING_LOG
from vault.sync import Shard, load_shards

ADMIN = Peer("campaign-admin", "ada")
ANOTHER_STORE = b"another store..."


class Deposits:
    """A vault that serves, with a campaign of two shards, and the platform that talks to it."""

    def __init__(self, vault: VaultServer, stub: Any) -> None:
        self.vault = vault
        self.parts = vault.parts
        self.stub = stub
        self.platform = PlayedPlatform(CAMPAIGN, self.parts.answers.answer.public_raw, vault.authority, 2)
        self.life_cycle = LifeCycle(
            self.parts.database, self.parts.keyring, self.parts.audit, self.parts.clock_ms, late_grace_ms=1_000
        )

    async def sync(self) -> Any:
        return await self.stub.Sync(self.platform.report())

    async def adopt(self) -> None:
        """The first exchange: the relay adopts its stores and reports them."""
        self.platform.follow(await self.sync())
        await self.sync()

    async def publish(self) -> int:
        self.parts.import_roster()
        self.parts.put_instrument()
        await issue_codes(self.parts.database, self.parts.keyring, CAMPAIGN, secrets.randbits)
        return await self.life_cycle.publish(CAMPAIGN, ADMIN)

    def shards(self) -> list[Shard]:
        return self.parts.database.read_now(lambda connection: load_shards(connection, CAMPAIGN))

    def enrolment(self, authority: DevelopmentAuthority) -> tuple[PrivateKey, EnrolNodeRequest]:
        """A node's receiving key and its request."""
        receiving = PrivateKey.generate()
        node = NodeIdentity.load(authority.issue(INGEST, f"node-{secrets.token_hex(4)}"), receiving)
        return receiving, EnrolNodeRequest(enrolment=node.enrolment(CAMPAIGN, clock_ms()))

    async def calls(self) -> dict[str, Any]:
        """One call of each method, all of them such that an unlocked vault answers."""
        self.platform.node().commit()
        return {
            "Deposit": lambda: self.stub.Deposit(self.platform.deposit()),
            "Sync": self.sync,
            "FetchBundle": lambda: self.parts_of_bundle(),
            "EnrolNode": lambda: self.stub.EnrolNode(self.enrolment(self.vault.authority)[1]),
        }

    async def parts_of_bundle(self) -> list[Any]:
        return [part async for part in self.stub.FetchBundle(FetchBundleRequest(campaign_id=CAMPAIGN))]


@pytest.fixture
async def deposits(tmp_path: Path) -> AsyncIterator[Deposits]:
    async with vault_server(tmp_path) as vault:
        vault.parts.now_ms = clock_ms()
        await vault.parts.create(vault.authority, shards=2)
        yield Deposits(vault, DepositServiceStub(await vault.channel(RELAY, RELAY_NAME)))


# Deposit


async def test_a_deposit_is_on_disk_and_receipted_when_it_returns(deposits: Deposits) -> None:
    node = deposits.platform.node()
    blocks = [node.commit(3), node.commit(2)]
    response = await deposits.stub.Deposit(deposits.platform.deposit())
    key = deposits.parts.answers.signing.public_key()
    receipt = DepositReceipt.FromString(verify(key, DEPOSIT_RECEIPT, response.receipt))
    assert [(verdict.digest, verdict.verdict, verdict.records) for verdict in receipt.blocks] == [
        (sha256(blocks[0]).digest(), Verdict.VERDICT_NEW, 3),
        (sha256(blocks[1]).digest(), Verdict.VERDICT_NEW, 2),
    ]
    assert (receipt.number, receipt.log_size, receipt.campaign_id, receipt.shard) == (1, 2, CAMPAIGN, 0)
    assert deposits.parts.rows_in(LANDING_LOG) == 2


async def test_a_repeated_deposit_is_a_duplicate_and_changes_nothing(deposits: Deposits) -> None:
    deposits.platform.node().commit()
    request = deposits.platform.deposit()
    await deposits.stub.Deposit(request)
    receipt = DepositReceipt.FromString((await deposits.stub.Deposit(request)).receipt.body)
    assert [verdict.verdict for verdict in receipt.blocks] == [Verdict.VERDICT_DUPLICATE]
    assert deposits.parts.rows_in(LANDING_LOG) == 1


@pytest.mark.parametrize("relay", ["", "relay-2", "RELAY-1"])
async def test_a_relay_speaks_under_the_name_of_its_certificate_alone(deposits: Deposits, relay: str) -> None:
    deposits.platform.node().commit()
    deposit, report = deposits.platform.deposit(), deposits.platform.report()
    assert deposit is not None
    deposit.relay = report.relay = relay
    before = content(deposits.vault)
    for call in (deposits.stub.Deposit(deposit), deposits.stub.Sync(report)):
        refused = await refusal(call)
        assert isinstance(refused, Forbidden)
        assert RELAY_NAME in refused.message
    assert content(deposits.vault) == before


async def test_every_call_is_unavailable_while_answers_are_locked_and_works_afterwards(deposits: Deposits) -> None:
    await deposits.publish()
    calls = await deposits.calls()
    deposits.parts.keystore.lock(Scope.ANSWERS)
    before = content(deposits.vault)
    for name, call in calls.items():
        refused = await refusal(call())
        assert isinstance(refused, VaultUnavailable), name
        assert "keep what you have, and retry" in refused.message
    assert content(deposits.vault) == before
    deposits.parts.keystore.unlock(Scope.ANSWERS)
    for call in calls.values():
        assert await call()


async def test_identities_stay_locked_during_collection(deposits: Deposits) -> None:
    await deposits.publish()
    deposits.parts.keystore.lock(Scope.IDENTITIES)
    for call in (await deposits.calls()).values():
        assert await call()


async def test_a_campaign_that_does_not_exist_is_not_found(deposits: Deposits) -> None:
    for call in (
        deposits.stub.Deposit(DepositRequest(campaign_id="other", relay=RELAY_NAME)),
        deposits.stub.Sync(SyncRequest(campaign_id="other", relay=RELAY_NAME)),
        _first(deposits.stub.FetchBundle(FetchBundleRequest(campaign_id="other"))),
    ):
        assert isinstance(await refusal(call), NotFound)


async def test_a_full_disk_is_unavailable_writes_nothing_and_passes(deposits: Deposits) -> None:
    database = deposits.parts.database
    await deposits.adopt()
    deposits.platform.node().commit(200)
    request, before = deposits.platform.deposit(), content(deposits.vault)
    pages = database.read_now(lambda connection: connection.execute(text("PRAGMA page_count")).scalar_one())

    def limit(connection: Any, count: int) -> None:
        connection.execute(f"PRAGMA max_page_count = {count}")

    def limited(connection: Any, _record: object, _proxy: object) -> None:
        limit(connection, pages)

    event.listen(database.engine, "checkout", limited)
    refused = await refusal(deposits.stub.Deposit(request))
    assert isinstance(refused, VaultUnavailable)
    assert "its disk is full: free space" in refused.message
    assert content(deposits.vault) == before
    assert database.failing
    event.remove(database.engine, "checkout", limited)
    event.listen(database.engine, "checkout", lambda connection, _record, _proxy: limit(connection, 1 << 30))
    receipt = DepositReceipt.FromString((await deposits.stub.Deposit(request)).receipt.body)
    assert [verdict.verdict for verdict in receipt.blocks] == [Verdict.VERDICT_NEW]
    assert database.failing == ""


# Sync


async def test_before_publication_there_is_nothing_to_load_and_no_window(deposits: Deposits) -> None:
    response = await deposits.sync()
    assert response.bundle_version == 0
    assert not response.HasField("window")
    assert (list(response.markers), response.state) == ([b"", b""], "DRAFT")


async def test_the_first_store_that_is_reported_is_adopted(deposits: Deposits) -> None:
    await deposits.adopt()
    markers = [shard.marker for shard in deposits.platform.shards]
    assert list((await deposits.sync()).markers) == markers
    assert [shard.marker for shard in deposits.shards()] == markers


async def test_a_report_is_recorded_shard_by_shard(deposits: Deposits) -> None:
    await deposits.adopt()
    deposits.platform.shards[0].window_version = 4
    deposits.platform.shards[1].blocks = [b"", b"", b""]
    deposits.platform.shards[1].phase = 4
    await deposits.sync()
    found = [(shard.window_version, shard.blocks_waiting, shard.closed) for shard in deposits.shards()]
    assert found == [(4, 0, False), (0, 3, True)]
    assert all(shard.reported_at_ms == deposits.parts.now_ms for shard in deposits.shards())


async def test_after_publication_the_order_is_signed_and_the_bundle_named(deposits: Deposits) -> None:
    version = await deposits.publish()
    response = await deposits.sync()
    assert response.bundle_version == version == 1
    key = deposits.parts.answers.signing.public_key()
    assert WindowOrder.FromString(verify(key, WINDOW, response.window)).version == 1
    with pytest.raises(IntegrityError):
        verify(key, BUNDLE, response.window)


@pytest.mark.parametrize("marker", [b"", ANOTHER_STORE])
async def test_an_exchanged_store_is_answered_with_the_known_marker_and_nothing_of_it_is_taken(
    deposits: Deposits, marker: bytes
) -> None:
    await deposits.publish()
    await deposits.adopt()
    shard = deposits.platform.shards[1]
    known = shard.marker
    shard.marker, shard.window_version, shard.blocks, shard.phase = marker, 7, [b"", b""], 4
    assert (await deposits.sync()).markers[1] == known
    held = deposits.shards()[1]
    assert (held.marker, held.reported_marker, held.exchanged) == (known, marker, True)
    assert (held.window_version, held.blocks_waiting, held.closed) == (1, 0, False)
    waiting_for = (await deposits.life_cycle.status(CAMPAIGN)).waiting_for
    assert "shard 1: the relay has another store than the one that was adopted" in waiting_for[0]
    shard.marker, shard.phase, shard.blocks, shard.window_version = known, 1, [], 1
    await deposits.sync()
    await deposits.life_cycle.tick()
    status = await deposits.life_cycle.status(CAMPAIGN)
    assert (status.state, status.waiting_for) == ("READY", [])


async def test_a_bundle_that_every_adopted_store_has_loaded_counts(deposits: Deposits) -> None:
    await deposits.publish()
    await deposits.adopt()
    assert deposits.parts.campaign().bundle_loaded == 1


@pytest.mark.parametrize(("marker", "loaded"), [(ANOTHER_STORE, 1), (None, 2)])
async def test_a_bundle_that_was_not_published_or_is_elsewhere_does_not_count(
    deposits: Deposits, marker: bytes | None, loaded: int
) -> None:
    await deposits.publish()
    await deposits.sync()
    for shard in deposits.platform.shards:
        shard.marker = bytes((shard.number + 1,)) * 16
    await deposits.sync()
    for shard in deposits.platform.shards:
        shard.bundle, shard.marker = loaded, marker or shard.marker
    await deposits.sync()
    assert deposits.parts.campaign().bundle_loaded == 0


async def test_a_report_that_comes_late_does_not_open_what_was_closed(deposits: Deposits) -> None:
    await deposits.adopt()
    early = deposits.platform.report()
    deposits.platform.shards[0].close(CAMPAIGN)
    await deposits.sync()
    await deposits.stub.Sync(early)
    held = deposits.shards()[0]
    assert (held.closed, held.blocks_waiting) == (True, 1)


@pytest.mark.parametrize("fault", ["a shard too few", "a shard too many", "short marker", "number"])
async def test_a_report_that_does_not_fit_the_campaign_is_refused_whole(deposits: Deposits, fault: str) -> None:
    await deposits.adopt()
    before = deposits.shards()
    report = deposits.platform.report()
    report.shards[0].blocks_waiting = 5
    if fault == "a shard too few":
        del report.shards[1]
    elif fault == "a shard too many":
        report.shards.add()
    elif fault == "short marker":
        report.shards[1].marker = b"short"
    else:
        report.shards[1].blocks_waiting = 2**64 - 1
    assert isinstance(await refusal(deposits.stub.Sync(report)), InputError)
    assert deposits.shards() == before


async def test_a_platform_ahead_of_this_vault_is_said(deposits: Deposits) -> None:
    await deposits.publish()
    await deposits.adopt()
    deposits.platform.shards[0].window_version = 6
    await deposits.sync()
    waiting_for = (await deposits.life_cycle.status(CAMPAIGN)).waiting_for
    assert waiting_for == [
        "shard 0: the platform follows order 6 about the window, this vault gave 1; was an older database restored?"
    ]


# FetchBundle


async def test_bundle_and_registry_arrive_whole_and_in_order(deposits: Deposits) -> None:
    await deposits.publish()
    first, *rest = await deposits.parts_of_bundle()
    key = deposits.parts.answers.signing.public_key()
    bundle = Bundle.FromString(verify(key, BUNDLE, first.bundle))
    entries = b"".join(part.registry.entries for part in rest)
    assert (bundle.version, bundle.shards, bundle.registry_count) == (1, 2, 12)
    assert len(entries) == 20 * bundle.registry_count
    assert sha256(entries).digest() == bundle.registry_digest
    pseudonyms = [entries[at : at + PSEUDONYM_BYTES] for at in range(0, len(entries), 20)]
    assert pseudonyms == sorted(pseudonyms)


async def test_before_publication_there_is_no_bundle(deposits: Deposits) -> None:
    assert isinstance(await refusal(deposits.parts_of_bundle()), StateError)


# EnrolNode


async def test_a_node_of_an_enrolled_authority_gets_the_pseudonym_key_for_itself_alone(deposits: Deposits) -> None:
    receiving, request = deposits.enrolment(deposits.vault.authority)
    response = await deposits.stub.EnrolNode(request)
    key = deposits.parts.answers.signing.public_key()
    enrolled = Enrolled.FromString(verify(key, ENROLLED, response.enrolled))
    info = b"\0".join((b"pli/pseudonym-key/v1", CAMPAIGN.encode(), enrolled.node_key_id))
    assert receiving.decrypt(enrolled.sealed_pseudonym_key, info) == deposits.parts.answers.pseudonym.reveal()
    with pytest.raises(IntegrityError):
        PrivateKey.generate().decrypt(enrolled.sealed_pseudonym_key, info)


async def test_a_node_of_another_authority_gets_nothing(deposits: Deposits, tmp_path: Path) -> None:
    _, request = deposits.enrolment(DevelopmentAuthority(tmp_path / "another"))
    assert isinstance(await refusal(deposits.stub.EnrolNode(request)), Forbidden)


async def _first(stream: Any) -> Any:
    async for part in stream:
        return part
    return None
