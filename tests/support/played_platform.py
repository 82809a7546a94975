"""The platform's part, played for tests of the vault: nodes that seal, shards that keep, one relay.

    platform = PlayedPlatform(CAMPAIGN, answer_key, authority)
    platform.follow(response)                 # does what the vault's SyncResponse asks for
    node = platform.node()
    node.commit(records=3)                    # one block more in the node's shard
    request = platform.deposit(0)             # everything that waits, or None
    platform.forget(0)                        # after the receipt

Blocks and headers are real ones (pli.sealing, pli.epochs); the spool's Functions are not played: a
commit after the close is the test's own fault.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from pli.blocks import NO_HASH, block_hash
from pli.canonical import canonical
from pli.closings import ClosedEpoch, write_closing
from pli.development_ca import DevelopmentAuthority
from pli.hpke import PrivateKey, PublicKey
from pli.ingest.v1.ingest_pb2 import Answer
from pli.process import clock_ms
from pli.records import RecordKind
from pli.rpc.roles import INGEST
from pli.sealing import SealingEpoch
from pli.vault.v1.bundle_pb2 import WindowOrder, WindowPhase
from pli.vault.v1.deposit_pb2 import DepositRequest, ShardState, SyncRequest, SyncResponse
from server.epochs import EpochSource
from server.identity import NodeIdentity

RELAY_NAME = "relay-1"


@dataclass(slots=True)
class PlayedShard:
    """What one shard of the spool holds."""

    number: int
    marker: bytes = b""
    window_version: int = 0
    phase: int = 0
    bundle: int = 0
    blocks: list[bytes] = field(default_factory=list)
    headers: dict[bytes, bytes] = field(default_factory=dict)
    epochs: dict[bytes, ClosedEpoch] = field(default_factory=dict)
    closing: bytes = b""

    @property
    def closed(self) -> bool:
        return self.phase == WindowPhase.WINDOW_PHASE_CLOSED

    def take(self, epoch: SealingEpoch, number: int, block: bytes) -> None:
        """A commit."""
        self.headers[epoch.epoch_id] = epoch.header
        self.epochs[epoch.epoch_id] = ClosedEpoch(epoch.epoch_id, number, block_hash(block))
        self.blocks.append(block)

    def close(self, campaign_id: str) -> None:
        """Flips for ever and freezes the table of epochs."""
        self.phase = WindowPhase.WINDOW_PHASE_CLOSED
        self.closing = write_closing(campaign_id, self.number, self.marker, list(self.epochs.values()))

    def state(self) -> ShardState:
        """What a relay reports."""
        waiting = len(self.blocks) + bool(self.closing)
        return ShardState(
            marker=self.marker, window_version=self.window_version, blocks_waiting=waiting, closed=self.closed
        )


class PlayedNode:
    """One ingest process on one shard. `commit` does what the committer does, `seal` stops before the spool."""

    def __init__(self, shard: PlayedShard, epochs: EpochSource) -> None:
        self.shard = shard
        self._epochs = epochs
        self.epoch = epochs.next()
        self.number = 0
        self.hash = NO_HASH
        self._seq = 0

    def seal(
        self,
        records: int = 1,
        *,
        pseudonym: bytes = bytes(16),
        writer: bytes = bytes(16),
        number: int | None = None,
        previous_hash: bytes | None = None,
    ) -> bytes:
        """The next block of the current epoch, or one of another number or chain."""
        new = [(self._seq + 1 + at, 0, int(RecordKind.ANSWER), _answer(at)) for at in range(records)]
        self._seq += records
        section = self.epoch.seal_section(pseudonym, writer, 1, new)
        return self.epoch.seal_block(
            self.number + 1 if number is None else number,
            self.hash if previous_hash is None else previous_hash,
            [section],
            records,
        )

    def keep(self, block: bytes) -> bytes:
        """The spool takes a block that was sealed as the next one."""
        self.number, self.hash = self.number + 1, block_hash(block)
        self.shard.take(self.epoch, self.number, block)
        return block

    def commit(self, records: int = 1, *, pseudonym: bytes = bytes(16)) -> bytes:
        """Seals the next block and has the spool take it."""
        return self.keep(self.seal(records, pseudonym=pseudonym))

    def next_epoch(self, *, known_last: int | None = None) -> None:
        """Goes on under a new key. `known_last`: what the node believes to be the last number."""
        self.epoch = self._epochs.next(self.epoch.epoch_id, self.number if known_last is None else known_last)
        self.number, self.hash = 0, NO_HASH


class PlayedPlatform:
    """Shards, nodes, and what their relay says and carries."""

    def __init__(
        self,
        campaign_id: str,
        answer_key: bytes,
        authority: DevelopmentAuthority,
        shards: int = 1,
        clock_ms: Callable[[], int] = clock_ms,
    ) -> None:
        self.campaign_id = campaign_id
        self.answer_key = PublicKey(answer_key)
        self.authority = authority
        self.shards = [PlayedShard(number) for number in range(shards)]
        self._clock_ms = clock_ms
        self._nodes = 0

    def node(self, shard: int = 0) -> PlayedNode:
        """One more ingest process."""
        self._nodes += 1
        files = self.authority.issue(INGEST, f"node-{self._nodes}-{os.urandom(4).hex()}")
        identity = NodeIdentity.load(files, PrivateKey.generate())
        epochs = EpochSource(
            self.campaign_id, shard, os.urandom(16), self.answer_key, identity, self._clock_ms, os.urandom
        )
        return PlayedNode(self.shards[shard], epochs)

    def report(self) -> SyncRequest:
        """What the relay says about all shards."""
        return SyncRequest(
            campaign_id=self.campaign_id,
            relay=RELAY_NAME,
            bundle_version=min(shard.bundle for shard in self.shards),
            shards=[shard.state() for shard in self.shards],
        )

    def follow(self, response: SyncResponse, *, shards: list[int] | None = None) -> None:
        """Adopts, loads and applies what the vault wants, in all shards or in these."""
        order = WindowOrder.FromString(response.window.body)
        for shard in self.shards if shards is None else [self.shards[number] for number in shards]:
            if not shard.marker:
                shard.marker = sha256(os.urandom(16)).digest()[:16]
            shard.bundle = response.bundle_version
            if order.version <= shard.window_version or shard.closed:
                continue
            shard.window_version = order.version
            if order.phase == WindowPhase.WINDOW_PHASE_CLOSED:
                shard.close(self.campaign_id)
            else:
                shard.phase = order.phase

    def deposit(self, shard: int = 0) -> DepositRequest | None:
        """Everything that waits in a shard; None when nothing does."""
        held = self.shards[shard]
        if not held.blocks and not held.closing:
            return None
        return DepositRequest(
            campaign_id=self.campaign_id,
            shard=shard,
            relay=RELAY_NAME,
            headers=list(held.headers.values()),
            blocks=held.blocks,
            closings=[held.closing] if held.closing else [],
        )

    def forget(self, shard: int = 0) -> None:
        """Removes what waits: the receipt has come, or it is lost on purpose."""
        self.shards[shard].blocks = []
        self.shards[shard].closing = b""


def _answer(number: int) -> bytes:
    return canonical(Answer(item_id=f"item-{number}", text="given", opening=1))
