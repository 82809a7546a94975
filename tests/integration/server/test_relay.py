"""The relay against a scripted vault: what leaves the spool, what stays, and what it brings in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from struct import pack
from time import monotonic
from typing import Any

import pytest
import pytest_asyncio

from pli.closings import read_closing
from pli.development_ca import DevelopmentAuthority
from pli.hpke import PrivateKey
from pli.process import clock_ms
from pli.rpc.roles import INGEST, RELAY, VAULT
from pli.vault.v1.bundle_pb2 import Signed
from pli.vault.v1.deposit_pb2 import DepositReceipt, SyncResponse, Verdict
from server.identity import NodeIdentity
from server.store.spool import asked
from server.store.window import read_window
from tests.contract.shard import Epoch, Shard, Writer, part
from tests.support.played_vault import INSTRUMENT, PlayedVault, Registered, make_codes
from tests.support.processes import Child
from tests.support.scripted_vault import ScriptedVault, listening
from tests.support.stores import ProgramStore
from tests.support.toml_files import write_toml
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")
FAST = {"sync_ms": 50, "backoff_max_ms": 200, "claim_idle_ms": 500}


@dataclass
class Scene:
    """A store with one shard, a scripted vault, and relays between them."""

    directory: Path
    store: ProgramStore
    shard: Shard
    service: ScriptedVault
    authority: DevelopmentAuthority
    vault_key: Path
    address: str
    relays: list[Child] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)
    epoch: Epoch = field(default_factory=lambda: Epoch(os.urandom(16)))

    async def relay(self, name: str = "", **settings: Any) -> Child:
        """Starts a relay; the same name again is the same relay, restarted."""
        name = name or f"relay-{len(self.relays) + 1}"
        config = self.directory / f"{name}.toml"
        if not config.exists():
            write_toml(
                config,
                {
                    "campaign_id": self.shard.keys.campaign_id,
                    "name": name,
                    "state_dir": self.directory / name,
                    "vault": self.address,
                    "tls": self.authority.issue(RELAY, name).model_dump(),
                    "vault_signing_key_file": self.vault_key,
                    "spool": self.store.settings("relay"),
                    **FAST,
                    **settings,
                },
            )
        process = Child.module(
            "server.main.relay", "--config", str(config), log=self.directory / f"{name}-{len(self.relays)}.log"
        )
        self.relays.append(process)
        await process.ready()
        return process

    async def blocks(self, count: int, size: int = 64) -> list[bytes]:
        """Commits so many blocks; their bytes."""
        written = []
        for _ in range(count):
            self.writers = self.writers or [await self.shard.writer()]
            content = os.urandom(size)
            seq = self.epoch.number + 1
            verdict = await self.shard.commit(self.epoch, part(self.writers[0], seq, seq), content=content)
            assert not verdict.closed
            assert not verdict.superseded
            written.append(content)
        return written

    async def left(self) -> int:
        """Entries in the spool."""
        return (await self.shard.relay.facts()).waiting

    async def emptied(self) -> None:
        """Waits until the spool is empty, and nothing is pending either."""

        async def empty() -> bool:
            return await self.left() == 0

        await until(empty, "the spool to be empty")
        pending = await self.store.administer("XPENDING", self.shard.keys.spool, "relays")
        assert pending["pending"] == 0

    async def deposited(self, count: int) -> None:
        """Waits until the vault was asked so often."""

        async def asked_often() -> bool:
            return len(self.service.deposits) >= count

        await until(asked_often, f"{count} deposits")

    def output(self) -> str:
        """What all relays wrote."""
        return "".join(relay.output() for relay in self.relays)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProgramStore]:
    running = ProgramStore(tmp_path_factory.mktemp("relay-store"))
    try:
        await running.start()
        yield running
    finally:
        await running.aclose()


@pytest_asyncio.fixture(loop_scope="session")
async def scene(tmp_path: Path, store: ProgramStore) -> AsyncIterator[Scene]:
    ingest, relay = store.connect("ingest"), store.connect("relay")
    vault = PlayedVault(f"c-{os.urandom(4).hex()}")
    shard = Shard(store, vault.campaign_id, ingest, relay)
    await shard.prepare()
    service = ScriptedVault(vault)
    authority = DevelopmentAuthority(tmp_path / "certificates")
    files = authority.issue(VAULT, "vault-1", ("127.0.0.1",))
    async with listening(service, files) as address:
        key = vault.write_public_key(tmp_path / "vault.pem")
        running = Scene(tmp_path, store, shard, service, authority, key, address)
        try:
            yield running
        finally:
            await asyncio.gather(*(each.stop(signal.SIGKILL) for each in running.relays))
            await ingest.aclose()
            await relay.aclose()


async def test_every_settled_verdict_lets_a_block_go(scene: Scene) -> None:
    settled = [
        Verdict.VERDICT_NEW,
        Verdict.VERDICT_DUPLICATE,
        Verdict.VERDICT_CONFLICT,
        Verdict.VERDICT_QUARANTINED,
    ]
    verdicts = dict(zip(await scene.blocks(4), settled, strict=True))
    scene.service.verdict_of = lambda block: verdicts[block]
    await scene.relay()
    await scene.emptied()
    assert scene.output().count("block_quarantined") == 1


async def test_a_block_to_be_sent_again_stays_and_stops_nobody(scene: Scene) -> None:
    first, *others = await scene.blocks(3)
    known = False
    scene.service.verdict_of = lambda block: Verdict.VERDICT_NEW if known or block != first else Verdict.VERDICT_RETRY
    await scene.relay()

    async def others_gone() -> bool:
        return await scene.left() == 1

    await until(others_gone, "the other blocks to go")
    others += await scene.blocks(2)
    await until(others_gone, "later blocks to go as well")
    deposits = [request for request in scene.service.deposits if first in request.blocks]
    assert all(request.headers == [b"header"] for request in deposits), "its header goes with it every time"
    known = True
    await scene.emptied()


def other_digest(receipt: DepositReceipt) -> None:
    receipt.blocks[0].digest = bytes(32)


def one_verdict_less(receipt: DepositReceipt) -> None:
    del receipt.blocks[-1]


def one_verdict_more(receipt: DepositReceipt) -> None:
    receipt.blocks.add(digest=bytes(32), verdict=Verdict.VERDICT_NEW)


def other_campaign(receipt: DepositReceipt) -> None:
    receipt.campaign_id = "another"


def other_shard(receipt: DepositReceipt) -> None:
    receipt.shard = 7


def other_order(receipt: DepositReceipt) -> None:
    turned = list(receipt.blocks)[::-1]
    del receipt.blocks[:]
    receipt.blocks.extend(turned)


def no_verdict(receipt: DepositReceipt) -> None:
    for each in receipt.blocks:
        each.verdict = Verdict.VERDICT_UNSPECIFIED


def unknown_verdict(receipt: DepositReceipt) -> None:
    for each in receipt.blocks:
        each.verdict = 99  # type: ignore[assignment]  # of a later version


@pytest.mark.parametrize(
    "spoil",
    [
        other_digest, one_verdict_less, one_verdict_more, other_campaign, other_shard, other_order, no_verdict,
        unknown_verdict,
    ],
)  # fmt: skip
async def test_a_receipt_for_something_else_removes_nothing(scene: Scene, spoil: Any) -> None:
    await scene.blocks(3)
    scene.service.spoil = spoil
    relay = await scene.relay()
    await scene.deposited(3)
    assert await scene.left() == 3
    scene.service.spoil = lambda _receipt: None
    await scene.emptied()
    assert relay.status is None
    assert "Traceback" not in scene.output()


def flipped_signature(signed: Signed) -> None:
    signed.signature = bytes((signed.signature[0] ^ 1,)) + signed.signature[1:]


def no_signature(signed: Signed) -> None:
    signed.signature = b""


def other_body(signed: Signed) -> None:
    signed.body += b"\x38\x01"


async def test_a_receipt_without_the_vaults_signature_removes_nothing(scene: Scene) -> None:
    await scene.blocks(2)
    await scene.relay()
    for spoil in (flipped_signature, no_signature, other_body):
        scene.service.spoil_signed = spoil
        await scene.deposited(len(scene.service.deposits) + 2)
        assert await scene.left() == 2
    scene.service.spoil_signed = lambda _signed: None
    await scene.emptied()


async def test_while_the_vault_is_away_nothing_is_removed_and_it_is_asked_with_patience(scene: Scene) -> None:
    relay = await scene.relay(backoff_max_ms=2_000)
    await scene.blocks(1)
    await scene.emptied()
    scene.service.unavailable = True
    scene.service.deposits.clear()
    written = await scene.blocks(3)
    await scene.deposited(5)
    patient = monotonic()
    await scene.deposited(9)
    assert monotonic() - patient > 0.1, "four more attempts, each after up to two seconds"
    assert await scene.left() == 3
    scene.service.unavailable = False
    await scene.emptied()
    assert relay.status is None
    assert {block for request in scene.service.deposits for block in request.blocks} == set(written)


async def test_a_relay_that_was_killed_before_the_receipt_deposits_the_same_again(scene: Scene) -> None:
    written = await scene.blocks(5)
    scene.service.answering.clear()
    relay = await scene.relay("relay-1")
    await scene.deposited(1)
    await relay.stop(signal.SIGKILL)
    assert await scene.left() == 5
    scene.service.answering.set()
    scene.service.verdict_of = lambda _block: Verdict.VERDICT_DUPLICATE
    await scene.relay("relay-1")
    await scene.emptied()
    assert set(scene.service.deposits[-1].blocks) <= set(written)
    assert len(set(scene.service.landed)) == 5


async def test_what_a_vanished_relay_took_is_taken_over_by_another(scene: Scene) -> None:
    await scene.blocks(3)
    scene.service.answering.clear()
    relay = await scene.relay()
    await scene.deposited(1)
    await relay.stop(signal.SIGKILL)
    scene.service.answering.set()
    await scene.relay()
    await scene.emptied()


async def test_two_relays_share_the_work_and_lose_nothing(scene: Scene) -> None:
    await asyncio.gather(scene.relay(), scene.relay())
    for _ in range(10):
        await scene.blocks(10)
    await scene.emptied()
    assert len(set(scene.service.landed)) == 100
    assert {request.relay for request in scene.service.deposits} <= {"relay-1", "relay-2"}


async def test_deposits_stay_below_their_size_and_are_read_by_it(scene: Scene) -> None:
    await scene.blocks(12, size=400_000)
    await scene.relay(read_max_bytes=1_000_000)
    await scene.emptied()
    sizes = [sum(map(len, request.blocks)) for request in scene.service.deposits]
    assert sum(sizes) == 12 * 400_000
    assert max(sizes) <= 1_000_000


async def test_a_header_is_sent_until_it_was_receipted_and_not_again(scene: Scene) -> None:
    await scene.relay()
    await scene.blocks(1)
    await scene.emptied()
    await scene.blocks(1)
    await scene.emptied()
    assert [list(request.headers) for request in scene.service.deposits] == [[b"header"], []]
    await scene.relay("relay-2")
    await scene.relays[0].stop()
    await scene.blocks(1)
    await scene.emptied()
    assert list(scene.service.deposits[-1].headers) == [b"header"], "another relay has not seen it receipted"


async def test_the_close_is_carried_out_once_and_its_table_deposited(scene: Scene) -> None:
    await scene.blocks(2)
    version = scene.shard.window_version + 1
    scene.service.response = SyncResponse(window=scene.service.vault.window_order(version, 4))
    await asyncio.gather(scene.relay(), scene.relay())
    await scene.emptied()

    async def reported() -> bool:
        return any(shard.closed for request in scene.service.syncs for shard in request.shards)

    await until(reported, "the close to be reported")
    (closing,) = [closing for request in scene.service.deposits for closing in request.closings]
    assert [epoch.last_number for epoch in read_closing(closing).epochs] == [2]


async def test_a_closing_that_the_vault_does_not_take_stays(scene: Scene) -> None:
    await scene.shard.close()

    def refused(receipt: DepositReceipt) -> None:
        receipt.closings[0] = False

    scene.service.spoil = refused
    await scene.relay()
    await scene.deposited(2)
    assert await scene.left() == 1


async def test_window_orders_are_believed_only_with_the_vaults_signature(scene: Scene) -> None:
    vault, version = scene.service.vault, scene.shard.window_version + 1
    forged = vault.window_order(version, 4)
    flipped_signature(forged)
    scene.service.response = SyncResponse(window=forged)
    await scene.relay()

    async def complained() -> bool:
        return "wrong signature" in scene.output()

    await until(complained, "the forged order to be refused")
    window = await read_window(scene.shard.ingest_redis, scene.shard.keys)
    assert window.phase == 2
    scene.service.response = SyncResponse(window=vault.window_order(version, 3, 5, 6_000, 7))

    async def set_now() -> bool:
        window = await read_window(scene.shard.ingest_redis, scene.shard.keys)
        return (window.phase, window.opens_ms, window.closes_ms, window.grace_ms) == (3, 5, 6_000, 7)

    await until(set_now, "the genuine order")


async def test_bundle_and_registry_are_loaded_whole_or_not_marked(scene: Scene) -> None:
    vault = scene.service.vault
    codes = [Registered(code) for code in make_codes(30)]
    scene.service.registry = vault.registry(codes)
    scene.service.bundle = vault.bundle(INSTRUMENT, scene.service.registry, scene.authority.certificate, version=3)
    genuine = list(scene.service.registry)
    scene.service.registry[7] = os.urandom(16) + pack(">BHB", 1, 0, 1)
    scene.service.response = SyncResponse(bundle_version=3)
    await scene.relay()

    async def complained() -> bool:
        return "incomplete or altered" in scene.output()

    await until(complained, "the altered registry to be refused")
    assert await scene.shard.relay.loaded_version() == 0
    scene.service.registry = genuine

    async def loaded() -> bool:
        return await scene.shard.relay.loaded_version() == 3

    await until(loaded, "the bundle")
    known = await scene.store.administer("HMGET", scene.shard.keys.registry, *(row[:16] for row in genuine))
    assert known == [row[16:] for row in genuine]

    async def reported() -> bool:
        return scene.service.syncs[-1].bundle_version == 3

    await until(reported, "the vault to hear of it")
    scene.service.bundle = vault.bundle(INSTRUMENT, genuine, scene.authority.certificate, version=2)
    scene.service.response = SyncResponse(bundle_version=4)

    async def refused() -> bool:
        return "older than the one that is loaded" in scene.output()

    await until(refused, "the older bundle to be refused")
    assert await scene.shard.relay.loaded_version() == 3


async def test_a_bundle_of_another_campaign_or_without_signature_is_not_loaded(scene: Scene) -> None:
    other = PlayedVault("another")
    other.signing_key = scene.service.vault.signing_key
    forged = scene.service.vault.bundle(INSTRUMENT, [], scene.authority.certificate)
    flipped_signature(forged)
    scene.service.response = SyncResponse(bundle_version=1)
    scene.service.bundle = forged
    await scene.relay()
    for bundle, complaint in (
        (forged, "wrong signature"),
        (other.bundle(INSTRUMENT, [], scene.authority.certificate), "for another campaign"),
    ):
        scene.service.bundle = bundle

        async def complained(complaint: str = complaint) -> bool:
            return complaint in scene.output()

        await until(complained, complaint)
    assert await scene.shard.relay.loaded_version() == 0


async def test_a_store_that_the_vault_does_not_know_is_not_adopted(scene: Scene) -> None:
    await scene.blocks(1)
    scene.service.response = SyncResponse(markers=[os.urandom(16)])
    relay = await scene.relay()

    async def complained() -> bool:
        return "is another one than the vault knows" in scene.output()

    await until(complained, "the store to be refused")
    await scene.store.administer("DEL", scene.shard.keys.marker)

    async def empty_too() -> bool:
        return "is empty, not the one that the vault knows" in scene.output()

    await until(empty_too, "the wiped store to be refused")
    assert scene.service.deposits == []
    assert await scene.store.administer("EXISTS", scene.shard.keys.marker) == 0
    assert relay.status is None


async def test_a_new_store_is_given_an_identity_that_the_vault_hears_of(scene: Scene) -> None:
    await scene.store.administer("DEL", scene.shard.keys.marker)
    await scene.relay()

    async def reported() -> bytes:
        return scene.service.syncs[-1].shards[0].marker if scene.service.syncs else b""

    marker = await until(reported, "the new identity")
    assert marker == await scene.store.administer("GET", scene.shard.keys.marker)
    assert len(marker) == 16


async def test_nodes_are_enrolled_and_a_refused_one_keeps_nobody_waiting(scene: Scene) -> None:
    identities = [
        NodeIdentity.load(scene.authority.issue(INGEST, f"node-{number}"), PrivateKey.generate()) for number in (1, 2)
    ]
    campaign_id = scene.shard.keys.campaign_id
    requests = [identity.enrolment(campaign_id, clock_ms()) for identity in identities]
    key_ids = [scene.service.vault.enrol(request)[0] for request in requests]
    scene.service.refused_nodes = {key_ids[0]}
    rows = [(key_ids[0], requests[0].SerializeToString()), (key_ids[1], requests[1].SerializeToString())]
    for key_id, raw in (*rows, (os.urandom(16), b"\xff not a request")):
        await scene.store.administer("HSET", scene.shard.keys.enrolments, key_id, raw)
    await scene.relay()

    async def answered() -> bool:
        return bool(await asked(scene.store.administer("HEXISTS", scene.shard.keys.enrolled, key_ids[1])))

    await until(answered, "the good node's key")

    async def several_rounds() -> bool:
        return len(scene.service.syncs) > 10

    await until(several_rounds, "more rounds")
    assert scene.service.enrolments == 2, "a refused node is not asked for in every round"
    assert not await scene.store.administer("HEXISTS", scene.shard.keys.enrolled, key_ids[0])


async def test_a_relay_stops_at_once_and_says_what_it_did(scene: Scene) -> None:
    await scene.blocks(3)
    relay = await scene.relay()
    await scene.emptied()

    async def published() -> dict[str, Any]:
        raw = await scene.store.administer("HGET", scene.shard.keys.status, "relay:relay-1")
        row: dict[str, Any] = json.loads(raw) if raw else {}
        return row if row.get("deposited") == 3 else {}

    row = await until(published, "the relay's row")
    assert (row["vault_reachable"], row["quarantined"], row["last_receipt"] >= 1) == (True, 0, True)
    stopped = monotonic()
    relay.send(signal.SIGTERM)
    assert await relay.ended() == 0
    assert monotonic() - stopped < 3


async def test_a_renewed_certificate_is_used_without_a_restart(scene: Scene) -> None:
    relay = await scene.relay()

    async def asked_with(certificates: int) -> bool:
        return len(scene.service.certificates) == certificates

    await until(lambda: asked_with(1), "the first exchange")
    (scene.directory / "certificates" / "relay-relay-1.key").unlink()
    renewed = scene.authority.issue(RELAY, "relay-1")
    await until(lambda: asked_with(2), "an exchange under the new certificate")
    assert renewed.certificate_file.read_bytes().strip() in {each.strip() for each in scene.service.certificates}
    await scene.blocks(2)
    await scene.emptied()
    assert relay.status is None
    assert len(scene.relays) == 1
