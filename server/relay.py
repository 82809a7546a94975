"""The relay: carries blocks to the vault, and the campaign's bundle, window and keys back.

Step 7 of docs/life-of-an-answer.md. A block leaves the spool only after a receipt that is signed by the
pinned vault key and names it. Everything is repeatable; several relays may run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pli.errors import IntegrityError, PliError, SpoolUnsafe, Unavailable, VaultUnavailable
from pli.pseudonym import PSEUDONYM_BYTES, shard_of
from pli.rpc.client import typed
from pli.signing import BUNDLE, DEPOSIT_RECEIPT, WINDOW, verify
from pli.vault.v1.bundle_pb2 import Bundle, SignedEnrolment, WindowOrder, WindowPhase
from pli.vault.v1.deposit_pb2 import (
    DepositReceipt,
    DepositRequest,
    EnrolNodeRequest,
    FetchBundleRequest,
    ShardState,
    SyncRequest,
    SyncResponse,
    Verdict,
)
from pli.vault.v1.deposit_pb2_grpc import DepositServiceStub
from server.config import RelaySettings
from server.store.relay_spool import Entry, RelaySpool

log = structlog.get_logger()

ENTRY_BYTES = PSEUDONYM_BYTES + 4
MARKER_BYTES = 16
READ_WAIT_MS = 200
"""How long one look for new blocks waits: short, so that a stop is quick."""


class Relay:
    """One relay process. `run` ends when cancelled."""

    def __init__(
        self,
        settings: RelaySettings,
        shards: list[RelaySpool],
        stub: DepositServiceStub,
        vault_key: Ed25519PublicKey,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._shards = shards
        self._stub: Any = stub
        self._vault_key = vault_key
        self._random_bytes = random_bytes
        self._receipted: set[bytes] = set()
        self._deposited = 0
        self._quarantined = 0
        self._last_receipt = 0
        self._why = "STARTING"
        self._adopted: list[bool] = [False] * len(shards)

    async def run(self) -> None:
        """Carries until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever(self._sync_once, self._settings.sync_ms / 1000))
            for shard in range(len(self._shards)):
                group.create_task(self._for_ever(lambda shard=shard: self._carry(shard), 0.0))  # type: ignore[misc]  # a default binds the loop's value

    async def _for_ever(self, step: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        """Repeats a step; after a failure with full-jitter back-off."""
        bound = 0.1
        while True:
            try:
                await step()
                bound = 0.1
                if pause:
                    await asyncio.sleep(pause)
            except PliError as error:
                if self._why != error.reason:
                    log.warning("relay_waits", reason=error.reason, why=error.message)
                self._why = error.reason
                share = int.from_bytes(self._random_bytes(4), "big") / 2**32
                await asyncio.sleep(0.02 + share * bound)
                bound = min(2 * bound, self._settings.backoff_max_ms / 1000)

    # Blocks out

    async def _carry(self, shard: int) -> None:
        """Own pending first, then what others left, then what is new."""
        spool = self._shards[shard]
        if not self._adopted[shard]:
            await asyncio.sleep(READ_WAIT_MS / 1000)
            return
        after = b"0"
        while pending := await spool.read_own_pending(after, self._settings.read_max_blocks):
            await self._deposit(shard, pending)
            after = pending[-1].entry_id
        claimed = await spool.claim(self._settings.claim_idle_ms, self._settings.read_max_blocks)
        if claimed:
            await self._deposit(shard, claimed)
        while fresh := await spool.read_new(self._settings.read_max_blocks, READ_WAIT_MS):
            await self._deposit(shard, fresh)

    async def _deposit(self, shard: int, entries: list[Entry]) -> None:
        """Deposits in portions by bytes, and removes what the receipt names."""
        portion: list[Entry] = []
        size = 0
        for entry in entries:
            if portion and size + entry.size > self._settings.read_max_bytes:
                await self._deposit_portion(shard, portion)
                portion, size = [], 0
            portion.append(entry)
            size += entry.size
        if portion:
            await self._deposit_portion(shard, portion)

    async def _deposit_portion(self, shard: int, entries: list[Entry]) -> None:
        spool = self._shards[shard]
        blocks = [entry for entry in entries if entry.block]
        closings = [entry for entry in entries if entry.closing]
        request = DepositRequest(
            campaign_id=self._settings.campaign_id,
            shard=shard,
            relay=self._settings.name,
            headers=await self._headers(spool, blocks),
            blocks=[entry.block for entry in blocks],
            closings=[entry.closing for entry in closings],
        )
        response = await self._ask(self._stub.Deposit, request)
        receipt = DepositReceipt.FromString(verify(self._vault_key, DEPOSIT_RECEIPT, response.receipt))
        done = self._named(shard, receipt, blocks, closings)
        await spool.remove(done)
        self._deposited += len(done)
        self._last_receipt = receipt.number
        self._why = ""
        if len(done) < len(entries):
            raise VaultUnavailable(f"{len(entries) - len(done)} entries must be deposited again")

    async def _headers(self, spool: RelaySpool, blocks: list[Entry]) -> list[bytes]:
        headers: dict[bytes, bytes] = {}
        for entry in blocks:
            if entry.epoch_id in self._receipted or entry.epoch_id in headers:
                continue
            header = entry.header or await spool.header(entry.epoch_id)
            if header:
                headers[entry.epoch_id] = header
        return list(headers.values())

    def _named(self, shard: int, receipt: DepositReceipt, blocks: list[Entry], closings: list[Entry]) -> list[Entry]:
        """The entries that this receipt lets go.

        Raises:
            IntegrityError: a genuine receipt for something else.
        """
        if receipt.campaign_id != self._settings.campaign_id or receipt.shard != shard:
            raise IntegrityError("the vault's receipt is for another campaign or shard")
        if len(receipt.blocks) != len(blocks) or len(receipt.closings) != len(closings):
            raise IntegrityError("the vault's receipt does not cover what was deposited")
        done: list[Entry] = []
        for entry, verdict in zip(blocks, receipt.blocks, strict=True):
            if verdict.digest != sha256(entry.block).digest():
                raise IntegrityError("the vault's receipt names other blocks than were deposited")
            if verdict.verdict == Verdict.VERDICT_RETRY:
                self._receipted.discard(entry.epoch_id)
                continue
            if verdict.verdict == Verdict.VERDICT_QUARANTINED:
                self._quarantined += 1
                log.error("block_quarantined", shard=shard, epoch=entry.epoch_id.hex()[:8], number=entry.number)
            else:
                self._receipted.add(entry.epoch_id)
            done.append(entry)
        done += [entry for entry, taken in zip(closings, receipt.closings, strict=True) if taken]
        return done

    # Orders in

    async def _sync_once(self) -> None:
        """Exchanges state with the vault and does what it wants."""
        facts = [await spool.facts() for spool in self._shards]
        loaded = min([await spool.loaded_version() for spool in self._shards])
        response: SyncResponse = await self._ask(
            self._stub.Sync,
            SyncRequest(
                campaign_id=self._settings.campaign_id,
                relay=self._settings.name,
                bundle_version=loaded,
                shards=[
                    ShardState(
                        marker=fact.marker,
                        window_version=fact.window_version,
                        blocks_waiting=fact.waiting,
                        closed=fact.closed,
                    )
                    for fact in facts
                ],
            ),
        )
        await self._adopt(response)
        if response.bundle_version > loaded:
            await self._load_bundle()
        if response.HasField("window"):
            await self._apply_window(response)
        await self._enrol_nodes()
        self._why = ""
        await self._publish()

    async def _adopt(self, response: SyncResponse) -> None:
        """Makes every shard's store the one that the vault knows, or refuses to go on."""
        for shard, spool in enumerate(self._shards):
            known = response.markers[shard] if shard < len(response.markers) else b""
            held = (await spool.facts()).marker
            if known and held != known:
                self._adopted[shard] = False
                what = "is empty" if not held else "is another one"
                raise SpoolUnsafe(
                    f"the store of shard {shard} {what} than the vault knows for this campaign; "
                    "restore the right one: it is not adopted"
                )
            if not held:
                await spool.adopt(self._random_bytes(MARKER_BYTES))
            if not self._adopted[shard]:
                await spool.load_functions()
                self._adopted[shard] = True

    async def _load_bundle(self) -> None:
        """Fetches bundle and registry, and loads them shard by shard; the last step marks it loaded.

        Raises:
            IntegrityError: signature, order, count or digest do not fit.
        """
        stream = self._stub.FetchBundle(
            FetchBundleRequest(campaign_id=self._settings.campaign_id), timeout=self._settings.call_timeout_ms / 1000
        )
        signed, bundle = None, Bundle()
        digest, count = sha256(), 0
        try:
            async for part in stream:
                if part.WhichOneof("part") == "bundle":
                    signed = part.bundle
                    bundle.ParseFromString(verify(self._vault_key, BUNDLE, signed))
                    if bundle.shards != len(self._shards):
                        raise IntegrityError(
                            f"the campaign has {bundle.shards} shards, this relay is configured for "
                            f"{len(self._shards)}; correct `shards`"
                        )
                else:
                    digest.update(part.registry.entries)
                    count += len(part.registry.entries) // ENTRY_BYTES
                    await self._put_registry(part.registry.entries)
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
        if signed is None or count != bundle.registry_count or digest.digest() != bundle.registry_digest:
            raise IntegrityError("the registry arrived incomplete or altered; it is fetched again")
        for spool in self._shards:
            await spool.put_bundle(signed.SerializeToString(), bundle.version)
        log.info("bundle_loaded", version=bundle.version, count=count)

    async def _put_registry(self, entries: bytes) -> None:
        rows: list[list[bytes]] = [[] for _ in self._shards]
        for at in range(0, len(entries), ENTRY_BYTES):
            entry = entries[at : at + ENTRY_BYTES]
            rows[shard_of(entry[:PSEUDONYM_BYTES], len(self._shards))].append(entry)
        for spool, shard_rows in zip(self._shards, rows, strict=True):
            if shard_rows:
                await spool.put_registry(shard_rows)

    async def _apply_window(self, response: SyncResponse) -> None:
        order = WindowOrder.FromString(verify(self._vault_key, WINDOW, response.window))
        if order.campaign_id != self._settings.campaign_id:
            raise IntegrityError("the vault's order about the window is for another campaign")
        for spool in self._shards:
            facts = await spool.facts()
            if facts.closed or (facts.window_version >= order.version):
                continue
            if order.phase == WindowPhase.WINDOW_PHASE_CLOSED:
                await spool.close_window(order.version)
                log.info("window_closed", shard=spool.keys.shard, version=order.version)
            else:
                await spool.set_window(
                    order.version, order.phase, order.opens_at_ms, order.closes_at_ms, order.grace_ms
                )
                log.info("window_set", shard=spool.keys.shard, version=order.version, state=int(order.phase))

    async def _enrol_nodes(self) -> None:
        spool = self._shards[0]
        for key_id, raw in (await spool.enrolments()).items():
            request = EnrolNodeRequest(enrolment=SignedEnrolment.FromString(raw))
            try:
                response = await self._ask(self._stub.EnrolNode, request)
            except Unavailable:
                raise
            except PliError as error:
                # One refused node must not keep the others waiting; it asks again, and is logged again.
                log.error("node_refused", reason=error.reason, why=error.message)
                continue
            await spool.put_enrolled(key_id, response.enrolled.SerializeToString())

    async def _publish(self) -> None:
        spool = self._shards[0]
        now = await spool.time_ms()
        row = {
            "deposited": self._deposited,
            "quarantined": self._quarantined,
            "vault_reachable": not self._why,
            "why": self._why,
            "published_at_ms": now,
            "last_receipt": self._last_receipt,
        }
        await spool.publish(f"relay:{self._settings.name}", json.dumps(row))
        for each in self._shards:
            oldest = await each.oldest_ms()
            await each.publish(f"oldest:{each.keys.shard}", json.dumps({} if oldest is None else {"ms": oldest}))

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._settings.call_timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error
