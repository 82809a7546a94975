"""Blocks out: from one shard of the spool to the vault, and away only by a receipt that names them."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import structlog

from pli.errors import IntegrityError
from pli.signing import DEPOSIT_RECEIPT
from pli.vault.v1.deposit_pb2 import DepositReceipt, DepositRequest, Verdict
from server.config import RelaySettings
from server.store.relay_spool import Entry, RelaySpool
from server.vault_client import VaultClient

log = structlog.get_logger()

READ_WAIT_MS = 200
"""How long one look for new blocks waits: short, so that a stop is quick."""

FIRST_READ_BLOCKS = 8
"""Before the size of blocks is known: 8 of the largest are 8 MB in memory."""

RETRY_SECONDS = 1.0
"""Between two deposits of a block that the vault wants again; others go on meanwhile."""

REVISIT_SECONDS = 5.0
"""Between two looks for blocks that another relay left behind."""

SETTLED = frozenset(
    {Verdict.VERDICT_NEW, Verdict.VERDICT_DUPLICATE, Verdict.VERDICT_CONFLICT, Verdict.VERDICT_QUARANTINED}
)
"""After these the vault keeps the block, and the spool may forget it. No other verdict lets it go."""


class Carrier:
    """Carries the blocks of one shard. `deposited`, `quarantined` and `last_receipt` are for the status."""

    def __init__(
        self, settings: RelaySettings, spool: RelaySpool, vault: VaultClient, monotonic: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._shard = spool.keys.shard
        self._vault = vault
        self._monotonic = monotonic
        self._receipted: set[bytes] = set()
        self._revisit_at = 0.0
        self._read_blocks = FIRST_READ_BLOCKS
        self.deposited = 0
        self.quarantined = 0
        self.last_receipt = 0

    async def carry(self) -> None:
        """One round: what this relay took and still owes, what others left, then what is new."""
        if self._monotonic() >= self._revisit_at:
            await self._revisit()
        fresh = await self._spool.read_new(self._read_blocks, READ_WAIT_MS)
        if fresh:
            # Taken is owed: should the deposit fail, the next round begins with it.
            due, self._revisit_at = self._revisit_at, 0.0
            left = await self._deposit(fresh)
            self._revisit_at = min(due, self._monotonic() + RETRY_SECONDS) if left else due

    async def _revisit(self) -> None:
        after, left = b"0", 0
        while pending := await self._spool.read_own_pending(after, self._read_blocks):
            left += await self._deposit(pending)
            after = pending[-1].entry_id
        claimed = await self._spool.claim(self._settings.claim_idle_ms, self._read_blocks)
        if claimed:
            left += await self._deposit(claimed)
        self._revisit_at = self._monotonic() + (RETRY_SECONDS if left else REVISIT_SECONDS)

    async def _deposit(self, entries: list[Entry]) -> int:
        """Deposits in portions by bytes and removes what the receipts name; returns how many are still owed."""
        portion: list[Entry] = []
        size = left = total = 0
        for entry in entries:
            if portion and size + entry.size > self._settings.read_max_bytes:
                left += await self._deposit_portion(portion)
                portion, size = [], 0
            portion.append(entry)
            size += entry.size
            total += entry.size
        left += await self._deposit_portion(portion)
        # Reading cannot be told a size: the next read takes about one deposit's worth of such blocks.
        fitting = self._settings.read_max_bytes * len(entries) // max(total, 1)
        self._read_blocks = min(max(fitting, 1), self._settings.read_max_blocks)
        return left

    async def _deposit_portion(self, entries: list[Entry]) -> int:
        blocks = [entry for entry in entries if entry.block]
        closings = [entry for entry in entries if entry.closing]
        request = DepositRequest(
            campaign_id=self._settings.campaign_id,
            shard=self._shard,
            relay=self._settings.name,
            headers=await self._headers(blocks),
            blocks=[entry.block for entry in blocks],
            closings=[entry.closing for entry in closings],
        )
        receipt = self._vault.says(DepositReceipt(), DEPOSIT_RECEIPT, await self._vault.deposit(request))
        done = self._named(receipt, blocks, closings)
        await self._spool.remove(done)
        self.deposited += len(done)
        self.last_receipt = receipt.number
        return len(entries) - len(done)

    async def _headers(self, blocks: list[Entry]) -> list[bytes]:
        """The headers that these blocks need and of which this relay has seen no receipt."""
        headers: dict[bytes, bytes] = {}
        for entry in blocks:
            if entry.epoch_id in self._receipted or entry.epoch_id in headers:
                continue
            header = entry.header or await self._spool.header(entry.epoch_id)
            if header:
                headers[entry.epoch_id] = header
        return list(headers.values())

    def _named(self, receipt: DepositReceipt, blocks: list[Entry], closings: list[Entry]) -> list[Entry]:
        """The entries that this receipt lets go.

        Raises:
            IntegrityError: a genuine receipt for something else.
        """
        if receipt.campaign_id != self._settings.campaign_id or receipt.shard != self._shard:
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
                self.quarantined += 1
                log.error("block_quarantined", shard=self._shard, epoch=entry.epoch_id.hex()[:8], number=entry.number)
            else:
                self._receipted.add(entry.epoch_id)
            done.append(entry)
        return done + [entry for entry, taken in zip(closings, receipt.closings, strict=True) if taken]
