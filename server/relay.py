"""The relay: carries blocks to the vault, and the campaign's bundle, window and keys back.

Step 7 of docs/life-of-an-answer.md. A block leaves the spool only after a receipt that is signed by the
pinned vault key and names it. Everything is repeatable; several relays may run.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any, TypeVar

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from google.protobuf.message import DecodeError, Message

from pli.errors import IntegrityError, PliError, SpoolUnsafe, Unavailable
from pli.pseudonym import PSEUDONYM_BYTES, shard_of
from pli.rpc.client import typed
from pli.signing import BUNDLE, DEPOSIT_RECEIPT, WINDOW, verify
from pli.vault.v1.bundle_pb2 import Bundle, Signed, SignedEnrolment, WindowOrder, WindowPhase
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
M = TypeVar("M", bound=Message)

ENTRY_BYTES = PSEUDONYM_BYTES + 4
MARKER_BYTES = 16
READ_WAIT_MS = 200
"""How long one look for new blocks waits: short, so that a stop is quick."""

FIRST_READ_BLOCKS = 8
"""Before the size of blocks is known: 8 of the largest are 8 MB in memory."""

RETRY_SECONDS = 1.0
"""Between two deposits of a block that the vault wants again; others go on meanwhile."""

REVISIT_SECONDS = 5.0
"""Between two looks for blocks that another relay left behind."""

ASK_AGAIN_SECONDS = 10.0
"""Between two requests for a node that the vault refused."""

SETTLED = frozenset(
    {Verdict.VERDICT_NEW, Verdict.VERDICT_DUPLICATE, Verdict.VERDICT_CONFLICT, Verdict.VERDICT_QUARANTINED}
)
"""After these the vault keeps the block, and the spool may forget it. No other verdict lets it go."""


class Relay:
    """One relay process. `run` ends when cancelled."""

    def __init__(
        self,
        settings: RelaySettings,
        shards: list[RelaySpool],
        stub: DepositServiceStub,
        vault_key: Ed25519PublicKey,
        monotonic: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._shards = shards
        self._stub: Any = stub
        self._vault_key = vault_key
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self._receipted: set[bytes] = set()
        self._deposited = 0
        self._quarantined = 0
        self._last_receipt = 0
        self._why: dict[str, str] = {"sync": "STARTING"}
        self._adopted = [False] * len(shards)
        self._revisit_at = [0.0] * len(shards)
        self._read_blocks = [FIRST_READ_BLOCKS] * len(shards)
        self._refused_nodes: dict[bytes, float] = {}

    async def run(self) -> None:
        """Carries until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever("sync", self._sync_once, self._settings.sync_ms / 1000))
            for shard in range(len(self._shards)):
                group.create_task(self._for_ever(f"shard {shard}", lambda shard=shard: self._carry(shard), 0.0))  # type: ignore[misc]  # a default binds the loop's value

    async def _for_ever(self, name: str, step: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
        """Repeats a step; after a failure with full-jitter back-off."""
        bound = 0.1
        while True:
            try:
                await step()
                self._why[name] = ""
                bound = 0.1
                await asyncio.sleep(pause)
            except PliError as error:
                if self._why.get(name) != error.reason:
                    log.warning("relay_waits", action=name, reason=error.reason, why=error.message)
                self._why[name] = error.reason
                share = int.from_bytes(self._random_bytes(4), "big") / 2**32
                await asyncio.sleep(0.02 + share * bound)
                bound = min(2 * bound, self._settings.backoff_max_ms / 1000)

    # Blocks out

    async def _carry(self, shard: int) -> None:
        """One round: what this relay took and still owes, what others left, then what is new."""
        if not self._adopted[shard]:
            await asyncio.sleep(READ_WAIT_MS / 1000)
            return
        spool = self._shards[shard]
        try:
            if self._monotonic() >= self._revisit_at[shard]:
                await self._revisit(shard)
            fresh = await spool.read_new(self._read_blocks[shard], READ_WAIT_MS)
            if fresh:
                # Taken is owed: should the deposit fail, the next round begins with it.
                due, self._revisit_at[shard] = self._revisit_at[shard], 0.0
                left = await self._deposit(shard, fresh)
                self._revisit_at[shard] = min(due, self._monotonic() + RETRY_SECONDS) if left else due
        except SpoolUnsafe:
            # Perhaps its Functions or its group are gone: the next exchange adopts it anew, if it is the right one.
            self._adopted[shard] = False
            raise

    async def _revisit(self, shard: int) -> None:
        spool = self._shards[shard]
        after, left = b"0", 0
        while pending := await spool.read_own_pending(after, self._read_blocks[shard]):
            left += await self._deposit(shard, pending)
            after = pending[-1].entry_id
        claimed = await spool.claim(self._settings.claim_idle_ms, self._read_blocks[shard])
        if claimed:
            left += await self._deposit(shard, claimed)
        self._revisit_at[shard] = self._monotonic() + (RETRY_SECONDS if left else REVISIT_SECONDS)

    async def _deposit(self, shard: int, entries: list[Entry]) -> int:
        """Deposits in portions by bytes and removes what the receipts name; returns how many are still owed."""
        portion: list[Entry] = []
        size = left = total = 0
        for entry in entries:
            if portion and size + entry.size > self._settings.read_max_bytes:
                left += await self._deposit_portion(shard, portion)
                portion, size = [], 0
            portion.append(entry)
            size += entry.size
            total += entry.size
        left += await self._deposit_portion(shard, portion)
        # Reading cannot be told a size: the next read takes about one deposit's worth of such blocks.
        fitting = self._settings.read_max_bytes * len(entries) // max(total, 1)
        self._read_blocks[shard] = min(max(fitting, 1), self._settings.read_max_blocks)
        return left

    async def _deposit_portion(self, shard: int, entries: list[Entry]) -> int:
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
        receipt = self._vault_says(DepositReceipt(), DEPOSIT_RECEIPT, response.receipt)
        done = self._named(shard, receipt, blocks, closings)
        await spool.remove(done)
        self._deposited += len(done)
        self._last_receipt = receipt.number
        return len(entries) - len(done)

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
        pairs = list(zip(blocks, receipt.blocks, strict=True))
        if any(verdict.digest != sha256(entry.block).digest() for entry, verdict in pairs):
            raise IntegrityError("the vault's receipt names other blocks than were deposited")
        done: list[Entry] = []
        for entry, verdict in pairs:
            if verdict.verdict not in SETTLED:
                self._receipted.discard(entry.epoch_id)
                continue
            if verdict.verdict == Verdict.VERDICT_QUARANTINED:
                self._quarantined += 1
                log.error("block_quarantined", shard=shard, epoch=entry.epoch_id.hex()[:8], number=entry.number)
            else:
                self._receipted.add(entry.epoch_id)
            done.append(entry)
        return done + [entry for entry, taken in zip(closings, receipt.closings, strict=True) if taken]

    # Orders in

    async def _sync_once(self) -> None:
        """Exchanges state with the vault and does what it wants."""
        facts = [await spool.facts() for spool in self._shards]
        loaded = min([await spool.loaded_version() for spool in self._shards])
        states = [
            ShardState(
                marker=fact.marker,
                window_version=fact.window_version,
                blocks_waiting=fact.waiting,
                closed=fact.closed,
            )
            for fact in facts
        ]
        response: SyncResponse = await self._ask(
            self._stub.Sync,
            SyncRequest(
                campaign_id=self._settings.campaign_id,
                relay=self._settings.name,
                bundle_version=loaded,
                shards=states,
            ),
        )
        await self._adopt(response)
        if response.bundle_version > loaded:
            await self._load_bundle(loaded)
        if response.HasField("window"):
            await self._apply_window(response.window)
        await self._enrol_nodes()
        self._why["sync"] = ""
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

    async def _load_bundle(self, loaded: int) -> None:
        """Fetches bundle and registry, and loads them shard by shard; the last step marks it loaded.

        Raises:
            IntegrityError: signature, campaign, version, count or digest do not fit.
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
                    bundle = self._checked_bundle(signed, loaded)
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

    def _checked_bundle(self, signed: Signed, loaded: int) -> Bundle:
        bundle = self._vault_says(Bundle(), BUNDLE, signed)
        if bundle.campaign_id != self._settings.campaign_id:
            raise IntegrityError("the vault's bundle is for another campaign")
        if bundle.version <= loaded:
            raise IntegrityError("the vault's bundle is older than the one that is loaded")
        if bundle.shards != len(self._shards):
            raise IntegrityError(
                f"the campaign has {bundle.shards} shards, this relay is configured for "
                f"{len(self._shards)}; correct `shards`"
            )
        return bundle

    async def _put_registry(self, entries: bytes) -> None:
        rows: list[list[bytes]] = [[] for _ in self._shards]
        for at in range(0, len(entries), ENTRY_BYTES):
            entry = entries[at : at + ENTRY_BYTES]
            rows[shard_of(entry[:PSEUDONYM_BYTES], len(self._shards))].append(entry)
        for spool, shard_rows in zip(self._shards, rows, strict=True):
            if shard_rows:
                await spool.put_registry(shard_rows)

    async def _apply_window(self, signed: Signed) -> None:
        order = self._vault_says(WindowOrder(), WINDOW, signed)
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
        now = self._monotonic()
        for key_id, raw in (await spool.enrolments()).items():
            if now < self._refused_nodes.get(key_id, 0.0):
                continue
            try:
                request = EnrolNodeRequest(enrolment=_read(SignedEnrolment(), raw, "a node's request in the spool"))
                response = await self._ask(self._stub.EnrolNode, request)
            except Unavailable:
                raise
            except PliError as error:
                # One refused node must not keep the others waiting; it is asked for, and logged, again later.
                log.error("node_refused", reason=error.reason, why=error.message)
                self._refused_nodes[key_id] = now + ASK_AGAIN_SECONDS
                continue
            await spool.put_enrolled(key_id, response.enrolled.SerializeToString())

    async def _publish(self) -> None:
        spool = self._shards[0]
        why = next((reason for reason in self._why.values() if reason), "")
        row = {
            "deposited": self._deposited,
            "quarantined": self._quarantined,
            "vault_reachable": not why,
            "why": why,
            "published_at_ms": await spool.time_ms(),
            "last_receipt": self._last_receipt,
        }
        await spool.publish(f"relay:{self._settings.name}", json.dumps(row))
        for each in self._shards:
            oldest = await each.oldest_ms()
            await spool.publish(f"oldest:{each.keys.shard}", json.dumps({} if oldest is None else {"ms": oldest}))

    # Speaking with the vault

    async def _ask(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, timeout=self._settings.call_timeout_ms / 1000)
        except grpc.aio.AioRpcError as error:
            raise typed(error) from error

    def _vault_says(self, message: M, label: bytes, signed: Signed) -> M:
        """The body of a statement that the pinned key signed.

        Raises:
            IntegrityError: it did not, or not this kind of statement.
        """
        return _read(message, verify(self._vault_key, label, signed), f"a vault statement ({label.decode()})")


def _read(message: M, raw: bytes, what: str) -> M:
    try:
        message.ParseFromString(raw)
    except DecodeError as error:
        raise IntegrityError(f"{what} is not readable") from error
    return message
